"""Kinds of sources of images: a folder, an array file, WebDataset shards, tables.

Each lists its images in an order that is the same every time, without decoding them. A source that is itself damaged
(a shard that is missing or torn) is an error, for then nobody knows what is missing.

Knows nothing about which source a name means, or what becomes of the images (`data/sources.py`).
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from rcdm_fast import folders
from rcdm_fast.config import ConfigError
from rcdm_fast.data.readers import archives, arrays, tables, tars
from rcdm_fast.data.readers.tars import Piece
from rcdm_fast.doors import door, printable
from rcdm_fast.errors import install
from rcdm_fast.images import IMAGE_EXTENSIONS, ImageError, find_images, load_image, open_image, to_uint8_array
from rcdm_fast.storage import StorageError

_ARRAY_NAMES = (("images", "x", "arr_0", "image", "data"), ("labels", "y", "arr_1", "label", "targets"))


@dataclass(frozen=True)
class Item:
    """One image that is not decoded yet.

    Attributes:
        path: what it is called in messages.
        label: name of its class, if it has one.
        content: a file or a part of one, its bytes, a PIL image, uint8 [H,W], [H,W,3] or [3,H,W], float [1,3,H,W] in
            [-1,1], or why it cannot be read.
    """

    path: Path
    label: str | None
    content: Path | Piece | bytes | Image.Image | np.ndarray | Tensor | ImageError

    def image(self) -> Image.Image:
        """Decoded, as 8-bit RGB. Raises `ImageError`."""
        content = self._content()
        return open_image(content, name=self._name(content))

    def whole(self, size: int) -> tuple[Tensor, np.ndarray | None]:
        """float32 [1,3,H,W] as `load_image` gives it, and uint8 [size,size,3] like `pixels`; None of floats in memory.

        Raises `ImageError`.
        """
        content = self._content()
        if isinstance(content, Tensor):
            return load_image(content), None
        image = open_image(content, name=self._name(content))
        return load_image(image), to_uint8_array(image, size)

    def pixels(self, size: int) -> tuple[np.ndarray, bool]:
        """uint8 [3,size,size]: short side resized, center crop; and whether that changed it. Raises `ImageError`."""
        image = self.image()
        array = np.ascontiguousarray(to_uint8_array(image, size).transpose(2, 0, 1))
        return array, image.size != (size, size)

    def _content(self) -> Path | bytes | Image.Image | np.ndarray | Tensor:
        content = self.content
        if isinstance(content, ImageError):
            raise content
        if isinstance(content, Piece):
            return content.read()
        return levels(content) if isinstance(content, np.ndarray) else content

    def _name(self, content: Path | bytes | Image.Image | np.ndarray | Tensor) -> str:
        return str(content if isinstance(content, Path) else self.path)


class Source(Protocol):
    """Items in an order that is the same every time."""

    def items(self) -> Iterator[Item]:
        """From the first one on. Raises `ImageError` where the source is damaged."""


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive or something packed, by its first bytes."""
    with door(ImageError, f"{printable(path)}: cannot be read"):
        return archives.is_tar(path) or archives.compression(path) is not None


@dataclass(frozen=True)
class Contents:
    """What a folder holds, sorted by path."""

    images: tuple[Path, ...]
    shards: tuple[Path, ...]
    tables: tuple[Path, ...]


def contents(root: Path) -> Contents:
    """What there is below a folder; images and shards are both taken, tables where there is neither.

    What is left out is counted in the log.
    """
    found = folders.tree(root)
    images = tuple(path for path in found.files if path.suffix.lower() in IMAGE_EXTENSIONS)
    shards = tuple(path for path in found.files if tars.is_shard(path.name))
    others = () if images or shards else found.files
    rows = tuple(path for path in others if path.suffix.lower() in tables.EXTENSIONS)
    folders.report(root, set(found.files).difference(images, shards, rows), found.unseen)
    return Contents(images, shards, rows)


@dataclass(frozen=True)
class Several:
    """Sources one behind the other."""

    sources: tuple[Source, ...]

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for source in self.sources:
            yield from source.items()


