"""What counts as the file that was asked for: lengths, digests, containers, answers that are none."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from rcdm_fast import downloads, transfers
from rcdm_fast.downloads import DownloadError, cached, fetch
from tests.file_server import FileServer

CONTENT = bytes(range(256)) * 4_000
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


def files_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_a_file_of_unknown_length_needs_a_digest(server: FileServer, cache: Path) -> None:
    """The connection ends, and nothing tells whether the file does."""
    server.send_length, server.cut_at = False, HALF
    with pytest.raises(DownloadError, match="nothing tells whether all of it came"):
        fetch(f"{server.url}/file", "file.pt")
    with pytest.raises(DownloadError, match="sha256 is"):
        fetch(f"{server.url}/file", "file.pt", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert files_in(cache) == set()
    server.cut_at = None
    whole = hashlib.sha256(CONTENT).hexdigest()
    assert fetch(f"{server.url}/file", "file.pt", sha256=whole).read_bytes() == CONTENT


def zipped() -> bytes:
    stored = io.BytesIO()
    torch.save({"w": torch.zeros(100_000)}, stored)
    return stored.getvalue()


def tensors() -> bytes:
    return safetensors.torch.save({"w": torch.zeros(100_000)}, {"a": "b"})


@pytest.mark.parametrize("make", [zipped, tensors])
def test_a_file_of_unknown_length_that_opens_whole(server: FileServer, cache: Path, make: Callable[[], bytes]) -> None:
    content = make()
    server.content, server.send_length = content, False
    for length in (len(content) // 2, len(content) - 1):
        server.cut_at = length
        with pytest.raises(DownloadError, match="damaged or not whole"):
            fetch(f"{server.url}/file", "file.pt", whole=downloads.check_container)
        assert files_in(cache) == set()
    server.cut_at = None
    assert fetch(f"{server.url}/file", "file.pt", whole=downloads.check_container).read_bytes() == content


def test_a_container_is_looked_into_however_long_it_is_said_to_be(server: FileServer, cache: Path) -> None:
    server.content = zipped()[:1000]
    with pytest.raises(DownloadError, match="damaged or not whole"):
        fetch(f"{server.url}/file", "file.pt", whole=downloads.check_container)
    server.content = b'{"error": "no such bucket"}'
    with pytest.raises(DownloadError, match="neither a zip container nor a safetensors file"):
        fetch(f"{server.url}/file", "file.pt", whole=downloads.check_container)
    assert files_in(cache) == set()


@pytest.mark.parametrize("content", [tensors(), safetensors.torch.save({}), safetensors.torch.save({}, {"a": "b"})])
def test_tensors_end_where_their_header_says(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    downloads.check_container(path)
    for other in (content + b"x", content[:-1]):
        path.write_bytes(other)
        with pytest.raises(ValueError):  # noqa: PT011  (of any kind: a header that is cut is no JSON)
            downloads.check_container(path)


def answer(url: str = "https://a/file", **headers: str) -> Any:
    message = http.client.HTTPMessage()
    for name, value in headers.items():
        for each in value.split(";"):
            message[name.replace("_", "-")] = each
    return SimpleNamespace(status=200, geturl=lambda: url, headers=message)


def test_an_encrypted_address_does_not_lead_to_one_that_is_not() -> None:
    wrong = transfers._no_file("https://a/file", answer("http://b/file", Content_Type="x/y"), part_asked=False)
    assert wrong == "the server sends on to http://b/file, which is not encrypted"
    for url, last in (("http://a/f", "http://b/f"), ("http://a/f", "https://b/f"), ("https://a/f", "https://b/f")):
        assert transfers._no_file(url, answer(last, Content_Type="x/y"), part_asked=False) == ""


@pytest.mark.parametrize(
    ("said", "length"), [("12", 12), ("12;12", 12), ("12;13", -1), ("-1", -1), ("1e3", -1), ("9" * 19, -1)]
)
def test_lengths_that_make_sense(said: str, length: int) -> None:
    assert transfers._length(answer(Content_Length=said)) == length
    assert transfers._length(answer()) == -1


@pytest.mark.parametrize(("status", "length"), [(204, False), (202, True), (203, True), (206, True)])
def test_answers_without_the_file(server: FileServer, cache: Path, status: int, length: bool) -> None:
    server.status, server.send_length = status, length
    with pytest.raises(DownloadError, match=f"HTTP {status}, an answer without the file"):
        fetch(f"{server.url}/file", "file.pt")
    assert files_in(cache) == set()


@pytest.mark.parametrize("length", [True, False])
def test_an_empty_answer_is_no_file(server: FileServer, cache: Path, length: bool) -> None:
    server.content, server.send_length = b"", length
    with pytest.raises(DownloadError, match="the answer is empty"):
        fetch(f"{server.url}/file", "file.pt")
    assert files_in(cache) == set()


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "aes128gcm"])
def test_what_was_packed_for_the_way_is_refused(server: FileServer, cache: Path, encoding: str) -> None:
    server.content, server.encoding = gzip.compress(CONTENT), encoding
    with pytest.raises(DownloadError, match=rf"the server sends the file compressed \({encoding}\)"):
        fetch(f"{server.url}/file", "file.pt")
    assert server.requests[0]["Accept-Encoding"] == "identity"
    assert files_in(cache) == set()


def test_the_first_digest_is_shown_and_must_stay(
    server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    with caplog.at_level(logging.INFO):
        path = fetch(f"{server.url}/file", "file.pt")
    assert f"sha256 {digest}" in caplog.text
    assert (cache / "file.pt.sha256").read_text() == f"{digest}  file.pt\n"
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DownloadError, match=f"but was {digest} when it was first seen; delete it"):
        fetch(f"{server.url}/file", "file.pt")
    with pytest.raises(DownloadError, match=r"expected .*; delete it to download it again"):
        fetch(f"{server.url}/file", "file.pt", sha256=digest)
    path.unlink()
    server.content, server.etag = bytes(changed), '"v2"'
    with pytest.raises(DownloadError, match=rf"but was {digest} when the file was first downloaded.*file\.pt\.sha256"):
        fetch(f"{server.url}/file", "file.pt")
    assert files_in(cache) == {"file.pt.sha256"}
    now = hashlib.sha256(changed).hexdigest()
    assert fetch(f"{server.url}/file", "file.pt", sha256=now).read_bytes() == changed
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == changed


def test_a_file_that_was_put_there_is_recorded_and_may_be_replaced_by_one_that_is_known(cache: Path) -> None:
    cache.mkdir()
    record = cache / "file.pt.sha256"
    for content in (b"by hand", b"another"):
        digest = hashlib.sha256(content).hexdigest()
        (cache / "file.pt").write_bytes(content)
        given = None if content == b"by hand" else digest.upper()
        assert fetch("http://127.0.0.1/never-asked", "file.pt", sha256=given).read_bytes() == content
        assert record.read_text() == f"{digest}  file.pt\n"
        fetch("http://127.0.0.1/never-asked", "file.pt")
        downloads.check_digest(cache / "file.pt", digest[:8].upper())
    with pytest.raises(DownloadError, match="expected 00000000"):
        downloads.check_digest(cache / "file.pt", "00000000")


def test_the_start_of_a_digest_suffices(server: FileServer) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DownloadError, match="expected 00000000"):
        fetch(f"{server.url}/file", "file.pt", sha256="0" * 8)
    assert fetch(f"{server.url}/file", "file.pt", sha256=digest[:8].upper()).read_bytes() == CONTENT
    for wrong in ("", "xyz", digest + "0"):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            fetch(f"{server.url}/file", "file.pt", sha256=wrong)


def test_a_cache_that_can_only_be_read(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    (cache / "file.pt").write_bytes(b"by hand")

    def refused(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refused)
    assert fetch(f"{server.url}/file", "file.pt").name == "file.pt"


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", "~nosuchuser/cache")
    assert cached("file.pt") is None
    with pytest.raises(DownloadError, match="set RCDM_FAST_CACHE"):
        fetch("http://127.0.0.1/file", "file.pt")


def test_a_mount_without_locks(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    assert fetch(f"{server.url}/file", "file.pt").read_bytes() == CONTENT
