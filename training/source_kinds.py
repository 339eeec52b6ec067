"""Kinds of sources of pictures: a folder, an array file, WebDataset shards, a Hugging Face dataset.

Each lists its pictures in an order that is the same every time, without decoding them. A source that is itself damaged
(a shard that is missing or torn) is an error, for then nobody knows what is missing.

Knows nothing about what becomes of the pictures (`sources.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from rcdm_fast import images, offline

SHARD_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "img")
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
_ARRAY_NAMES = (("images", "x", "arr_0"), ("labels", "y", "arr_1"))


@dataclass(frozen=True)
class Item:
    """One picture that is not decoded yet.

    Attributes:
        path: what it is called in messages.
        label: name of its class, if it has one.
        content: a file, its bytes, a PIL picture, or uint8 [H,W,3].
    """

    path: Path
    label: str | None
    content: Path | bytes | Image.Image | np.ndarray

    def picture(self) -> Image.Image:
        """Decoded, as 8-bit RGB. Raises `images.ImageError`."""
        return images.open_image(self.content, name=str(self.path))

    def pixels(self, size: int) -> np.ndarray:
        """uint8 [3,size,size]: short side resized, centre crop. Raises `images.ImageError`."""
        return np.ascontiguousarray(images.to_uint8_array(self.picture(), size).transpose(2, 0, 1))


class Source(Protocol):
    """Items in an order that is the same every time."""

    def items(self) -> Iterator[Item]:
        """From the first one on. Raises `images.ImageError` where the source is damaged."""


def find(source: str | Path) -> Source:
    """The source that a name means. Raises `images.ImageError`."""
    name = str(source)
    if name.startswith("wds:"):
        return Shards(name.removeprefix("wds:"))
    if name.startswith("hf:"):
        return HuggingFace(name.removeprefix("hf:"))
    path = Path(source)
    if path.suffix in (".npy", ".npz"):
        return Arrays(path)
    if path.suffix == ".tar" or "{" in name:
        return Shards(name)
    if path.is_dir() and any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        return HuggingFace(name)
    if path.is_dir() and shards_in(path) and next(images.below(path), None) is None:
        return Shards(name)
    return Folder(path)


def shards_in(folder: Path) -> list[Path]:
    """WebDataset shards in a folder, sorted; hidden files are not meant, as in `images.below`."""
    return sorted(folder.glob("[!.]*.tar"))


@dataclass(frozen=True)
class Folder:
    """Picture files below a folder, by path; first-level sub-folders are classes if every file lies in one."""

    root: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        paths = images.find(self.root)
        inside = [path.relative_to(self.root).parts for path in paths]
        sorted_in = all(len(parts) > 1 for parts in inside)
        for path, parts in zip(paths, inside, strict=True):
            yield Item(path, parts[0] if sorted_in else None, path)


@dataclass(frozen=True)
class Arrays:
    """An .npy or .npz file; .npy is mapped, not loaded."""

    path: Path

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        pixels, labels = self._read()
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or 3 not in (pixels.shape[1], pixels.shape[3]):
            expected = "uint8 [N,H,W,3] or [N,3,H,W]"
            raise images.ImageError(f"{self.path}: expected {expected}, got {pixels.dtype} {list(pixels.shape)}")
        if labels is not None and labels.shape != pixels.shape[:1]:
            raise images.ImageError(f"{self.path}: {len(pixels)} pictures but labels of shape {list(labels.shape)}")
        first = pixels.shape[3] != 3
        for number, array in enumerate(pixels):
            label = None if labels is None else str(labels[number])
            picture = np.ascontiguousarray(array.transpose(1, 2, 0) if first else array)
            yield Item(self.path / str(number), label, picture)

    def _read(self) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            if self.path.suffix == ".npy":
                return np.load(self.path, mmap_mode="r"), None
            with np.load(self.path) as file:
                found = [next((file[key] for key in keys if key in file), None) for keys in _ARRAY_NAMES]
                if found[0] is None:
                    raise images.ImageError(f"{self.path}: no array called {' or '.join(_ARRAY_NAMES[0])}")
                return found[0], found[1]
        except FileNotFoundError as error:
            raise images.ImageError(f"{self.path}: no such file") from error
        except (OSError, ValueError, EOFError) as error:
            raise images.ImageError(f"{self.path}: cannot be read ({error})") from error


@dataclass(frozen=True)
class Shards:
    """WebDataset shards, in the order of the pattern: pictures by their usual extensions, labels in .cls or .json."""

    pattern: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        webdataset = _needed("webdataset", "data")
        for shard in self.shards():
            if shard.endswith(".tar") and not remote(shard) and not ended(Path(shard)):
                raise images.ImageError(f"{shard}: damaged: the end of the archive is missing")
            try:
                for sample in webdataset.WebDataset(shard, shardshuffle=False, empty_check=False):
                    yield from self._item(shard, sample)
            except images.ImageError:
                raise
            except Exception as error:  # tarfile, zlib, OS, pipe: all mean that this shard cannot be trusted
                raise images.ImageError(f"{shard}: damaged or vanished while it was read ({error})") from error

    def shards(self) -> list[str]:
        """Their names, in order. Raises `images.ImageError` where some that should be files here are missing."""
        path = Path(self.pattern)
        if path.is_dir():
            found = [str(file) for file in shards_in(path)]
            if not found:
                raise images.ImageError(f"{path}: no .tar files here")
            return found
        found = list(_needed("webdataset", "data").shardlists.expand_urls(self.pattern))
        missing = [shard for shard in found if not remote(shard) and not Path(shard).is_file()]
        if missing:
            raise images.ImageError(f"{len(missing)} of {len(found)} shards are missing: {', '.join(missing[:5])}")
        return found

    def _item(self, shard: str, sample: dict[str, Any]) -> Iterator[Item]:
        found = next((sample[name] for name in SHARD_EXTENSIONS if name in sample), None)
        if found is not None:
            yield Item(Path(shard) / sample["__key__"], _shard_label(sample), found)


def ended(shard: Path) -> bool:
    """Whether a tar file has its closing blocks of zeros; Python's tarfile takes a torn one for a shorter one."""
    closing = 1024
    with open(shard, "rb") as file:
        file.seek(max(0, shard.stat().st_size - closing))
        return file.read() == bytes(closing)


