"""Images for training, as one uint8 array with labels, and the order in which a run sees them.

The array lies in memory, in a file that is mapped into memory (`block_file.py`), or on the device: a set knows where,
its users do not care. Batches are drawn by step number, not by an iterator with a state: the batch of step k depends
on (seed, k) alone, which is what makes a resumed run exact.

Knows nothing about where images come from (`sources.py`), nor about models or losses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.checks import ConfigError
from rcdm_fast.data.originals import Originals, Viewer
from rcdm_fast.doors import door
from rcdm_fast.images import from_uint8

log = logging.getLogger(__name__)

RESIDENT = 0.25  # of a GPU's free memory: what a set may take to be kept there
_HASHED = 4096  # images at once
COPIES = 0.05  # of images that are asked of: what may be among those that were fitted on


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        pixels: uint8 [N,3,S,S].
        labels: int64 [N], or None when the source has none.
        classes: names of the labels.
        paths: file of each image, or shard / key, or array / number.
        fingerprint: hash of the pixels and labels; names caches and goes into model cards.
        skipped: what was left out and why, a line each.
        photographs: which photograph each image was cut from, int64 [N]; None: every image is one.
        originals: the images as they lie in their source, for encoders; None: the pixels are all there is.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    photographs: Tensor | None = None
    originals: Originals | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def identity(self) -> str:
        """What tells it from other sets where encoders look at it: the fingerprint, and whether there are originals."""
        return self.fingerprint if self.originals is None else f"{self.fingerprint} originals"

    def floats(self, index: Tensor | slice) -> Tensor:
        """The images at `index` as float32 in [-1,1], on the device of the pixels."""
        if isinstance(index, Tensor):
            index = index.to(self.pixels.device)
        return from_uint8(self.pixels[index])

    def seen(self, index: Tensor | slice, viewer: Viewer) -> Tensor:
        """The images at `index` as an encoder is to see them: float32 [M,3,s,s] in [-1,1], where the pixels are.

        Those whose size in the source is another one than here are read from there again, and seen by the `viewer`
        (the encoder) as one photograph by itself would be. Where there is none the pixels are given as they are.

        Raises:
            ImageError: an image is not in its source any more, or cannot be read.
        """
        images = self.floats(index)
        if self.originals is None:
            return images
        places = torch.arange(len(self))[index] if isinstance(index, slice) else index.cpu()
        return self.originals.seen(places, images, viewer)

    def subset(self, index: Tensor) -> ImageSet:
        """The images at `index` (int64 [M]) as a set of its own, with the same classes."""
        labels = None if self.labels is None else self.labels[index]
        paths = tuple(self.paths[place] for place in index.tolist()) if self.paths else ()
        marks = fingerprint(self.pixels[index], labels)
        originals = None if self.originals is None else self.originals.subset(index)
        return ImageSet(
            self.pixels[index], labels, self.classes, paths, marks, (), self._photographs()[index], originals
        )

    def part(self, start: int, stop: int) -> ImageSet:
        """The images from one place to before another, without labels and paths; the fingerprint is that of the set."""
        originals = None if self.originals is None else self.originals.subset(torch.arange(start, stop))
        return ImageSet(self.pixels[start:stop], None, (), (), self.fingerprint, originals=originals)

    def cut_from(self, pattern: str) -> ImageSet:
        """The same set, told which images were cut from one photograph.

        Args:
            pattern: a regular expression. Images in whose paths it finds the same text are of one photograph; where it
                finds none the image is one by itself.

        Raises:
            ConfigError: no regular expression, or it finds nothing in any path.
        """
        with door(ConfigError, f"{pattern!r}: no regular expression"):
            expression = re.compile(pattern)
        found = [expression.search(path.as_posix()) for path in self.paths]
        if not any(found):
            raise ConfigError(f"{pattern!r} finds nothing in the paths of the {len(self)} images")
        names = [number if match is None else match.group() for number, match in enumerate(found)]
        numbers: dict[str | int, int] = {}
        return dataclasses.replace(
            self, photographs=torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])
        )

    def _photographs(self) -> Tensor:
        return torch.arange(len(self)) if self.photographs is None else self.photographs

    def one_of_each(self, places: Tensor | None = None) -> Tensor:
        """Places of the first image of each photograph, of all or of those at `places` (int64, in order); int64 [M].

        Images of one photograph are not independent: of several sources no two may be of the same.
        """
        if places is None:
            places = torch.arange(len(self))
        firsts: dict[int, int] = {}
        for place, photograph in zip(places.tolist(), self._photographs()[places].tolist(), strict=True):
            firsts.setdefault(photograph, place)
        return torch.tensor(list(firsts.values()), dtype=torch.int64)

    def spread(self, count: int) -> Tensor:
        """Places of `count` images spread evenly over the set, no two of one photograph; int64 [count]."""
        known = self.one_of_each()
        return known[evenly(count, len(known))]

    def halves(self, seed: int) -> tuple[Tensor, Tensor]:
        """Places of two halves at random, in order, int64; a photograph is never in both.

        Raises:
            ConfigError: all images are of one photograph.
        """
        names, of = self._photographs().unique(return_inverse=True)
        if len(names) < 2:
            raise ConfigError(f"all {len(self)} images are of one photograph: there are no halves of that")
        rank = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[of]
        middle = max(1, int(rank.sort().values[len(self) // 2]))
        return (rank < middle).nonzero().flatten(), (rank >= middle).nonzero().flatten()

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set with its pixels on `device`."""
        return dataclasses.replace(self, pixels=self.pixels.to(device))


