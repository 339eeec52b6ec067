"""A column of Parquet or Arrow files, a value at any place.

Parquet is read a row group at a time, and the last one is kept; Arrow files are mapped into memory. Not for several
threads at once.

Knows nothing about what the values are for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.jobs.formats import pyarrow
from rcdm_fast.training.source_kinds import IMAGE_COLUMNS

EXTENSIONS = (".parquet", ".arrow", ".feather")
REPRESENTATION_COLUMNS = ("representation", "representations", "h", "embedding", "embeddings")
ID_COLUMNS = ("id", "ids", "key", "__key__", "name")


class _Parts(Protocol):
    """One file in parts that are read whole."""

    lengths: list[int]
    schema: Any

    def part(self, number: int, column: str) -> Any:
        """A column of one part, as a pyarrow array."""


class _Parquet:
    def __init__(self, path: Path) -> None:
        _, parquet = pyarrow()
        self._file = parquet.ParquetFile(path, memory_map=True)
        about = self._file.metadata
        self.lengths = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        self.schema = self._file.schema_arrow

    def part(self, number: int, column: str) -> Any:
        return self._file.read_row_group(number, columns=[column])[column]


class _Arrow:
    def __init__(self, path: Path) -> None:
        arrow, _ = pyarrow()
        mapped = arrow.memory_map(str(path))
        try:
            table = arrow.ipc.open_file(mapped).read_all()
        except arrow.ArrowInvalid:
            mapped.seek(0)
            table = arrow.ipc.open_stream(mapped).read_all()
        self._table = table
        self.lengths, self.schema = [table.num_rows], table.schema

    def part(self, number: int, column: str) -> Any:
        return self._table[column]


class Table:
    """Rows of several files with the same columns.

    Attributes:
        kind: what the column holds.
    """

    def __init__(self, files: Sequence[Path], parts: Sequence[_Parts]) -> None:
        self._files = files
        self._where = [(each, number) for each in parts for number in range(len(each.lengths))]
        self._ends = list(accumulate(length for each in parts for length in each.lengths))
        self._kept: tuple[int, Any] = (-1, None)
        schema = parts[0].schema
        if any(each.schema.names != schema.names for each in parts):
            raise ConfigError(f"{files[0].parent}: the files have different columns")
        self.kind: Literal["picture", "representation"]
        self._column, self.kind = _column(schema, files[0])
        self._id = next((name for name in ID_COLUMNS if name in schema.names), None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def value(self, place: int) -> Any:
        """A list of numbers, a picture's bytes, the path of its file, or None."""
        value = self._scalar(place).as_py()
        if isinstance(value, dict):
            return value.get("bytes") or (Path(value["path"]) if value.get("path") else None)
        return value

    def content(self, place: int) -> bytes:
        """What tells whether a row is still the same: a representation's numbers; of pictures the size of all files."""
        if self.kind == "picture":
            return repr([file.stat().st_size for file in self._files]).encode()
        numbers = self._scalar(place).values
        return b"" if numbers is None else numbers.to_numpy(zero_copy_only=False).tobytes()

    def _scalar(self, place: int) -> Any:
        part = bisect_right(self._ends, place)
        if self._kept[0] != part:
            parts, number = self._where[part]
            self._kept = (part, parts.part(number, self._column))
        return self._kept[1][place - (self._ends[part - 1] if part else 0)]

    def ids(self) -> list[str] | None:
        """Ids of all rows, if there is a column of them."""
        if self._id is None:
            return None
        return [str(each) for parts, number in self._where for each in parts.part(number, self._id).to_pylist()]


def open_files(files: Sequence[Path]) -> Table:
    """The table that files make together, in their order.

    Raises:
        StorageError: a file cannot be read.
        ConfigError: no column of pictures or representations, different columns, or pyarrow is missing.
    """
    parts: list[_Parts] = []
    for file in files:
        try:
            parts.append(_Parquet(file) if file.suffix == ".parquet" else _Arrow(file))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise storage.StorageError(f"{file}: cannot be read ({error})") from error
    return Table(files, parts)


def _column(schema: Any, file: Path) -> tuple[str, Literal["picture", "representation"]]:
    arrow, _ = pyarrow()
    for name in REPRESENTATION_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            lists = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
            if any(check(kind) for check in lists) and arrow.types.is_floating(kind.value_type):
                return name, "representation"
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if arrow.types.is_struct(kind) or arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
                return name, "picture"
    wanted = ", ".join((*REPRESENTATION_COLUMNS, *IMAGE_COLUMNS))
    raise ConfigError(
        f"{file}: no column of representations (lists of floats) or pictures among {', '.join(schema.names)}; "
        f"looked for {wanted}"
    )
