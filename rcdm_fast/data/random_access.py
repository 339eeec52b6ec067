"""Items of a job: images, representations, labels, or nothing but a number; any of them at any time.

A job asks for items by place, in the order of its units, on several machines at once, so a source answers by place and
its order is the same every time. Every item has an id for readers of the manifest; its place keys its noise.

Knows nothing about models (what kind of item a model needs is asked in `jobs/feed.py`).
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.config import ConfigError
from rcdm_fast.data import world
from rcdm_fast.data.items import HASHES, Kind, Source, check_ids, fingerprint, hash_of
from rcdm_fast.data.readers import hugging_face, tables, tars
from rcdm_fast.data.readers.array_rows import Rows, array_file, to_float32
from rcdm_fast.data.readers.image_files import Item, contents, is_archive
from rcdm_fast.images import IMAGE_EXTENSIONS, ImageError, open_image

__all__ = ["HASHES", "Given", "Kind", "Source", "check_ids", "find", "fingerprint", "hash_of"]

Given = str | os.PathLike[str] | int | Tensor | np.ndarray | Sequence[str | os.PathLike[str] | Image.Image]


def find(given: Given, wanted: Sequence[Kind] = ()) -> Source:
    """The source that is meant.

    Args:
        given: a folder of images, or one image; WebDataset shards with images (a .tar, a folder of them, a
            pattern as in ``in-{000..099}.tar``); a dataset ``hf:NAME_OR_FOLDER?split=train&image=img``; a world of
            known truth, ``world:shapes?count=20000&size=32&seed=0``; .npy, .npz or .safetensors with representations
            [N,D], images uint8 [N,H,W,3] or [N,3,H,W], or labels (whole numbers [N]); Parquet, Arrow or CSV files, or
            a folder of them, with a column of images, of representations, or of labels; a number of items for an
            unconditional model; or the tensors, arrays, images and paths themselves. Where there is a file of
            exactly the name that is given, it is meant, and no pattern.
        wanted: kinds that are of use, for files that hold several; none given: any.

    Raises:
        ImageError, ConfigError, StorageError: no such source, or one that is damaged, empty, or has ids twice.
    """
    found = _find(given, wanted)
    if not len(found):
        raise ImageError(f"{found.name}: there is nothing in it")
    return found


def _find(given: Given, wanted: Sequence[Kind]) -> Source:
    if isinstance(given, int):
        return Nothing(given)
    if isinstance(given, Tensor | np.ndarray):
        return Rows("(given)", given.detach().cpu() if isinstance(given, Tensor) else given)
    if not isinstance(given, str | os.PathLike):
        return Images("(given)", list(given))
    name = os.fspath(given)
    there = os.path.lexists(name)
    if name.isdecimal() and not there:
        return Nothing(int(name)) if len(name) < 19 else Nothing(_too_many(name))
    if not there and name.startswith("wds:"):
        return Shards(name.removeprefix("wds:"))
    if not there and name.startswith("hf:"):
        return _hugging_face(name, hugging_face.find(name.removeprefix("hf:")), wanted)
    if not there and name.startswith(world.PREFIX):
        return Drawn(world.find(name.removeprefix(world.PREFIX)))
    path = doors.path(given, ImageError)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz", ".safetensors"):
        return array_file(path, wanted)
    if suffix in tables.NAMED_EXTENSIONS:
        return Columns(path, tables.open_files([path], _columns(wanted)))
    if path.is_dir() and hugging_face.is_saved(path):
        return _hugging_face(name, hugging_face.Saved(path), wanted)
    if path.is_dir():
        return _folder(path, wanted)
    if tars.is_shard(name) or (not there and ("{" in name or tars.remote(name))):
        return Shards(name)
    if not path.is_file():
        raise ImageError(f"{doors.printable(path)}: no such folder or file")
    return Shards(name) if suffix not in IMAGE_EXTENSIONS and is_archive(path) else Images(name, [path])


def _hugging_face(name: str, found: hugging_face.Found, wanted: Sequence[Kind]) -> Source:
    if isinstance(found, hugging_face.Fetched):
        return HubImages(name, found.rows())
    table = found.table() if isinstance(found, hugging_face.Saved) else found
    return Columns(Path(name), tables.open_files(table.files, _columns(wanted), table.column))


def _too_many(count: str) -> int:
    raise ConfigError(f"{doors.printable(count)} items are too many")


def _columns(wanted: Sequence[Kind]) -> list[tables.Kind]:
    return [kind for kind in wanted if kind != "nothing"]


def _folder(path: Path, wanted: Sequence[Kind]) -> Source:
    found = contents(path)
    name = str(path)
    images = Images(name, list(found.images), path)
    if found.images and found.shards:
        return Several(name, [images, Shards(name, found.shards)])
    if found.shards:
        return Shards(name, found.shards)
    if found.tables:
        return Columns(path, tables.open_files(found.tables, _columns(wanted)))
    if not found.images:
        looked = ", ".join(sorted(IMAGE_EXTENSIONS))
        raise ImageError(f"{doors.printable(name)}: no images here (looked for {looked}, shards and tables)")
    return images


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


class Images:
    """Image files, or images in memory; ids are paths below the folder."""

    kind: Kind = "image"

    def __init__(self, name: str, images: list[Any], folder: Path | None = None) -> None:
        self.name, self._images, self._folder = name, images, folder
        if folder is None:
            named = [str(each) for each in images if isinstance(each, str | os.PathLike)]
            check_ids(named, name)

    def __len__(self) -> int:
        return len(self._images)

    def id(self, place: int) -> str:
        """See `Source`."""
        image = self._images[place]
        if self._folder is not None:
            return doors.escaped(Path(image).relative_to(self._folder).as_posix())
        return doors.escaped(str(image)) if isinstance(image, str | os.PathLike) else str(place)

    def read(self, place: int) -> Image.Image:
        """See `Source`."""
        return open_image(self._images[place])

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`; of a file: its size."""
        image = self._images[place]
        try:
            return image.tobytes() if isinstance(image, Image.Image) else str(os.stat(image).st_size).encode()
        except Exception:  # damaged, as will be said of it when it is read
            return b"unreadable"


