"""Archives whose heads say something else than what follows: members of tar files, and a small zip of gigabytes."""

from __future__ import annotations

import functools
import io
import struct
import tarfile
import zlib
from random import Random

from tests.fuzz.mutate import INTEGERS, number

TAR_FIELDS = ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 6), (263, 2), (345, 155))
TAR_TYPES = b"0\x001234567xgLKSDVNMAQ"


def tar(content: bytes, rng: Random) -> bytes | None:
    """A field of a member's head with a true checksum, or a new member before it that says something about it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        heads = [member.offset for member in file]
    at = rng.choice(heads)
    if rng.random() < 0.3:
        return content[:at] + _about_next(rng) + content[at:]
    head = bytearray(content[at : at + 512])
    start, size = rng.choice(TAR_FIELDS)
    if start == 156:
        new = bytes([rng.choice(TAR_TYPES)])
    elif start in (0, 157, 345):
        new = rng.choice((b"../../x.png", b"/etc/x.png", b"pipe:touch started", b"\xff\xfe.png", b"a.b.c.png", b"."))
    elif rng.random() < 0.5:
        new = b"%0*o" % (size - 1, rng.choice(INTEGERS) % 8 ** (size - 1))
    else:
        new = b"\x80" + (rng.choice(INTEGERS) % 256 ** (size - 1)).to_bytes(size - 1, "big")
    head[start : start + size] = new[:size].ljust(size, b"\0")
    return content[:at] + _summed(head) + content[at + 512 :]


def _summed(head: bytearray) -> bytes:
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


PAX = ("size", "path", "linkpath", "mtime", "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.map", "hdrcharset")


def _about_next(rng: Random) -> bytes:
    """A PAX header, a long name, or an old sparse file, with the head and the blocks that belong to it."""
    kind = rng.choice("xgLKS")
    key = rng.choice(PAX)
    value = rng.choice((number(rng), "../x.png", "0,10", "\0", "x" * 5000, ""))
    record = f" {key}={value}\n"
    size = len(record) + len(str(len(record) + 2))  # it counts its own digits
    body = f"{size}{record}".encode() if kind in "xg" else value.encode()
    head = bytearray(tarfile.TarInfo("x.png").tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"%011o\0" % len(body)
    head[156:157] = kind.encode()
    if kind == "S":
        head[386:410] = b"%011o\0%011o\0" % (rng.randrange(9000), len(body))
        head[483:495] = b"%011o\0" % (rng.choice(INTEGERS) % 8**11)
    return _summed(head) + body + b"\0" * (-len(body) % 512)


HUGE = 3000  # megabytes that a small archive unpacks to


@functools.cache
def huge_zip(name: str) -> bytes:
    """An archive of one deflated member: an .npy of images, three gigabytes of zeros."""
    block = bytes(1 << 20)
    count = (HUGE << 20) // 192
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 8, 8, 3), }}".encode().ljust(117) + b"\n"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    data = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data += (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * HUGE + b"\x03\x00"
    checksum = zlib.crc32(first)
    for _ in range(HUGE):
        checksum = zlib.crc32(block, checksum)
    size = len(first) + (HUGE << 20)
    about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, checksum, len(data), size, len(name.encode()), 0)
    local = b"PK\x03\x04" + about + name.encode()
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    start = len(local) + len(data)
    return local + data + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), start, 0)
