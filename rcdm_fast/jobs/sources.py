"""Items of a job: pictures, representations, labels, or nothing but a number; any of them at any time.

A job asks for items by place, in the order of its units, on several machines at once, so a source answers by place and
its order is the same every time. Every item has an id for readers of the manifest; its place keys its noise.

Knows nothing about models (what kind of item a model needs is asked in `feed.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import images, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.jobs import tables, tars
from rcdm_fast.training.source_kinds import Item, shards_in

Kind = Literal["picture", "representation", "label", "nothing"]
Given = str | os.PathLike[str] | int | Tensor | np.ndarray | Sequence[str | os.PathLike[str] | Image.Image]

ARRAY_NAMES = ("representations", "representation", "h", "embeddings", "images", "labels", "x", "arr_0")
HASHES = 1 << 256  # hashes of items are added up modulo this
_ID_NAMES = ("ids", "id", "paths", "names")


class Source(Protocol):
    """Items by place."""

    kind: Kind
    name: str

    def __len__(self) -> int:
        """How many items."""

    def id(self, place: int) -> str:
        """What an item is called in the manifest."""

    def read(self, place: int) -> Image.Image | Tensor:
        """A picture (8-bit RGB), a representation float32 [D], or a label int64 []. Raises `images.ImageError`."""

    def width(self) -> int | None:
        """Numbers in every representation, as far as the source says."""

    def content(self, place: int) -> bytes:
        """What tells whether an item is still the same, as far as that can be told without decoding."""


def hash_of(source: Source, place: int) -> int:
    """SHA-256 of an item's place, id and content, as a number."""
    digest = hashlib.sha256(f"{place}\0{source.id(place)}\0".encode("utf-8", "surrogateescape"))
    digest.update(source.content(place))
    return int.from_bytes(digest.digest())


def fingerprint(source: Source) -> str:
    """Hash of all items, 64 hex digits: the sum of theirs, so that single items can be exchanged."""
    return f"{sum(hash_of(source, place) for place in range(len(source))) % HASHES:064x}"


def find(given: Given) -> Source:
    """The source that is meant.

    Args:
        given: a folder of pictures, or one picture; WebDataset shards with pictures (a .tar, a folder of them, a
            pattern as in ``in-{000..099}.tar``); .npy, .npz or .safetensors with representations [N,D], pictures
            uint8 [N,H,W,3] or [N,3,H,W], or labels (whole numbers [N]); Parquet or Arrow files, or a folder of them,
            with a column of pictures or of representations; a number of items for an unconditional model; or the
            tensors, arrays, pictures and paths themselves.

    Raises:
        ImageError, ConfigError, StorageError: no such source, or one that is damaged, empty, or has ids twice.
    """
    found = _find(given)
    if not len(found):
        raise images.ImageError(f"{found.name}: there is nothing in it")
    return found


def _find(given: Given) -> Source:
    if isinstance(given, int) or (isinstance(given, str) and given.isdecimal()):
        return Nothing(int(given))
    if isinstance(given, Tensor | np.ndarray):
        return Rows("(given)", _tensor(given, "(given)"))
    if not isinstance(given, str | os.PathLike):
        return Pictures("(given)", list(given))
    name, path = str(given), Path(given)
    if path.suffix in (".npy", ".npz", ".safetensors"):
        return _array_file(path)
    if path.suffix in tables.EXTENSIONS:
        return Columns(path, tables.open_files([path]))
    if path.suffix == ".tar" or "{" in name or name.startswith("wds:"):
        return Shards(name.removeprefix("wds:"))
    if path.is_file():
        return Pictures(name, [path])
    if path.is_dir() and next(images.below(path), None) is None:
        if files := sorted(each for each in path.glob("[!.]*") if each.suffix in tables.EXTENSIONS):
            return Columns(path, tables.open_files(files))
        if shards_in(path):
            return Shards(name)
    return Pictures(name, list(images.find(path)), path)


