"""Doors: any error of a reader becomes the documented one, the project's own and interrupts pass, names are checked."""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from pathlib import Path

import pytest

from rcdm_fast import doors
from rcdm_fast.config import ConfigError
from rcdm_fast.doors import door
from rcdm_fast.images import ImageError
from rcdm_fast.storage import StorageError


class PanicException(BaseException):
    """As readers in Rust raise it."""


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (zipfile.BadZipFile("no zip"), "a.npz: cannot be read (no zip)"),
        (tokenize.TokenError("EOF", (1, 2)), "a.npz: cannot be read (('EOF', (1, 2)))"),
        (zlib.error("Error -3\nwhile"), "a.npz: cannot be read (Error -3 while)"),
        (FileNotFoundError(2, "No such file or directory"), "a.npz: cannot be read (no such file)"),
        (OSError(36, "File name too long"), "a.npz: cannot be read (File name too long)"),
        (MemoryError(), "a.npz: cannot be read (memory does not suffice)"),
        (AttributeError(), "a.npz: cannot be read (AttributeError)"),
        (StopIteration(), "a.npz: cannot be read (StopIteration)"),
        (PanicException("index"), "a.npz: cannot be read (index)"),
        (KeyError("x" * 5000), f"a.npz: cannot be read ('{'x' * 149}...{'x' * 149}')"),
        (ValueError("caf\udce9 \ud800"), "a.npz: cannot be read (caf\\udce9 \\ud800)"),
    ],
)
def test_what_a_reader_raises_becomes_the_documented_error(raised: BaseException, text: str) -> None:
    with pytest.raises(StorageError) as found, door(StorageError, "a.npz: cannot be read"):
        raise raised
    assert str(found.value) == text
    assert found.value.__cause__ is raised


def test_deep_json_is_told_as_such() -> None:
    with (
        pytest.raises(ConfigError, match=r"x: cannot be read \(nested too deeply\)"),
        door(ConfigError, "x: cannot be read"),
    ):
        json.loads("[" * 200_000)


@pytest.mark.parametrize("raised", [ImageError("b"), ConfigError("c"), KeyboardInterrupt(), SystemExit(3)])
def test_own_errors_and_interrupts_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as found, door(StorageError, "a"):
        raise raised
    assert found.value is raised


def test_a_full_memory_passes_where_items_must_not_be_given_up_for_it() -> None:
    with pytest.raises(MemoryError), door(ImageError, "a", memory=False):
        raise MemoryError


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert doors.path("~/a.png", ImageError) == tmp_path / "a.png"
    assert doors.path(b"caf\xe9", ImageError) == Path(os.fsdecode(b"caf\xe9"))
    (tmp_path / "~odd").touch()
    assert doors.path("~odd", ImageError) == Path("~odd")
    for wrong in ("~nosuchuser/a", "a\0b", "x" * 3000, "", "/".join(["y" * 200] * 50)):
        with pytest.raises(ImageError) as found:
            doors.path(wrong, ImageError)
        assert len(str(found.value)) < 700


def test_names_for_messages() -> None:
    assert doors.printable(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    assert doors.escaped("caf\u00e9.png") == "caf\u00e9.png"
    doors.escaped("\ud800 \udce9").encode("utf-8")
    assert len(doors.printable("n" * 10_000)) == 303
    assert doors.printable("a\nb\x00\u2028\u00e9 \u5199") == "a\\nb\\x00\\u2028\u00e9 \u5199"
