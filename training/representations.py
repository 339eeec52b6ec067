"""Representations of a training set, computed once and mapped into memory.

The cache is keyed by encoder and data, so another encoder or another folder never reuses it. It is an ordinary
.npy file, float32 [V,N,D], filled block by block: each process of a team computes its share, an interrupted pass goes
on where it was, and the finished file can be opened by numpy and shared by runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.doors import door, regular, said
from rcdm_fast.encoders import Encoder
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.views import VERSION, Views

log = logging.getLogger(__name__)

BLOCK = 4096  # images after which what was computed is on disk


def compute(
    encoder: Encoder, data: ImageSet, views: Views | None = None, view: int = 0, first: int = 0, batch: int = 500
) -> Tensor:
    """Representations of all images, in one of their views; float32 [N,D] on the CPU.

    Args:
        encoder, data: see above.
        views, view: how the images are seen; as they are without.
        first: the number in the set of `data`'s first image.
        batch: images at once.
    """
    parts = []
    for start in range(0, len(data), batch):
        images = data.floats(slice(start, start + batch))
        if views is not None:
            images = images.to(encoder.device)
            index = torch.arange(first + start, first + start + len(images), device=images.device)
            images, _ = views.see(images, torch.full_like(index, view), index)
        parts.append(encoder.encode(images).cpu())
    return torch.cat(parts)


def cached(
    encoder: Encoder,
    data: ImageSet,
    folder: str | Path,
    views: Views,
    dist: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Representations of all images in all views, float32 [V,N,D]; mapped from a file in `folder`.

    Args:
        encoder, data, folder, views: see above.
        crew: the processes; all of them call this, and each computes its fraction of the blocks.
        progress: called with (representations there, representations in all) of this process's share.

    Raises:
        StorageError: the file cannot be written, or is not what it says.
    """
    dist = dist or Processes()
    probe, described = _answers(encoder, data)
    name = f"representations-{key(encoder, data)}{'-flips' if views.flips else ''}"
    if views.augmented:
        name += f"-augmented{views.augmented}-v{VERSION}"
    cache = _Cache(Path(folder) / f"{name}.npy", len(views), len(data))
    with dist.leader_first():
        if dist.leads:
            cache.check()
    if not cache.complete:
        log.info("%d representations of %d images are computed once, into %s", len(views), len(data), cache.path)
        with dist.leader_first():
            cache.begin(probe.shape[1], dist.leads)
        own = list(cache.blocks())[dist.rank :: dist.size]
        for number, (view, start, stop) in enumerate(own):
            if not cache.has(view, start, stop):
                part = dataclasses.replace(data, pixels=data.pixels[start:stop])
                cache.write(view, start, compute(encoder, part, views, view, start))
            if progress is not None:
                progress(number + 1, len(own))
        dist.wait()
        with dist.leader_first():
            cache.finish({"encoder": json.loads(described), "data": data.fingerprint}, dist.leads)
    return cache.open()


def digest(h: Tensor) -> str:
    """What tells representations that were computed elsewhere, [N,D], from others: 16 hex digits."""
    return hashlib.sha256(f"{list(h.shape)}".encode() + h.contiguous().numpy().tobytes()).hexdigest()[:16]


def identity(encoder: Encoder | None, data: ImageSet, given: bool, h: Tensor | None = None) -> dict[str, str]:
    """What tells a run's representations from others where the encoder's name does not.

    An encoder may be `given` as it is, or be code in a file; or its representations `h` come without it.
    """
    if h is not None:
        return {"representations": digest(h)}
    assert encoder is not None
    return {"answers": key(encoder, data)} if given or encoder.config.source.startswith("python:") else {}


def check_given(h: Tensor, data: ImageSet) -> None:
    """Raise `ConfigError` unless representations from elsewhere are finite float32 [N,D] or [N,C,h,w], one an image."""
    if h.ndim not in (2, 4) or h.dtype != torch.float32 or len(h) != len(data) or not h[:1].numel():
        raise ConfigError(f"representations are float32 [{len(data)},D] for {len(data)} images, got {list(h.shape)}")
    if not bool(h.isfinite().all()):
        raise ConfigError("the representations contain NaN or infinity")


