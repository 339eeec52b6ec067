"""Parquet, Arrow, Feather and CSV files as parts whose columns are read block by block, each block checked in full.

A damaged Arrow file ends the process where it is mapped into memory and believed: offsets lead anywhere. So a block is
read into memory (a very large one is mapped) and validated before a value of it is looked at; what a header claims is
compared with the size of the file first. Costs a pass over each block at the speed of memory, and no process.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from rcdm_fast.config import ConfigError
from rcdm_fast.doors import regular
from rcdm_fast.errors import install

EXTENSIONS = (".parquet", ".arrow", ".feather")
NAMED_EXTENSIONS = (*EXTENSIONS, ".csv", ".tsv")  # what is a table if a person names it; beside images .csv is a note

_ROWS = 100_000_000  # that a file may claim whatever its size: constant columns take next to nothing
_ROWS_PER_BYTE = 64
_FREE_BYTES = 1 << 28  # what compressed content may take without a question
_RATIO = 100  # of larger ones: at most so many bytes from one
_MAPPED_BYTES = 1 << 30  # blocks from here on are mapped and not read
_METADATA_BYTES = 1 << 26


class Parts(Protocol):
    """One file in parts.

    Attributes:
        lengths: rows of each part.
        schema: of pyarrow.
    """

    path: Path
    lengths: list[int]
    schema: Any

    def scan(self, number: int, columns: Sequence[str], rows: int) -> Iterator[list[Any]]:
        """Columns of one part as validated pyarrow arrays, in blocks of about `rows` rows; raises what it meets."""


def open_file(path: Path) -> Parts:
    """The parts of a file. Raises whatever its reader stumbles over, `ConfigError` without pyarrow."""
    regular(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _Parquet(path)
    return _Csv(path) if suffix in (".csv", ".tsv") else _Arrow(path)


def _plausible(rows: int, path: Path) -> int:
    if not 0 <= rows <= max(_ROWS, _ROWS_PER_BYTE * path.stat().st_size):
        raise ValueError(f"it claims {rows} rows")
    return rows


class _Parquet:
    def __init__(self, path: Path) -> None:
        _, parquet = pyarrow()
        self.path = path
        self._file = parquet.ParquetFile(path, memory_map=False, page_checksum_verification=True)
        about = self._file.metadata
        self._groups = [about.row_group(number) for number in range(about.num_row_groups)]
        self.lengths = [_plausible(group.num_rows, path) for group in self._groups]
        _plausible(sum(self.lengths), path)
        self.schema = self._file.schema_arrow

    def scan(self, number: int, columns: Sequence[str], rows: int) -> Iterator[list[Any]]:
        # Of a whole group: asking pyarrow about one column ends the process where its statistics are damaged.
        claimed, held = self._groups[number].total_byte_size, self.path.stat().st_size
        if claimed > max(_FREE_BYTES, _RATIO * held):
            raise ValueError(f"a row group claims {claimed} bytes in {held}")
        for batch in self._file.iter_batches(rows, row_groups=[number], columns=list(columns), use_threads=False):
            yield [_checked(batch.column(batch.schema.names.index(name))) for name in columns]


class _Arrow:
    """A stream of Arrow's messages: that is what .arrow files of both kinds and Feather hold."""

    def __init__(self, path: Path) -> None:
        arrow, _ = pyarrow()
        self.path, self._size = path, path.stat().st_size
        self._dictionaries: list[tuple[int, int]] = []  # first byte and length of their messages
        self._batches: list[tuple[int, int, int]] = []  # the same, and the number of dictionaries before it
        self.lengths = []
        with open(path, "rb") as file:
            start = self._begin(file)
            head = _Message(file, start, self._size)
            if head.kind != _Message.SCHEMA:
                raise ValueError("it does not begin with a schema")
            self._head = (start, head.end - start)
            while (message := _Message(file, head.end, self._size)).kind:
                if message.kind == _Message.DICTIONARY:
                    self._dictionaries.append((head.end, message.end - head.end))
                elif message.kind == _Message.BATCH:
                    self._batches.append((head.end, message.end - head.end, len(self._dictionaries)))
                    self.lengths.append(_plausible(message.rows(), path))
                head = message
            self.schema = arrow.ipc.read_schema(arrow.py_buffer(_read(file, *self._head)))
        _plausible(sum(self.lengths), path)

    def _begin(self, file: Any) -> int:
        """Where the stream begins."""
        if file.read(8)[:6] != b"ARROW1":
            return 0
        file.seek(max(8, self._size - 6))
        if file.read(6) != b"ARROW1":
            raise ValueError("its end is missing")
        return 8

    def scan(self, number: int, columns: Sequence[str], rows: int) -> Iterator[list[Any]]:
        arrow, _ = pyarrow()
        start, size, dictionaries = self._batches[number]
        with open(self.path, "rb") as file:
            _Message(file, start, self._size).check_packed(file)
            if dictionaries:
                for place, _ in self._dictionaries[:dictionaries]:
                    _Message(file, place, self._size).check_packed(file)
                parts = [self._head, *self._dictionaries[:dictionaries], (start, size)]
                stream = arrow.ipc.open_stream(arrow.py_buffer(b"".join(_read(file, *part) for part in parts)))
                batch = stream.read_next_batch()
            else:
                opened = arrow.memory_map if size >= _MAPPED_BYTES else arrow.OSFile
                with opened(str(self.path)) as source:
                    source.seek(start)
                    batch = arrow.ipc.read_record_batch(arrow.ipc.read_message(source), self.schema)
        yield [_checked(batch.column(batch.schema.names.index(name))) for name in columns]


