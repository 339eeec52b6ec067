"""The file of a training set's representations, filled block by block and checked by the sums of its blocks."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.doors import door, regular, said

log = logging.getLogger(__name__)


class RepresentationFile:
    """An .npy file; while it is filled, `NAME.blocks/` has a file with the checksum of every block that is on disk.

    When it is complete, `NAME.json` has them all. Blocks are checked whenever a run opens the file, and damaged ones
    are computed again; files of earlier versions, without checksums, are taken as they are.
    """

    def __init__(self, path: Path, views: int, count: int, block: int) -> None:
        self.path, self.views, self.count, self.block = path, views, count, block
        self._blocks = path.with_suffix(".blocks")
        self._about = path.with_suffix(".json")

    @property
    def complete(self) -> bool:
        return self._about.is_file() and self.path.is_file()

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        for view in range(self.views):
            for start in range(0, self.count, self.block):
                yield view, start, min(start + self.block, self.count)

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
