"""What a tar header says: names, sizes and pax records. Raises ValueError for what is damaged."""

from __future__ import annotations

BLOCK = 512


def is_header(head: bytes) -> bool:
    """Whether a block is a header: its checksum is right."""
    if len(head) < BLOCK or not head.strip(b"\0"):
        return False
    stated = head[148:156].strip(b" \0")
    if not stated or not stated.isdigit() or b"8" in stated or b"9" in stated:
        return False
    rest = head[:148] + b" " * 8 + head[156:]
    signed = sum(rest) - 256 * sum(each > 127 for each in rest)  # as some old programs add up
    return int(stated, 8) in (sum(rest), signed)


def number(field: bytes) -> int:
    """Octal, or after a byte 0x80 binary."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise ValueError("a negative size")
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    if text and (not text.isdigit()):
        raise ValueError("a size that is no number")
    return int(text or b"0", 8)


def decimal(text: str) -> int:
    """A size in a pax record."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError("a size that is no number")
    return int(text)


def text(field: bytes) -> str:
    """A field up to its first zero; bytes that are no UTF-8 are surrogates."""
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def name(head: bytes) -> str:
    """Of a member, with the prefix that ustar has."""
    prefix = text(head[345:500]) if head[257:263] == b"ustar\0" else ""
    return f"{prefix}/{text(head[:100])}" if prefix else text(head[:100])


def pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE" and an end of line, of a pax header."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        length, space, _ = content[:20].partition(b" ")
        if not space or not length.isdigit() or not 4 <= int(length) <= len(content):
            raise ValueError("a pax header that is damaged")
        key, equals, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if not equals or content[int(length) - 1 : int(length)] != b"\n":
            raise ValueError("a pax header that is damaged")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    return found
