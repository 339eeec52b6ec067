"""Doors for input that comes from elsewhere: whatever its reader raises becomes the error that is documented for it.

A reader of a foreign format (a decoder, an archive, a table, a header that is parsed as Python) raises whatever it
stumbles over in a damaged file, and no list of types stays complete. So each kind of input has one door: a block in
which its readers run, and out of which come its documented error and the project's own errors only, the cause chained.
A door belongs around a reader, never around the project's own work: there an unknown error is a fault to be seen.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_SHOWN = 300  # characters of what a reader said, or of a name, that a message repeats


@contextlib.contextmanager
def door(kind: type[Exception], text: str, *, memory: bool = True) -> Iterator[None]:
    """Whatever is raised inside leaves as `kind`: "TEXT (what was said)", with its cause chained.

    The project's own errors pass as they are, for they say what is wrong already; so do interrupts and exits.

    Args:
        kind: the error that is documented for this input.
        text: what cannot be done, with the name of the input: "PATH: cannot be read".
        memory: whether that goes for memory that does not suffice, too. False where one item of many is read below a
            bound on its size: there it tells of the machine and not of the item, which must not be given up for it.

    Raises:
        kind: something was raised.
        MemoryError: it was, and not `memory`.
    """
    try:
        yield
    except BaseException as error:
        if not _of_reader(error) or (isinstance(error, MemoryError) and not memory):
            raise
        raise kind(f"{printable(text)} ({said(error)})") from error


def said(error: BaseException) -> str:
    """What an error says, in one line of bounded length; never empty."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, MemoryError):
        return "memory does not suffice"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(text.split())) or type(error).__name__


def printable(name: object) -> str:
    """A name or a text for messages, in one line of bounded length: escapes for what is no UTF-8 or ends a line."""
    text = "".join(_shown(sign) for sign in escaped(str(name)))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def _shown(sign: str) -> str:
    """A character, or its escape where it would not be seen or would end the line."""
    return sign if sign.isprintable() else repr(sign)[1:-1]


def escaped(name: str) -> str:
    r"""A file's name as text that UTF-8 can hold: bytes that are no UTF-8 become escapes, as in "caf\xe9"."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character of UTF-16, which no file system gives
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def path(given: str | bytes | os.PathLike[str] | os.PathLike[bytes], kind: type[Exception]) -> Path:
    """The path that a person means: "~" is the home folder, unless something here has that very name.

    It may name nothing that exists, but it can be asked about without an error. Not for names that were found.

    Raises:
        kind: a zero byte, no such user, a name that is too long or no name at all.
    """
    with door(kind, f"{printable(given)}: not a usable name"):
        name = os.fsdecode(given)
        if not name:
            raise kind("an empty name names no file")
        found = Path(name)
        if name.startswith("~") and not os.path.lexists(name):
            found = found.expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(found)
        return found


def regular(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` if a path names a pipe, a device or a socket: opening or reading one may never end.

    Links are followed. What is missing, or a folder, is left to whoever opens it. Belongs into a door, before opening.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError("no regular file")


def regular_folder(folder: str | os.PathLike[str]) -> None:
    """Raise `OSError`, which names it, if something below a folder is a pipe, a device or a socket; see `regular`.

    For folders that another library reads, of which nobody knows what it opens. Links lead to what they lead to; those
    that lead nowhere are left to whoever opens them. Belongs into a door.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                try:
                    regular(os.path.join(place, name))
                except OSError as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    raise OSError(f"{name}: {said(error)}") from error


def _of_reader(error: BaseException) -> bool:
    """Neither the project's own, nor an interrupt or an exit; readers in Rust panic with what is no `Exception`.

    A name that is not defined is no input's fault.
    """
    if isinstance(error, NameError):
        return False
    own = type(error).__module__.partition(".")[0] == __name__.partition(".")[0]
    return not own and (isinstance(error, Exception) or type(error).__name__ == "PanicException")