def remote(shard: str) -> bool:
    """Whether a shard's name is no path of a file here."""
    return "://" in shard or shard.startswith("pipe:")


def _shard_label(sample: dict[str, Any]) -> str | None:
    if "cls" in sample:
        return str(sample["cls"].decode("utf-8", "replace")).strip()
    if "json" in sample:
        try:
            described = json.loads(sample["json"])
        except (ValueError, UnicodeDecodeError):
            return None
        if isinstance(described, dict) and "label" in described:
            return str(described["label"])
    return None


@dataclass(frozen=True)
class HuggingFace:
    """A dataset of the `datasets` library: NAME_OR_FOLDER?split=train&image=img&label=label&name=CONFIGURATION."""

    spec: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        library = _needed("datasets", "data")
        name, _, query = self.spec.partition("?")
        options = dict(parse_qsl(query))
        unknown = options.keys() - {"split", "image", "label", "name", "revision"}
        if unknown:
            raise images.ImageError(f"hf:{self.spec}: unknown options {', '.join(sorted(unknown))}")
        table = self._open(library, name, options)
        column = self._column(table, options.get("image"), IMAGE_COLUMNS, "image")
        if column is None:
            raise images.ImageError(
                f"hf:{name}: no column of pictures among {', '.join(table.column_names)}; say image="
            )
        label = self._column(table, options.get("label"), _LABEL_COLUMNS, "label")
        names = getattr(table.features[label], "names", None) if label is not None else None
        table = table.cast_column(column, library.Image(decode=False))
        for number, row in enumerate(table):
            value = row[label] if label is not None else None
            told = None if value is None else str(names[value]) if names and isinstance(value, int) else str(value)
            content = row[column] or {}
            found = content.get("bytes") or (Path(content["path"]) if content.get("path") else b"")
            yield Item(Path(name) / str(number), told, found)

    def _open(self, library: Any, name: str, options: dict[str, str]) -> Any:
        split = options.get("split", "train")
        try:
            with offline.enforced():
                if any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json")):
                    found = library.load_from_disk(name)
                    return found[split] if isinstance(found, dict) else found
                return library.load_dataset(name, options.get("name"), split=split, revision=options.get("revision"))
        except Exception as error:  # many kinds, all of the library; its text says what is missing
            raise images.ImageError(f"hf:{name}: cannot be opened ({type(error).__name__}: {error})") from error

    def _column(self, table: Any, asked: str | None, usual: tuple[str, ...], what: str) -> str | None:
        if asked is not None and asked not in table.column_names:
            known = ", ".join(table.column_names)
            raise images.ImageError(f"hf:{self.spec}: no column {asked!r} for {what}; there are {known}")
        return asked or next((name for name in usual if name in table.column_names), None)


def _needed(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise images.ImageError(f"this source needs {module} (pip install 'rcdm_fast[{extra}]')") from error
