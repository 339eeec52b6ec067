"""A column of Parquet, Arrow or CSV files, a value at any index: which column is meant, and what its values are.

A block of rows is read at a time, and the last two are kept. Not for several threads at once.

Knows nothing about what the values are for, nor about the files' formats (`table_files.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rcdm_fast.config import ConfigError
from rcdm_fast.data.readers.table_files import EXTENSIONS, NAMED_EXTENSIONS, Parts, open_file, pyarrow
from rcdm_fast.doors import door, escaped, printable
from rcdm_fast.storage import StorageError

log = logging.getLogger(__name__)

Kind = Literal["image", "representation", "label"]
__all__ = ["EXTENSIONS", "NAMED_EXTENSIONS", "Kind", "Table", "open_files"]

REPRESENTATION_COLUMNS = ("representation", "representations", "h", "embedding", "embeddings")
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
PATH_COLUMNS = ("file_name", "image_path", "path", "filepath", "file")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
ID_COLUMNS = ("id", "ids", "key", "__key__", "name")
_DIGITS = "0123456789"
_BLOCK_ROWS = {"image": 64, "representation": 1024, "label": 65536}


@dataclass(frozen=True)
class _Choice:
    """Columns that hold the values; several: one number each."""

    names: tuple[str, ...]
    kind: Kind


class Table:
    """Rows of several files with the same columns.

    Attributes:
        kind: what the column holds.
    """

    def __init__(self, parts: Sequence[Parts], wanted: Sequence[Kind] = (), column: str | None = None) -> None:
        self._files = [each.path for each in parts]
        self._where = [(each, number) for each in parts for number in range(len(each.lengths))]
        self._ends = list(accumulate(length for each in parts for length in each.lengths))
        self._kept: list[tuple[int, int, list[Any], Path]] = []
        self._scan: tuple[int, int, Iterator[list[Any]]] = (-1, 0, iter(()))  # part, next row, blocks
        schema = parts[0].schema
        if any(each.schema.names != schema.names for each in parts):
            raise ConfigError(f"{printable(self._files[0].parent)}: the files have different columns")
        self._about = _features(schema)
        self._schema = schema
        self._choice = _choose(schema, self._files[0], wanted, column)
        self.kind: Kind = self._choice.kind

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def value(self, index: int) -> bytes | Path | np.ndarray | int | None:
        """A representation's numbers float [D]; an image's bytes, the path of its file, or uint8 levels; a label.

        None: the row has none, or a representation with gaps. Raises `StorageError` if it cannot be read.
        """
        with self._reading(index):
            arrays, row, file = self._row(index)
            if len(arrays) > 1:
                numbers = [array[row].as_py() for array in arrays]
                return None if None in numbers else np.array(numbers, dtype=np.float64)
            scalar = arrays[0][row]
            if self.kind == "representation":
                flat = _flat(scalar)
                return None if flat is None or flat.null_count else flat.to_numpy(zero_copy_only=False)
            value = scalar.as_py()
            if self.kind == "label" or value is None:
                return value if isinstance(value, int) and not isinstance(value, bool) else None
            return _image(scalar, value, file)

    def content(self, index: int) -> bytes:
        """What tells whether a row is still the same: its numbers; of images the size of all files.

        Of images that are named, name and size of the image's file count, too: rows in another order are others.
        """
        with self._reading(index):
            if self.kind == "image":
                sizes = self._sizes
                named = _is_text(self._schema.field(self._choice.names[0]).type)
                return sizes + self._named(index) if named else sizes
            arrays, row, _ = self._row(index)
            if len(arrays) > 1 or self.kind == "label":
                return repr([array[row].as_py() for array in arrays]).encode()
            flat = _flat(arrays[0][row])
            return b"" if flat is None else flat.to_numpy(zero_copy_only=False).tobytes()

    @cached_property
    def _sizes(self) -> bytes:
        """Of all files; asked once and not for every row, for a set of a million rows may have hundreds of them."""
        return repr([file.stat().st_size for file in self._files]).encode()

    def _named(self, index: int) -> bytes:
        arrays, row, file = self._row(index)
        name = arrays[0][row].as_py()
        size = -1
        if name is not None:
            with contextlib.suppress(OSError, ValueError):  # missing, as will be said of it when it is read
                size = os.stat(file.parent / name).st_size
        return f" {size} {name}".encode("utf-8", "surrogatepass")

    def ids(self) -> list[str] | None:
        """Ids of all rows, if there is a column of texts or whole numbers for them that are all different."""
        for name in ID_COLUMNS:
            if name not in self._schema.names or name in self._choice.names or self._classes(name) is not None:
                continue
            if not _is_text(kind := self._schema.field(name).type) and not pyarrow()[0].types.is_integer(kind):
                continue
            found = self._all(name)
            if None not in found and len(set(found)) == len(found):
                return [escaped(str(each)) for each in found]
            where = printable(self._files[0])
            log.warning("%s: %r says the same of several rows, so they are called by their numbers", where, name)
        return None

    def labels(self, column: str | None = None) -> list[str | None]:
        """Names of the classes of all rows, from `column` or the usual ones; None where there is none."""
        name = column or next((name for name in LABEL_COLUMNS if name in self._schema.names), None)
        if name is None or name in self._choice.names:
            return [None] * len(self)
        names = self._classes(name)
        found: list[str | None] = []
        for value in self._all(name):
            if names and isinstance(value, int):  # -1: no label, as the datasets library writes it
                found.append(str(names[value]) if 0 <= value < len(names) else None)
            else:
                found.append(str(value) if isinstance(value, str | int | float) else None)
        return found

    def columns(self) -> list[str]:
        """Their names."""
        return list(self._schema.names)

    def _classes(self, name: str) -> list[Any] | None:
        feature = self._about.get(name)
        found = feature.get("names") if isinstance(feature, dict) else None
        return found if isinstance(found, list) else None

    def _reading(self, index: int) -> Any:
        files = [parts.path for parts, _ in self._where]
        part = min(bisect_right(self._ends, index), len(files) - 1)
        return door(StorageError, f"{printable(files[part])}: row {index} cannot be read")

    def _all(self, name: str) -> list[Any]:
        found: list[Any] = []
        for parts, number in self._where:
            with door(StorageError, f"{printable(parts.path)}: column {printable(name)} cannot be read"):
                before = len(found)
                for (array,) in parts.scan(number, [name], _BLOCK_ROWS["label"]):
                    found += array.to_pylist()
                if len(found) - before != parts.lengths[number]:
                    raise EOFError("it has other rows than it claims")
        return found

    def _row(self, index: int) -> tuple[list[Any], int, Path]:
        """The block that holds a row, and where in it."""
        for start, stop, arrays, file in self._kept:
            if start <= index < stop:
                return arrays, index - start, file
        part = bisect_right(self._ends, index)
        parts, number = self._where[part]
        at, following, blocks = self._scan
        if at != part or index < following:
            blocks = parts.scan(number, self._choice.names, _BLOCK_ROWS[self.kind])
            following = self._ends[part - 1] if part else 0
        self._scan = (-1, 0, iter(()))
        for arrays in blocks:
            start, following = following, following + len(arrays[0])
            self._kept = [*self._kept[-1:], (start, following, arrays, parts.path)]
            if index < following:
                self._scan = (part, following, blocks)
                return arrays, index - start, parts.path
        raise EOFError("it has fewer rows than it claims")


def open_files(files: Sequence[Path], wanted: Sequence[Kind] = (), column: str | None = None) -> Table:
    """The table that files make together, in their order.

    Args:
        files: .parquet, .arrow, .feather, .csv or .tsv.
        wanted: kinds of values that are of use; none given: any.
        column: the one to take.

    Raises:
        StorageError: a file cannot be read.
        ConfigError: no column of what is wanted, several, different columns, or pyarrow is missing.
    """
    parts = []
    for file in files:
        with door(StorageError, f"{printable(file)}: cannot be read"):
            parts.append(open_file(file))
    with door(StorageError, f"{printable(files[0])}: cannot be read"):
        return Table(parts, wanted, column)


def _features(schema: Any) -> dict[str, Any]:
    """What the datasets library says of the columns."""
    stated = (schema.metadata or {}).get(b"huggingface")
    if stated is None:
        return {}
    about = json.loads(stated)
    for key in ("info", "features"):
        about = about.get(key) if isinstance(about, dict) else None
    return about if isinstance(about, dict) else {}


def _choose(schema: Any, file: Path, wanted: Sequence[Kind], column: str | None) -> _Choice:
    """The column that is meant: one with a usual name, else the only one that could be."""
    kinds: Sequence[Kind] = wanted or ("representation", "image", "label")
    usual: dict[Kind, tuple[str, ...]] = {
        "representation": REPRESENTATION_COLUMNS,
        "image": (*IMAGE_COLUMNS, *PATH_COLUMNS),
        "label": LABEL_COLUMNS,
    }
    if len(set(schema.names)) != len(schema.names):
        raise ConfigError(f"{printable(file)}: several columns have the same name")

    def by_name(kind: Kind) -> list[str]:
        given = usual[kind] if column is None else (column,)
        return [name for name in given if name in schema.names and _fits(schema.field(name).type, kind, True)]

    items = [kind for kind in kinds if kind != "label"]  # labels beside them are about them
    for kind in items:
        if found := by_name(kind):
            return _Choice((found[0],), kind)
    others = [name for name in schema.names if name not in (*ID_COLUMNS, *LABEL_COLUMNS)] if column is None else []
    for kind in items:
        found = [name for name in others if _fits(schema.field(name).type, kind, False)]
        if len(found) == 1:
            return _Choice((found[0],), kind)
        if found:
            raise ConfigError(f"{printable(file)}: which of the columns {', '.join(found)} is meant? Keep one of them")
    if "representation" in kinds and len(numbers := _numbers(schema, others, file)) > 1:
        return _Choice(numbers, "representation")
    if "label" in kinds and (found := by_name("label")):
        return _Choice((found[0],), "label")
    looked = ", ".join(column or name for kind in kinds for name in usual[kind])
    raise ConfigError(
        f"{printable(file)}: no column of representations (lists of floats) or images among "
        f"{printable(', '.join(schema.names))}; looked for {printable(looked)}"
    )


def _numbers(schema: Any, names: Sequence[str], file: Path) -> tuple[str, ...]:
    """Columns that hold one number each of a representation: of floats, and of whole numbers if numbered as those are.

    In a text a column that happens to hold 0 and 1 alone is one of whole numbers ("h7" beside floats "h6" and "h8").
    """
    types = pyarrow()[0].types
    floats = {name for name in names if types.is_floating(schema.field(name).type)}
    numbered = {stem for name in floats if (stem := name.rstrip(_DIGITS)) != name}
    chosen = [
        name
        for name in names
        if name in floats
        or (types.is_integer(schema.field(name).type) and name != (stem := name.rstrip(_DIGITS)) and stem in numbered)
    ]
    left = [name for name in names if name not in chosen and not _is_text(schema.field(name).type)]
    if len(chosen) > 1 and left:
        listed = printable(", ".join(left))
        log.warning("%s: %d columns are no numbers of representations: %s", printable(file), len(left), listed)
    return tuple(chosen)


def _fits(kind: Any, wanted: Kind, named: bool) -> bool:
    """Whether a column's type can hold what is wanted; with a usual name more types are believed."""
    types = pyarrow()[0].types
    depth, inner = 0, kind
    if types.is_dictionary(inner):
        inner = inner.value_type
    while (storage := getattr(inner, "storage_type", None)) is not None or _is_list(inner):
        depth, inner = (depth, storage) if storage is not None else (depth + 1, inner.value_type)
    if wanted == "label":
        return depth == 0 and bool(types.is_integer(inner))
    if wanted == "representation":
        return depth > 0 and bool(types.is_floating(inner) or (named and types.is_integer(inner) and depth == 1))
    if depth:
        tensor = len(getattr(kind, "shape", None) or ()) in (2, 3)
        return bool(inner == pyarrow()[0].uint8() and (depth in (2, 3) or tensor))
    if types.is_struct(inner):
        return any(inner.get_field_index(name) >= 0 for name in ("bytes", "path"))
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(bool(check(inner)) for check in binary) or (named and _is_text(inner))


def _is_list(kind: Any) -> bool:
    types = pyarrow()[0].types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(bool(check(kind)) for check in lists)


def _is_text(kind: Any) -> bool:
    types = pyarrow()[0].types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _flat(scalar: Any) -> Any:
    """The numbers of a list, of lists in lists too, as one array; None if there are none."""
    while (inner := getattr(scalar, "value", None)) is not None and hasattr(inner, "is_valid"):
        scalar = inner  # of an extension, such as a tensor, or of a dictionary
    found = scalar.values if scalar.is_valid else None
    while found is not None and (_is_list(found.type) or getattr(found.type, "storage_type", None) is not None):
        found = found.storage if getattr(found.type, "storage_type", None) is not None else found.flatten()
    return found


def _image(scalar: Any, value: Any, file: Path) -> bytes | Path | np.ndarray | None:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or None
    if isinstance(value, str):
        return file.parent / value
    if isinstance(value, list):
        shape = tuple(getattr(scalar.type, "shape", None) or ())
        levels = np.asarray(value, dtype=np.uint8)
        return levels.reshape(shape) if shape else levels
    if isinstance(value, np.ndarray):
        return value
    return value if isinstance(value, bytes) else None
