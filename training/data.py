"""Pictures for training: a folder becomes one uint8 array in memory, with labels when its sub-folders are classes.

Made for sets that fit in memory (50,000 pictures of 32 pixels are 150 MB). Batches are drawn by step number, not by
an iterator with a state: the batch of step k depends on (seed, k) alone, which is what makes a resumed run exact.

Knows nothing about models or losses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one size.

    Attributes:
        pixels: uint8 [N,3,S,S].
        labels: int64 [N], or None when the folder has no sub-folders.
        classes: names of the labels.
        paths: file of each picture.
        fingerprint: hash of the pixels and labels; names caches and goes into model cards.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pixels)

    def floats(self, index: Tensor | slice) -> Tensor:
        """The pictures at `index` as float32 in [-1,1]."""
        return images.from_uint8(self.pixels[index])

    def subset(self, index: Tensor) -> ImageSet:
        """The pictures at `index` (int64 [M]) as a set of its own, with the same classes."""
        labels = None if self.labels is None else self.labels[index]
        paths = tuple(self.paths[place] for place in index.tolist())
        return ImageSet(self.pixels[index], labels, self.classes, paths, _fingerprint(self.pixels[index], labels))


def _fingerprint(pixels: Tensor, labels: Tensor | None) -> str:
    digest = hashlib.sha256(pixels.numpy().tobytes())
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def load_folder(folder: str | Path, size: int, workers: int = 8) -> ImageSet:
    """Read every picture below `folder` at `size` x `size` pixels (short side resized, centre crop).

    If the pictures lie in sub-folders, the first level of them gives the labels. Unreadable files are skipped, counted
    and named in the log.

    Raises:
        images.ImageError: the folder does not exist or holds no readable picture.
    """
    root = Path(folder)
    paths = images.find(root)

    def read(path: Path) -> np.ndarray | None:
        try:
            return images.to_uint8_array(images.open_image(path), size)
        except images.ImageError as error:
            log.warning("skipped: %s", error)
            return None

    with ThreadPoolExecutor(workers) as pool:
        arrays = list(pool.map(read, paths))
    kept = [(path, array) for path, array in zip(paths, arrays, strict=True) if array is not None]
    if not kept:
        raise images.ImageError(f"{root}: none of {len(paths)} files could be read as a picture")
    if len(kept) < len(paths):
        log.warning("%s: %d of %d files skipped", root, len(paths) - len(kept), len(paths))
    names = [path.relative_to(root).parts for path, _ in kept]
    labels, classes = _labels_of(names)
    pixels = torch.from_numpy(np.stack([array for _, array in kept])).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, labels, classes, tuple(path for path, _ in kept), _fingerprint(pixels, labels))


def _labels_of(names: Sequence[tuple[str, ...]]) -> tuple[Tensor | None, tuple[str, ...]]:
    if not all(len(parts) > 1 for parts in names):
        return None, ()
    classes = tuple(sorted({parts[0] for parts in names}))
    index = {name: number for number, name in enumerate(classes)}
    return torch.tensor([index[parts[0]] for parts in names]), classes


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator for one training step; the same (seed, step, stream) always gives the same numbers."""
    key = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


class BatchOrder:
    """Which pictures are in the batch of a step: a fresh permutation per epoch, the last partial batch left out."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if batch_size > count:
            raise ValueError(f"batch_size {batch_size} exceeds the {count} pictures of the set")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.per_epoch = count // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices of the pictures of `step` (0-based); int64 [batch_size]."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = step_generator(self.seed, epoch, stream=1)
            self._order = torch.randperm(self.count, generator=generator)
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]
