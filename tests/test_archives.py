"""Tar archives: every form that programs write, joined and packed ones, and headers that lie."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rcdm_fast.data.readers import archives
from rcdm_fast.data.readers.archives import Archive, Member, pread

CONTENT = {
    "a.jpg": b"a" * 700,
    "empty.jpg": b"",
    "b/" + "x" * 150 + ".png": b"b" * 512,
    "k" * 300 + ".jpeg": b"k",
    "caf\u00e9/\u4e2d.jpg": b"c" * 1025,
    "caf\udce9.png": b"d" * 3,
}


def write(path: Path, form: int, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, each in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(each), 1.5
            tar.addfile(member, io.BytesIO(each))
    return path


def header(name: bytes = b"a.png", size: bytes = b"00000000001\0", flag: bytes = b"0") -> bytes:
    head = bytearray(512)
    head[: len(name)], head[124:136], head[156:157], head[257:265] = name, size, flag, b"ustar\00000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def members(path: Path) -> list[Member]:
    return list(Archive(path, str(path), ValueError))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_what_programs_write(tmp_path: Path, form: int) -> None:
    content = {name: each for name, each in CONTENT.items() if form != tarfile.USTAR_FORMAT or len(name) < 99}
    path = write(tmp_path / "a.tar", form, content)
    found = {each.name: pread(path, each.start, each.size, ValueError) for each in members(path) if each.kind == "file"}
    assert found == content


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_joined_and_packed_archives_are_read_to_their_end(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = write(tmp_path / "a.tar", tarfile.PAX_FORMAT, CONTENT).read_bytes()
    path = tmp_path / "b.tar"
    path.write_bytes(pack(whole) + pack(whole))  # two streams of gzip behind each other are one, too
    archive, found = Archive(path, "b", ValueError), []
    for each in archive:
        if each.kind == "file":
            whole = pread(path, each.start, each.size, ValueError) if archive.direct else archive.content(each, 1 << 20)
            found.append((each.part, each.name, whole))
    assert found == [(part, *each) for part in (0, 1) for each in CONTENT.items()]
    assert archive.direct == (pack is bytes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header() + b"x" * 512, "the end of the archive is missing"),
        (header(size=b"77777777777\0") + bytes(1536), "the end of the archive is missing"),
        (header(size=b"\x80" + b"\xff" * 11) + bytes(1536), "the end of the archive is missing"),
        (header(size=b"\xff" * 12) + bytes(1536), "a negative size"),
        (header(size=b"0000000000x\0") + bytes(1536), "a size that is no number"),
        (header(size=b"77777777777\0", flag=b"x") + bytes(1536), "a header of"),
        (header(size=b"77777777777\0", flag=b"L") + bytes(1536), "a header of"),
        (header(flag=b"x") + b"9" * 512 + bytes(1024), "a pax header that is damaged"),
        (
            header(size=b"00000000011\0", flag=b"x") + b"9 size=x\n".ljust(512, b"\0") + header() + bytes(1536),
            "no number",
        ),
        (b"no archive" * 100, "it is no tar"),
        (b"", "the end of the archive is missing"),
        (header() + bytes(1536) + b"rubbish" * 100, "what follows its end is no archive"),
        (b"PK\x03\x04" + bytes(600), "packed with zip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "packed with zstd"),
        (gzip.compress(header() + bytes(1536), mtime=0)[:-20], "damaged"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        members(tmp_path / "a.tar")


def test_holes_are_told_and_not_filled(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.size, member.pax_headers = 4, {"GNU.sparse.size": "3000000000", "GNU.sparse.map": "0,4"}
        tar.addfile(member, io.BytesIO(b"abcd"))
    (found,) = members(tmp_path / "a.tar")
    assert (found.kind, found.size) == ("sparse", 4)


def test_a_packed_archive_may_not_hold_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_FREE_BYTES", 1 << 20)
    size = 200 << 20
    (tmp_path / "a.tgz").write_bytes(gzip.compress(header(size=b"%011o\0" % size) + bytes(size + 1024), 1))
    since = time.monotonic()
    with pytest.raises(ValueError, match="bytes are packed into it"):
        members(tmp_path / "a.tgz")
    assert time.monotonic() - since < 20
