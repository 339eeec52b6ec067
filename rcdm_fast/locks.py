"""One process at a time: the only lock of the package.

Usually the kernel's lock on a file, which goes with its process, however that ends. Mounts that refuse it (NFS without
its lock service, many FUSE mounts) get an exclusive file that says which process of which machine holds the lock; one
whose process is gone from this machine is taken over. The file of a process on another machine never is: who knows that
it is gone deletes the file, whose name is in the message.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from rcdm_fast.doors import regular
from rcdm_fast.storage import REFUSED, StorageError, no_link

log = logging.getLogger(__name__)

_POLL_S = 0.2
# Not "permission denied" in itself: opening the lock's file raises that too where the folder cannot be written.
_NO_LOCKS = (REFUSED | {errno.ENOLCK, errno.ENOTTY}) - {errno.EACCES}


class Busy(StorageError):
    """Somebody else holds the lock; the message says who, where that is known."""


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = False, what: str = "") -> Iterator[None]:
    """Hold the lock whose file is `path`; its folder must exist.

    Args:
        path: of the lock's file; files of the same name with more behind it may be made beside it.
        wait: until it is free, if somebody else holds it; the log says so.
        what: is going on while it is held, for messages.

    Raises:
        Busy: somebody else holds it, and `wait` is not asked for.
        StorageError: the file cannot be made.
    """
    file = Path(path)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_kernel(file, wait, what))
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            if error.errno not in _NO_LOCKS:
                raise StorageError(f"{file}: cannot be written ({error.strerror or error})") from error
            log.debug("%s: this file system has no locks (%s)", file, error)
            held.enter_context(_exclusive(file.with_name(f"{file.name}.held"), wait, what))
        yield


@contextlib.contextmanager
def _kernel(file: Path, wait: bool, what: str) -> Iterator[None]:
    _probe(file)
    lock = filelock.FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        if not wait:
            raise Busy(_busy(file, what, None)) from error
        log.info("%s; waiting for it", _busy(file, what, None))
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the mount is gone: so is the lock
            lock.release()


def _probe(file: Path) -> None:
    """Raise `OSError` where there is no flock at all, for which filelock has a way of its own."""
    try:
        import fcntl
    except ImportError:  # Windows, whose locks are others
        return
    handle = no_link(str(file), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_UN)  # changes nothing
    finally:
        os.close(handle)


@contextlib.contextmanager
def _exclusive(file: Path, wait: bool, what: str) -> Iterator[None]:
    reported = False
    while not _taken(file):
        holder = _holder(file)
        if holder is None:
            continue  # given back meanwhile
        if _gone(holder) and _cleared(file, holder):
            continue
        text = _busy(file, what, holder)
        if not wait:
            raise Busy(f"{text}; if it is no longer there, delete {file}")
        if not reported:
            log.info("%s; waiting for it", text)
            reported = True
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _taken(file: Path) -> bool:
    """Make the file with this process in it; False if there is one."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"{file}: cannot be written ({error.strerror or error})") from error
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            json.dump(_self(), stream)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return True


def _cleared(file: Path, holder: dict[str, object]) -> bool:
    """Remove the file of a process that is gone; False if another process may be doing so.

    Two processes that clear at once could remove a third one's new file: a second file lets only one of them do it.
    """
    clearing = file.with_name(f"{file.name}.clearing")
    try:
        os.close(os.open(clearing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError:
        return False
    try:
        if _holder(file) == holder:
            log.warning("%s: process %s, which made it, is gone; taken over", file, holder.get("pid"))
            file.unlink(missing_ok=True)
        return True
    finally:
        clearing.unlink(missing_ok=True)


def _holder(file: Path) -> dict[str, object] | None:
    """Who made the file; empty if it does not say, None if it is gone."""
    try:
        regular(file)
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _self() -> dict[str, object]:
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "began": _began(os.getpid())}


def _gone(holder: dict[str, object]) -> bool:
    """Whether a process of this machine is known to have ended."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or type(pid) is not int or pid <= 0:
        return False
    if holder.get("boot") != _boot():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return holder.get("began") != _began(pid)


def _boot() -> str:
    """Which start of this machine it is; empty where the system does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks, so that one that got its number is not taken for it."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    return ""


def _busy(file: Path, what: str, holder: dict[str, object] | None) -> str:
    text = f"{file.parent}: another process is at work here" + (f" ({what})" if what else "")
    if holder:
        text += f": process {holder.get('pid')} on {holder.get('host')}"
    return text
