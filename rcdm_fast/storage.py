"""Files that appear complete or not at all, and safetensors files whose metadata explains them and holds a checksum.

Only what every mount offers is relied on: no change of modes, no links, no locks (`locks.py`); where a file cannot be
flushed or renamed, what is left is done. Knows nothing about what the tensors mean (`models/checkpoint.py`,
`encoders/native.py`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import stat
import string
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.errors import RcdmError

log = logging.getLogger(__name__)

# What mounts answer to what they cannot do, as opposed to what went wrong.
REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

_NO_RENAME = frozenset({errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBUSY})
_IN_PLACE = {
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND,
    "r+b": os.O_RDWR,
}
_NAME_BYTES = 255
_ENDING = 20  # characters of what can be an extension
_RANDOM = random.SystemRandom()
_LETTERS = string.ascii_lowercase + string.digits + "_"
_SUM = "rcdm_fast.sha256"  # metadata key of the checksum of a safetensors file's tensors and other metadata


class StorageError(RcdmError, OSError):
    """A file that cannot be written, read or understood; the message names it."""


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed to disk and renamed to `path`.

    On an error the temporary file is removed and whatever was at `path` stays. A pipe or a device at `path` is written
    to, not replaced. A link at `path` is replaced, and what it leads to stays as it is: folders come from strangers.

    Raises:
        StorageError: the folder cannot be written, the name is no file's, or the disk is full.
    """
    temporary: Path | None = None
    try:
        target = doors.path(path, StorageError)
        temporary = _begun(target)
        mode = temporary.stat().st_mode
        yield temporary
        finished, temporary = temporary, None
        _finish(finished, target, mode)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise StorageError(f"{path}: cannot be written ({doors.said(error)})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _begun(target: Path) -> Path:
    """A new file to be written in place of `target`."""
    if _is_device(target):
        handle, name = tempfile.mkstemp(suffix=target.suffix)
        os.close(handle)
        return Path(name)
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    return new_file(target)


def _finish(temporary: Path, target: Path, mode: int) -> None:
    try:
        if _is_device(target):
            with open(temporary, "rb") as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
            temporary.unlink()
            return
        flush(temporary)
        if temporary.stat().st_mode != mode:  # a library has put a file of its own there
            with contextlib.suppress(OSError):  # where modes cannot be changed, nobody asks for them
                temporary.chmod(stat.S_IMODE(mode))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    move(temporary, target)


def _is_device(target: Path) -> bool:
    """Whether a path is a pipe, a terminal or the like; links to such count where the system has made them."""
    if str(target) in ("/dev/stdout", "/dev/stderr") or str(target).startswith("/dev/fd/"):
        return True
    if target.is_symlink() and str(target.parent) != "/dev" and not target.is_relative_to("/proc"):
        return False
    return target.exists() and not target.is_file() and not target.is_dir()


def new_file(target: Path) -> Path:
    """An empty file beside `target`, hidden, of the same extension, with the modes that any new file gets."""
    return _new(target, lambda path: os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)))


def new_folder(target: Path) -> Path:
    """An empty folder beside `target`, hidden, with the modes that any new folder gets."""
    return _new(target, lambda path: os.mkdir(path, 0o777))


def _new(target: Path, make: Any) -> Path:
    with contextlib.suppress(FileNotFoundError):
        target.lstat()  # a name that is too long is known before the work
    stem, ending = target.stem, target.suffix if len(target.suffix) <= _ENDING else ""
    while len(os.fsencode(f".{stem}.12345678{ending}")) > _NAME_BYTES and stem:
        stem = stem[:-1]
    while True:
        path = target.with_name(f".{stem}.{''.join(_RANDOM.choices(_LETTERS, k=8))}{ending}")
        try:
            make(path)
        except FileExistsError:
            continue
        return path


