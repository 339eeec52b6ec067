"""Items of a job: images, representations, labels, or nothing but a number; any of them at any time.

A job asks for items by index, in the order of its units, on several machines at once, so a source answers by index and
its order is the same every time. Every item has an id for readers of the manifest; its index keys its noise.

Knows nothing about models (what kind of item a model needs is asked in `jobs/feed.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.config import ConfigError
from rcdm_fast.data import world
from rcdm_fast.data.item_sources import Columns, Drawn, HubImages, Images, Nothing, Several, Shards
from rcdm_fast.data.items import HASHES, Kind, Source, check_ids, fingerprint, hash_of
from rcdm_fast.data.readers import hugging_face, tables, tars
from rcdm_fast.data.readers.array_rows import Rows, array_file
from rcdm_fast.data.readers.image_files import contents, is_archive
from rcdm_fast.images import IMAGE_EXTENSIONS, ImageError

__all__ = ["HASHES", "Given", "Kind", "Nothing", "Source", "check_ids", "find", "fingerprint", "hash_of"]

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
    if isinstance(given, int | np.integer):
        return _numbered(given)
    if isinstance(given, Tensor | np.ndarray):
        return Rows("(given)", given.detach().cpu() if isinstance(given, Tensor) else given)
    if not isinstance(given, str | os.PathLike):
        return Images("(given)", _listed(given))
    name = os.fspath(given)
    there = os.path.lexists(name)
    if name.isdecimal() and not there:
        return _numbered(int(name) if len(name) < 19 else _too_many(name))
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


def _numbered(count: int | np.integer[Any]) -> Nothing:
    if isinstance(count, bool) or count < 0:
        raise ConfigError(f"{count} items: expected how many there are")
    return Nothing(int(count) if count < 10**18 else _too_many(str(count)))


def _listed(given: Any) -> list[Any]:
    """Images in memory, and paths, one by one; one of them may be given by itself."""
    if isinstance(given, Image.Image | bytes | bytearray | memoryview) or hasattr(given, "read"):
        return [given]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ConfigError(f"a {type(given).__name__} is no source of items: give a path, images, arrays or a number")
    if hasattr(given, "column_names"):
        raise ConfigError(f"a {type(given).__name__} has several columns: give one of them, as in dataset['image']")
    return list(given)


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
