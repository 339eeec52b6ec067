"""Representations of a training set, computed once and mapped into memory.

The cache is keyed by encoder and data, so another encoder or another folder never reuses it. It is an ordinary
.npy file, float32 [V,N,D], filled block by block: each process of a team computes its share, an interrupted pass goes
on where it was, and the finished file can be opened by numpy and shared by runs.

Knows nothing about what representations are used for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.encoders import Encoder
from rcdm_fast.training.data import ImageSet
from rcdm_fast.training.team import Team

BLOCK = 4096  # pictures after which what was computed is on disk


def compute(encoder: Encoder, data: ImageSet, flipped: bool = False, batch: int = 500) -> Tensor:
    """Representations of all pictures (mirrored left-right if `flipped`); float32 [N,D] on the CPU."""
    parts = []
    for start in range(0, len(data), batch):
        pictures = data.floats(slice(start, start + batch))
        parts.append(encoder.encode(pictures.flip(3) if flipped else pictures).cpu())
    return torch.cat(parts)


def cached(
    encoder: Encoder,
    data: ImageSet,
    folder: str | Path,
    flips: bool,
    crew: Team | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Representations [V,N,D] with V = 2 (as they are, mirrored) if `flips`, else 1; mapped from a file in `folder`.

    Args:
        encoder, data, folder, flips: see above.
        crew: the processes; all of them call this, and each computes its share of the blocks.
        progress: called with (representations there, representations in all) of this process's share.

    Raises:
        StorageError: the file cannot be written, or is not what it says.
    """
    crew = crew or Team()
    probe = encoder.encode(data.floats(slice(0, 2))).cpu()
    described = json.dumps(dataclasses.asdict(encoder.config), sort_keys=True, default=str)
    key = hashlib.sha256(described.encode() + probe.numpy().tobytes() + data.fingerprint.encode()).hexdigest()[:16]
    cache = _Cache(Path(folder) / f"representations-{key}{'-flips' if flips else ''}.npy", 1 + flips, len(data))
    if not cache.complete:
        with crew.leader_first():
            cache.begin(probe.shape[1], crew.leads)
        own = list(cache.blocks())[crew.rank :: crew.size]
        for number, (view, start, stop) in enumerate(own):
            if not cache.has(view, start):
                part = dataclasses.replace(data, pixels=data.pixels[start:stop])
                cache.write(view, start, compute(encoder, part, flipped=view == 1))
            if progress is not None:
                progress(number + 1, len(own))
        crew.wait()
        with crew.leader_first():
            cache.finish({"encoder": json.loads(described), "data": data.fingerprint}, crew.leads)
    return cache.open()


class _Cache:
    """An .npy file; while it is filled, `NAME.blocks/` has an empty file for every block that is on disk."""

    def __init__(self, path: Path, views: int, count: int) -> None:
        self.path, self.views, self.count = path, views, count
        self._blocks = path.with_suffix(".blocks")
        self._about = path.with_suffix(".json")

    @property
    def complete(self) -> bool:
        return self._about.exists() and self.path.exists()

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        for view in range(self.views):
            for start in range(0, self.count, BLOCK):
                yield view, start, min(start + BLOCK, self.count)

    def begin(self, width: int, leads: bool) -> None:
        """The file in its full length and the folder of blocks, from before or new."""
        if leads and not (self.path.exists() and self._blocks.is_dir()):
            shutil.rmtree(self._blocks, ignore_errors=True)
            shape = (self.views, self.count, width)
            with storage.atomic(self.path) as temporary:
                np.lib.format.open_memmap(temporary, "w+", np.float32, shape).flush()
            self._blocks.mkdir()

    def has(self, view: int, start: int) -> bool:
        return self._marker(view, start).exists()

    def _marker(self, view: int, start: int) -> Path:
        return self._blocks / f"{view}-{start:012d}"

    def write(self, view: int, start: int, rows: Tensor) -> None:
        """Put rows on disk, then say so. Written, not mapped: a full disk is an error then, and not a fault."""
        width = rows.shape[1]
        try:
            with open(self.path, "r+b") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                file.seek(file.tell() + 4 * width * (view * self.count + start))
                file.write(rows.contiguous().numpy().data)
                file.flush()
                os.fsync(file.fileno())
            self._marker(view, start).touch()
        except OSError as error:
            raise storage.StorageError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def finish(self, about: dict[str, object], leads: bool) -> None:
        if not leads or self.complete:
            return
        missing = [start for view, start, _ in self.blocks() if not self.has(view, start)]
        if missing:
            raise storage.StorageError(f"{self.path}: {len(missing)} blocks are missing; start again to compute them")
        storage.write_json(self._about, {**about, "shape": list(self.open().shape)})
        shutil.rmtree(self._blocks, ignore_errors=True)

    def open(self) -> Tensor:
        try:
            # "c": nothing is written back, and PyTorch does not warn about memory that it must not write to
            array = np.load(self.path, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise storage.StorageError(f"{self.path}: cannot be read ({error}); delete it") from error
        if array.dtype != np.float32 or array.ndim != 3 or array.shape[:2] != (self.views, self.count):
            raise storage.StorageError(
                f"{self.path}: {array.dtype} {list(array.shape)}, not what was written; delete it"
            )
        return torch.from_numpy(array)


def standardisation(representations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and standard deviation [D] (at least 1e-3 of the largest) over all but the last dimension."""
    flat = representations.flatten(0, -2)
    mean, std = flat.mean(dim=0), flat.std(dim=0)
    return mean, std.clamp_min(1e-3 * float(std.max()))
