"""Decoded images in a folder, for sets that are larger than memory: written once, block by block, then mapped.

`pixels.u8` holds uint8 [N,3,S,S] without a header, `items.jsonl` a line for every item of the source (its path, label,
place in the source and whether it has another size there, or why it was skipped), `progress.json` how much of both is
valid, with the checksums of every block. A process that is killed loses at most the block it was writing; the next one
goes on behind the last valid block, and so does one that finds a damaged block: what is behind it is read again. A lock
keeps two processes from writing at once: the second waits, and finds a complete store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import doors, locks, storage
from rcdm_fast.data import image_set
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.data.originals import Originals
from rcdm_fast.data.readers.image_files import Source
from rcdm_fast.doors import door

log = logging.getLogger(__name__)

_COUNTS = ("read", "kept", "items_bytes")
_THREADS = 8  # that compare checksums
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Block:
    """Images that were decoded one after the other.

    Attributes:
        pixels: uint8 [n,3,S,S].
        labels, paths: of each.
        places: the number of each among the items of the source.
        other: whether each has another size in the source.
        skipped: why others were left out, a line each.
    """

    pixels: np.ndarray
    labels: list[str | None]
    paths: list[str]
    places: list[int]
    other: list[bool]
    skipped: list[str]


class PixelStore:
    """A store, locked while it is in use as a context manager.

    Args:
        folder: where it lies or shall lie.
        made_from: what decides about its content; contains "size", in pixels.

    Raises:
        StorageError: the folder holds a store of something else, is damaged beyond repair, or cannot be written.
    """

    def __init__(self, folder: str | Path, made_from: Mapping[str, Any]) -> None:
        self.folder = doors.path(folder, storage.StorageError)
        self.made_from = dict(made_from)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage.StorageError(f"{folder}: cannot be written ({error.strerror or error})") from error
        self._held = contextlib.ExitStack()
        self._state: dict[str, Any] = {}

    def __enter__(self) -> PixelStore:
        with contextlib.ExitStack() as held:
            held.enter_context(locks.locked(self.folder / ".lock", wait=True, what="a store of images"))
            self._state = self._progress()
            self._check()
            if not self.complete:
                self._cut("pixels.u8", self._state["kept"] * self._image)
                self._cut("items.jsonl", self._state["items_bytes"])
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()

    @property
    def complete(self) -> bool:
        """Whether the whole source has been read."""
        return bool(self._state["complete"])

    @property
    def read(self) -> int:
        """Items of the source that were read, skipped ones included."""
        return int(self._state["read"])

    @property
    def _image(self) -> int:
        return 3 * int(self.made_from["size"]) ** 2

    def names(self) -> dict[int, str]:
        """What the images that were kept are called, by their places; nothing of a store of an earlier version."""
        return {row["place"]: row["path"] for row in self._rows() if "path" in row and "place" in row}

    def append(self, block: Block) -> None:
        """Add a block."""
        kept = zip(block.paths, block.labels, block.places, block.other, strict=True)
        rows: list[dict[str, Any]] = [
            {"path": path, "label": label, "place": place, "other": other} for path, label, place, other in kept
        ]
        rows += [{"skipped": reason} for reason in block.skipped]
        levels = np.ascontiguousarray(block.pixels).data
        self._add("pixels.u8", levels)
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self._add("items.jsonl", text)
        state = self._state
        now = {
            "read": state["read"] + len(rows),
            "kept": state["kept"] + len(block.paths),
            "items_bytes": state["items_bytes"] + len(text),
        }
        if "blocks" in state:
            sums = {"pixels": hashlib.sha256(levels).hexdigest(), "items": hashlib.sha256(text).hexdigest()}
            now["blocks"] = [*state["blocks"], {**now, **sums}]
        self._save(**now)

    def finish(self) -> None:
        """The source is read to its end."""
        self._save(complete=True, fingerprint=self._fingerprint())

    def open(self, source: Source | None = None) -> ImageSet:
        """The images, mapped into memory, with what encoders may see of them in the source.

        Raises `StorageError` if the files are not what they were.
        """
        rows = self._rows()
        kept = [row for row in rows if "path" in row]
        labels, classes = image_set.number_labels([row["label"] for row in kept])
        paths = tuple(Path(row["path"]) for row in kept)
        skipped = tuple(row["skipped"] for row in rows if "skipped" in row)
        originals = None if source is None else self._originals(source, kept)
        return ImageSet(
            self._mapped(), labels, classes, paths, self._state["fingerprint"], skipped, originals=originals
        )

    def _originals(self, source: Source, kept: list[dict[str, Any]]) -> Originals | None:
        """None where all images have this size, or where the store does not say."""
        if not all("other" in row for row in kept):
            log.warning(
                "%s is of an earlier version: encoders see images of %d px; delete it, and they see the originals",
                self.folder,
                self.made_from["size"],
            )
            return None
        other = torch.tensor([row["other"] for row in kept], dtype=torch.bool)
        places = torch.tensor([row["place"] for row in kept], dtype=torch.int64)
        return Originals(source, places, other, [row["path"] for row in kept]) if bool(other.any()) else None

    def _mapped(self) -> Tensor:
        size, count = int(self.made_from["size"]), int(self._state["kept"])
        file = self.folder / "pixels.u8"
        if not file.is_file() or file.stat().st_size != count * self._image:
            raise storage.StorageError(f"{file}: not the {count} images that progress.json lists; delete the store")
        if count == 0:
            return torch.empty((0, 3, size, size), dtype=torch.uint8)
        # "c": nothing is written back, and PyTorch does not warn about memory that it must not write to
        return torch.from_numpy(np.memmap(file, np.uint8, mode="c", shape=(count, 3, size, size)))

    def _rows(self) -> list[dict[str, Any]]:
        file = self.folder / "items.jsonl"
        with door(storage.StorageError, f"{file}: cannot be read; delete the store"):
            doors.regular(file)
            rows = [dict(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
            for row in rows:
                if not isinstance(row.get("skipped", row.get("path")), str):
                    raise TypeError("a row without path")
                row.setdefault("label", None)
                if type(row.get("place", 0)) is not int or type(row.get("other", False)) is not bool:
                    raise TypeError("a row without place")
            return rows

    def _progress(self) -> dict[str, Any]:
        file = self.folder / "progress.json"
        if not file.exists():
            start = {"read": 0, "kept": 0, "items_bytes": 0, "complete": False, "blocks": []}
            return {"made_from": self.made_from, **start}
        with door(storage.StorageError, f"{file}: cannot be read; delete the store"):
            doors.regular(file)
            state = dict(json.loads(file.read_text(encoding="utf-8")))
            before = dict(state["made_from"])
            _check_counts(state)
            for each in state.get("blocks", []):
                _check_counts(each)
            if not isinstance(state["complete"], bool) or (state["complete"] and type(state["fingerprint"]) is not str):
                raise ValueError("complete without a fingerprint")
        if before != self.made_from:
            was, wanted = doors.printable(before), doors.printable(self.made_from)
            raise storage.StorageError(f"{self.folder} holds images of {was}, not of {wanted}")
        return state

    def _check(self) -> None:
        """Compare what is there with its checksums, and go back to what is before a damaged block."""
        state = self._state
        if "blocks" not in state:
            log.info("%s has no checksums of its blocks (of an earlier version?)", self.folder)
            if state["complete"] and self.open().fingerprint != self._fingerprint():
                raise storage.StorageError(f"{self.folder / 'pixels.u8'}: damaged; delete the store")
            return
        if state["complete"]:
            self._mapped()
        starts = [{"read": 0, "kept": 0, "items_bytes": 0}, *state["blocks"]]
        with ThreadPoolExecutor(_THREADS) as pool:
            sound = list(pool.map(self._is_sound, starts, state["blocks"]))
        if not all(sound):
            count = sound.index(False)
            log.warning("%s: damaged behind item %d; read again from there", self.folder, starts[count]["read"])
            back = {name: starts[count][name] for name in _COUNTS}
            self._save(**back, blocks=state["blocks"][:count], complete=False, fingerprint=None)
        elif state["complete"] and starts[-1]["read"] != state["read"]:
            raise storage.StorageError(f"{self.folder / 'progress.json'}: contradicts itself; delete the store")

    def _is_sound(self, before: Mapping[str, Any], block: Mapping[str, Any]) -> bool:
        files = (("pixels", "pixels.u8", "kept", self._image), ("items", "items.jsonl", "items_bytes", 1))
        for name, file, count, size in files:
            digest = hashlib.sha256()
            start, left = before[count] * size, (block[count] - before[count]) * size
            try:
                doors.regular(self.folder / file)
                with open(self.folder / file, "rb") as stream:
                    stream.seek(start)
                    while left > 0 and (piece := stream.read(min(left, _PIECE_BYTES))):
                        digest.update(piece)
                        left -= len(piece)
            except OSError as error:
                raise storage.StorageError(f"{self.folder / file}: cannot be read ({doors.said(error)})") from error
            if left or digest.hexdigest() != block.get(name):
                return False
        return True

    def _fingerprint(self) -> str:
        labels, _ = image_set.number_labels([row["label"] for row in self._rows() if "path" in row])
        return image_set.fingerprint(self._mapped(), labels)

    def _save(self, **changes: Any) -> None:
        self._state = {**self._state, **changes}
        storage.write_json(self.folder / "progress.json", self._state)

    def _add(self, name: str, content: bytes | memoryview) -> None:
        file = self.folder / name
        try:
            with storage.open_in_place(file, "ab") as stream:
                stream.write(content)
                stream.flush()
                storage.sync(stream.fileno())
        except OSError as error:
            raise storage.StorageError(f"{file}: cannot be written ({error.strerror or error})") from error

    def _cut(self, name: str, length: int) -> None:
        file = self.folder / name
        try:
            with storage.open_in_place(file, "ab") as stream:
                size = stream.seek(0, os.SEEK_END)
                if size > length:
                    stream.truncate(length)
        except OSError as error:
            raise storage.StorageError(f"{file}: cannot be written ({error.strerror or error})") from error
        if size < length:
            raise storage.StorageError(f"{file}: shorter than progress.json says; delete the store")


def _check_counts(state: Mapping[str, Any]) -> None:
    for name in _COUNTS:
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(f"{name} is {state[name]!r}")
