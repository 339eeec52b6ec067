"""Lines of a job's manifest and quarantine, and what its job.json must hold: read with every doubt, written at once."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rcdm_fast import storage
from rcdm_fast.config import ConfigError, migrated
from rcdm_fast.doors import door, regular

Row = dict[str, Any]

VERSION = 1

_DIGITS = frozenset("0123456789abcdef")
_HASH_DIGITS = 64


def read_identity(folder: Path) -> Row:
    """What a job's folder says it is. Raises `ConfigError` if it says nothing, or not what a job says."""
    file = folder / "job.json"
    if not file.exists():
        raise ConfigError(f"{folder}: not a job folder (no job.json)")
    with door(ConfigError, f"{file}: damaged"):
        regular(file)
        found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ConfigError(f"{file}: of another version than {VERSION}")
    items, settings = found.get("items"), found.get("settings")
    if not isinstance(items, dict) or not isinstance(settings, dict):
        raise ConfigError(f"{file}: damaged (no items, or no settings)")
    if not _is_count(items.get("count")) or not _is_hash(items.get("sha256")):
        raise ConfigError(f"{file}: damaged (count or sha256 of its items is none)")
    if items.get("kind") == "picture":
        items = {**items, "kind": "image"}
    return {**found, "items": items, "settings": migrated(settings)}


def key_of(item: int, sample: int) -> str:
    """What an image is called in its shard, without extension."""
    return f"{item:09d}-{sample:06d}"


def read_lines(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl file. Raises `StorageError`: it cannot be read, or a line is no JSON object."""
    with contextlib.ExitStack() as opened:
        with door(storage.StorageError, f"{path}: cannot be read"):
            file = opened.enter_context(open(path, encoding="utf-8"))
        for number in itertools.count(1):
            with door(storage.StorageError, f"{path}: line {number} cannot be read"):
                line = file.readline()
                found = json.loads(line) if line else None
            if not line:
                return
            if not isinstance(found, dict):
                raise storage.StorageError(f"{path}: line {number} is no JSON object")
            yield found


def read_manifest(path: Path) -> list[Row]:
    """Rows of the manifest of one shard.

    Raises:
        StorageError: it cannot be read, or a row lacks what every row has, or has something impossible there.
    """
    rows = list(read_lines(path))
    for number, row in enumerate(rows, 1):
        wrong = [name for name in ("item", "sample", "offset", "bytes") if not _is_count(row.get(name))]
        wrong += [] if _is_hash(row.get("sha256")) else ["sha256"]
        if not wrong and row.get("key") != key_of(row["item"], row["sample"]):
            wrong.append("key")
        if wrong:
            raise storage.StorageError(f"{path}: line {number} has no sensible {' and '.join(wrong)}")
    return rows


def read_quarantine(path: Path) -> list[Row]:
    """Rows of the quarantine of one shard; none if there is no such file. Raises `StorageError`, as `read_manifest`."""
    rows = list(read_lines(path)) if path.exists() else []
    for number, row in enumerate(rows, 1):
        if not _is_count(row.get("item")) or not _is_hash(row.get("content")):
            raise storage.StorageError(f"{path}: line {number} has no sensible item or content")
    return rows


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a .jsonl file, which appears whole or not at all. Raises `StorageError`."""
    with storage.atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def count_lines(path: Path) -> int:
    """How many lines a file has; 0 if there is none. Raises `StorageError`."""
    with door(storage.StorageError, f"{path}: cannot be read"):
        try:
            regular(path)
            with open(path, "rb") as file:
                return sum(1 for _ in file)
        except FileNotFoundError:
            return 0


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == _HASH_DIGITS and _DIGITS.issuperset(value)
