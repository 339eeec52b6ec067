"""Members of tar archives: what they are called and where they lie, with nothing allocated on a header's word.

Takes what is written today: ustar, GNU and pax headers, archives joined one behind the other, gzip, bzip2 and xz around
them. Python's `tarfile` is not used: it allocates what a header claims, takes a torn archive for a shorter one, stops
at the first archive of joined ones, and before 3.11.14 a negative offset keeps it busy for ever.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rcdm_fast.data.readers import tar_headers
from rcdm_fast.data.readers.tar_headers import BLOCK
from rcdm_fast.doors import door, printable, regular

PIECE_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20  # of a long name or a pax header
_FREE_BYTES = 1 << 30  # what a compressed archive may hold without a question
_RATIO = 100  # of larger ones: at most so many bytes from one
_XZ_BYTES = 1 << 28  # memory that xz may take

_MAGIC_BYTES = 8
_CLOSING_BYTES = 2 * BLOCK  # zeros behind the last member

Kind = Literal["file", "link", "sparse", "other"]
_KINDS: Mapping[bytes, Kind] = {b"1": "link", b"2": "link", b"S": "sparse", b"V": "other", b"D": "other", b"M": "other"}
_WITHOUT_CONTENT = b"123456"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_OTHER = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
        name: bytes that are no UTF-8 are surrogates, as in names of files.
        kind: a file that lies in the archive as it is, a link, a file with holes, or something else.
        start: its first byte in the (uncompressed) archive.
        size: its bytes.
        link: name that a link leads to.
        part: number of the archive, of several that were joined.
    """

    name: str
    kind: Kind
    start: int
    size: int
    link: str = ""
    part: int = 0


def compression(path: Path) -> str | None:
    """What a file is packed with, by its first bytes: "gzip", "bzip2", "xz", "zstd", "zip"...; None: nothing known."""
    regular(path)
    with open(path, "rb") as file:
        return _packed(file.read(_MAGIC_BYTES))


def is_tar(path: Path) -> bool:
    """Whether a file begins as an uncompressed tar archive does."""
    regular(path)
    with open(path, "rb") as file:
        return tar_headers.is_header(file.read(BLOCK))


class Archive:
    """An archive that is read from its beginning to its end.

    Attributes:
        name: for messages.
        path: of the file; None for a stream.
        direct: whether members lie in that file as they are.

    Args:
        source: path of a file, or a stream with `read` and `close`.
        name: for messages.
        kind: the error to raise.

    Raises:
        kind: the file cannot be opened, or is packed in a way that is not read here.
    """

    def __init__(self, source: Path | Any, name: str, kind: type[Exception]) -> None:
        self.name, self._kind = printable(name), kind
        self.path = source if isinstance(source, Path) else None
        with door(kind, f"{self.name}: cannot be read"):
            self.direct = self.path is not None and compression(self.path) is None
            self._stream: _Plain | _Packed
            if self.path is None:
                self._stream = _Packed(source, None)
            else:
                file, size = open(self.path, "rb"), self.path.stat().st_size  # noqa: SIM115  (closed by __iter__)
                self._stream = _Plain(file, size) if self.direct else _Packed(file, max(_FREE_BYTES, _RATIO * size))

    def __iter__(self) -> Iterator[Member]:
        """Members in their order. Raises the error that the archive was opened with."""
        iterator = _members(self._stream)
        try:
            while True:
                with door(self._kind, f"{self.name}: damaged"):
                    member = next(iterator, None)
                if member is None:
                    return
                yield member
        finally:
            with door(self._kind, f"{self.name}: damaged"):
                self._stream.close()

    def content(self, member: Member, most: int) -> bytes:
        """The bytes of the member at hand, before the next one is asked for; at most `most`."""
        with door(self._kind, f"{self.name}: damaged"):
            if member.size > most:
                raise ValueError(f"{member.name}: {member.size} bytes are more than {most}")
            return self._stream.exactly(member.size)


class _Plain:
    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self.size: int | None = size
        self.close = self._file.close

    def at(self) -> int:
        return int(self._file.tell())

    def go(self, place: int) -> None:
        self._file.seek(place)

    def some(self, count: int) -> bytes:
        return bytes(self._file.read(count))

    def exactly(self, count: int) -> bytes:
        return _exactly(self.some, count)


class _Packed:
    """A stream, unpacked if it is compressed; `most`: bytes that it may hold."""

    def __init__(self, stream: Any, most: int | None) -> None:
        self.size: int | None = None
        self._at, self._most = 0, most
        self.close = stream.close
        begun = _Begun(stream)
        packed = _packed(begun.head)
        openers: dict[str | None, Callable[[], Any]] = {
            None: lambda: begun,
            "gzip": lambda: gzip.GzipFile(fileobj=cast(Any, begun)),
            "bzip2": lambda: bz2.BZ2File(cast(Any, begun)),
            "xz": lambda: _Xz(begun),
        }
        if packed not in openers:
            stream.close()
            raise ValueError(f"packed with {packed}, which is not read here")
        self._unpacked = openers[packed]()

    def at(self) -> int:
        return self._at

    def go(self, place: int) -> None:
        while self._at < place:
            if not self.some(min(PIECE_BYTES, place - self._at)):
                raise EOFError("the end of the archive is missing")

    def some(self, count: int) -> bytes:
        found: bytes = self._unpacked.read(count)
        self._at += len(found)
        if self._most is not None and self._at > self._most:
            raise ValueError(f"more than {self._most} bytes are packed into it")
        return found

    def exactly(self, count: int) -> bytes:
        return _exactly(self.some, count)