class Nothing:
    """Items that have a number only, for models without conditions."""

    kind: Kind = "nothing"

    def __init__(self, count: int) -> None:
        self.name, self._count = f"{count} items", count

    def __len__(self) -> int:
        return self._count

    def id(self, place: int) -> str:
        """See `Source`."""
        return str(place)

    def read(self, place: int) -> Tensor:
        """See `Source`."""
        return torch.tensor(0)

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`."""
        return b""


class Rows:
    """An array in memory or mapped from a file: representations, pictures, or labels, by its shape and type."""

    def __init__(self, name: str, rows: Tensor | np.ndarray, ids: Sequence[str] | None = None) -> None:
        self.name, self._rows, self._ids = name, rows, ids
        self.kind: Kind = _kind_of(rows, name)
        if ids is not None:
            if len(ids) != len(rows):
                raise ConfigError(f"{name}: {len(ids)} ids for {len(rows)} rows")
            check_ids(ids, name)

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, place: int) -> str:
        """See `Source`."""
        return str(place) if self._ids is None else self._ids[place]

    def read(self, place: int) -> Image.Image | Tensor:
        """See `Source`."""
        row = self._rows[place]
        if self.kind == "representation":
            h = _copied(row).to(torch.float32)
            if not bool(h.isfinite().all()):
                raise images.ImageError(f"{self.name}, item {self.id(place)}: the representation is not finite")
            return h
        if self.kind == "label":
            return _copied(row).to(torch.int64)
        if isinstance(row, Tensor) and row.is_floating_point():
            return images.to_pil(images.check(row[None])[0])
        levels = np.asarray(row)
        return Item(Path(self.name) / str(place), None, _last(levels)).picture()

    def width(self) -> int | None:
        """See `Source`."""
        return int(self._rows.shape[1]) if self.kind == "representation" else None

    def content(self, place: int) -> bytes:
        """See `Source`."""
        row = self._rows[place]
        if isinstance(row, Tensor):
            return row.contiguous().view(torch.uint8).numpy().tobytes() if row.ndim else str(int(row)).encode()
        return np.ascontiguousarray(row).tobytes()


def _copied(row: Tensor | np.ndarray) -> Tensor:
    return row.clone() if isinstance(row, Tensor) else torch.from_numpy(np.array(row))


def _last(levels: np.ndarray) -> np.ndarray:
    """Colours last: [3,H,W] -> [H,W,3]."""
    return np.ascontiguousarray(levels if levels.shape[-1] == 3 else levels.transpose(1, 2, 0))


def _tensor(given: Tensor | np.ndarray, name: str) -> Tensor | np.ndarray:
    if isinstance(given, Tensor):
        return given.detach().cpu()
    return given


def _kind_of(rows: Tensor | np.ndarray, name: str) -> Kind:
    floating = rows.is_floating_point() if isinstance(rows, Tensor) else np.issubdtype(rows.dtype, np.floating)
    if rows.ndim == 2 and floating:
        return "representation"
    whole = not floating and not (rows.dtype == torch.bool or rows.dtype == np.bool_)
    if rows.ndim == 1 and whole:
        return "label"
    levels = str(rows.dtype).endswith("uint8") or (floating and isinstance(rows, Tensor))
    if rows.ndim == 4 and levels and 3 in (rows.shape[1], rows.shape[3]):
        return "picture"
    expected = "representations float [N,D], pictures uint8 [N,H,W,3] or [N,3,H,W], or labels int [N]"
    raise ConfigError(f"{name}: expected {expected}, got {rows.dtype} {list(rows.shape)}")


def _array_file(path: Path) -> Rows:
    name = str(path)
    if path.suffix == ".safetensors":
        tensors, about = storage.read_tensors(path), storage.read_metadata(path)
        key = next((each for each in ARRAY_NAMES if each in tensors), None)
        if key is None:
            raise ConfigError(f"{path}: no tensor called {' or '.join(ARRAY_NAMES)}; there are {', '.join(tensors)}")
        ids = next((json.loads(about[each]) for each in _ID_NAMES if each in about), None)
        return Rows(name, tensors[key], ids)
    try:
        if path.suffix == ".npy":
            return Rows(name, np.load(path, mmap_mode="r"))
        with np.load(path) as file:
            key = next((each for each in ARRAY_NAMES if each in file), None)
            if key is None:
                raise ConfigError(f"{path}: no array called {' or '.join(ARRAY_NAMES)}; there are {', '.join(file)}")
            named = next((each for each in _ID_NAMES if each in file), None)
            ids = None if named is None else [str(each) for each in file[named]]
            return Rows(name, file[key], ids)
    except FileNotFoundError as error:
        raise storage.StorageError(f"{path}: no such file") from error
    except ConfigError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise storage.StorageError(f"{path}: cannot be read ({error})") from error


class Pictures:
    """Picture files, or pictures in memory; ids are paths below the folder."""

    kind: Kind = "picture"

    def __init__(self, name: str, pictures: list[Any], folder: Path | None = None) -> None:
        self.name, self._pictures, self._folder = name, pictures, folder
        if folder is None:
            named = [str(each) for each in pictures if isinstance(each, str | os.PathLike)]
            check_ids(named, name)

    def __len__(self) -> int:
        return len(self._pictures)

    def id(self, place: int) -> str:
        """See `Source`."""
        picture = self._pictures[place]
        if self._folder is not None:
            return _printable(Path(picture).relative_to(self._folder).as_posix())
        return _printable(str(picture)) if isinstance(picture, str | os.PathLike) else str(place)

    def read(self, place: int) -> Image.Image:
        """See `Source`."""
        return images.open_image(self._pictures[place])

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`; of a file: its size."""
        picture = self._pictures[place]
        try:
            return picture.tobytes() if isinstance(picture, Image.Image) else str(os.stat(picture).st_size).encode()
        except Exception:  # damaged, as will be said of it when it is read
            return b"unreadable"


def _printable(name: str) -> str:
    """A file's name, with escapes for bytes that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Shards:
    """Pictures in WebDataset shards, found in the archives' heads; ids are the samples' keys."""

    kind: Kind = "picture"

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self._index = tars.index(pattern)
        check_ids(self._index.keys, pattern)

    def __len__(self) -> int:
        return len(self._index.keys)

    def id(self, place: int) -> str:
        """See `Source`."""
        return self._index.keys[place]

    def read(self, place: int) -> Image.Image:
        """See `Source`."""
        return Item(Path(self.name) / self.id(place), None, self._index.content(place)).picture()

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`; its size."""
        return str(int(self._index.size[place])).encode()


class Columns:
    """A column of Parquet or Arrow files: representations or pictures, and ids if there is a column of them."""

    def __init__(self, path: Path, table: tables.Table) -> None:
        self.name, self._table = str(path), table
        self.kind: Kind = table.kind
        self._lock = threading.Lock()
        self._ids = table.ids()
        if self._ids is not None:
            check_ids(self._ids, self.name)

    def __len__(self) -> int:
        return len(self._table)

    def id(self, place: int) -> str:
        """See `Source`."""
        return str(place) if self._ids is None else self._ids[place]

    def read(self, place: int) -> Image.Image | Tensor:
        """See `Source`."""
        with self._lock:
            value = self._table.value(place)
        if self.kind == "representation":
            if not value or None in value or not bool((h := torch.tensor(value, dtype=torch.float32)).isfinite().all()):
                raise images.ImageError(
                    f"{self.name}, item {self.id(place)}: the representation is empty, has gaps, or is not finite"
                )
            return h
        return Item(Path(self.name) / self.id(place), None, value or b"").picture()

    def width(self) -> int | None:
        """See `Source`."""
        with self._lock:
            value = self._table.value(0) if self.kind == "representation" and len(self) else None
        return None if value is None else len(value)

    def content(self, place: int) -> bytes:
        """See `Source`; of pictures: the size of all files."""
        with self._lock:
            return self._table.content(place)


def check_ids(ids: Sequence[str], name: str) -> None:
    """Raise `ConfigError` if ids occur twice, naming some."""
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice = [each for each in ids if each in seen or seen.add(each)]  # type: ignore[func-returns-value]
    shown = ", ".join(sorted(set(twice))[:5])
    raise ConfigError(f"{name}: {len(twice)} of {len(ids)} items have an id that another one has: {shown}")
