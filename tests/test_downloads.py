"""The download cache against a local server that cuts, stalls, lies and forgets."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tqdm

from rcdm_fast import downloads
from rcdm_fast.downloads import DownloadError, cached, fetch
from tests.file_server import FileServer

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
HALF = len(CONTENT) // 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RCDM_FAST_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RCDM_FAST_OFFLINE", raising=False)
    return folder


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(CONTENT).running() as running:
        yield running


def interrupt(server: FileServer) -> None:
    """Leave half of the file behind."""
    server.cut_at = HALF
    with pytest.raises(DownloadError, match=r"interrupted at 1.5 MB of 3.1 MB .*run again to continue"):
        fetch(f"{server.url}/file", "file.pt")
    server.cut_at = None
    server.requests.clear()


def files_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_fetches_once(server: FileServer, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cached("file.pt") is None
    path = fetch(f"{server.url}/file", "file.pt", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path == cache / "file.pt" == cached("file.pt")
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == {"file.pt", "file.pt.sha256"}
    assert fetch(f"{server.url}/file", "file.pt") == path
    assert len(server.requests) == 1
    assert capfd.readouterr() == ("", "")  # no bar where there is no terminal


def test_cache_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", "~/somewhere")
    assert downloads.cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("RCDM_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.cache_dir() == tmp_path / "rcdm_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert downloads.cache_dir() == Path.home() / ".cache" / "rcdm_fast"


@pytest.mark.parametrize(
    ("etag", "modified", "sha256"),
    [
        ('"v1"', "", None),
        ("", "Wed, 01 Jan 2025 00:00:00 GMT", None),
        ("", "", hashlib.sha256(CONTENT).hexdigest()),
    ],
)
def test_continues_where_it_stopped(
    server: FileServer, cache: Path, etag: str, modified: str, sha256: str | None
) -> None:
    """By what the server says of the file, or by the digest of the whole."""
    server.etag, server.modified = etag, modified
    interrupt(server)
    assert files_in(cache) == {"file.pt.partial", "file.pt.partial.json"}
    assert fetch(f"{server.url}/file", "file.pt", sha256=sha256).read_bytes() == CONTENT
    assert [request["Range"] for request in server.requests] == [f"bytes={HALF}-"]
    assert server.requests[0].get("If-Range", "") == etag + modified
    assert files_in(cache) == {"file.pt", "file.pt.sha256"}


def test_starts_over_when_the_server_ignores_ranges(server: FileServer) -> None:
    interrupt(server)
    server.ranges = False
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT


def test_starts_over_when_the_file_changed(server: FileServer) -> None:
    interrupt(server)
    server.content, server.etag = bytes(reversed(CONTENT)) + b"more", '"v2"'
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == server.content


def test_without_a_validator_nothing_is_continued(server: FileServer) -> None:
    """Another file of the same length could not be told from the first one."""
    server.etag = ""
    interrupt(server)
    server.content = bytes(reversed(CONTENT))
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == server.content
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("etag", ['"v2"', "", 'W/"v1"'])
def test_a_server_that_goes_on_with_another_file(server: FileServer, etag: str) -> None:
    """It does not heed If-Range; that the version is another, or is not said, is noticed."""
    interrupt(server)
    server.content, server.etag, server.if_range = bytes(reversed(CONTENT)), etag, False
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == server.content
    assert ["Range" in request for request in server.requests] == [True, False]


@pytest.mark.parametrize(
    "told", ["bytes 0-9/3072000", "bytes {half}-{end}/*", "bytes {half}-{end}/9", "pages 1-2/3", ""]
)
def test_a_part_of_another_place_or_size(server: FileServer, told: str) -> None:
    interrupt(server)
    server.told_range = told.format(half=HALF, end=len(CONTENT) - 1) or "x"
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert ["Range" in request for request in server.requests] == [True, False]


def test_parts_that_do_not_make_the_file_are_discarded(server: FileServer, cache: Path) -> None:
    server.etag = ""
    interrupt(server)
    server.content = bytes(reversed(CONTENT))
    with pytest.raises(DownloadError, match=r"sha256 is .*, expected .*; the download was discarded"):
        fetch(f"{server.url}/file", "file.pt", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert files_in(cache) == set()


def test_another_address_is_not_continued(server: FileServer) -> None:
    interrupt(server)
    assert fetch(f"{server.url}/other", "file.pt").read_bytes() == CONTENT
    assert "Range" not in server.requests[0]


def test_a_server_that_lost_the_range_is_asked_for_the_whole(server: FileServer) -> None:
    interrupt(server)
    server.content = CONTENT[: HALF // 2]
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == server.content
    assert ["Range" in request for request in server.requests] == [True, False]


def test_a_complete_partial_file_needs_no_network(server: FileServer, cache: Path) -> None:
    interrupt(server)
    (cache / "file.pt.partial").write_bytes(CONTENT)
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert not server.requests


@pytest.mark.parametrize("record", [b"", b"[]", b'{"url": 1}', b"\xff"])
def test_a_damaged_record_starts_over(server: FileServer, cache: Path, record: bytes) -> None:
    interrupt(server)
    (cache / "file.pt.partial.json").write_bytes(record)
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize("validator", ["\u4e16", "\ud800", "a\nHost: b", "\0", "\x7f"])
def test_a_record_that_no_header_can_hold_starts_over(server: FileServer, cache: Path, validator: str) -> None:
    interrupt(server)
    record = cache / "file.pt.partial.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "validator": validator}))
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert "Range" not in server.requests[0]


def test_a_partial_file_that_is_a_link_starts_over(server: FileServer, cache: Path, tmp_path: Path) -> None:
    interrupt(server)
    there = (cache / "file.pt.partial").rename(tmp_path / "there")
    (cache / "file.pt.partial").symlink_to(there)
    found = fetch(f"{server.url}/file", "file.pt")
    assert found.read_bytes() == CONTENT
    assert not found.is_symlink()
    assert there.read_bytes() == CONTENT[:HALF]


def test_ctrl_c_keeps_what_came(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tqdm.tqdm, "update", pressed)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"{server.url}/file", "file.pt")
    assert (cache / "file.pt.partial").stat().st_size == downloads.CHUNK_BYTES
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={downloads.CHUNK_BYTES}-"


def test_wrong_digest(server: FileServer, cache: Path) -> None:
    with pytest.raises(DownloadError, match=r"sha256 is .*, expected 00"):
        fetch(f"{server.url}/file", "file.pt", sha256="00" * 32)
    assert files_in(cache) == set()


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "HTTP 404, there is no such file"), (410, "HTTP 410, there is no such"), (503, "HTTP 503, Service")],
)
def test_http_errors(server: FileServer, cache: Path, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=message):
        fetch(f"{server.url}/file", "file.pt")
    assert files_in(cache) == set()


def test_a_web_page_is_not_taken_for_the_file(server: FileServer) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        fetch(f"{server.url}/file", "file.pt")


def test_silence(server: FileServer) -> None:
    server.silent_s = 1.0
    with pytest.raises(DownloadError, match="timed out"):
        fetch(f"{server.url}/file", "file.pt", timeout_s=0.1)


def test_no_network() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot be reached \(Connection refused\); is there a network connection"):
        fetch(f"http://127.0.0.1:{port}/file", "file.pt")
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch("http://no-such-host.invalid/file", "file.pt")


def test_offline(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", "1")
    with pytest.raises(DownloadError, match="RCDM_FAST_OFFLINE forbids") as raised:
        fetch(f"{server.url}/file", "file.pt")
    assert str(cache / "file.pt") in str(raised.value)
    assert not server.requests
    cache.mkdir()
    (cache / "file.pt").write_bytes(b"by hand")
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == b"by hand"


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        (" On\n", True),
        ("0", False),
        ("no", False),
        ("", False),
        ("2", False),
    ],
)
def test_words_that_forbid_the_network(text: str, forbidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_OFFLINE", text)
    assert downloads.offline() == forbidden


def test_a_folder_is_no_file_of_the_cache(cache: Path) -> None:
    (cache / "file.pt").mkdir(parents=True)
    assert cached("file.pt") is None


@pytest.mark.parametrize("modified", ["", "Wed, 01 Jan 2025 00:00:00 GMT"])
def test_a_weak_tag_does_not_tell_versions_apart(server: FileServer, modified: str) -> None:
    server.etag, server.modified = 'W/"v1"', modified
    interrupt(server)
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert [request.get("If-Range") for request in server.requests] == [modified or None]
    assert ["Range" in request for request in server.requests] == [bool(modified)]


def test_a_digest_that_was_recorded_lets_a_transfer_go_on(server: FileServer, cache: Path) -> None:
    server.etag = ""
    fetch(f"{server.url}/file", "file.pt").unlink()
    interrupt(server)
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
    assert [request["Range"] for request in server.requests] == [f"bytes={HALF}-"]


def test_what_came_already_needs_no_more_space(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(server)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(CONTENT) - HALF - 1))
    with pytest.raises(DownloadError, match=r"needs 1.5 MB, but only 1.5 MB are free"):
        fetch(f"{server.url}/file", "file.pt")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(CONTENT) - HALF))
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT


def test_too_little_space_is_said_before_the_transfer(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(DownloadError, match=r"needs 3.1 MB, but only 1.0 MB are free.*RCDM_FAST_CACHE"):
        fetch(f"{server.url}/file", "file.pt")
    assert not (cache / "file.pt").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(server: FileServer, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match=r"disk of .* is full"):
            fetch(f"{server.url}/file", "file.pt")
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_made(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"cannot be written .*RCDM_FAST_CACHE"):
        fetch(f"{server.url}/file", "file.pt")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/file", "/etc/hostname"])
def test_only_http(url: str) -> None:
    with pytest.raises(DownloadError, match="only http"):
        fetch(url, "file.pt")


@pytest.mark.parametrize("name", ["../file.pt", "folder/file.pt", ".hidden", ""])
def test_plain_names_only(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        cached(name)


def test_two_processes_download_once(server: FileServer, cache: Path) -> None:
    server.silent_s = 0.3
    forks = multiprocessing.get_context("fork")
    runs = [forks.Process(target=fetch, args=(server.url + "/file", "file.pt")) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(timeout=60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert (cache / "file.pt").read_bytes() == CONTENT
    assert len(server.requests) == 1