def no_link(path: str, flags: int) -> int:
    """`os.open` of a file itself, never of what a link of its name leads to.

    Raises:
        OSError: a link, or what `os.open` raises.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a link to another place", path) from error
        raise


def open_in_place(path: Path, mode: Literal["ab", "a+b", "r+b"]) -> IO[bytes]:
    """Open a file that is changed in place; a link of its name is never followed.

    Raises:
        OSError: a link, or what `os.open` raises.
    """
    return os.fdopen(no_link(str(path), _IN_PLACE[mode]), mode)


def flush(path: Path) -> None:
    """Bring a file's content to the disk, where the mount can. Raises `OSError` if it does not fit there."""
    handle = os.open(path, os.O_RDWR)
    try:
        sync(handle)
    finally:
        os.close(handle)


def sync(handle: int) -> None:
    """`os.fsync`, where the mount can. Raises `OSError` for anything but "cannot"."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        log.debug("this file system cannot flush (%s)", error)


def move(finished: Path, target: Path) -> None:
    """Give a finished file or folder its name, in place of a file that had it.

    Where the mount cannot rename, it is copied; if that fails, the finished one stays and the message says where.

    Raises:
        StorageError: see above.
        OSError: it cannot be renamed; it is then removed.
    """
    try:
        os.replace(finished, target)
        return
    except OSError as error:
        if error.errno not in _NO_RENAME:
            _remove(finished)
            raise
        log.info("%s cannot be renamed (%s): copied", target, error.strerror)
    try:
        if target.is_symlink():  # a copy would go where it leads
            target.unlink()
        if finished.is_dir():
            shutil.copytree(finished, target, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(finished, target)
            flush(target)
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{target}: cannot be written ({reason}); all of it is in {finished}") from error
    _remove(finished)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str], size_bytes: int = 4096) -> None:
    """Find out now, not after an hour of work, that `path` cannot be written, or has no room for so many bytes.

    Nothing is left behind.

    Raises:
        StorageError: a name that is too long or no file's, a folder at this place, a folder that cannot be written, a
            full disk.
    """
    target = doors.path(path, StorageError)
    made = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        temporary = _begun(target)
        try:
            temporary.write_bytes(b"0" * 4096)
            free = shutil.disk_usage(temporary.parent).free
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        for folder in made:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
    if 0 < free < size_bytes:  # some mounts know nothing about themselves and say 0
        raise StorageError(f"{path}: needs {size_bytes / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free there")


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and their description as one safetensors file with a checksum of both, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**metadata, _SUM: _checksum(ready, metadata)}
    with atomic(path) as temporary:
        safetensors.torch.save_file(ready, temporary, metadata=described)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file. Raises `StorageError` if it is missing, truncated or something else."""
    with _opened(path) as file:
        return {key: value for key, value in dict(file.metadata() or {}).items() if key != _SUM}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        StorageError: see `read_metadata`; or the file has a checksum of `save_tensors` and other content.
    """
    with _opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        metadata = dict(file.metadata() or {})
    wanted = metadata.pop(_SUM, None)
    if wanted is not None and wanted != _checksum(found, metadata):
        raise StorageError(f"{path}: damaged (its content does not have the checksum that was written with it)")
    return found


def read_checksum(path: str | os.PathLike[str]) -> str | None:
    """The checksum that `save_tensors` wrote into a file; None in a file of others. Raises `StorageError`."""
    with _opened(path) as file:
        return dict(file.metadata() or {}).get(_SUM)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(errors="backslashreplace"))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    found = doors.path(path, StorageError)
    where = doors.printable(path)
    try:
        doors.regular(found)
        with safetensors.safe_open(str(found), framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise StorageError(f"{where}: no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise StorageError(f"{where}: not a readable safetensors file, or truncated ({doors.said(error)})") from error


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write data as indented JSON, atomically."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write text as UTF-8, atomically; bytes of file names that are no UTF-8 become \udcXX."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises `StorageError`: missing, no UTF-8, no JSON, or nested too deeply."""
    with doors.door(StorageError, f"{path}: cannot be read"):
        doors.regular(path)
        return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
