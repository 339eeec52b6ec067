"""One file over HTTP into a partial file beside a record of what it is, continued by a later call where that is safe.

A transfer is continued only if the server says which file it sends (a strong ETag, or Last-Modified), and says the same
again, or if the caller knows the whole file's digest. Otherwise it starts over: pieces of two files are never joined by
guess. What comes compressed for the way, though it was not asked for, is refused.

Knows nothing about caches, digests or what the file holds (`downloads.py`).
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from rcdm_fast import doors, storage
from rcdm_fast.errors import RcdmError

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20

_SENDABLE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # what the header of a request can hold


class DownloadError(RcdmError, OSError):
    """A file that could not be fetched; the message says why, and what is left to do."""


class _OtherFile(Exception):
    """The server does not go on with the file that it began."""


@dataclass(frozen=True)
class _State:
    """What a later run must know to continue a partial file."""

    url: str
    validator: str  # strong ETag or Last-Modified, "" if the server sent neither
    size_bytes: int  # of the complete file, -1 if unknown


def transfer(url: str, partial: Path, record: Path, timeout_s: float, digest_known: bool) -> bool:
    """Bring `partial` to its full length.

    Args:
        url: http or https address.
        partial: grows; what came is kept on an error.
        record: of what is needed to continue.
        timeout_s: longest silence of the server that is tolerated.
        digest_known: whether the caller will compare the whole file with a digest that it has.

    Returns:
        Whether the server said how long the file is, so that all of it is here.

    Raises:
        DownloadError: no network, an HTTP error, an answer that is no file, a broken or stalled transfer.
        OSError: `partial` or `record` cannot be written.
    """
    state = _read_state(record, url)
    offset = partial.stat().st_size if partial.is_file() and not partial.is_symlink() else 0
    if state is not None and 0 < offset == state.size_bytes:
        return True
    if state is not None and 0 < offset < state.size_bytes and (state.validator or digest_known):
        try:
            return _go_on(state, offset, partial, record, timeout_s)
        except _OtherFile as error:
            log.info("%s: %s; starting over", url, error)
    with _opened(url, {}, timeout_s) as response:
        return _all(url, response, partial, record)


def discard(partial: Path, record: Path) -> None:
    """Remove what came, so that the next call starts over."""
    partial.unlink(missing_ok=True)
    record.unlink(missing_ok=True)


def megabytes(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 0 else "unknown size"


def _go_on(state: _State, offset: int, partial: Path, record: Path, timeout_s: float) -> bool:
    headers = {"Range": f"bytes={offset}-"}
    if state.validator:
        headers["If-Range"] = state.validator
    with _opened(state.url, headers, timeout_s) as response:
        if response.status != 206:
            return _all(state.url, response, partial, record)
        if _content_range(response) != (offset, state.size_bytes - 1, state.size_bytes):
            raise _OtherFile("the server goes on elsewhere, or with a file of another size")
        if state.validator and _validator(response) != state.validator:
            raise _OtherFile("the server goes on with another version of the file")
        log.info("%s: continuing at %s of %s", state.url, megabytes(offset), megabytes(state.size_bytes))
        return _receive(response, state.url, partial, record, offset, state.size_bytes)


def _all(url: str, response: http.client.HTTPResponse, partial: Path, record: Path) -> bool:
    """Receive a whole file."""
    size = _length(response)
    if size == 0:
        raise DownloadError(f"{url}: the answer is empty, not a file")
    discard(partial, record)
    record.write_text(json.dumps(asdict(_State(url, _validator(response), size))), encoding="utf-8")
    log.info("downloading %s (%s) to %s", url, megabytes(size), partial.parent)
    return _receive(response, url, partial, record, 0, size)


def _receive(response: http.client.HTTPResponse, url: str, partial: Path, record: Path, offset: int, size: int) -> bool:
    """Append the body to `partial`; whether its length was known."""
    free = shutil.disk_usage(partial.parent).free
    if size - offset > free:
        raise DownloadError(
            f"{url}: needs {megabytes(size - offset)}, but only {megabytes(free)} are free in {partial.parent}; "
            "free some space, or set RCDM_FAST_CACHE to another disk"
        )
    received = _append(response, partial, offset, size, url)
    if received > size >= 0:
        discard(partial, record)
        raise DownloadError(f"{url}: sent {received} bytes instead of {size}; run again to start over")
    if received < size:
        raise DownloadError(_interrupted(url, received, size, "the connection was closed"))
    if not received:
        discard(partial, record)
        raise DownloadError(f"{url}: the answer is empty, not a file")
    return size >= 0


def _append(response: http.client.HTTPResponse, partial: Path, offset: int, size: int, url: str) -> int:
    """Write what comes; returns the file's length, which may be short of `size`."""
    received = offset
    total = size if size >= 0 else None
    bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=partial.stem, disable=None)
    with storage.open_in_place(partial, "ab") as file, bar:
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
        storage.sync(file.fileno())
    return received


@contextmanager
def _opened(url: str, range_headers: dict[str, str], timeout_s: float) -> Iterator[http.client.HTTPResponse]:
    """The server's answer: 200 with a file as it is, or 206 if a part was asked for."""
    headers = {"User-Agent": "rcdm_fast", "Accept-Encoding": "identity", **range_headers}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and range_headers:
            with _opened(url, {}, timeout_s) as whole:
                yield whole
            return
        meaning = "there is no such file on the server" if error.code in (404, 410) else error.reason
        raise DownloadError(f"{url}: HTTP {error.code}, {meaning}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"{url}: cannot be reached ({_reason(error)}); is there a network connection?") from error
    except ValueError as error:
        raise DownloadError(f"{url}: not an address ({doors.said(error)})") from error
    with response:
        wrong = _no_file(url, response, bool(range_headers))
        if wrong:
            raise DownloadError(f"{url}: {wrong}")
        yield response


def _no_file(url: str, response: http.client.HTTPResponse, part_asked: bool) -> str:
    """Why an answer is not the file that was asked for; empty if it may be."""
    if response.status not in ((200, 206) if part_asked else (200,)):
        return f"HTTP {response.status}, an answer without the file"
    if url.startswith("https:") and not response.geturl().startswith("https:"):
        return f"the server sends on to {response.geturl()}, which is not encrypted"
    if response.headers.get_content_type() == "text/html":
        return "the answer is a web page, not a file (a proxy or a login page in between?)"
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        return f"the server sends the file compressed ({encoding}), though it was asked not to"
    return ""


def _read_state(record: Path, url: str) -> _State | None:
    try:
        state = _State(**storage.read_json(record))
    except (storage.StorageError, TypeError):
        return None  # nothing to continue
    fits = isinstance(state.validator, str) and type(state.size_bytes) is int and state.url == url
    fits = fits and _SENDABLE.fullmatch(state.validator) is not None
    return state if fits else None


def _validator(response: http.client.HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _length(response: http.client.HTTPResponse) -> int:
    """Of the body, in bytes; -1 if it is not said, or not in a way that makes sense."""
    said = {text.strip() for text in response.headers.get_all("Content-Length", [])}
    text = said.pop() if len(said) == 1 else ""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int, int]:
    """First and last byte and total size of a 206 answer; -1 for what it does not say."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    return (-1, -1, -1) if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _interrupted(url: str, received: int, size: int, reason: str) -> str:
    return f"{url}: interrupted at {megabytes(received)} of {megabytes(size)} ({reason}); run again to continue"


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "timed out"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return str(text)
