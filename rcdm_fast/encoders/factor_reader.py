"""A small network that reads the factors of a world's images off pixels: of any image, samples of a decoder included.

Its output has the layout of a plain code of all factors (`oracle_code.py`), so it also serves as an encoder, of
samples too: ``bundled:shapes-reader``, ``file:PATH``, and as an oracle would write it down: ``reader:...``
(`read_code.py`). How well it reads stands in its file.

Knows nothing about how it is trained (`training/reader.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast import doors, storage
from rcdm_fast.checks import Range, choice, whole
from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import FACTORS, Factor
from rcdm_fast.encoders.oracle_code import Code, factors_of
from rcdm_fast.images import check_images
from rcdm_fast.metrics import factors as scores

METADATA_KEY = "rcdm_fast.factor_reader"
_WIDTHS, _HIDDEN = (32, 64, 96), 256
_BATCH = 256


class FactorReader(nn.Module):
    """Float [N,3,S,S] in [-1,1] -> float [N,D], the code of all factors of a world.

    Four convolutions, three of them strided; then two linear layers that see where everything is.

    Args:
        world: name of a world.
        size: S, pixels; a multiple of 8 from 8 to 512.

    Raises:
        ConfigError: no such world or size.
    """

    def __init__(self, world: str, size: int) -> None:
        super().__init__()
        self.world = choice(world, "world", FACTORS)
        self.size = whole(size, "size of a reader's images", Range(8, 512))
        if size % 8:
            raise ConfigError(f"size of a reader's images must be a multiple of 8, got {size}")
        self.about: tuple[Factor, ...] = FACTORS[world]
        self._code = Code(world, tuple(factor.name for factor in self.about))
        layers: list[nn.Module] = [nn.Conv2d(3, _WIDTHS[0], 3, padding=1), nn.GroupNorm(8, _WIDTHS[0]), nn.SiLU()]
        before = _WIDTHS[0]
        for width in _WIDTHS:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        places = (size // 8) ** 2
        layers += [nn.Flatten(), nn.Linear(before * places, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, self._code.dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, seen: Tensor) -> Tensor:
        """See the class."""
        return torch.cat(self.parts(seen), dim=1)

    def parts(self, seen: Tensor) -> list[Tensor]:
        """The same for each factor by itself, in the order of the world."""
        found = []
        for factor, part in zip(self.about, self._parts(self.raw(seen)), strict=True):
            if factor.kind == "choice":  # probabilities, scaled as the code's columns are
                count = part.shape[1]
                part = (part.softmax(dim=1) - 1 / count) * (count / (count - 1) ** 0.5)
            found.append(part)
        return found

    def raw(self, seen: Tensor) -> Tensor:
        """The same with logits of choices in place of their columns."""
        out: Tensor = self.layers(seen)
        return out

    def _parts(self, code: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = code.split(list(self._code.widths), dim=1)
        return parts

    def loss(self, seen: Tensor, factors: Tensor) -> Tensor:
        """Mean over factors of what is left of each: cross-entropy of choices, squared error of the code's columns.

        `factors` are float64 [N,F] (`World.factors`).
        """
        wanted = self._parts(self._code(factors))
        terms = []
        for place, (factor, part) in enumerate(zip(self.about, self._parts(self.raw(seen)), strict=True)):
            if factor.kind == "choice":
                terms.append(F.cross_entropy(part, factors[:, place].long().to(part.device)))
            else:
                terms.append(F.mse_loss(part, wanted[place].to(part.device)))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def read(self, seen: Tensor) -> Tensor:
        """Factors of images, float [N,3,S,S] in [-1,1] -> float64 [N,F]; scalars may lie beyond their ranges.

        Raises:
            ImageError: not such images.
            ConfigError: images of another size.
        """
        check_images(seen)
        if tuple(seen.shape[-2:]) != (self.size, self.size):
            raise ConfigError(f"this reader sees {self.size} px, got {list(seen.shape[-2:])}")
        device = next(self.parameters()).device
        codes = [self.raw(part.to(device, torch.float32)).cpu() for part in seen.split(_BATCH)]
        return factors_of(self.about, torch.cat(codes))

    def scores(self, true: Tensor, read: Tensor) -> dict[str, float]:
        """How well each factor was read, in [0,1] (`metrics/factors.py`); both are [N,F]."""
        return {
            factor.name: scores.score(factor.kind, true[:, place], read[:, place], int(factor.high))
            for place, factor in enumerate(self.about)
        }


def save(path: str | os.PathLike[str], reader: FactorReader, info: Mapping[str, Any]) -> None:
    """Write a reader; `info` is for whoever reads the file, its scores among it.

    Matrices and convolutions are stored as float16 (`rounded`), norms and biases as float32.
    """
    about = {"world": reader.world, "size": reader.size, "info": dict(info)}
    tensors = {name: value.half() if value.ndim > 1 else value.float() for name, value in reader.state_dict().items()}
    storage.save_tensors(path, tensors, {METADATA_KEY: json.dumps(about, sort_keys=True)})


@torch.no_grad()
def rounded(reader: FactorReader) -> FactorReader:
    """The reader itself, with the weights that `save` writes: whoever measures it measures the file."""
    for value in reader.parameters():
        if value.ndim > 1:
            value.copy_(value.half())
    return reader


def is_reader(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file holds a reader. Raises `StorageError`."""
    return METADATA_KEY in storage.read_metadata(path)


def load(path: str | os.PathLike[str]) -> tuple[FactorReader, dict[str, Any]]:
    """A reader in evaluation mode, in float32, and what its file says of it.

    Raises:
        StorageError: missing, truncated or damaged file.
        ConfigError: a file that is no reader, or whose tensors do not fit what it says.
    """
    metadata = storage.read_metadata(path)
    if METADATA_KEY not in metadata:
        raise ConfigError(f"{doors.printable(path)}: no reader of factors")
    with doors.door(ConfigError, f"{doors.printable(path)}: describes no reader of factors"):
        about = json.loads(metadata[METADATA_KEY])
        info = dict(about["info"])
        with torch.device("meta"):  # nothing is allocated for a network that the file's tensors do not fit
            reader = FactorReader(about["world"], about["size"])
        tensors = {name: value.float() for name, value in storage.read_tensors(path).items()}
        reader.load_state_dict(tensors, strict=True, assign=True)
    return reader.eval(), info
