"""Where runtimes keep what they built: one folder per entry, named by everything that the build depends on.

An entry records the size and SHA-256 of its files; one that is damaged or unreadable is built again, never trusted.
Two processes may build the same entry at once: each builds beside it, and the last one to finish is kept.

Knows nothing about what is in the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rcdm_fast.downloads import cache_dir
from rcdm_fast.storage import StorageError

log = logging.getLogger(__name__)

RECORD = "entry.json"


def folder() -> Path:
    """The folder of all entries; it may not exist yet."""
    return cache_dir() / "engines"


def entry(runtime: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
    """The folder of an entry; built by `build(folder)` if there is none, or if it is damaged.

    Args:
        runtime: names the entry for people.
        key: everything that the files depend on: weights, precision, shapes, versions, device.
        build: writes the files into an empty folder.

    Raises:
        StorageError: no space, or a folder that cannot be written.
    """
    text = json.dumps(dict(sorted(key.items())))
    place = folder() / f"{runtime}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if place.exists():
        fault = _fault(place, text)
        if not fault:
            return place
        log.warning("%s: %s; building it again", place, fault)
    try:
        folder().mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{runtime}-", dir=folder()))
        try:
            build(temporary)
            record = {"key": text, "files": {name: _facts(temporary / name) for name in _files(temporary)}}
            (temporary / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            if place.exists():
                shutil.rmtree(place, ignore_errors=True)
            os.replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{place}: cannot be built ({error.strerror or error})") from error
    return place


def _files(place: Path) -> list[str]:
    found = (path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    return sorted(name for name in found if name != RECORD)


def _facts(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [str(path.stat().st_size), hashlib.file_digest(file, "sha256").hexdigest()]


def _fault(place: Path, key: str) -> str:
    """What is wrong with an entry; empty if nothing is."""
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        if record["key"] != key:
            return "its record is of something else"
        for name, facts in record["files"].items():
            if _facts(place / name) != facts:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable ({error})"
    return ""
