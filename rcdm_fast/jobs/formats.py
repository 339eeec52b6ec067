"""Shards: images of one unit in one file or folder, in four forms, written so that they appear whole or not at all.

Every image has a place in its shard (`offset`) and a payload, whose checksum is in the manifest: the bytes of a
image file, or for npz the levels themselves. Files depend on images alone: no times, no user names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.readers import arrays
from rcdm_fast.data.readers.table_files import pyarrow
from rcdm_fast.doors import door, printable, regular
from rcdm_fast.jobs.settings import Encoding, JobConfig
from rcdm_fast.jobs.shard import ShardImage, Shards
from rcdm_fast.jobs.shard_tables import Tables
from rcdm_fast.outputs import LARGEST_SIDE

_TAR_BLOCK = 512
_BITS = 0o644


def find(config: JobConfig) -> Shards:
    """The form that a job asks for. Raises `ConfigError` if a package is missing."""
    if config.format == "npz":
        return Arrays()
    encode = image_encoder(config.encoding, config.quality)
    extension = {"png": "png", "jpeg": "jpg", "webp": "webp"}[config.encoding]
    if config.format == "webdataset":
        return Tars(encode, extension)
    if config.format == "folder":
        return Folders(encode, extension)
    pyarrow()
    return Tables(encode, extension)


def check_size(config: JobConfig, side: int) -> None:
    """Raise `ConfigError` if images of `side` pixels a side cannot be kept in the form that a job asks for."""
    most = LARGEST_SIDE.get(config.encoding.upper(), side)
    if config.format != "npz" and side > most:
        raise ConfigError(f"images of {side} pixels are too large for {config.encoding}, which has {most} at most")


def size_bytes(config: JobConfig, side: int, missing: int, images: int) -> int:
    """What a job will surely take: of npz all bytes, of compressed images nothing that is known before."""
    return 3 * side**2 * (missing + images) if config.format == "npz" else 0


def checksum(payload: bytes) -> str:
    """Hex SHA-256 of a payload."""
    return hashlib.sha256(payload).hexdigest()


def image_encoder(encoding: Encoding, quality: int) -> Callable[[np.ndarray], bytes]:
    """uint8 [H,W,3] -> an image file's bytes."""
    options: dict[str, dict[str, Any]] = {
        "png": {},
        "jpeg": {"quality": quality, "subsampling": 0},
        "webp": {"lossless": True} if quality == 100 else {"quality": quality},
    }

    def encode(levels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(levels).save(file, format=encoding, **options[encoding])
        return file.getvalue()

    return encode


@dataclass(frozen=True)
class Tars:
    """WebDataset: KEY.png (or .jpg, .webp) and KEY.json for every image; offset: of the file's first byte."""

    _encode: Callable[[np.ndarray], bytes]
    extension: str
    suffix: str = ".tar"

    def encode(self, levels: np.ndarray) -> bytes:
        """See `Shards`."""
        return self._encode(levels)

    def write(self, path: Path, images: Sequence[ShardImage], shape: tuple[int, int]) -> list[int]:
        """See `Shards`."""
        offsets = []
        with storage.atomic(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image in images:
                about = json.dumps(dict(image.about), sort_keys=True).encode()
                offsets.append(tar.offset + _TAR_BLOCK)
                for extension, content in ((self.extension, image.payload), ("json", about)):
                    member = tarfile.TarInfo(f"{image.key}.{extension}")
                    member.size, member.mode = len(content), _BITS
                    tar.addfile(member, io.BytesIO(content))
        return offsets

    def read(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Shards`."""
        with _reading(path) as file:
            size = path.stat().st_size
            for row in rows:  # a row that was changed may ask for more than memory holds
                with door(storage.StorageError, f"{path}: cannot be read"):
                    file.seek(min(row["offset"], size))
                    content = file.read(min(row["bytes"], size))
                yield content


@dataclass(frozen=True)
class Folders:
    """A folder of image files, KEY.png (or .jpg, .webp), for each shard; offset: number of the file."""

    _encode: Callable[[np.ndarray], bytes]
    extension: str
    suffix: str = ""

    def encode(self, levels: np.ndarray) -> bytes:
        """See `Shards`."""
        return self._encode(levels)

    def write(self, path: Path, images: Sequence[ShardImage], shape: tuple[int, int]) -> list[int]:
        """See `Shards`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = storage.new_folder(path)
            try:
                for image in images:
                    with open(temporary / f"{image.key}.{self.extension}", "xb") as file:
                        file.write(image.payload)
                        file.flush()
                        storage.sync(file.fileno())
                if path.is_symlink():
                    path.unlink()
                elif path.is_dir():  # left by a run that was stopped before it could commit, or damaged
                    shutil.rmtree(path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            storage.move(temporary, path)
        except storage.StorageError:
            raise
        except OSError as error:
            raise storage.StorageError(f"{path}: cannot be written ({error.strerror or error})") from error
        return list(range(len(images)))

    def read(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Shards`."""
        for row in rows:
            with _reading(path / f"{row['key']}.{self.extension}") as file:
                with door(storage.StorageError, f"{path}: cannot be read"):
                    content = file.read()
                yield content


@dataclass(frozen=True)
class Arrays:
    """One .npz with "arr_0" uint8 [N,H,W,3] for each shard; offset: place in the array."""

    suffix: str = ".npz"

    def encode(self, levels: np.ndarray) -> bytes:
        """See `Shards`."""
        return levels.tobytes()

    def write(self, path: Path, images: Sequence[ShardImage], shape: tuple[int, int]) -> list[int]:
        """See `Shards`."""
        with storage.atomic(path) as temporary, _levels_file(temporary, len(images), shape) as file:
            for image in images:
                file.write(image.payload)
        return list(range(len(images)))

    def read(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Shards`."""
        pixels = _array(path)
        for row in rows:
            yield pixels[row["offset"]].tobytes() if row["offset"] < len(pixels) else b""


@contextlib.contextmanager
def _levels_file(path: Path, count: int, shape: tuple[int, int]) -> Iterator[Any]:
    """An .npz with arr_0 uint8 [count,H,W,3], open for its levels to be written one image after the other."""
    member = zipfile.ZipInfo("arr_0.npy")  # its time is 1980: files depend on images alone
    described = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape, 3)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open(member, "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, described)
        yield file


def join_arrays(shards: Sequence[Path], path: Path, count: int, shape: tuple[int, int]) -> None:
    """All npz shards as one .npz, a shard at a time. Raises `StorageError`."""
    with storage.atomic(path) as temporary, _levels_file(temporary, count, shape) as file:
        for shard in shards:
            for image in _array(shard):
                file.write(image.tobytes())


def _array(path: Path) -> arrays.Rows:
    """The images of an npz shard, uint8 [N,H,W,3]. Raises `StorageError`."""
    found = arrays.read(path, storage.StorageError)
    if "arr_0" not in found:
        raise storage.StorageError(f"{printable(path)}: it has no array arr_0")
    images = found["arr_0"]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise storage.StorageError(f"{printable(path)}: {list(images.shape)} of {images.dtype} are no images")
    return images


def joined_payloads(path: Path) -> Iterator[bytes]:
    """Payloads of all images in what `join_arrays` wrote, one after the other. Raises `StorageError`."""
    with (
        door(storage.StorageError, f"{path}: cannot be read"),
        zipfile.ZipFile(path) as archive,
        archive.open("arr_0.npy") as file,
    ):
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of .npy")
        (count, *shape), _, kind = np.lib.format.read_array_header_1_0(file)
        size = math.prod(shape) * kind.itemsize
        if size <= 0 or count * size > archive.getinfo("arr_0.npy").file_size:
            raise ValueError("its header claims what it does not hold")
        for _ in range(count):
            yield file.read(size)
        if file.read(1):
            raise ValueError("more than its header says")


def _reading(path: Path) -> Any:
    try:
        regular(path)
        return open(path, "rb")
    except OSError as error:
        raise storage.StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
