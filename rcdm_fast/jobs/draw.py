"""A unit's images, whatever happens to single items or to memory.

Batches are packed across items up to the bucket. When memory does not suffice the bucket is halved for good; when
samples are not finite, the items of that batch are drawn one by one and those to blame are reported. Levels are rounded
on the device, so that a quarter of the bytes travels.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rcdm_fast import memory
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.images import to_uint8
from rcdm_fast.jobs.feed import Ready
from rcdm_fast.model import Model

Pair = tuple[int, int]  # item, sample


@dataclass(frozen=True)
class Drawn:
    """Finished images, N of them.

    Attributes:
        pairs: (item, sample) of each.
        levels: uint8 [N,H,W,3] on the CPU.
        noise: hash of each one's x_T, 16 hex digits.
    """

    pairs: list[Pair]
    levels: Tensor
    noise: list[str]


@dataclass
class Artist:
    """Draws units with one model.

    Attributes:
        model: what draws.
        config: how they are drawn.
        bucket: images per network evaluation; shrinks.
        on_bucket: told the new bucket when it has shrunk.
        busy_s: seconds spent encoding and drawing.
    """

    model: Model
    config: SamplingConfig
    bucket: int
    on_bucket: Callable[[int], None] = lambda bucket: None
    busy_s: float = field(default=0.0, init=False)

    def draw(self, ready: Ready) -> Iterator[Drawn]:
        """The unit's images in order; `ready.bad` grows by the items that cannot be drawn.

        Raises:
            ConfigError: the settings do not fit the model.
            torch.OutOfMemoryError, MemoryError, or what the engine raises: not even one image fits into memory.
        """
        self.busy_s += ready.busy_s
        left = list(ready.unit.pairs(frozenset(ready.bad)))
        while left:
            count = 0
            try:
                for drawn in self._within_memory(ready, left):
                    count += len(drawn.pairs)
                    yield drawn
                return
            except SamplingError:
                suspects, left = left[count : count + self.bucket], left[count + self.bucket :]
                yield from self._one_by_one(ready, suspects)
                left = [pair for pair in left if pair[0] not in ready.bad]

    def _one_by_one(self, ready: Ready, pairs: list[Pair]) -> Iterator[Drawn]:
        """Item by item; those whose samples are not finite become bad."""
        for item in dict.fromkeys(item for item, _ in pairs):
            own = [pair for pair in pairs if pair[0] == item]
            try:
                yield from list(self._within_memory(ready, own))
            except SamplingError as error:
                ready.bad[item] = str(error)

    def _within_memory(self, ready: Ready, pairs: list[Pair]) -> Iterator[Drawn]:
        """Batches of the bucket, which is halved as often as memory does not suffice."""
        left = pairs
        while left:
            count = 0
            try:
                for drawn in self._batches(ready, left):
                    count += len(drawn.pairs)
                    yield drawn
                return
            except Exception as error:  # every engine has its own
                if self.bucket == 1 or not memory.out_of_memory(error):
                    raise
                left = left[count:]
                self.bucket //= 2
                self.on_bucket(self.bucket)
                memory.release()

    def _batches(self, ready: Ready, pairs: Sequence[Pair]) -> Iterator[Drawn]:
        first = ready.unit.first_item
        hashes: dict[int, list[str]] = {}

        def watch(place: slice, x: Tensor) -> None:
            hashes[place.start] = [_hash(each) for each in x.cpu()]

        since = time.monotonic()
        request = self.model.request(
            ready.h,
            self.config,
            label=ready.label,
            items=ready.unit.items,
            pairs=[(item - first, sample) for item, sample in pairs],
        )
        for place, images in self.model.batches(request, self.bucket, watch=watch):
            levels = to_uint8(images.permute(0, 2, 3, 1)).contiguous().cpu()
            self.busy_s += time.monotonic() - since
            yield Drawn(list(pairs[place]), levels, hashes.pop(place.start))
            since = time.monotonic()


def default_bucket(model: Model) -> int:
    """Images per network evaluation where nobody says otherwise."""
    return 64 if model.device.type == "cuda" else 32


def check_request(model: Model, config: SamplingConfig, guide: Model | None = None) -> int:
    """Network evaluations per image. Raises `ConfigError` if the settings, or a guide, do not fit the model."""
    unet = model.config.unet
    h = torch.zeros(1, unet.representation_dim) if unet.representation_dim else None
    label = torch.zeros(1, dtype=torch.int64) if unet.num_classes else None
    if config.guidance != 1 and h is None and guide is None:
        raise ConfigError("guidance needs a model that takes representations")
    request = model.request(h, config, label=label, guide=guide)
    return request.evaluations * (1 if config.guidance == 1 else 2)


def _hash(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]