@dataclass(frozen=True)
class Folder:
    """Image files below a folder, by path; first-level sub-folders are classes if every file lies in one."""

    root: Path
    files: tuple[Path, ...] = ()

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        paths = self.files or tuple(find_images(self.root))
        inside = [path.relative_to(self.root).parts for path in paths]
        sorted_in = all(len(parts) > 1 for parts in inside)
        for path, parts in zip(paths, inside, strict=True):
            yield Item(path, parts[0] if sorted_in else None, path)


@dataclass(frozen=True)
class Arrays:
    """An .npy or .npz file, read row by row."""

    path: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        pixels, labels = self._read()
        if not is_levels(pixels):
            expected = "uint8 [N,H,W,3], [N,3,H,W] or [N,H,W]"
            raise ImageError(f"{self.path}: expected {expected}, got {pixels.dtype} {list(pixels.shape)}")
        if labels is not None and labels.shape not in (pixels.shape[:1], (*pixels.shape[:1], 1)):
            raise ImageError(f"{self.path}: {len(pixels)} images but labels of shape {list(labels.shape)}")
        for number, array in enumerate(pixels):
            label = None if labels is None else text(labels[number])
            yield Item(self.path / str(number), label, array)

    def _read(self) -> tuple[arrays.Rows, arrays.Rows | None]:
        held = arrays.read(self.path, ImageError)
        if "" in held:
            return held[""], None
        found = [next((held[key] for key in keys if key in held), None) for keys in _ARRAY_NAMES]
        if found[0] is None:
            raise ImageError(f"{self.path}: no array called {' or '.join(_ARRAY_NAMES[0])}")
        return found[0], found[1]


def is_levels(rows: Any) -> bool:
    """Whether rows of this shape and type are images: uint8 [N,H,W,3], [N,3,H,W], or gray with or without its 1."""
    shape = tuple(rows.shape)
    colored = len(shape) == 4 and {1, 3} & {shape[1], shape[3]}
    return bool(str(rows.dtype).endswith("uint8") and (colored or len(shape) == 3))


def levels(array: np.ndarray) -> np.ndarray:
    """One such image as [H,W] or [H,W,3]."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return np.ascontiguousarray(array)


def text(value: np.ndarray) -> str:
    """A label, or an id, of an array of one number or text."""
    found = value.reshape(-1)[0].item()
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


@dataclass(frozen=True)
class Shards:
    """WebDataset shards in the order of the pattern: images by their usual extensions, labels in .cls or .json.

    Attributes:
        pattern: what was written.
        found: the archives, if they are known.
        remote: whether commands and addresses in the pattern are run and fetched, as webdataset does.
    """

    pattern: str
    found: tuple[Path, ...] = ()
    remote: bool = False

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        left: Counter[str] = Counter()
        for name in [str(path) for path in self.found] or tars.shards(self.pattern):
            source: Any = self._opened(name) if tars.remote(name) and not os.path.lexists(name) else Path(name)
            for sample in tars.samples(source, name, left):
                yield Item(Path(name) / sample.key, sample.label(), sample.content)
        tars.report(self.pattern, left)

    def _opened(self, name: str) -> Any:
        if not self.remote:
            raise ImageError(f"{printable(name)}: no such file; wds:{printable(name)} runs and fetches what it says")
        webdataset = needed("webdataset", "data")
        with door(ImageError, f"{printable(name)}: cannot be opened"):
            return webdataset.gopen(name)


@dataclass(frozen=True)
class Tables:
    """A column of images in Parquet, Arrow or CSV files, and one of labels."""

    files: tuple[Path, ...]
    column: str | None = None
    label: str | None = None

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        try:
            table = tables.open_files(self.files, ("image",), self.column)
            labels = table.labels(self.label)
            where = self.files[0] if len(self.files) == 1 else self.files[0].parent
            for number in range(len(table)):
                value = table.value(number)
                content = value if isinstance(value, bytes | Path | np.ndarray) else ImageError("no image")
                if isinstance(content, ImageError):
                    content = ImageError(f"{printable(where / str(number))}: the row has no image")
                yield Item(where / str(number), labels[number], content)
        except (StorageError, ConfigError) as error:
            raise ImageError(str(error)) from error


def needed(module: str, extra: str) -> Any:
    """An optional package. Raises `ImageError` that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(f"this source needs {module} ({install(extra)})") from error
