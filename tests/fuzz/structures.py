"""Changes that leave a format whole around them: a wrong number behind a right checksum gets further than a wrong byte.

Formats are told by their content. Inside a container (zip, gzip) the parts are changed by the same rules. Text and JSON
are in `texts.py`.
"""

from __future__ import annotations

import gzip
import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random

from tests.fuzz import archives, mutate, texts
from tests.fuzz.mutate import INTEGERS, blind

Change = Callable[[bytes, Random], bytes | None]


def mutated(content: bytes, other: bytes, rng: Random) -> bytes:
    """The content with a change or several; `other` is content of the same kind, to splice with."""
    if rng.random() < 0.6:
        found = by_format(content, rng)
        if found is not None and found != content:
            return found[: mutate.LARGEST]
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        content = blind(content, rng, other)
    return content


def by_format(content: bytes, rng: Random) -> bytes | None:
    """The content changed as its format has it; None if it has none of those known here, or is damaged already."""
    try:
        return _change(content)(content, rng)
    except Exception:  # readers of damaged formats raise whatever they stumble over
        return None


def _change(content: bytes) -> Change:
    for begins, change in FORMATS:
        if content.startswith(begins):
            return change
    if content[257:262] == b"ustar":
        return archives.tar
    if content[8:9] == b"{" and 1 < int.from_bytes(content[:8], "little") <= len(content) - 8:
        return _counted_json
    return _messages if content[:1] in (b"\x08", b"\x0a") else texts.mutated


def _part(content: bytes, rng: Random) -> bytes:
    """Part of a container."""
    found = by_format(content, rng) if rng.random() < 0.7 else None
    return blind(content, rng) if found is None else found


