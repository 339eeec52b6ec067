"""States with a checksum: any flipped bit is noticed, files without one are still read, no code is run."""

from __future__ import annotations

import logging
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rcdm_fast import sealed
from rcdm_fast.storage import StorageError

STATE: dict[str, Any] = {"step": 3, "w": torch.zeros(700), "optimizer": {"lr": 0.1, "m": [torch.ones(3)]}}


def same(found: Any) -> bool:
    return bool(found["step"] == 3 and torch.equal(found["w"], STATE["w"]) and found["optimizer"]["lr"] == 0.1)


def flipped(content: bytes, stride: int) -> Iterator[bytes]:
    for bit in range(0, 8 * len(content), stride):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        yield bytes(damaged)


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    sealed.save(file, STATE)
    assert same(sealed.load(file))
    content = file.read_bytes()
    mark = content.rindex(b"rcdm_fast sha256 ")
    unnoticed = 0
    for number, damaged in enumerate(flipped(content, 41)):
        file.write_bytes(damaged)
        try:
            found = sealed.load(file)
        except StorageError:
            continue
        assert number * 41 // 8 >= mark, "a bit before the checksum"
        assert same(found)  # the checksum's own mark: the content is taken as one without
        unnoticed += 1
    assert unnoticed < 10


@pytest.mark.parametrize("length", [0, 1, 100, -1, -81, -82])
def test_a_cut_state(tmp_path: Path, length: int) -> None:
    sealed.save(tmp_path / "state.pt", STATE)
    content = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(content[:length])
    with pytest.raises(StorageError, match=r"state\.pt"):
        sealed.load(tmp_path / "state.pt")


def test_other_programs_read_it(tmp_path: Path) -> None:
    sealed.save(tmp_path / "state.pt", STATE)
    for mapped in (False, True):
        assert same(torch.load(tmp_path / "state.pt", weights_only=True, mmap=mapped))
    with zipfile.ZipFile(tmp_path / "state.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"rcdm_fast sha256 ")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_of_an_earlier_version(tmp_path: Path, caplog: pytest.LogCaptureFixture, zipped: bool) -> None:
    file = tmp_path / "state.pt"
    torch.save(STATE, file, _use_new_zipfile_serialization=zipped)
    with caplog.at_level(logging.INFO):
        assert same(sealed.load(file))
    assert "has no checksum of its own" in caplog.text
    if zipped:  # its CRCs are compared, which torch.load does not
        content = bytearray(file.read_bytes())
        content[content.index(bytes(2000)) + 1000] ^= 4
        file.write_bytes(content)
        with pytest.raises(StorageError, match="does not have its CRC"):
            sealed.load(file)


@pytest.mark.parametrize("content", [{"a": print}, [1, 2]])
def test_no_code_is_run(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "state.pt")
    if isinstance(content, list):
        assert sealed.load(tmp_path / "state.pt") == [1, 2]
        return
    with pytest.raises(StorageError, match=r"state\.pt: cannot be read"):
        sealed.load(tmp_path / "state.pt")


def test_a_full_disk_names_the_file_and_leaves_the_one_before(tmp_path: Path) -> None:
    sealed.save(tmp_path / "state.pt", STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"state\.pt: cannot be written \(.*MB are free there"):
            sealed.save(tmp_path / "state.pt", {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(sealed.load(tmp_path / "state.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
