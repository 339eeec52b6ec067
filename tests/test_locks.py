"""One at a time: by the kernel's lock, and by an exclusive file where a mount refuses it."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rcdm_fast import locks
from rcdm_fast.locks import Busy, locked
from rcdm_fast.storage import StorageError

REFUSALS = (0, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


@pytest.fixture(params=REFUSALS, ids=lambda code: errno.errorcode.get(code, "locks"))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A mount with locks (0), and mounts that refuse them."""
    if request.param:
        refuse(monkeypatch, request.param)
    return int(request.param)


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)


def test_the_second_is_refused_and_the_next_one_not(tmp_path: Path, kind: int) -> None:
    for _ in range(2):
        with locked(tmp_path / ".lock", what="a test"):
            if kind:
                assert json.loads((tmp_path / ".lock.held").read_text())["pid"] == os.getpid()
            with pytest.raises(Busy, match="another process is at work here"), locked(tmp_path / ".lock"):
                raise AssertionError("two at once")
        assert not (tmp_path / ".lock.held").exists()


def test_an_error_inside_gives_it_back(tmp_path: Path, kind: int) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock"):
        raise ZeroDivisionError
    with locked(tmp_path / ".lock"):
        pass


def test_waiting(tmp_path: Path, kind: int, caplog: pytest.LogCaptureFixture) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with locked(tmp_path / ".lock", wait=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    with caplog.at_level(logging.INFO):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert most == [1, 1, 1, 1]
    assert "waiting for it" in caplog.text


def write(file: Path, **holder: object) -> None:
    file.write_text(json.dumps({"host": socket.gethostname(), "boot": locks._boot(), "pid": 1, "began": "", **holder}))


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A lock's file that somebody left on a mount without locks."""
    refuse(monkeypatch, errno.ENOLCK)

    def make(**holder: Any) -> Path:
        write(tmp_path / ".lock.held", **holder)
        return tmp_path / ".lock"

    return make


def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("holder", [{"boot": "another start of this machine"}, {"pid": os.getpid(), "began": "5"}])
def test_what_a_process_that_is_gone_left_is_taken_over(
    held: Callable[..., Path], holder: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with locked(held(**holder)):
        pass
    with locked(held(pid=gone())):
        pass
    assert "is gone; taken over" in caplog.text


@pytest.mark.parametrize(
    "holder",
    [
        {"host": "elsewhere", "pid": 999_999},
        {"pid": os.getpid(), "began": locks._began(os.getpid())},
        {"pid": "text"},
        {"pid": -1},
        {"pid": 10**30},
        {"host": None},
    ],
)
def test_a_process_that_may_be_there_is_respected(held: Callable[..., Path], holder: dict[str, Any]) -> None:
    file = held(**holder)
    with pytest.raises(Busy, match=r"if it is no longer there, delete .*\.lock\.held"), locked(file):
        raise AssertionError("two at once")


@pytest.mark.parametrize("content", [b"", b"[" * 50_000, b"\xff", b"[]", b"null"])
def test_a_file_that_does_not_say_who_made_it(held: Callable[..., Path], tmp_path: Path, content: bytes) -> None:
    file = held()
    (tmp_path / ".lock.held").write_bytes(content)
    with pytest.raises(Busy, match="delete"), locked(file):
        raise AssertionError("two at once")


def test_one_that_is_killed(tmp_path: Path, checkout: Path) -> None:
    """On a mount without locks, for real: another process holds it and is killed."""
    program = f"""
import fcntl, os, sys, time
def flock(*_): raise OSError({errno.ENOLCK}, "No locks available")
fcntl.flock = flock
from rcdm_fast.locks import locked
with locked({str(tmp_path / ".lock")!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=checkout, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch, errno.ENOLCK)
        with pytest.raises(Busy, match=f"process {process.pid} on {socket.gethostname()}"), locked(tmp_path / ".lock"):
            raise AssertionError("two at once")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path / ".lock"):
            pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"), locked(tmp_path / "file" / ".lock"):
        raise AssertionError("held without a file")


@pytest.mark.parametrize("there", ["there", "nothing"])
def test_a_lock_that_is_a_link(tmp_path: Path, there: str) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / there)
    with pytest.raises(StorageError, match="it is a link to another place"), locks.locked(tmp_path / ".lock"):
        pass
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_messages_say_what_is_going_on(tmp_path: Path, kind: int) -> None:
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(Busy, match=r"another process is at work here \(a store of images\)"),
        locked(tmp_path / ".lock", what="a store of images"),
    ):
        raise AssertionError("two at once")


def test_who_waits_says_so_once(
    tmp_path: Path, kind: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_POLL_S", 0.001)
    taken = threading.Event()

    def wait() -> None:
        with locked(tmp_path / ".lock", wait=True, what="downloading a.pt"):
            taken.set()

    with caplog.at_level(logging.INFO):
        thread = threading.Thread(target=wait)
        with locked(tmp_path / ".lock"):
            thread.start()
            assert not taken.wait(0.05)
        thread.join(30)
    assert taken.is_set()
    (said,) = (record.getMessage() for record in caplog.records if "waiting for it" in record.getMessage())
    assert "another process is at work here (downloading a.pt)" in said


def test_only_the_file_of_the_process_that_is_gone_is_cleared(tmp_path: Path) -> None:
    """Another one may have taken the lock meanwhile."""
    file = tmp_path / ".lock.held"
    write(file, pid=5)
    later = locks._holder(file)
    assert later is not None
    assert locks._cleared(file, {**later, "pid": 4})
    assert locks._holder(file) == later
    assert locks._cleared(file, later)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock.held.clearing").touch()
    write(file, pid=5)
    assert not locks._cleared(file, later)
    assert file.exists()
