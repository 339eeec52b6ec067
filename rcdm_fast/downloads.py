"""Files fetched once into the user's cache: resumable, atomic, and safe when two processes want the same one.

The cache is RCDM_FAST_CACHE, else XDG_CACHE_HOME/rcdm_fast, else ~/.cache/rcdm_fast. A transfer grows in NAME.partial,
with what is needed to continue it in NAME.partial.json, and becomes NAME only when it is complete. RCDM_FAST_OFFLINE=1
forbids the network.

A file is compared with a SHA-256 whenever it is asked for: the one that the caller knows, or else the one that was
recorded in NAME.sha256 when the file was first seen.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rcdm_fast import locks, storage, transfers
from rcdm_fast.checks import ConfigError
from rcdm_fast.doors import door, regular
from rcdm_fast.transfers import CHUNK_BYTES as CHUNK_BYTES
from rcdm_fast.transfers import DownloadError as DownloadError

log = logging.getLogger(__name__)

Whole = Callable[[Path], object]

_HEADER_BYTES = 100 << 20  # a safetensors file's own limit


def cache_dir() -> Path:
    """The folder that holds downloaded files (it may not exist yet). Raises `DownloadError` if there is no home."""
    own, base = os.environ.get("RCDM_FAST_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return (Path(base).expanduser() if base else Path.home() / ".cache") / "rcdm_fast"
    except RuntimeError as error:
        raise DownloadError(f"no folder for the cache ({error}); set RCDM_FAST_CACHE to one") from error


def offline() -> bool:
    """Whether RCDM_FAST_OFFLINE forbids the network."""
    return os.environ.get("RCDM_FAST_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def cached(name: str) -> Path | None:
    """The complete file of that name in the cache, or None."""
    try:
        path = _target(name)
    except DownloadError:
        return None
    return path if os.path.isfile(path) else None


def fetch(url: str, name: str, *, sha256: str | None = None, whole: Whole | None = None, timeout_s: float = 30) -> Path:
    """The cached file `name`, downloaded from `url` if it is not there yet.

    An interrupted transfer is continued by the next call where the server allows it, and started again where it does
    not. On a terminal a progress bar is shown.

    Args:
        url: http or https address.
        name: file name in the cache, without folders.
        sha256: hex digest that the file must have, or the start of it (8 digits or more). Without it the digest is
            recorded when the file is first seen, and must stay the same.
        whole: raises an error for a file that is not whole. A new download has to pass it; without it one whose length
            the server does not tell needs a digest.
        timeout_s: longest silence of the server that is tolerated.

    Raises:
        DownloadError: no network, an HTTP error, a broken or stalled transfer (what came is kept), a full disk, a cache
            that cannot be written, a wrong size or digest, a file that is not whole, or offline mode.
        ConfigError: no such digest, or name.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", sha256.lower()):
        raise ConfigError(f"a SHA-256 has 64 hexadecimal digits, got {sha256!r}")
    target = _target(name)
    if not os.path.isfile(target):
        if offline():
            raise DownloadError(
                f"{name} is not in the cache and RCDM_FAST_OFFLINE forbids downloading; fetch {url} elsewhere and save "
                f"it as {target}"
            )
        if not url.startswith(("http://", "https://")):
            raise DownloadError(f"{url}: only http and https addresses can be downloaded")
        with _locked(target):
            if not target.is_file():
                _download(url, target, sha256, whole, timeout_s)
                return target
    _compare(target, sha256)
    return target


def check_container(path: Path) -> None:
    """Raise an error (of any type) unless a zip container or a safetensors file is there whole."""
    with open(path, "rb") as file:
        start = file.read(9)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} in it is damaged")
        elif start.endswith(b"{") and (length := int.from_bytes(start[:8], "little")) <= _HEADER_BYTES:
            file.seek(8)
            entries = json.loads(file.read(length))
            end = max((each["data_offsets"][1] for name, each in entries.items() if name != "__metadata__"), default=0)
            if path.stat().st_size != 8 + length + end:
                raise ValueError(f"{path.stat().st_size} bytes instead of {8 + length + end}")
        else:
            raise ValueError("neither a zip container nor a safetensors file")


