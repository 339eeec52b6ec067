"""Files on mounts that refuse what others offer, under odd names, on disks that fill up; and their checksums."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from rcdm_fast import storage
from rcdm_fast.storage import StorageError


def refuse(code: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.fixture
def umask() -> Iterator[None]:
    set_mask = os.umask
    before = set_mask(0o027)
    yield
    set_mask(before)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("call", ["os.chmod", "os.fsync", "os.fchmod", "os.link", "os.symlink"])
def test_a_mount_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    monkeypatch.setattr(call, refuse(code))
    storage.write_text(tmp_path / "a.txt", "text")
    storage.save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(3)}, {"k": "v"})
    storage.check_writable(tmp_path / "b.txt")
    assert (tmp_path / "a.txt").read_text() == "text"
    assert torch.equal(storage.read_tensors(tmp_path / "a.safetensors")["w"], torch.ones(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "a.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_is_full_or_broken_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "a.txt").write_text("before")
    monkeypatch.setattr("os.fsync", refuse(code))
    with pytest.raises(StorageError, match=rf"a\.txt: cannot be written \({os.strerror(code)}"):
        storage.write_text(tmp_path / "a.txt", "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EBUSY])
def test_a_mount_that_cannot_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "a.txt").write_text("before, and longer")
    monkeypatch.setattr("os.replace", refuse(code))
    storage.write_text(tmp_path / "a.txt", "after")
    made = storage.new_folder(tmp_path / "folder")
    (made / "inside").write_text("x")
    storage.move(made, tmp_path / "folder")
    assert (tmp_path / "a.txt").read_text() == "after"
    assert (tmp_path / "folder" / "inside").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_copy_that_fails_half_way_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", refuse(errno.EXDEV))
    monkeypatch.setattr("shutil.copyfile", refuse(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"No space left.*all of it is in ") as raised:
        storage.write_text(tmp_path / "a.txt", "after")
    assert Path(str(raised.value).rpartition("all of it is in ")[2]).read_text() == "after"


def test_modes_are_those_of_any_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: None) -> None:
    """And the process's mask is never touched: files of other threads would be open to all meanwhile."""
    monkeypatch.setattr("os.umask", None)
    storage.write_text(tmp_path / "a.txt", "x")
    storage.save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(1)}, {})
    folder = storage.new_folder(tmp_path / "folder")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a.txt", tmp_path / "a.safetensors", folder)]
    assert modes == [0o640, 0o640, 0o750]


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".txt", "\u00e4" * 125 + ".txt", "a." + "y" * 253, os.fsdecode(b"\xe9.txt")]
)
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    storage.check_writable(tmp_path / name)
    storage.write_text(tmp_path / name, "x")
    assert (tmp_path / name).read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["x" * 252 + ".txt", "n" * 3000, "a\0b", "~nosuchuser/a", "", "folder", "file/a"])
@pytest.mark.parametrize("write", [storage.check_writable, lambda path: storage.write_text(path, "x")])
def test_names_of_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError):
        write(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.check_writable(tmp_path / "a" / "b" / "c.png")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StorageError, match=r"needs 2\.0 MB, but only 1\.0 MB are free"):
        storage.check_writable(tmp_path / "c.png", 2_000_000)
    storage.check_writable(tmp_path / "c.png", 900_000)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    storage.check_writable(tmp_path / "pipe")
    storage.write_text(tmp_path / "pipe", "through")
    reader.join()
    assert read == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    storage.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_names_that_are_no_utf8_in_a_text(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "a.txt", f"skipped: {os.fsdecode(bytes([99, 233]))}\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "skipped: c\\udce9\n"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"{", b"", b'{"a": 1}x'])
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.json: cannot be read"):
        storage.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a\nb.safetensors", "x" * 3000])
def test_names_that_are_none_of_files(tmp_path: Path, name: str) -> None:
    for read in (storage.read_tensors, storage.read_metadata):
        with pytest.raises(StorageError) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 1000


def test_a_flipped_bit_in_tensors_or_metadata_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {"w": torch.arange(20.0), "b": torch.ones(3, dtype=torch.bfloat16), "s": torch.tensor(1)}
    storage.save_tensors(file, tensors, {"config": "plain"})
    assert storage.read_metadata(file) == {"config": "plain"}
    sound = file.read_bytes()
    assert all(torch.equal(found, tensors[name]) for name, found in storage.read_tensors(file).items())
    header = int.from_bytes(sound[:8], "little")
    places = [*range(8 + header, len(sound)), *range(sound.index(b"plain"), sound.index(b"plain") + 5)]
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(StorageError, match="checksum"):
            storage.read_tensors(file)


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.arange(12.0).view(3, 4), "b": torch.zeros(2)},
        {"w": torch.arange(12.0).view(4, 3).view(torch.int32), "b": torch.zeros(2)},
        {"v": torch.arange(12.0).view(4, 3), "b": torch.zeros(2)},
        {"w": torch.arange(12.0).view(4, 3)},
    ],
    ids=["shape", "kind", "name", "less"],
)
def test_the_same_bytes_as_other_tensors_are_noticed(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    tensors = {"w": torch.arange(12.0).view(4, 3), "b": torch.zeros(2)}
    storage.save_tensors(tmp_path / "a.safetensors", tensors, {})
    checksum = storage.read_checksum(tmp_path / "a.safetensors")
    assert checksum is not None
    safetensors.torch.save_file(other, tmp_path / "b.safetensors", {"rcdm_fast.sha256": checksum})
    with pytest.raises(StorageError, match="checksum"):
        storage.read_tensors(tmp_path / "b.safetensors")
    safetensors.torch.save_file(other, tmp_path / "c.safetensors")
    assert storage.read_checksum(tmp_path / "c.safetensors") is None
    assert storage.read_tensors(tmp_path / "c.safetensors").keys() == other.keys()


def test_json_is_in_the_order_of_its_keys(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'


def test_a_mount_that_does_not_say_what_is_free_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    storage.check_writable(tmp_path / "a.npz", 10**15)


@pytest.mark.parametrize("code", [0, errno.EXDEV])
@pytest.mark.parametrize("kind", ["file", "nothing", "folder", "pipe", "device"])
def test_a_link_is_replaced_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    """Wherever it leads, and where the mount cannot rename, too."""
    there = tmp_path / "there" if kind != "device" else Path("/dev/null")
    if kind == "file":
        there.write_text("precious")
    elif kind == "folder":
        there.mkdir()
    elif kind == "pipe":
        os.mkfifo(there)
    (tmp_path / "a.json").symlink_to(there)
    if code:
        monkeypatch.setattr(os, "replace", refuse(code))
    storage.check_writable(tmp_path / "a.json")
    storage.write_json(tmp_path / "a.json", 3)
    assert not (tmp_path / "a.json").is_symlink()
    assert storage.read_json(tmp_path / "a.json") == 3
    if kind == "file":
        assert there.read_text() == "precious"
    assert there.exists() == (kind != "nothing")
    assert kind != "folder" or list(there.iterdir()) == []


@pytest.mark.parametrize("mode", ["ab", "a+b", "r+b"])
@pytest.mark.parametrize("there", ["there", "nothing"])
def test_what_is_changed_in_place_is_no_link(tmp_path: Path, mode: Literal["ab", "a+b", "r+b"], there: str) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / there)
    with pytest.raises(OSError, match="it is a link to another place"):
        storage.open_in_place(tmp_path / "a", mode)
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()
    with storage.open_in_place(tmp_path / "there", mode) as file:
        file.write(b"PRECIOUS")
    assert (tmp_path / "there").read_text().endswith("PRECIOUS")
