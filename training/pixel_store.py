"""Decoded pictures in a folder, for sets that are larger than memory: written once, block by block, then mapped.

`pixels.u8` holds uint8 [N,3,S,S] without a header, `items.jsonl` a line for every item of the source (its path and
label, or why it was skipped), `progress.json` how much of both is valid. A process that is killed loses at most the
block it was writing; the next one goes on behind the last valid block. A lock keeps two processes from writing at once:
the second waits, and finds a complete store.

Knows nothing about where pictures come from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.training import data
from rcdm_fast.training.data import ImageSet


class PixelStore:
    """A store, locked while it is in use as a context manager.

    Args:
        folder: where it lies or shall lie.
        made_from: what decides about its content; contains "size", in pixels.

    Raises:
        StorageError: the folder holds a store of something else, or cannot be written.
    """

    def __init__(self, folder: str | Path, made_from: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.made_from = dict(made_from)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / ".lock")
        except OSError as error:
            raise storage.StorageError(f"{folder}: cannot be written ({error.strerror or error})") from error
        self._state: dict[str, Any] = {}

    def __enter__(self) -> PixelStore:
        self._lock.acquire()
        try:
            self._state = self._progress()
            if not self.complete:
                self._cut("pixels.u8", self._state["kept"] * self._picture)
                self._cut("items.jsonl", self._state["items_bytes"])
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    @property
    def complete(self) -> bool:
        """Whether the whole source has been read."""
        return bool(self._state["complete"])

    @property
    def read(self) -> int:
        """Items of the source that were read, skipped ones included."""
        return int(self._state["read"])

    @property
    def _picture(self) -> int:
        return 3 * int(self.made_from["size"]) ** 2

    def append(self, pixels: np.ndarray, labels: list[str | None], paths: list[str], skipped: list[str]) -> None:
        """Add a block: uint8 [n,3,S,S] with their labels and paths, and the reasons of what was left out."""
        rows: list[dict[str, Any]] = [{"path": path, "label": label} for path, label in zip(paths, labels, strict=True)]
        rows += [{"skipped": reason} for reason in skipped]
        self._add("pixels.u8", np.ascontiguousarray(pixels).data)
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self._add("items.jsonl", text)
        state = self._state
        self._save(
            read=state["read"] + len(rows),
            kept=state["kept"] + len(paths),
            items_bytes=state["items_bytes"] + len(text),
        )

    def finish(self) -> None:
        """The source is read to its end."""
        labels, _ = data.number_labels([row["label"] for row in self._rows() if "path" in row])
        self._save(complete=True, fingerprint=data.fingerprint(self._mapped(), labels))

    def open(self) -> ImageSet:
        """The pictures, mapped into memory. Raises `StorageError` if the files are not what they were."""
        rows = self._rows()
        kept = [row for row in rows if "path" in row]
        labels, classes = data.number_labels([row["label"] for row in kept])
        paths = tuple(Path(row["path"]) for row in kept)
        skipped = tuple(row["skipped"] for row in rows if "skipped" in row)
        return ImageSet(self._mapped(), labels, classes, paths, self._state["fingerprint"], skipped)

    def _mapped(self) -> Tensor:
        size, count = int(self.made_from["size"]), int(self._state["kept"])
        file = self.folder / "pixels.u8"
        if not file.is_file() or file.stat().st_size != count * self._picture:
            raise storage.StorageError(
                f"{file}: not the {count} pictures that progress.json tells of; delete the store"
            )
        if count == 0:
            return torch.empty((0, 3, size, size), dtype=torch.uint8)
        # "c": nothing is written back, and PyTorch does not warn about memory that it must not write to
        return torch.from_numpy(np.memmap(file, np.uint8, mode="c", shape=(count, 3, size, size)))

    def _rows(self) -> list[dict[str, Any]]:
        file = self.folder / "items.jsonl"
        try:
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, json.JSONDecodeError) as error:
            raise storage.StorageError(f"{file}: cannot be read ({error}); delete the store") from error

    def _progress(self) -> dict[str, Any]:
        file = self.folder / "progress.json"
        if not file.exists():
            return {"made_from": self.made_from, "read": 0, "kept": 0, "items_bytes": 0, "complete": False}
        try:
            state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            before = dict(state["made_from"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise storage.StorageError(f"{file}: cannot be read ({error}); delete the store") from error
        if before != self.made_from:
            raise storage.StorageError(f"{self.folder} holds pictures of {before}, not of {self.made_from}")
        return state

    def _save(self, **changes: Any) -> None:
        self._state = {**self._state, **changes}
        storage.write_json(self.folder / "progress.json", self._state)

    def _add(self, name: str, content: bytes | memoryview) -> None:
        file = self.folder / name
        try:
            with open(file, "ab") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise storage.StorageError(f"{file}: cannot be written ({error.strerror or error})") from error

    def _cut(self, name: str, length: int) -> None:
        file = self.folder / name
        if not file.exists():
            file.touch()
        if file.stat().st_size < length:
            raise storage.StorageError(f"{file}: shorter than progress.json says; delete the store")
        os.truncate(file, length)