class _Message:
    """The head of one of Arrow's messages, read without its body.

    Attributes:
        kind: what follows it; 0 at the end of the stream.
        end: where the next one begins.
    """

    SCHEMA, DICTIONARY, BATCH = 1, 2, 3

    def __init__(self, file: Any, start: int, size: int) -> None:
        self.kind, self.end = 0, start
        file.seek(start)
        first = file.read(4)
        if len(first) < 4:  # a stream may end so, but a torn one ends so, too
            raise EOFError("its closing mark is missing")
        (length,) = struct.unpack("<i", first)
        before = 4
        if length == -1:  # since Arrow 0.15 there are eight bytes before a message
            (length,), before = struct.unpack("<i", file.read(4)), 8
        if length == 0:
            return
        if not 0 < length <= min(_METADATA_BYTES, size - start):
            raise ValueError("a message is damaged")
        self._flat = _read(file, start + before, length)
        self._root = self._table(0)
        self.kind = self._number(self._root, 1, "<B")
        body = self._number(self._root, 3, "<q")
        self._body = start + before + length
        self.end = self._body + body
        if body < 0 or self.end > size:
            raise EOFError("its end is missing")

    def rows(self) -> int:
        """Of a batch."""
        return self._number(self._header(), 0, "<q")

    def check_packed(self, file: Any) -> None:
        """Raise `ValueError` if compressed buffers claim more than is plausible."""
        batch = self._header()
        if self.kind == self.DICTIONARY and (place := self._field(batch, 1)):
            batch = self._table(place)
        place = self._field(batch, 2)
        if not self._field(batch, 3) or not place:
            return
        vector = place + struct.unpack_from("<I", self._flat, place)[0]
        (count,) = struct.unpack_from("<I", self._flat, vector)
        claimed = 0
        for number in range(count):
            offset, length = struct.unpack_from("<qq", self._flat, vector + 4 + 16 * number)
            if length >= 8 and 0 <= offset and self._body + offset + 8 <= self.end:
                claimed += max(0, struct.unpack("<q", _read(file, self._body + offset, 8))[0])
        if claimed > max(_FREE_BYTES, _RATIO * (self.end - self._body)):
            raise ValueError(f"a batch claims {claimed} bytes in {self.end - self._body}")

    def _header(self) -> int:
        place = self._field(self._root, 2)
        if not place:
            raise ValueError("a message without content")
        return self._table(place)

    def _table(self, place: int) -> int:
        return int(place + struct.unpack_from("<I", self._flat, place)[0])

    def _field(self, table: int, number: int) -> int:
        """Where a field of a flatbuffer's table lies; 0: it has its default."""
        where = table - struct.unpack_from("<i", self._flat, table)[0]
        if where < 0:
            raise ValueError("a message is damaged")
        (size,) = struct.unpack_from("<H", self._flat, where)
        offset = struct.unpack_from("<H", self._flat, where + 4 + 2 * number)[0] if 4 + 2 * number < size else 0
        return table + int(offset) if offset else 0

    def _number(self, table: int, number: int, form: str) -> int:
        place = self._field(table, number)
        return int(struct.unpack_from(form, self._flat, place)[0]) if place else 0


class _Csv:
    def __init__(self, path: Path) -> None:
        pyarrow()
        csv = importlib.import_module("pyarrow.csv")
        self.path = path
        with open(path, encoding="utf-8-sig") as file:
            first = file.readline(1 << 20)
        mark = "\t" if path.suffix.lower() == ".tsv" else ","
        fields = first.rstrip("\r\n").split(mark)
        numbers = [str(place) for place in range(len(fields))]
        # What pandas calls columns without names is no row, though it consists of numbers.
        unnamed = all(_is_number(each) for each in fields) and not (len(fields) > 2 and fields == numbers)
        reading = csv.ReadOptions(autogenerate_column_names=unnamed, use_threads=False)
        self._table = csv.read_csv(path, read_options=reading, parse_options=csv.ParseOptions(delimiter=mark))
        self.lengths, self.schema = [self._table.num_rows], self._table.schema

    def scan(self, number: int, columns: Sequence[str], rows: int) -> Iterator[list[Any]]:
        for batch in self._table.select(list(columns)).to_batches(rows):
            yield [_checked(batch.column(place)) for place in range(len(columns))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked(array: Any) -> Any:
    array.validate(full=True)
    return array


def _read(file: Any, start: int, size: int) -> bytes:
    found = os.pread(file.fileno(), size, start)
    if len(found) != size:
        raise EOFError("its end is missing")
    return found


def pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises `ConfigError` if they are missing."""
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"Parquet and Arrow need pyarrow ({install('jobs')})") from error
    return arrow, parquet
