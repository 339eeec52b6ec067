"""Encoders that know the truth: representations of a world's images are made from the factors they were drawn from.

``oracle:shapes?factors=shape,x,y`` keeps these factors exactly and nothing else; `oracle_code.py` has the other forms.
An oracle looks at pixels like any encoder, and recognizes an image by them: as an item of its world (`count`, `size`
and `seed`, drawn again as far as needed), or as one that `Oracle.learn` drew from other factors. It refuses every other
image, samples of a decoder included: what it said of those would be made up.

Knows nothing about how an image could be read (`factor_reader.py`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast.checks import Range, real, whole
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data import world as worlds
from rcdm_fast.data.world import FACTORS, World
from rcdm_fast.doors import printable
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.encoders.oracle_code import Code
from rcdm_fast.encoders.sources import Source, parse_bool
from rcdm_fast.images import to_uint8

MAX_COUNT = 1_000_000  # items that one oracle remembers, each in about half a kilobyte
_NAMES = ("factors", "quantized", "noisy", "high")
_NUMBERS = ("count", "size", "seed", "levels", "frequency")
OPTIONS = frozenset({*_NAMES, *_NUMBERS, "r", "masked", "mlp"})
_ONE = threading.RLock()  # of what oracles remember


class Oracle(nn.Module):
    """See the module; called with images float [N,3,S,S] in [-1,1] -> float32 [N,D].

    Args:
        world: whose images.
        code: what is said of their factors.
    """

    def __init__(self, world: World, code: Code) -> None:
        super().__init__()
        if world.world != code.world:
            raise ConfigError(f"a code of world:{code.world} says nothing of world:{world.world}")
        whole(world.count, "count of an oracle's world", Range(1, MAX_COUNT))
        self.world, self.code = world, code
        self._known: dict[bytes, tuple[float, ...]] = {}
        self._read = 0  # items of the world that are known

    def learn(self, factors: Tensor) -> Tensor:
        """Draw images of any factors, to recognize them from now on: what interventions are made of.

        Args:
            factors: float [N,F], see `World.render`.

        Returns:
            uint8 [N,3,S,S].

        Raises:
            ConfigError: no factors of this world.
            EncoderError: other factors look the same to the last bit, so that nobody could tell which are meant.
        """
        factors = self.world.checked(factors)
        drawn = self.world.render(factors)
        with _ONE:
            self._remember(drawn, factors)
        return drawn

    def of_factors(self, factors: Tensor) -> Tensor:
        """What the oracle says of factors, float [N,F] -> float32 [N,D]: of `learn`'s images without drawing them."""
        return self.code(self.world.checked(factors), self.world.seed)

    def recognized(self, pixels: Tensor) -> Tensor:
        """Factors that images uint8 [N,3,S,S] were drawn from; float64 [N,F]. Raises `EncoderError` for others."""
        with _ONE:
            return torch.tensor([self._factors(key) for key in _keys(pixels)], dtype=torch.float64)

    def forward(self, seen: Tensor) -> Tensor:
        """See the class."""
        return self.code(self.recognized(to_uint8(seen)), self.world.seed).to(seen.device)

    def _factors(self, key: bytes) -> tuple[float, ...]:
        while key not in self._known:
            if self._read == self.world.count:
                raise EncoderError(
                    f"an oracle knows images of {self.world.name} only, and what it drew itself from other factors; "
                    "this image is none of them (reader:shapes-reader reads factors off any image)"
                )
            places = range(self._read, min(self._read + 256, self.world.count))
            factors = self.world.factors(places)
            self._remember(self.world.render(factors), factors)
            self._read = places.stop
        return self._known[key]

    def _remember(self, pixels: Tensor, factors: Tensor) -> None:
        for key, row in zip(_keys(pixels), factors.tolist(), strict=True):
            if self._known.setdefault(key, tuple(row)) != tuple(row):
                raise EncoderError(f"{self.world.name}: two sets of factors have the same image: {row}")


def _keys(pixels: Tensor) -> Iterator[bytes]:
    for image in pixels.cpu().contiguous().numpy():
        yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def load(source: Source, _fields: Mapping[str, Any]) -> Network:
    """The oracle of a spec. Raises `ConfigError`."""
    if source.name not in FACTORS:
        raise ConfigError(f"{source.shown}: no such world; there are {', '.join(FACTORS)}")
    numbers = {key: worlds.number(source.options[key], key) for key in _NUMBERS if key in source.options}
    world = World(source.name, **{key: numbers.pop(key) for key in ("count", "size", "seed") if key in numbers})  # type: ignore[arg-type]
    named = {key: listed(source.options[key], source.name) for key in _NAMES if key in source.options}
    if "factors" not in named:
        raise ConfigError(f"{source.shown}: say which factors are kept: factors=x,y, factors=all or factors=none")
    flags = {key: parse_bool(source.options[key], key) for key in ("masked", "mlp") if key in source.options}
    more = {"r": _real(source.options["r"])} if "r" in source.options else {}
    code = Code(source.name, **named, **numbers, **flags, **more)  # type: ignore[arg-type]
    return Network(Oracle(world, code), EncoderConfig(str(source), image_size=world.size, dim=code.dim))


def listed(text: str, world: str) -> tuple[str, ...]:
    """Names of factors as an option gives them: "x,y", "all" or "none"."""
    if text in ("all", "none"):
        return tuple(factor.name for factor in FACTORS[world]) if text == "all" else ()
    return tuple(text.split(","))


def _real(text: str) -> float:
    try:
        return real(float(text), "r")
    except ValueError as error:
        raise ConfigError(f"r must be a number, got {printable(text)!r}") from error
