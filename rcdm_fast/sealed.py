"""States written by `torch.save` with a checksum that is checked when they are read.

The file is a zip container, and the checksum (SHA-256 of everything before it) is the container's comment: one file,
which appears whole or not at all, and which `torch.load` reads as any other. Files without it, of `torch.save` itself
or of earlier versions, are read too: their container's own CRCs are checked, and the log says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rcdm_fast import storage
from rcdm_fast.doors import door, said
from rcdm_fast.storage import StorageError

log = logging.getLogger(__name__)

_MARK = b"rcdm_fast sha256 "
_SEAL_BYTES = len(_MARK) + 64
_END_BYTES = 22  # of what ends a zip container, before its comment
_PIECE_BYTES = 1 << 20


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write tensors and plain data with their checksum, atomically. Raises `StorageError`."""
    with storage.atomic(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # PyTorch's writer does not say what the system said
            raise StorageError(f"{path}: cannot be written ({said(error)}; {_free(temporary)})") from error
        _seal(temporary)


def load(path: str | os.PathLike[str]) -> Any:
    """The state as it was written, on the CPU; no code in the file is run.

    Raises:
        StorageError: missing, truncated, damaged anywhere, or something else.
    """
    with door(StorageError, f"{path}: cannot be read"):
        _check(Path(path))
        return torch.load(path, map_location="cpu", weights_only=True)


def _seal(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the comment ends a container without one
        if file.read(2) != b"\0\0":
            raise OSError("the container has a comment already")
        file.seek(-2, os.SEEK_END)
        file.write(_SEAL_BYTES.to_bytes(2, "little"))
        file.flush()
        file.seek(0)
        digest = _digest(file, file.seek(0, os.SEEK_END))
        file.write(_MARK + digest)


def _check(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _SEAL_BYTES))
        seal = file.read()
        if seal.startswith(_MARK):
            if _digest(file, size - _SEAL_BYTES) != seal.removeprefix(_MARK):
                raise StorageError(f"{path}: damaged (its content does not have the checksum at its end)")
            return
    log.info("%s has no checksum of its own (of an earlier version?)", path)
    with open(path, "rb") as file:
        if file.read(2) == b"PK":  # torch.load itself compares no CRC, and takes a container that was cut in its seal
            file.seek(max(0, size - _SEAL_BYTES - _END_BYTES))
            end = file.read()
            place = end.rfind(b"PK\x05\x06")
            if place < 0 or place + _END_BYTES + int.from_bytes(end[place + 20 : place + 22], "little") != len(end):
                raise StorageError(f"{path}: damaged (it does not end as it should)")
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise StorageError(f"{path}: damaged ({damaged} does not have its CRC)")


def _digest(file: BinaryIO, size: int) -> bytes:
    """Hex SHA-256 of the first `size` bytes; the file stands behind them then."""
    digest = hashlib.sha256()
    file.seek(0)
    while size:
        piece = file.read(min(size, _PIECE_BYTES))
        if not piece:
            break
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest().encode()


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there"