def check_digest(path: Path, sha256: str) -> None:
    """Raise `DownloadError` unless a file has that digest, or one that begins so."""
    digest = _digest(path)
    if not digest.startswith(sha256.lower()):
        raise DownloadError(f"{path}: its sha256 is {digest}, expected {sha256}")


def _target(name: str) -> Path:
    if not name or name != Path(name).name or name.startswith("."):
        raise ConfigError(f"a cached file needs a plain name, got {name!r}")
    return cache_dir() / name


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time per file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = locks.locked(target.with_name(f".{target.name}.lock"), wait=True, what=f"downloading {target.name}")
        lock.__enter__()
    except OSError as error:
        raise DownloadError(
            f"the cache folder {target.parent} cannot be written ({error.strerror or error}); set RCDM_FAST_CACHE to "
            "another"
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _download(url: str, target: Path, sha256: str | None, whole: Whole | None, timeout_s: float) -> None:
    partial = target.with_name(f"{target.name}.partial")
    record = target.with_name(f"{target.name}.partial.json")
    known = sha256 or _recorded(target)
    try:
        complete = transfers.transfer(url, partial, record, timeout_s, known is not None)
        digest = _digest(partial)
        try:
            if sha256 is not None and not digest.startswith(sha256.lower()):
                raise DownloadError(f"{url}: sha256 is {digest}, expected {sha256}; the download was discarded")
            if known is not None and not digest.startswith(known.lower()):
                raise DownloadError(
                    f"{url}: sha256 is {digest}, but was {known} when the file was first downloaded; the download was "
                    f"discarded. If the file was meant to change, delete {_sum_file(target)}"
                )
            if whole is not None:
                with door(DownloadError, f"{url}: what came is damaged or not whole, and was discarded"):
                    whole(partial)
            elif not complete and known is None:
                raise DownloadError(
                    f"{url}: the server does not say how long the file is, so nothing tells whether all of it came; it "
                    "was discarded (its SHA-256 would tell)"
                )
        except DownloadError:
            transfers.discard(partial, record)
            raise
        storage.move(partial, target)
        record.unlink(missing_ok=True)
    except DownloadError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{target.name}: the disk of {target.parent} is full; free some space and run again to continue, or "
                "set RCDM_FAST_CACHE to another disk"
            ) from error
        raise DownloadError(f"{partial}: cannot be written ({error.strerror or error})") from error
    log.info("%s downloaded to %s", url, target)
    _record(target, digest)


def _compare(target: Path, sha256: str | None) -> None:
    """Whether a file of the cache is what it was, or what the caller knows."""
    digest, recorded = _digest(target), _recorded(target)
    if sha256 is not None and not digest.startswith(sha256.lower()):
        raise DownloadError(f"{target}: its sha256 is {digest}, expected {sha256}; delete it to download it again")
    if sha256 is None and recorded is not None and recorded != digest:
        raise DownloadError(
            f"{target}: its sha256 is {digest}, but was {recorded} when it was first seen; delete it to download it "
            f"again, or {_sum_file(target)} if it was meant to change"
        )
    if recorded != digest:
        _record(target, digest)


def _sum_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _recorded(target: Path) -> str | None:
    """The digest in NAME.sha256, a line as sha256sum writes it; None if there is none that makes sense."""
    try:
        regular(_sum_file(target))
        words = _sum_file(target).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return words[0] if words and re.fullmatch(r"[0-9a-f]{64}", words[0]) else None


def _record(target: Path, digest: str) -> None:
    log.info("%s: sha256 %s", target, digest)
    try:
        storage.write_text(_sum_file(target), f"{digest}  {target.name}\n")
    except storage.StorageError as error:  # a cache that is shared, and read only
        log.info("the sha256 is not recorded (%s)", error)


def _digest(path: Path) -> str:
    with door(DownloadError, f"{path}: cannot be read"):
        return storage.sha256(path)
