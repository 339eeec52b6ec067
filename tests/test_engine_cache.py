"""The cache of what runtimes build: damaged records, folders that cannot be written, two processes at once."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rcdm_fast.engines import cache
from rcdm_fast.storage import StorageError

KEY = {"weights": "abc"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    cache._temporary_home.cache_clear()
    return tmp_path / "cache" / "engines"


@pytest.fixture
def built() -> list[Path]:
    return []


@pytest.fixture
def build(built: list[Path]) -> Callable[[Path], None]:
    """Writes two files, one in a folder."""

    def write(folder: Path) -> None:
        built.append(folder)
        (folder / "network.bin").write_bytes(b"weights")
        (folder / "more").mkdir()
        (folder / "more" / "plan").write_bytes(b"plan")

    return write


def whole(place: Path) -> bool:
    return (place / "network.bin").read_bytes() == b"weights" and (place / "more" / "plan").read_bytes() == b"plan"


def test_built_once(home: Path, built: list[Path], build: Callable[[Path], None]) -> None:
    place = cache.entry("x", KEY, build)
    assert cache.entry("x", KEY, build) == place
    assert cache.entry("x", {"weights": "other"}, build) != place
    assert place.parent == home
    assert len(built) == 2
    assert len(list(home.iterdir())) == 2


def emptied(record: dict[str, Any]) -> Any:
    return {**record, "files": {}}


def shortened(record: dict[str, Any]) -> Any:
    return {**record, "files": {"more/plan": record["files"]["more/plan"]}}


def lengthened(record: dict[str, Any]) -> Any:
    return {**record, "files": {**record["files"], "gone": ["0", "0"]}}


@pytest.mark.parametrize(
    "change",
    [
        emptied, shortened, lengthened, lambda record: {"key": record["key"]}, lambda record: {**record, "files": []},
        lambda record: {**record, "files": None}, lambda record: {**record, "files": {"network.bin": 3}},
        lambda record: [record], lambda record: None, lambda record: 3, lambda record: {**record, "key": 3},
    ],
)  # fmt: skip
def test_a_record_that_does_not_vouch_for_every_file(
    built: list[Path], build: Callable[[Path], None], change: Callable[[dict[str, Any]], Any]
) -> None:
    place = cache.entry("x", KEY, build)
    record = json.loads((place / "entry.json").read_text())
    (place / "network.bin").write_bytes(b"damaged")
    (place / "entry.json").write_text(json.dumps(change(record)))
    assert whole(cache.entry("x", KEY, build))
    assert len(built) == 2
    assert whole(cache.entry("x", KEY, build))
    assert len(built) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_a_record_that_is_none(built: list[Path], build: Callable[[Path], None], content: bytes) -> None:
    place = cache.entry("x", KEY, build)
    (place / "entry.json").write_bytes(content)
    assert whole(cache.entry("x", KEY, build))
    assert len(built) == 2


def test_other_files_in_an_entry(built: list[Path], build: Callable[[Path], None]) -> None:
    place = cache.entry("x", KEY, build)
    (place / "foreign").touch()
    assert not (cache.entry("x", KEY, build) / "foreign").exists()
    place.rename(place.with_name("away"))
    place.write_text("a file in its place")
    assert whole(cache.entry("x", KEY, build))


def test_what_was_built_for_something_else_is_not_taken(built: list[Path], build: Callable[[Path], None]) -> None:
    """A whole entry, but another's: by its own record."""
    mine, other = cache.entry("x", KEY, build), cache.entry("x", {"weights": "other"}, build)
    shutil.rmtree(mine)
    other.rename(mine)
    assert cache.entry("x", KEY, build) == mine
    assert len(built) == 3


def test_a_link_in_place_of_an_entry(tmp_path: Path, built: list[Path], build: Callable[[Path], None]) -> None:
    place = cache.entry("x", KEY, build)
    shutil.rmtree(place)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("precious")
    place.symlink_to(tmp_path / "there")
    assert whole(cache.entry("x", KEY, build))
    assert not place.is_symlink()
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["a"]


def test_a_build_that_writes_nothing_or_fails(home: Path) -> None:
    with pytest.raises(StorageError, match="nothing was written"):
        cache.entry("x", KEY, lambda folder: None)

    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("the runtime's own")

    with pytest.raises(RuntimeError, match="the runtime's own"):
        cache.entry("x", KEY, fails)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("where", ["/proc/nowhere", "{file}/cache", "~nosuchuser/cache"])
def test_a_cache_that_cannot_be_written(
    built: list[Path], build: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, where: str,
) -> None:  # fmt: skip
    """Engines run all the same, from a folder of this process; the log names the variable."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RCDM_FAST_CACHE", where.format(file=tmp_path / "file"))
    place = cache.entry("x", KEY, build)
    assert whole(place)
    assert "RCDM_FAST_CACHE" in caplog.text
    assert cache.entry("x", KEY, build) == place
    assert len(built) == 1
    assert place.parent.stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_written(tmp_path: Path, checkout: Path) -> None:
    """Nothing of it is left when the process ends."""
    program = """
from pathlib import Path
from rcdm_fast.engines import cache
print(cache.entry("x", {"a": "b"}, lambda folder: (folder / "file").write_text("x") and None))
"""
    environment = {**os.environ, "HOME": "/proc/nowhere"}
    for name in ("RCDM_FAST_CACHE", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("/")
    assert not Path(done.stdout.strip()).exists()
    assert "RCDM_FAST_CACHE" in done.stderr


def test_a_cache_that_can_only_be_read(
    build: Callable[[Path], None], built: list[Path], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    place = cache.entry("x", KEY, build)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("rcdm_fast.storage.new_folder", refused)
    assert cache.entry("x", KEY, build) == place
    assert len(built) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error(build: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(
        StorageError, match=rf"cannot be built \({os.strerror(code)}; RCDM_FAST_CACHE names another folder"
    ):
        cache.entry("x", KEY, build)


def test_another_process_that_was_quicker(
    build: Callable[[Path], None], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it built stays where it is: it may be opening the files."""
    theirs = []

    def meanwhile(folder: Path) -> None:
        place = cache.entry("x", KEY, build)
        theirs.append((place / "network.bin").stat().st_ino)
        build(folder)

    with caplog.at_level(logging.WARNING):
        place = cache.entry("x", KEY, meanwhile)
    assert whole(place)
    assert [(place / "network.bin").stat().st_ino] == theirs
    assert not caplog.records
    assert len(list(home.iterdir())) == 1
