"""Files fetched once into the user's cache: resumable, atomic, and safe when two processes want the same one.

The cache is RCDM_FAST_CACHE, else XDG_CACHE_HOME/rcdm_fast, else ~/.cache/rcdm_fast. A transfer grows in NAME.partial,
with what is needed to continue it in NAME.partial.json, and becomes NAME only when it is complete. RCDM_FAST_OFFLINE=1
forbids the network.

Knows nothing about what the files hold.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
from tqdm import tqdm

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


class DownloadError(OSError):
    """A file that could not be fetched; the message says why, and what is left to do."""


@dataclass(frozen=True)
class _State:
    """What a later run must know to continue a partial file."""

    url: str
    validator: str  # strong ETag or Last-Modified, "" if the server sent neither
    size_bytes: int  # of the complete file, -1 if unknown


def cache_dir() -> Path:
    """The folder that holds downloaded files (it may not exist yet)."""
    own = os.environ.get("RCDM_FAST_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "rcdm_fast"


def offline() -> bool:
    """Whether RCDM_FAST_OFFLINE forbids the network."""
    return os.environ.get("RCDM_FAST_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def cached(name: str) -> Path | None:
    """The complete file of that name in the cache, or None."""
    path = _target(name)
    return path if path.is_file() else None


def fetch(url: str, name: str, *, sha256: str | None = None, timeout_s: float = 30) -> Path:
    """The cached file `name`, downloaded from `url` if it is not there yet.

    An interrupted transfer is continued by the next call where the server allows it, and started again where it does
    not. On a terminal a progress bar is shown.

    Args:
        url: http or https address.
        name: file name in the cache, without folders.
        sha256: hex digest to check a new download against.
        timeout_s: longest silence of the server that is tolerated.

    Raises:
        DownloadError: no network, an HTTP error, a broken or stalled transfer (what came is kept), a full disk, a cache
            that cannot be written, a wrong size or digest, or offline mode.
    """
    target = _target(name)
    if target.is_file():
        return target
    if offline():
        raise DownloadError(
            f"{name} is not in the cache and RCDM_FAST_OFFLINE forbids downloading; fetch {url} elsewhere and save it "
            f"as {target}"
        )
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url}: only http and https addresses can be downloaded")
    with _locked(target):
        if not target.is_file():
            _download(url, target, sha256, timeout_s)
    return target


def _target(name: str) -> Path:
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"a cached file needs a plain name, got {name!r}")
    return cache_dir() / name


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time per file; the lock goes with its process, also if that is killed."""
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.info("another process is downloading %s; waiting for it", target.name)
            lock.acquire()
    except OSError as error:
        raise DownloadError(
            f"the cache folder {target.parent} cannot be written ({error.strerror or error}); set RCDM_FAST_CACHE to "
            "another"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, target: Path, sha256: str | None, timeout_s: float) -> None:
    partial = target.with_name(f"{target.name}.partial")
    record = target.with_name(f"{target.name}.partial.json")
    try:
        _transfer(url, partial, record, timeout_s)
        if sha256 is not None:
            _check_digest(partial, record, sha256, url)
        os.replace(partial, target)
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


def _transfer(url: str, partial: Path, record: Path, timeout_s: float) -> None:
    """Bring `partial` to its full length."""
    state = _read_state(record, url)
    offset = partial.stat().st_size if partial.is_file() else 0
    if state is not None and offset == state.size_bytes:
        return
    headers = {"User-Agent": "rcdm_fast"}
    if state is not None and 0 < offset < state.size_bytes:
        headers["Range"] = f"bytes={offset}-"
        if state.validator:
            headers["If-Range"] = state.validator
    with _opened(url, headers, timeout_s) as response:
        if response.status == 206:
            start, size = _content_range(response)
            if state is None or start != offset or size != state.size_bytes:
                raise _restart(
                    partial, record, f"{url}: the server continued a different file; run again to start over"
                )
            log.info("%s: continuing at %s of %s", url, _megabytes(offset), _megabytes(size))
        else:
            offset, size = 0, int(response.headers.get("Content-Length") or -1)
            partial.unlink(missing_ok=True)
            record.write_text(json.dumps(asdict(_State(url, _validator(response), size))), encoding="utf-8")
            log.info("downloading %s (%s) to %s", url, _megabytes(size), partial.parent)
        free = shutil.disk_usage(partial.parent).free
        if size - offset > free:
            raise DownloadError(
                f"{url}: needs {_megabytes(size - offset)}, but only {_megabytes(free)} are free in {partial.parent}; "
                "free some space, or set RCDM_FAST_CACHE to another disk"
            )
        received = _receive(response, partial, offset, size, url)
    if size >= 0 and received > size:
        raise _restart(partial, record, f"{url}: sent {received} bytes instead of {size}; run again to start over")
    if received < size:
        raise DownloadError(_interrupted(url, received, size, "the connection was closed"))


def _receive(response: http.client.HTTPResponse, partial: Path, offset: int, size: int, url: str) -> int:
    """Append the body to `partial`; returns the file's length, which may be short of `size`."""
    received = offset
    total = size if size >= 0 else None
    bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=partial.stem, disable=None)
    with open(partial, "ab") as file, bar:
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise DownloadError(_interrupted(url, received, size, _reason(error))) from error
            if not chunk:
                break
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return received


@contextmanager
def _opened(url: str, headers: dict[str, str], timeout_s: float) -> Iterator[http.client.HTTPResponse]:
    """The server's answer, 200 or 206."""
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            without = {name: value for name, value in headers.items() if name not in ("Range", "If-Range")}
            with _opened(url, without, timeout_s) as whole:
                yield whole
            return
        meaning = "there is no such file on the server" if error.code in (404, 410) else error.reason
        raise DownloadError(f"{url}: HTTP {error.code}, {meaning}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"{url}: cannot be reached ({_reason(error)}); is there a network connection?") from error
    except ValueError as error:
        raise DownloadError(f"{url}: not an address ({error})") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url}: the answer is a web page, not a file (a proxy or a login page in between?)")
        yield response


def _read_state(record: Path, url: str) -> _State | None:
    try:
        state = _State(**json.loads(record.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # nothing to continue
    return state if state.url == url else None


def _validator(response: http.client.HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int]:
    """First byte and total size of a 206 answer; -1 for what it does not say."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        return -1, -1
    return int(match[1]), -1 if match[2] == "*" else int(match[2])


def _check_digest(partial: Path, record: Path, expected: str, url: str) -> None:
    with open(partial, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected.lower():
        raise _restart(partial, record, f"{url}: sha256 is {digest}, expected {expected}; the download was discarded")


def _restart(partial: Path, record: Path, message: str) -> DownloadError:
    """Discard what came, so that the next call starts over; returns the error to raise."""
    partial.unlink(missing_ok=True)
    record.unlink(missing_ok=True)
    return DownloadError(message)


def _interrupted(url: str, received: int, size: int, reason: str) -> str:
    return f"{url}: interrupted at {_megabytes(received)} of {_megabytes(size)} ({reason}); run again to continue"


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "timed out"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return str(text)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 0 else "unknown size"