class _Begun:
    """A stream whose first bytes were looked at."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < _MAGIC_BYTES and (piece := stream.read(_MAGIC_BYTES - len(self.head))):
            self.head += piece
        self._left = self.head

    def read(self, count: int = PIECE_BYTES) -> bytes:
        if self._left:
            found, self._left = self._left[:count], self._left[count:]
            return found
        return bytes(self._stream.read(count))


class _Xz:
    """What `lzma.LZMAFile` does, with a bound on memory."""

    def __init__(self, file: Any) -> None:
        self._file, self._decoder = file, lzma.LZMADecompressor(memlimit=_XZ_BYTES)
        self._left = b""

    def read(self, count: int) -> bytes:
        while True:
            if self._decoder.eof:
                self._left = self._decoder.unused_data.lstrip(b"\0") or self._file.read(PIECE_BYTES).lstrip(b"\0")
                if not self._left:
                    return b""
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_BYTES)
            elif self._decoder.needs_input and not self._left:
                self._left = self._file.read(PIECE_BYTES)
                if not self._left:
                    raise EOFError("the end of the archive is missing")
            found = self._decoder.decompress(self._left, max_length=count)
            self._left = b""
            if found:
                return found


def _packed(head: bytes) -> str | None:
    return next((name for magic, name in (_COMPRESSED | _OTHER).items() if head.startswith(magic)), None)


def _exactly(some: Callable[[int], bytes], count: int) -> bytes:
    pieces = []
    while count:
        piece = some(min(PIECE_BYTES, count))
        if not piece:
            raise EOFError("the end of the archive is missing")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _members(stream: _Plain | _Packed) -> Iterator[Member]:
    """Raises whatever it stumbles over."""
    part, zeros, begun = 0, 0, False
    everywhere: dict[str, str] = {}  # of pax headers that go for all members behind them
    of_next: dict[str, str] = {}  # of headers that go for the next member
    while head := _block(stream):
        if not head.strip(b"\0"):
            zeros += len(head)
            continue
        if len(head) < BLOCK or not tar_headers.is_header(head):
            raise ValueError("what follows its end is no archive" if zeros else "a header is damaged, or it is no tar")
        if zeros and begun:
            part, everywhere = part + 1, {}
        zeros, begun = 0, True
        size, flag = tar_headers.number(head[124:136]), head[156:157]
        if flag in b"xXgLK":
            if size > _HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            content = stream.exactly(size)
            stream.go(stream.at() + -size % BLOCK)
            if flag in b"LK":
                of_next["path" if flag == b"L" else "linkpath"] = tar_headers.text(content)
            else:
                (everywhere if flag == b"g" else of_next).update(tar_headers.pax(content))
            continue
        about, of_next = everywhere | of_next, {}
        size = tar_headers.decimal(about["size"]) if "size" in about else size
        name = about.get("path", tar_headers.name(head))
        holes = [key for key in about if key.startswith("GNU.sparse.")]
        for key in holes:
            if key not in ("GNU.sparse.name", "GNU.sparse.map"):
                tar_headers.decimal(about[key])
        sparse = flag == b"S" or bool(holes)
        more = flag == b"S" and head[482]
        while more:
            more = stream.exactly(BLOCK)[504]
        start, held = stream.at(), 0 if flag in _WITHOUT_CONTENT else size
        if stream.size is not None and start + held > stream.size:
            raise EOFError("the end of the archive is missing")
        kind: Kind = "sparse" if sparse else _KINDS.get(flag, "other" if flag in b"3456" else "file")
        if kind == "file" and name.endswith("/"):
            kind = "other"
        yield Member(name, kind, start, held, about.get("linkpath", tar_headers.text(head[157:257])), part)
        stream.go(start + held + -held % BLOCK)
    if zeros < _CLOSING_BYTES:
        raise EOFError("the end of the archive is missing")


def _block(stream: _Plain | _Packed) -> bytes:
    """The next block, shorter at the end of the file."""
    found = b""
    while len(found) < BLOCK and (piece := stream.some(BLOCK - len(found))):
        found += piece
    return found


def pread(path: Path, start: int, size: int, kind: type[Exception]) -> bytes:
    """`size` bytes of a file from `start` on. Raises `kind`, also if the file has become shorter."""
    with door(kind, f"{printable(path)}: cannot be read", memory=False):
        regular(path)
        with open(path, "rb", buffering=0) as file:
            pieces = []
            while size:
                piece = os.pread(file.fileno(), size, start)
                if not piece:
                    raise EOFError("the file has become shorter")
                pieces.append(piece)
                size, start = size - len(piece), start + len(piece)
            return b"".join(pieces)
