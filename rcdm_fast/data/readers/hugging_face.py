"""Datasets of the `datasets` library: by name, which the library fetches, and folders that its save_to_disk wrote.

A folder is read here, not by the library: it maps its files into memory unchecked, and where one is damaged the process
ends. Nor does a name in such a folder become anything but a file in it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from rcdm_fast import doors, folders, offline
from rcdm_fast.data.readers import table_files, tables
from rcdm_fast.data.readers.image_files import Item, Tables, needed
from rcdm_fast.doors import door, printable
from rcdm_fast.images import ImageError

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_DESCRIBED_BYTES = 1 << 26


Found: TypeAlias = "Saved | Fetched | Tables"


def find(spec: str) -> Found:
    """The dataset NAME_OR_FOLDER?split=train&image=img&label=label&name=CONFIGURATION. Raises `ImageError`."""
    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query))
    unknown = options.keys() - {"split", "image", "label", "name", "revision"}
    if unknown:
        raise ImageError(f"hf:{printable(spec)}: unknown options {printable(', '.join(sorted(unknown)))}")
    path = doors.path(name, ImageError)
    if path.is_dir() and (unused := sorted(options.keys() & {"name", "revision"})):
        raise ImageError(
            f"hf:{printable(spec)}: a folder has no {' and no '.join(unused)}; give the folder that is meant"
        )
    if is_saved(path):
        return Saved(path, options)
    if path.is_dir():
        return _of_folder(path, options)
    return Fetched(name, options)


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any(os.path.isfile(path / file) for file in (_STATE, _SPLITS))


def _of_folder(path: Path, options: Mapping[str, str]) -> Tables:
    """Parquet or Arrow files as they lie in a dataset's repository; a split begins a word of their names."""
    split = options.get("split", "train")
    files = [each for each in folders.tree(path).files if each.suffix.lower() in tables.EXTENSIONS]
    begins = re.compile(rf"(?<![^\W\d_]){re.escape(split)}")  # a word: "latest" is not of the split test
    chosen = [each for each in files if begins.search(each.relative_to(path).as_posix())]
    if not chosen and "split" not in options:
        chosen = files
    if not chosen:
        raise ImageError(f"hf:{printable(path)}: cannot be opened (no Parquet or Arrow files of {printable(split)})")
    return Tables(tuple(chosen), options.get("image"), options.get("label"))


@dataclass(frozen=True)
class Saved:
    """A folder that `save_to_disk` wrote."""

    path: Path
    options: Mapping[str, str] = field(default_factory=dict)

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for number, item in enumerate(self.table().items()):
            yield Item(self.path / str(number), item.label, item.content)

    def table(self) -> Tables:
        """The files that it consists of. Raises `ImageError`: none of such a folder, or no such columns."""
        where = f"hf:{printable(self.path)}"
        with door(ImageError, f"{where}: cannot be opened"):
            folder = self.path
            if (folder / _SPLITS).is_file():
                split = self.options.get("split", "train")
                there = _read(folder / _SPLITS)["splits"]
                if split not in there or not _plain(split):
                    raise ValueError(f"no split {split!r}; there are {', '.join(map(str, there))}")
                folder = folder / split
            state = _read(folder / _STATE)
            only = str(state.get("_split") or "train").partition("[")[0]  # "train[:10%]" is of train
            if folder is self.path and self.options.get("split", only) != only:
                raise ValueError(f"it holds one split, {only!r}, and not {self.options['split']!r}")
            if state.get("_indices_data_files"):
                raise ValueError("its rows are chosen by a list beside them; save it again with save_to_disk")
            names = [each["filename"] for each in state["_data_files"]]
            if not names:
                raise ValueError("it has no files")
            if not all(isinstance(name, str) and _plain(name) for name in names):
                raise ValueError("it names files that do not lie in it")
        files = tuple(folder / name for name in names)
        columns = _columns(files, where)
        for asked, what in (("image", "image"), ("label", "label")):
            if self.options.get(asked) not in (None, *columns):
                known = printable(", ".join(columns))
                raise ImageError(f"{where}: no column {self.options[asked]!r} for {what}; there are {known}")
        return Tables(files, self.options.get("image"), self.options.get("label"))


def _columns(files: tuple[Path, ...], where: str) -> list[str]:
    with door(ImageError, f"{where}: cannot be opened"):
        return list(table_files.open_file(files[0]).schema.names)


def _read(file: Path) -> Any:
    doors.regular(file)
    if file.stat().st_size > _DESCRIBED_BYTES:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes")
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} describes nothing")
    return found


def _plain(name: str) -> bool:
    """Whether a name is that of something in the folder itself."""
    return bool(name) and name not in (".", "..") and "/" not in name and "\\" not in name and "\0" not in name


@dataclass(frozen=True)
class Fetched:
    """A dataset that the library knows by name."""

    name: str
    options: Mapping[str, str]

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        rows = self.rows()
        for index in range(len(rows)):
            yield rows.item(index)

    def rows(self) -> Rows:
        """Its rows by index, fetched if they are not here. Raises `ImageError`."""
        library = needed("datasets", "data")
        where = f"hf:{printable(self.name)}"
        options = self.options
        with door(ImageError, f"{where}: cannot be opened"):
            split, revision = options.get("split", "train"), options.get("revision")
            with offline.enforced():
                table = library.load_dataset(self.name, options.get("name"), split=split, revision=revision)
        column = self._column(table, options.get("image"), tables.IMAGE_COLUMNS, "image")
        if column is None:
            raise ImageError(f"{where}: no column of images among {', '.join(table.column_names)}; say image=")
        label = self._column(table, options.get("label"), tables.LABEL_COLUMNS, "label")
        with door(ImageError, f"{where}: cannot be read"):
            names = getattr(table.features[label], "names", None) if label is not None else None
            return Rows(self.name, table.cast_column(column, library.Image(decode=False)), column, label, names)

    def _column(self, table: Any, asked: str | None, usual: tuple[str, ...], what: str) -> str | None:
        if asked is not None and asked not in table.column_names:
            known = ", ".join(table.column_names)
            raise ImageError(f"hf:{self.name}: no column {asked!r} for {what}; there are {known}")
        return asked or next((name for name in usual if name in table.column_names), None)


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset of the library, whose images are not decoded by it."""

    name: str
    table: Any  # a datasets.Dataset
    column: str
    label: str | None
    classes: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.table)

    def item(self, index: int) -> Item:
        """The image of a row, and its class. Raises `ImageError`."""
        with door(ImageError, f"hf:{printable(self.name)}: row {index} cannot be read"):
            row = self.table[index]
            value = row[self.label] if self.label is not None else None
            label = None if value is None else str(value)
            if self.classes and isinstance(value, int):  # -1: no label
                label = str(self.classes[value]) if 0 <= value < len(self.classes) else None
            content = row[self.column] or {}
            found = content.get("bytes") or (Path(content["path"]) if content.get("path") else b"")
        return Item(Path(self.name) / str(index), label, found)