def evenly(count: int, available: int) -> Tensor:
    """`count` places spread evenly over `available`, first and last included, no two alike; int64 [count]."""
    return torch.linspace(0, available - 1, count, dtype=torch.float64).round().long()  # float32: one place twice


def fits(device: torch.device, *tensors: Tensor) -> bool:
    """Whether tensors that every step reads from should move to a GPU: in all at most a quarter of its free memory."""
    if device.type != "cuda":
        return False
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return size <= RESIDENT * torch.cuda.mem_get_info(device)[0]


def fingerprint(pixels: Tensor, labels: Tensor | None) -> str:
    """Hash of uint8 images [N,3,S,S] on the CPU and their labels."""
    digest = hashlib.sha256()
    for part in pixels.split(_HASHED):
        digest.update(part.contiguous().numpy().data)
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def number_labels(names: Sequence[str | None]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Names of classes -> int64 [N] and the classes in order; (None, ()) if an image has none.

    Names that are all whole numbers are ordered as numbers.
    """
    known = [name for name in names if name is not None]
    if not known or len(known) < len(names):
        if known:
            log.warning("%d of %d images have no label, so no label is used", len(names) - len(known), len(names))
        return None, ()
    numeric = all(name.isdecimal() for name in set(known))
    classes = tuple(sorted(set(known), key=int if numeric else None))
    index = {name: number for number, name in enumerate(classes)}
    return torch.tensor([index[name] for name in known]), classes


def check_classes(data: ImageSet, known: ImageSet) -> None:
    """Raises `ConfigError` unless both are labeled, with the same classes."""
    for each, what in ((data, "the data"), (known, "the images that a probe is fitted on")):
        if each.labels is None:
            raise ConfigError(f"classes cannot be read: {what} have no labels")
    if data.classes != known.classes:
        raise ConfigError(
            f"a probe must be fitted on the classes of the data, {', '.join(data.classes[:5])}...; "
            f"it would be on {', '.join(known.classes[:5])}..."
        )


def check_unseen(known: ImageSet, asked: ImageSet) -> None:
    """Raises `ConfigError` if many of the images that a probe is asked of are among those that it was fitted on.

    Of more than `COPIES` of them it would say what it has learned by heart. A few copies are in most sets.
    """
    marks = {hashlib.sha256(row.contiguous().numpy().data).digest() for row in known.pixels.cpu()}
    seen = sum(hashlib.sha256(row.contiguous().numpy().data).digest() in marks for row in asked.pixels.cpu())
    if seen > COPIES * len(asked):
        raise ConfigError(
            f"{seen} of {len(asked)} images that classes are asked of are among the very images that the probe was "
            "fitted on; give others"
        )


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator for one training step; the same (seed, step, stream) always gives the same numbers."""
    key = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


class BatchOrder:
    """Which images are in the batch of a step: a fresh permutation per epoch, the last partial batch left out."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if batch_size > count:
            raise ConfigError(f"batch_size {batch_size} exceeds the {count} images of the set")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.per_epoch = count // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices of the images of `step` (0-based); int64 [batch_size]."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = step_generator(self.seed, epoch, stream=1)
            self._order = torch.randperm(self.count, generator=generator)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]
