"""Arrays of .npy and .npz files, a row at a time: what a header claims is checked before anything is allocated.

Rows are read from the file when they are asked for, where the file holds them as they are (.npy; .npz that
`numpy.savez` wrote), so that an array may be larger than memory, and a file that shrinks meanwhile is an error and not
the end of the process, as it is where files are mapped. Python objects (pickles) are never read.
"""

from __future__ import annotations

import ast
import contextlib
import math
import os
import struct
import sys
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from rcdm_fast.doors import door, printable, regular

_HEADER = 10_000  # characters; numpy's own bound
_FREE_BYTES = 1 << 28  # what a compressed array may take without a question
_RATIO = 100  # of larger ones: at most so many bytes from one; deflate gives 1000 from zeros
_ROW_BYTES = 1 << 30
_PIECE = 1 << 20


class _UnreadableError(Exception):
    pass


class Rows:
    """N rows that lie in a file, or an array in memory.

    Attributes:
        shape: [N,...].
        dtype: of what `rows[index]` gives, in the machine's byte order.
    """

    def __init__(self, name: str, kind: type[Exception], held: _InFile | np.ndarray, field: str | None = None) -> None:
        self._name, self._kind, self._held, self._field = name, kind, held, field
        one = held.dtype if field is None else held.dtype[field]
        self.dtype = one.base.newbyteorder("=")
        self.shape: tuple[int, ...] = (*held.shape, *one.shape)

    @property
    def ndim(self) -> int:
        """Dimensions, that of the rows included."""
        return len(self.shape)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the columns of a structured array."""
        return self.dtype.names or ()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """One row, a copy. Raises the error that the file was opened with."""
        with door(self._kind, f"{self._name}: row {index} cannot be read", memory=False):
            row = self._held[index]
            copy = np.array(row if self._field is None else row[self._field], dtype=self.dtype)
            if self.dtype.kind == "U" and (np.frombuffer(copy.tobytes(), np.uint32) > sys.maxunicode).any():
                raise ValueError("a text of what are no characters")  # Python's own would be broken ones
            return copy

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def column(self, field: str) -> Rows:
        """One column of a structured array."""
        return Rows(self._name, self._kind, self._held, field)


class _InFile:
    """An array whose rows are read from a file; `start`: its first byte."""

    def __init__(self, path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._start, self._bytes = start, math.prod(shape[1:]) * dtype.itemsize
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.shape[0]:
            raise IndexError(index)
        read = os.pread(self._file, self._bytes, self._start + index * self._bytes)
        if len(read) != self._bytes:
            raise EOFError("the file has become shorter")
        return np.frombuffer(read, self.dtype).reshape(self.shape[1:])


def read(path: Path, kind: type[Exception]) -> Mapping[str, Rows]:
    """The arrays of a file by their names; that of an .npy file is called "". Columns of structured ones stand apart.

    Args:
        path: .npy or .npz.
        kind: the error to raise.

    Raises:
        kind: no such file, a damaged one, one whose headers claim more than it holds or than is plausible, or objects.
    """
    with door(kind, f"{printable(path)}: cannot be read"):
        regular(path)
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                shape, dtype, fortran = _header(file)
                start, size = file.tell(), path.stat().st_size
            _check(shape, dtype, size - start)
            if fortran and len(shape) > 1:
                return _columns("", Rows(str(path), kind, np.memmap(path, dtype, "r", start, shape, "F")))
            return _columns("", Rows(str(path), kind, _InFile(path, start, shape, dtype)))
        return _Zipped(path, kind)


def _columns(name: str, rows: Rows) -> dict[str, Rows]:
    return {field: rows.column(field) for field in rows.fields} or {name: rows}


class _Zipped(Mapping[str, Rows]):
    """The arrays of an .npz, each opened when it is asked for."""

    def __init__(self, path: Path, kind: type[Exception]) -> None:
        self._path, self._kind = path, kind
        self._opened: dict[str, Rows] = {}
        with zipfile.ZipFile(path) as archive:
            entries = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            self._entries = {name: each for name, each in entries.items() if each.filename.endswith(".npy")}
            structured = [name for name, each in self._entries.items() if self._structured(archive, each)]
        for name in structured:
            self._opened.update(_columns(name, self._open(self._entries.pop(name))))

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._opened})

    def __len__(self) -> int:
        return len({**self._entries, **self._opened})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._opened

    def __getitem__(self, name: str) -> Rows:
        if name not in self._opened:
            entry = self._entries[name]
            with door(self._kind, f"{printable(self._path)}: {printable(name)} cannot be read"):
                self._opened[name] = self._open(entry)
        return self._opened[name]

    def _structured(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
        """Whether an entry is a structured array; one that cannot be read matters when it is asked for."""
        with contextlib.suppress(_UnreadableError), door(_UnreadableError, entry.filename):
            return bool(self._peek(archive, entry)[1].names)
        return False

    def _peek(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is compressed as numpy does not")
        with archive.open(entry) as file:
            return _header(file)

    def _open(self, entry: zipfile.ZipInfo) -> Rows:
        name = f"{self._path}, {entry.filename}"
        with zipfile.ZipFile(self._path) as archive:
            shape, dtype, fortran = self._peek(archive, entry)
            stored = entry.compress_type == zipfile.ZIP_STORED and not fortran
            if entry.file_size > max(_FREE_BYTES, _RATIO * min(entry.compress_size, self._path.stat().st_size)):
                raise ValueError(f"{entry.filename} claims {entry.file_size:.3g} bytes in {entry.compress_size}")
            with archive.open(entry) as file:
                _header(file)
                head = file.tell()
                size = _check(shape, dtype, entry.file_size - head)
                if stored:
                    while file.read(_PIECE):  # to its end, for then the checksum has been compared
                        pass
                    start = _content(self._path, entry) + head
                    return Rows(name, self._kind, _InFile(self._path, start, shape, dtype))
                flat = np.empty(size, np.uint8)
                _fill(file, flat)
        array = flat.view(dtype).reshape(shape, order="F" if fortran else "C")
        return Rows(name, self._kind, array)


def _fill(file: IO[bytes], flat: np.ndarray) -> None:
    index = 0
    while piece := file.read(_PIECE):
        flat[index : index + len(piece)] = np.frombuffer(piece, np.uint8)[: len(flat) - index]
        index += len(piece)
    if index < len(flat):
        raise EOFError("it is shorter than its header says")


def _content(path: Path, entry: zipfile.ZipInfo) -> int:
    """The first byte of a stored entry."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(30))
    return int(entry.header_offset + 30 + name + extra)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and whether in Fortran's order, of what is written as .npy."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of .npy")
    (length,) = struct.unpack("<H", file.read(2)) if version == (1, 0) else struct.unpack("<I", file.read(4))
    if length > _HEADER:
        raise ValueError(f"a header of {length} characters")
    about = ast.literal_eval(file.read(length).decode("utf-8" if version == (3, 0) else "latin1"))
    shape, dtype = about["shape"], np.lib.format.descr_to_dtype(about["descr"])
    if not isinstance(shape, tuple) or not all(type(each) is int and 0 <= each < 1 << 62 for each in shape):
        raise ValueError("its header has no shape")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    shape, dtype = (*shape, *dtype.shape), dtype.base
    return shape, dtype, bool(about["fortran_order"])


def _check(shape: tuple[int, ...], dtype: np.dtype[Any], held: int) -> int:
    """The bytes of an array. Raises `ValueError` unless it has rows, and the file holds them."""
    if not shape:
        raise ValueError("one number, and no rows")
    if len(shape) > 16:
        raise ValueError(f"{len(shape)} dimensions")
    size = math.prod(shape) * dtype.itemsize
    if size > held:
        raise ValueError(f"its header claims {list(shape)} of {dtype}, {size} bytes; there are {held}")
    if shape[0] and not size:
        raise ValueError(f"its rows are empty: {list(shape)} of {dtype}")
    if shape[0] and size // shape[0] > _ROW_BYTES:
        raise ValueError(f"rows of {size // shape[0] / 1e9:.1f} GB")
    return size