def of_run(
    encoder: Encoder | None,
    data: ImageSet,
    folder: str | Path,
    views: Views,
    dist: Processes | None = None,
    h: Tensor | None = None,
) -> Tensor:
    """What a run is trained on, float32 [V,N,D]: `cached`, or those that were computed elsewhere, [1,N,D].

    Maps are rows of C h w numbers, on disk, too.
    """
    if h is not None:
        return h.cpu().flatten(1)[None]
    assert encoder is not None, "a run has one or the other"
    return cached(encoder, data, folder, views, dist)


def key(encoder: Encoder, data: ImageSet) -> str:
    """What tells one encoder's representations of one set from all others: 16 hex digits."""
    probe, described = _answers(encoder, data)
    return hashlib.sha256(described.encode() + probe.numpy().tobytes() + data.fingerprint.encode()).hexdigest()[:16]


def _answers(encoder: Encoder, data: ImageSet) -> tuple[Tensor, str]:
    """Representations of the first two images [2,D], and the encoder's configuration as JSON."""
    probe = encoder.encode(data.floats(slice(0, 2))).cpu()
    return probe, json.dumps(dataclasses.asdict(encoder.config), sort_keys=True, default=str)


class _Cache:
    """An .npy file; while it is filled, `NAME.blocks/` has a file with the checksum of every block that is on disk.

    When it is complete, `NAME.json` has them all. Blocks are checked whenever a run opens the file, and damaged ones
    are computed again; files of earlier versions, without checksums, are taken as they are.
    """

    def __init__(self, path: Path, views: int, count: int) -> None:
        self.path, self.views, self.count = path, views, count
        self._blocks = path.with_suffix(".blocks")
        self._about = path.with_suffix(".json")

    @property
    def complete(self) -> bool:
        return self._about.is_file() and self.path.is_file()

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        for view in range(self.views):
            for start in range(0, self.count, BLOCK):
                yield view, start, min(start + BLOCK, self.count)

    def check(self) -> None:
        """Compare what is complete with its checksums; blocks that are damaged are then missing.

        Raises:
            StorageError: the file is not the array that it was.
        """
        if not self.complete:
            return
        self.open()
        try:
            about = storage.read_json(self._about)
        except storage.StorageError as error:
            log.warning("%s", error)
            about = None
        if isinstance(about, dict) and "shape" in about and "sha256" not in about:
            log.info("%s has no checksums (of an earlier version?)", self.path)
            return
        sums = about.get("sha256") if isinstance(about, dict) else None
        sound = {}
        for view, start, stop in self.blocks():
            name = self._marker(view, start).name
            if isinstance(sums, dict) and self._sum(view, start, stop) == sums.get(name):
                sound[name] = sums[name]
            else:
                log.warning("%s: representations %d to %d are damaged; computed again", self.path, start, stop - 1)
        if len(sound) < len(list(self.blocks())):
            shutil.rmtree(self._blocks, ignore_errors=True)
            for name, digest in sound.items():
                storage.write_text(self._blocks / name, digest)
            self._blocks.mkdir(exist_ok=True)
            self._about.unlink()  # last: until here the file counts as complete, and is checked again

    def begin(self, width: int, leads: bool) -> None:
        """The file in its full length and the folder of blocks, from before or new."""
        if not leads:
            return
        wanted = (self.views, self.count, width)
        if self._blocks.is_dir() and self._shape() == wanted:
            return
        shutil.rmtree(self._blocks, ignore_errors=True)
        storage.check_writable(self.path, 4 * self.views * self.count * width)
        with storage.atomic(self.path) as temporary:
            np.lib.format.open_memmap(temporary, "w+", np.float32, wanted).flush()
        self._blocks.mkdir()

    def _shape(self) -> tuple[int, ...] | None:
        """Of the array on disk; None if there is none of float32 in its full length."""
        try:
            array = self._array()
        except storage.StorageError:
            return None
        return array.shape

    def has(self, view: int, start: int, stop: int) -> bool:
        try:
            regular(self._marker(view, start))
            digest = self._marker(view, start).read_text(encoding="ascii")
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise storage.StorageError(
                f"{self._marker(view, start)}: cannot be read ({said(error)}); delete it"
            ) from error
        return not digest or digest == self._sum(view, start, stop)  # empty: of an earlier version

    def _marker(self, view: int, start: int) -> Path:
        return self._blocks / f"{view}-{start:012d}"

    def _sum(self, view: int, start: int, stop: int) -> str:
        """Checksum of a block as it is on disk; empty if it is not there."""
        shape = self._shape()
        if shape is None or shape[:2] != (self.views, self.count):
            return ""
        return hashlib.sha256(self._array()[view, start:stop].data).hexdigest()

    def write(self, view: int, start: int, rows: Tensor) -> None:
        """Put rows on disk, then say so. Written, not mapped: a full disk is an error then, and not a fault."""
        width = rows.shape[1]
        levels = rows.contiguous().numpy()
        try:
            with storage.open_in_place(self.path, "r+b") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                file.seek(file.tell() + 4 * width * (view * self.count + start))
                file.write(levels.data)
                file.flush()
                storage.sync(file.fileno())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise storage.StorageError(f"{self.path}: cannot be written ({reason})") from error
        storage.write_text(self._marker(view, start), hashlib.sha256(levels.data).hexdigest())

    def finish(self, about: dict[str, object], leads: bool) -> None:
        if not leads or self.complete:
            return
        missing = [start for view, start, stop in self.blocks() if not self.has(view, start, stop)]
        if missing:
            raise storage.StorageError(f"{self.path}: {len(missing)} blocks are missing; start again to compute them")
        sums = {self._marker(view, start).name: self._sum(view, start, stop) for view, start, stop in self.blocks()}
        storage.write_json(self._about, {**about, "shape": list(self.open().shape), "sha256": sums})
        shutil.rmtree(self._blocks, ignore_errors=True)

    def open(self) -> Tensor:
        array = self._array()
        if array.dtype != np.float32 or array.ndim != 3 or array.shape[:2] != (self.views, self.count):
            raise storage.StorageError(
                f"{self.path}: {array.dtype} {list(array.shape)}, not what was written; delete it"
            )
        return torch.from_numpy(array)

    def _array(self) -> np.ndarray:
        with door(storage.StorageError, f"{self.path}: cannot be read; delete it"):
            regular(self.path)
            # "c": nothing is written back, and PyTorch does not warn about memory that it must not write to
            array = cast(np.ndarray, np.lib.format.open_memmap(self.path, "c"))
            if not array.flags.c_contiguous:
                raise ValueError("its rows do not lie one after another")
            return array


def standardization(representations: Tensor, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Mean [D] and standard deviation [D] (at least 1e-3 of the largest) over all but the last dimension.

    Of maps of a `shape` (C,h,w) each channel has one of both, [C], over all positions, too.
    """
    if shape:
        mean, std = _of_channels(representations.flatten(0, -2), shape[0])
    else:
        flat = representations.flatten(0, -2)
        mean, std = flat.mean(dim=0), flat.std(dim=0)
    return mean, std.clamp_min(1e-3 * float(std.max()))


def _of_channels(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of maps [N,C h w]; block by block, because all of them may be larger than memory."""
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    blocks = [block.reshape(len(block), channels, -1) for block in rows.split(256)]
    count = sum(block.shape[0] * block.shape[2] for block in blocks)
    for block in blocks:
        total += block.double().sum(dim=(0, 2))
    mean = total / count
    for block in blocks:
        squares += (block.double() - mean[:, None]).square().sum(dim=(0, 2))
    return mean.float(), (squares / max(1, count - 1)).sqrt().float()
