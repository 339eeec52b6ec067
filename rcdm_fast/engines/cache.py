"""Where runtimes keep what they built: one folder per entry, named by everything that the build depends on.

An entry records the size and SHA-256 of all its files; one that is damaged, unreadable or holds other files is built
again, never trusted. Two processes may build the same entry at once: each builds beside it, and the first one to finish
is kept, for it may be read already. Where the cache cannot be written, entries are built in a folder of this process,
which goes with it; the log says so.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rcdm_fast import doors, storage
from rcdm_fast.downloads import DownloadError, cache_dir
from rcdm_fast.storage import StorageError

log = logging.getLogger(__name__)

RECORD = "entry.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def folder() -> Path:
    """The folder of all entries; it may not exist yet. Raises `DownloadError` if there is no home for it."""
    return cache_dir() / "engines"


def entry(runtime: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
    """The folder of an entry; built by `build(folder)` if there is none, or if it is damaged.

    Args:
        runtime: names the entry for people.
        key: everything that the files depend on: weights, precision, shapes, versions, device.
        build: writes the files into an empty folder.

    Raises:
        StorageError: no space, or neither the cache nor the system's temporary folder can be written.
    """
    text = json.dumps(dict(sorted(key.items())))
    name = f"{runtime}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    home = _home()
    if home is not None:
        if _is_sound(home / name, text):
            return home / name
        try:
            temporary = _begun(home, runtime)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageError(f"{home / name}: cannot be built ({_advice(error)})") from error
            log.warning("the cache %s cannot be written (%s)", home, _advice(error))
        else:
            return _built(home / name, temporary, text, build)
    try:
        home = _temporary_home()
        if _is_sound(home / name, text):
            return home / name
        return _built(home / name, _begun(home, runtime), text, build)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{name}: cannot be built, for want of a folder ({_advice(error)})") from error


def _home() -> Path | None:
    try:
        return folder()
    except DownloadError as error:
        log.warning("there is no cache (%s)", error)
        return None


@functools.cache
def _temporary_home() -> Path:
    """A folder that nobody else may write, for as long as this process runs."""
    home = Path(tempfile.mkdtemp(prefix="rcdm_fast-engines-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    log.warning("engines are built in %s, for this process alone; to keep them, set RCDM_FAST_CACHE to a folder", home)
    return home


def _begun(home: Path, runtime: str) -> Path:
    """A new folder to build in, which can be written."""
    home.mkdir(parents=True, exist_ok=True)
    return storage.new_folder(home / runtime)


def _built(place: Path, temporary: Path, key: str, build: Callable[[Path], None]) -> Path:
    try:
        build(temporary)
        files = {name: _facts(temporary / name) for name in _files(temporary)}
        if not files:
            raise StorageError(f"{place}: cannot be built (nothing was written)")
        record = json.dumps({"key": key, "files": files}, indent=1)
        (temporary / RECORD).write_text(record, encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(f"{place}: cannot be built ({_advice(error)})") from error
        raise
    if os.path.lexists(place) and not _fault(place, key):  # another process was quicker, and reads it
        shutil.rmtree(temporary, ignore_errors=True)
        return place
    try:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
        storage.move(temporary, place)
    except StorageError:
        raise
    except OSError as error:
        if not _is_sound(place, key):  # or another process was quicker
            raise StorageError(f"{place}: cannot be built ({_advice(error)})") from error
    return place


def _advice(error: OSError) -> str:
    return f"{error.strerror or error}; RCDM_FAST_CACHE names another folder"


def _is_sound(place: Path, key: str) -> bool:
    if not os.path.lexists(place):
        return False
    fault = _fault(place, key)
    if fault:
        log.warning("%s: %s; building it again", place, fault)
    return not fault


def _files(place: Path) -> list[str]:
    found = (path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    return sorted(name for name in found if name != RECORD)


def _facts(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [str(path.stat().st_size), hashlib.file_digest(file, "sha256").hexdigest()]


def _fault(place: Path, key: str) -> str:
    """What is wrong with an entry; empty if nothing is."""
    try:
        record = storage.read_json(place / RECORD)
        if record["key"] != key:
            return "its record is of something else"
        files = dict(record["files"])
        if not files or sorted(files) != _files(place):
            return "its record is of other files"
        for name, facts in files.items():
            if _facts(place / name) != facts:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable ({doors.said(error)})"
    return ""