def _zip(content: bytes, rng: Random) -> bytes | None:
    """Members with changed content, true checksums and lengths; or other names, methods, orders."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if sum(item.file_size for item in file.infolist()) > mutate.LARGEST:
            return None
        members = [(item.filename, file.read(item)) for item in file.infolist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    change = rng.choice(("content",) * 12 + ("missing", "twice", "renamed", "method") * 3 + ("huge",))
    if change == "huge":
        return archives.huge_zip(name)
    method = zipfile.ZIP_STORED
    if change == "content":
        members[at] = (name, _part(data, rng))
    elif change == "missing":
        del members[at]
    elif change == "twice":
        members.append((name, _part(data, rng)))
    elif change == "renamed":
        members[at] = (rng.choice(("../../" + name, "/" + name, name[:-1], name + ".npy", "x" * 300)), data)
    else:
        method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return made.getvalue()


def _gzip(content: bytes, rng: Random) -> bytes | None:
    return gzip.compress(_part(gzip.decompress(content), rng), mtime=0)


DTYPES = ("<f4", "<f8", "<f2", "|u1", "|i1", "<i8", "|O", "<U7", "|S0", "|V3", "<M8[ns]", "<c16", "|b1", "xx", ">u2")
SHAPES = "() (0,) (-1,) (3,) (1,{n}) ({n},{n}) ({n},8,8,3) ({n},0) (2,8,8,3) (True,) (1.5,) (2,{n},8,3) 7 None [2]"


def _npy(content: bytes, rng: Random) -> bytes | None:
    """The header, with its length made right."""
    length = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + length]
    shape = rng.choice(SHAPES.split()).format(n=rng.choice(INTEGERS))
    dtype = rng.choice(DTYPES)
    change = rng.randrange(5)
    if change == 0:
        header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    elif change == 1:
        header = header[: header.find(b"'shape': ") + 9] + f"{shape}, }}".encode()
    elif change == 2:
        header = header.replace(b"False", rng.choice((b"True", b"1", b"x", b"(" * 200)))
    elif change == 3:
        header = f"{{'descr': [('a', '{dtype}', {shape})], 'fortran_order': False, 'shape': (3,), }}".encode()
    else:
        header = blind(header, rng)
    header = header[:65000].rstrip(b"\n ") + b"\n"
    return content[:8] + struct.pack("<H", len(header)) + header + content[10 + length :]


def _counted_json(content: bytes, rng: Random, start: int = 0) -> bytes | None:
    """A length of eight bytes, then so much JSON, as safetensors and our plans have it."""
    (length,) = struct.unpack_from("<Q", content, start)
    first = start + 8
    header = content[first : first + length]
    changed = texts.mutated(header, rng) if rng.random() < 0.9 else blind(header, rng)
    if changed is None:
        return None
    return content[:start] + struct.pack("<Q", len(changed)) + changed + content[first + length :]


def _plan(content: bytes, rng: Random) -> bytes | None:
    return _counted_json(content, rng, 8)


def _png(content: bytes, rng: Random) -> bytes | None:
    """Chunks with changed content and a true checksum; some twice, missing, or elsewhere."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    which = rng.randrange(len(chunks))
    name, data = chunks[which]
    change = rng.choice(("number", "number", "content", "missing", "twice", "moved", "renamed"))
    if change == "number" and len(data) >= 4:
        place = 4 * rng.randrange(len(data) // 4)
        data = data[:place] + (rng.choice(INTEGERS) % 2**32).to_bytes(4, "big") + data[place + 4 :]
        chunks[which] = (name, data)
    elif change == "missing":
        del chunks[which]
    elif change == "twice":
        chunks.insert(which, (name, data))
    elif change == "moved":
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(which))
    elif change == "renamed":
        chunks[which] = (rng.choice((b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf")), data)
    else:
        chunks[which] = (name, blind(data, rng))
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _messages(content: bytes, rng: Random, deep: int = 4) -> bytes | None:
    """Protocol buffers, as ONNX has them: a field changed, missing, twice or in another's place."""
    fields: list[tuple[int, int, bytes]] = []
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        wire = key & 7
        if wire == 2:
            length, at = _varint(content, at)
        elif wire == 0:
            length = _varint(content, at)[1] - at
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
        if length < 0 or at + length > len(content):
            return None
        fields.append((key >> 3, wire, content[at : at + length]))
        at += length
    which = rng.randrange(len(fields))
    number, wire, data = fields[which]
    change = rng.choice(("content", "content", "content", "missing", "twice", "moved", "renumbered"))
    if change == "missing":
        del fields[which]
    elif change == "twice":
        fields.insert(which, (number, wire, data))
    elif change == "moved":
        fields.insert(rng.randrange(len(fields)), fields.pop(which))
    elif change == "renumbered":
        fields[which] = (rng.randrange(1, 30), wire, data)
    elif wire == 0:
        fields[which] = (number, 0, _as_varint(rng.choice(INTEGERS) % 2**64))
    else:
        inner = _messages(data, rng, deep - 1) if wire == 2 and deep else None
        fields[which] = (number, wire, blind(data, rng) if inner is None else inner)
    made = b""
    for number, wire, data in fields:
        made += _as_varint(number << 3 | wire) + (_as_varint(len(data)) if wire == 2 else b"") + data
    return made


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    return value, at


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


CODE = (
    b"cposix\nsystem\n(S'touch started'\ntR.",
    b'cbuiltins\nexec\n(S\'open("started", "w")\'\ntR.',
    b"ctorch\nload\n(S'other.pt'\ntR.",
    b"(" * 100_000 + b".",
    b"]" * 100 + b"a" * 99 + b".",
)


NUMBERS = {"BININT": 4, "BININT1": 1, "BININT2": 2}  # instructions of pickles, and bytes of the number behind them


def _pickle(content: bytes, rng: Random) -> bytes | None:
    """Numbers and names among the instructions; or other instructions."""
    if rng.random() < 0.1:
        return rng.choice(CODE)
    places: list[tuple[int, int]] = []
    for opcode, _, at in pickletools.genops(content):
        if at is not None and opcode.name in NUMBERS:
            places.append((at + 1, NUMBERS[opcode.name]))
    if not places or rng.random() < 0.3:
        return blind(content, rng)
    at, size = rng.choice(places)
    return content[:at] + mutate.binary(rng.choice(INTEGERS), size) + content[at + size :]


FOOT = 8  # bytes at the end of a Parquet file: the length of the metadata before it, and PAR1


def _parquet(content: bytes, rng: Random) -> bytes | None:
    """The metadata at the end."""
    if len(content) < FOOT + 4:
        return None
    length = int.from_bytes(content[-8:-4], "little")
    start = max(4, len(content) - FOOT - length)
    changed = blind(content[start:-FOOT], rng)
    return content[:start] + changed + len(changed).to_bytes(4, "little") + b"PAR1"


def _arrow(content: bytes, rng: Random) -> bytes | None:
    """A number in one of the messages' heads: a length, an offset, a type."""
    heads = [at for at in range(0, len(content) - 8, 8) if content[at : at + 4] == b"\xff\xff\xff\xff"]
    at = rng.choice(heads)
    length = max(16, int.from_bytes(content[at + 4 : at + 8], "little") % 65536)
    size = rng.choice((1, 2, 4, 4, 8, 8))
    place = min(len(content) - size, at + 4 + size * rng.randrange(-(-length // size)))
    old = int.from_bytes(content[place : place + size], "little")
    new = rng.choice([rng.choice(INTEGERS), old + rng.choice((-1, 1, 4, 8, 64)), old * 256])
    return content[:place] + mutate.binary(new, size) + content[place + size :]


def _jpeg(content: bytes, rng: Random) -> bytes | None:
    """A segment before the image itself: changed with its length made right, missing, or twice."""
    segments, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        segments.append((content[at + 1], content[at + 4 : at + 2 + length]))
        at += 2 + length
    which = rng.randrange(len(segments))
    marker, data = segments[which]
    change = rng.choice(("content", "content", "content", "missing", "twice", "renamed"))
    if change == "content":
        segments[which] = (marker, blind(data, rng))
    elif change == "missing":
        del segments[which]
    elif change == "twice":
        segments.insert(which, (marker, data))
    else:
        segments[which] = (rng.choice((0xC0, 0xC2, 0xC4, 0xDB, 0xE1, 0xE2, 0xED, 0xEE)), data)
    made = b"".join(
        bytes((0xFF, marker)) + struct.pack(">H", (len(data) + 2) % 65536) + data for marker, data in segments
    )
    return content[:2] + made + content[at:]


FORMATS: tuple[tuple[bytes, Change], ...] = (
    (b"PK\x03\x04", _zip),
    (b"\x1f\x8b", _gzip),
    (b"\x93NUMPY", _npy),
    (b"RCDMPLN1", _plan),
    (b"\x89PNG", _png),
    (b"\xff\xd8", _jpeg),
    (b"PAR1", _parquet),
    (b"ARROW1", _arrow),
    (b"\xff\xff\xff\xff", _arrow),
    (b"\x80\x02", _pickle),
)
