"""What a process does that no reader should do: start a program, write elsewhere, speak to strangers, run code.

Python tells of such things before they happen (PEP 578); here they are noted and refused. What a library does in C is
not seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
CHANGES = {  # events about paths: how many of their arguments are paths that change
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "os.rename": 2,
    "os.link": 2,
}
HOME = ("127.0.0.1", "localhost", "::1")
NOWHERE = ("/dev/null", "/dev/tty")


class Watch:
    """Installed once in a process, for good; notes what happens inside `on`."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._may: list[str] = []
        self._input = ""
        self._on = False
        self._checks: dict[str, Callable[[str, Any], None]] = {
            **dict.fromkeys(STARTS, self._start),
            **dict.fromkeys(CHANGES, self._change),
            "open": self._open,
            "os.symlink": self._link,
            "socket.connect": self._connect,
            "socket.getaddrinfo": self._look_up,
            "socket.gethostbyname": self._look_up,
            "exec": self._code,
            "pickle.find_class": self._unpickle,
            "ctypes.dlopen": self._library,
            "builtins.input": self._ask,
            "os.kill": self._start,
        }
        sys.addaudithook(self._hook)

    @contextmanager
    def on(self, given: Path, may_write: Sequence[Path]) -> Iterator[list[str]]:
        """Watch; yields the list that notes are added to. Files below `may_write` may be changed."""
        self._notes = []
        self._may = [os.path.realpath(path) for path in may_write]
        self._input = os.path.realpath(given)
        self._on = True
        try:
            yield self._notes
        finally:
            self._on = False

    def _hook(self, event: str, arguments: Any) -> None:
        if self._on and event in self._checks:
            self._checks[event](event, arguments)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        raise PermissionError(f"refused while watched: {text}")

    def _below(self, path: str, folders: Sequence[str]) -> bool:
        return any(path == folder or path.startswith(folder + "/") for folder in folders)

    def _written(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        self._checked(event, os.path.realpath(os.fsdecode(path)))

    def _checked(self, event: str, real: str) -> None:
        if not self._below(real, self._may) and real not in NOWHERE:
            self._note(f"wrote outside ({event}): {real}")

    def _open(self, event: str, arguments: Any) -> None:
        path, _, flags = arguments
        if flags & WRITES and flags & os.O_NOFOLLOW:  # opens no link
            self._itself(event, path)
        elif flags & WRITES:
            self._written(event, path)

    def _change(self, event: str, arguments: Any) -> None:
        for path in arguments[: CHANGES[event]]:
            self._itself(event, path)

    def _itself(self, event: str, path: Any) -> None:
        """A name in a folder: a link itself is changed, not what it points to."""
        if not isinstance(path, int):
            place, name = os.path.split(os.fsdecode(path))
            self._checked(
                event, os.path.join(os.path.realpath(place or "."), name) if name else os.path.realpath(place)
            )

    def _link(self, event: str, arguments: Any) -> None:
        self._change("os.remove", arguments[1:])

    def _start(self, event: str, arguments: Any) -> None:
        self._note(f"started a process ({event}): {arguments[:2]!r}")

    def _connect(self, event: str, arguments: Any) -> None:
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in HOME:
            self._note(f"used the network ({event}): {address!r}")

    def _look_up(self, event: str, arguments: Any) -> None:
        if arguments[0] not in (*HOME, None, "", b""):
            self._note(f"used the network ({event}): {arguments[0]!r}")

    def _code(self, event: str, arguments: Any) -> None:
        file = getattr(arguments[0], "co_filename", "")
        if self._below(os.path.realpath(file), [self._input]):
            self._note(f"ran code of the input: {file}")

    def _library(self, event: str, arguments: Any) -> None:
        if arguments[0] and self._below(os.path.realpath(os.fsdecode(arguments[0])), [self._input]):
            self._note(f"loaded a library of the input: {arguments[0]}")

    def _unpickle(self, event: str, arguments: Any) -> None:
        self._note(f"unpickled {arguments[0]}.{arguments[1]}")

    def _ask(self, event: str, arguments: Any) -> None:
        self._note(f"asked the user: {arguments!r}")
