"""The kinds of sources that `random_access.py` finds: each answers by an item's index, in any order."""

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
from rcdm_fast.data import world
from rcdm_fast.data.items import Kind, Source, check_ids
from rcdm_fast.data.readers import hugging_face, tables, tars
from rcdm_fast.data.readers.array_rows import to_float32
from rcdm_fast.data.readers.image_files import Item
from rcdm_fast.images import ImageError, open_image


class Nothing:
    """Items that have a number only, for models without conditions."""

    kind: Kind = "nothing"

    def __init__(self, count: int) -> None:
        self.name, self._count = f"{count} items", count

    def __len__(self) -> int:
        return self._count

    def id(self, index: int) -> str:
        """See `Source`."""
        return str(index)

    def read(self, index: int) -> Tensor:
        """See `Source`."""
        return torch.tensor(0)

    def width(self) -> None:
        """See `Source`."""

    def content(self, index: int) -> bytes:
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

    def id(self, index: int) -> str:
        """See `Source`."""
        image = self._images[index]
        if self._folder is not None:
            return doors.escaped(Path(image).relative_to(self._folder).as_posix())
        return doors.escaped(str(image)) if isinstance(image, str | os.PathLike) else str(index)

    def read(self, index: int) -> Image.Image:
        """See `Source`."""
        return open_image(self._images[index])

    def width(self) -> None:
        """See `Source`."""

    def content(self, index: int) -> bytes:
        """See `Source`; of a file: its size; of what is in memory: all of it."""
        image = self._images[index]
        try:
            return _size(image) if isinstance(image, str | os.PathLike) else _held(image)
        except Exception:  # damaged, as will be said of it when it is read
            return b"unreadable"


def _size(path: str | os.PathLike[str]) -> bytes:
    return str(os.stat(path).st_size).encode()


def _held(image: Any) -> bytes:
    """What an image in memory consists of."""
    if isinstance(image, Image.Image):
        drawn = image.tobytes()  # of a palette's image numbers of colors, which say nothing without it
        return drawn if image.mode not in ("P", "PA") else drawn + bytes(image.getpalette("RGBA") or ())
    if isinstance(image, Tensor):
        levels = image.detach().cpu().contiguous()
        return f"{levels.dtype} {list(levels.shape)}".encode() + levels.reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(image, np.ndarray) and not image.dtype.hasobject:
        return f"{image.dtype} {list(image.shape)}".encode() + np.ascontiguousarray(image).tobytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    place = image.tell()
    try:
        image.seek(0)
        return bytes(image.read())
    finally:
        image.seek(place)


class Shards:
    """Images in WebDataset shards, found in the archives' heads; ids are the samples' keys."""

    kind: Kind = "image"

    def __init__(self, pattern: str, found: Sequence[Path] = ()) -> None:
        self.name = pattern
        self._index = tars.index(pattern, found)
        check_ids([doors.escaped(key) for key in self._index.keys], pattern)

    def __len__(self) -> int:
        return len(self._index.keys)

    def id(self, index: int) -> str:
        """See `Source`."""
        return doors.escaped(self._index.keys[index])

    def read(self, index: int) -> Image.Image:
        """See `Source`."""
        return Item(Path(self.name) / self.id(index), None, self._index.content(index)).image()

    def width(self) -> None:
        """See `Source`."""

    def content(self, index: int) -> bytes:
        """See `Source`; its size."""
        return str(int(self._index.size[index])).encode()


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

    def id(self, index: int) -> str:
        """See `Source`."""
        return str(index) if self._ids is None else self._ids[index]

    def read(self, index: int) -> Image.Image | Tensor:
        """See `Source`."""
        with self._lock:
            value = self._table.value(index)
        where = f"{self.name}, item {self.id(index)}"
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
        return Item(Path(self.name) / self.id(index), None, value).image()

    def width(self) -> int | None:
        """See `Source`."""
        with self._lock:
            value = self._table.value(0) if self.kind == "representation" and len(self) else None
        return len(value) if isinstance(value, np.ndarray) else None

    def content(self, index: int) -> bytes:
        """See `Source`; of images: the size of all files, and where they are named: name and size of the image's."""
        with self._lock:
            return self._table.content(index)


class HubImages:
    """Images of a dataset that the `datasets` library knows by name; ids are the numbers of its rows."""

    kind: Kind = "image"

    def __init__(self, name: str, rows: hugging_face.Rows) -> None:
        self.name, self._rows = name, rows
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        """See `Source`."""
        return str(index)

    def read(self, index: int) -> Image.Image:
        """See `Source`."""
        with self._lock:
            item = self._rows.item(index)
        return item.image()

    def width(self) -> None:
        """See `Source`."""

    def content(self, index: int) -> bytes:
        """See `Source`; its size."""
        with self._lock:
            content = self._rows.item(index).content
        try:
            return str(len(content)).encode() if isinstance(content, bytes) else _size(content)  # type: ignore[arg-type]
        except Exception:  # not there, as will be said of it when it is read
            return b"unreadable"


class Drawn:
    """Items of a world of known truth, drawn whenever they are asked for; ids are their places."""

    kind: Kind = "image"

    def __init__(self, found: world.World) -> None:
        self.name, self._world = found.name, found

    def __len__(self) -> int:
        return len(self._world)

    def id(self, index: int) -> str:
        """See `Source`."""
        return str(index)

    def read(self, index: int) -> Image.Image:
        """See `Source`."""
        return Image.fromarray(self._world.pixels([index])[0].permute(1, 2, 0).contiguous().numpy())

    def width(self) -> None:
        """See `Source`."""

    def content(self, index: int) -> bytes:
        """See `Source`: all that an item is drawn from."""
        return f"{world.VERSION} {self._world.world} {self._world.seed} {self._world.size} {index}".encode()


class Several:
    """Sources of images one behind the other."""

    kind: Kind = "image"

    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name, self._sources = name, sources
        self._ends = list(accumulate(map(len, sources)))
        check_ids([self.id(index) for index in range(len(self))], name)

    def __len__(self) -> int:
        return self._ends[-1]

    def _at(self, index: int) -> tuple[Source, int]:
        number = bisect_right(self._ends, index)
        return self._sources[number], index - (self._ends[number - 1] if number else 0)

    def id(self, index: int) -> str:
        """See `Source`."""
        source, inside = self._at(index)
        return source.id(inside)

    def read(self, index: int) -> Image.Image | Tensor:
        """See `Source`."""
        source, inside = self._at(index)
        return source.read(inside)

    def width(self) -> None:
        """See `Source`."""

    def content(self, index: int) -> bytes:
        """See `Source`."""
        source, inside = self._at(index)
        return source.content(inside)