class Shards:
    """Images in WebDataset shards, found in the archives' heads; ids are the samples' keys."""

    kind: Kind = "image"

    def __init__(self, pattern: str, found: Sequence[Path] = ()) -> None:
        self.name = pattern
        self._index = tars.index(pattern, found)
        check_ids([doors.escaped(key) for key in self._index.keys], pattern)

    def __len__(self) -> int:
        return len(self._index.keys)

    def id(self, place: int) -> str:
        """See `Source`."""
        return doors.escaped(self._index.keys[place])

    def read(self, place: int) -> Image.Image:
        """See `Source`."""
        return Item(Path(self.name) / self.id(place), None, self._index.content(place)).image()

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`; its size."""
        return str(int(self._index.size[place])).encode()


class Columns:
    """A column of Parquet or Arrow files: representations or images, and ids if there is a column of them."""

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
        where = f"{self.name}, item {self.id(place)}"
        if self.kind == "label":
            if not isinstance(value, int):
                raise ImageError(f"{where}: no label")
            with doors.door(ImageError, f"{where}: no usable label"):
                return torch.tensor(value, dtype=torch.int64)
        if self.kind == "representation":
            h = to_float32(value) if isinstance(value, np.ndarray) else torch.empty(0)
            if not h.numel() or not bool(h.isfinite().all()):
                raise ImageError(f"{where}: the representation is empty, has gaps, or is not finite")
            return h
        if not isinstance(value, bytes | Path | np.ndarray):
            raise ImageError(f"{where}: the row has no image")
        return Item(Path(self.name) / self.id(place), None, value).image()

    def width(self) -> int | None:
        """See `Source`."""
        with self._lock:
            value = self._table.value(0) if self.kind == "representation" and len(self) else None
        return len(value) if isinstance(value, np.ndarray) else None

    def content(self, place: int) -> bytes:
        """See `Source`; of images: the size of all files."""
        with self._lock:
            return self._table.content(place)


class HubImages:
    """Images of a dataset that the `datasets` library knows by name; ids are the numbers of its rows."""

    kind: Kind = "image"

    def __init__(self, name: str, rows: hugging_face.Rows) -> None:
        self.name, self._rows = name, rows
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, place: int) -> str:
        """See `Source`."""
        return str(place)

    def read(self, place: int) -> Image.Image:
        """See `Source`."""
        with self._lock:
            item = self._rows.item(place)
        return item.image()

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`; its size."""
        with self._lock:
            content = self._rows.item(place).content
        return str(len(content)).encode() if isinstance(content, bytes) else b""


class Drawn:
    """Items of a world of known truth, drawn whenever they are asked for; ids are their places."""

    kind: Kind = "image"

    def __init__(self, found: world.World) -> None:
        self.name, self._world = found.name, found

    def __len__(self) -> int:
        return len(self._world)

    def id(self, place: int) -> str:
        """See `Source`."""
        return str(place)

    def read(self, place: int) -> Image.Image:
        """See `Source`."""
        return Image.fromarray(self._world.pixels([place])[0].permute(1, 2, 0).contiguous().numpy())

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`: all that an item is drawn from."""
        return f"{world.VERSION} {self._world.world} {self._world.seed} {self._world.size} {place}".encode()


class Several:
    """Sources of images one behind the other."""

    kind: Kind = "image"

    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name, self._sources = name, sources
        self._ends = list(accumulate(map(len, sources)))
        check_ids([self.id(place) for place in range(len(self))], name)

    def __len__(self) -> int:
        return self._ends[-1]

    def _at(self, place: int) -> tuple[Source, int]:
        number = bisect_right(self._ends, place)
        return self._sources[number], place - (self._ends[number - 1] if number else 0)

    def id(self, place: int) -> str:
        """See `Source`."""
        source, inside = self._at(place)
        return source.id(inside)

    def read(self, place: int) -> Image.Image | Tensor:
        """See `Source`."""
        source, inside = self._at(place)
        return source.read(inside)

    def width(self) -> None:
        """See `Source`."""

    def content(self, place: int) -> bytes:
        """See `Source`."""
        source, inside = self._at(place)
        return source.content(inside)
