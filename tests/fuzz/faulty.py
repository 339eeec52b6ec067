"""Kinds whose readers do what none should do, each in one way; `tests/test_fuzz.py` sees whether it is noticed."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.kind import Door, Kind


class WrongInput(ValueError):
    """The documented error of these kinds."""


def _seeds(folder: Path) -> None:
    (folder / "seed.txt").write_bytes(b"some text\nand more\n" * 20)
    (folder / "other.txt").write_bytes(b'{"some": [1, 2, {"b": "c"}]}')


def _fine(path: Path) -> None:
    if b"some" not in path.read_bytes():
        raise WrongInput(f"{path}: not what is wanted")


def _bare(path: Path) -> None:
    raise KeyError(path.name)


def _unnamed(path: Path) -> None:
    raise WrongInput("something is wrong")


def _lines(path: Path) -> None:
    raise WrongInput(f"{path}: wrong\nTraceback follows")


def _refusing(path: Path) -> None:
    raise WrongInput(f"{path}: never")


def _hanging(path: Path) -> None:
    time.sleep(60)


def _greedy(path: Path) -> None:
    held = bytearray(600_000_000)
    held[::4096] = b"x" * len(held[::4096])


def _dying(path: Path) -> None:
    ctypes.string_at(0)


def _leaving(path: Path) -> None:
    os._exit(3)


def _starting(path: Path) -> None:
    try:
        subprocess.run(["true"], check=False)
    except OSError:
        raise WrongInput(f"{path}: looks like an ordinary error") from None


def _shell(path: Path) -> None:
    os.system("touch started")


def _writing(path: Path) -> None:
    (path.parent / "beside").write_text("x")


def _through_link(path: Path) -> None:
    Path("link").symlink_to(path.parent)
    Path("link/beside").write_text("x")


def _removing(path: Path) -> None:
    path.unlink(missing_ok=True)


def _calling(path: Path) -> None:
    with socket.socket() as stranger:
        stranger.connect(("192.0.2.1", 80))


def _running(path: Path) -> None:
    exec(compile("1 + 1", str(path), "exec"))


def _unpickling(path: Path) -> None:
    pickle.loads(b"cposix\ngetpid\n(tR.")


def _asking(path: Path) -> None:
    input("? ")


def _in_thread(path: Path) -> None:
    thread = threading.Thread(target=lambda: [].pop())
    thread.start()
    thread.join()


READERS: tuple[Callable[[Path], None], ...] = (
    _fine,
    _bare,
    _unnamed,
    _lines,
    _refusing,
    _hanging,
    _greedy,
    _dying,
    _leaving,
    _starting,
    _shell,
    _writing,
    _through_link,
    _removing,
    _calling,
    _running,
    _unpickling,
    _asking,
    _in_thread,
)
KINDS = {
    reader.__name__.strip("_"): Kind(reader.__name__.strip("_"), _seeds, (Door(reader, (WrongInput,)),), warm=0)
    for reader in READERS
}
