"""Changes of bytes by something that knows nothing about what they mean.

Everything is decided by the random numbers that are given.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

_NEAR = (
    (bits, sign, step) for bits in (7, 8, 15, 16, 31, 32, 33, 53, 63, 64) for sign in (1, -1) for step in (-1, 0, 1)
)
INTEGERS = (0, 1, -1, 3, 10**6, 10**9, 10**12, 10**30, *(sign * 2**bits + step for bits, sign, step in _NEAR))
LARGEST = 8 << 20  # bytes of an input that has grown


def blind(content: bytes, rng: Random, other: bytes | None = None) -> bytes:
    """One change that knows nothing about the content; `other` is content of the same kind, to splice with."""
    return rng.choice(BLIND)(content, content if other is None else other, rng)[:LARGEST]


def _place(content: bytes, rng: Random) -> int:
    """Somewhere; the beginning and the end, where heads and indices are, more often."""
    length = len(content)
    if length and rng.random() < 0.4:
        near = min(length, rng.choice((16, 64, 256, 1024)))
        return rng.randrange(near) if rng.random() < 0.5 else length - 1 - rng.randrange(near)
    return rng.randrange(length + 1)


def _stretch(content: bytes, rng: Random) -> tuple[int, int]:
    start = _place(content, rng)
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 16, 64, 512, 4096)))


def _flip(content: bytes, _: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _again in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[min(len(changed) - 1, _place(content, rng))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, _: bytes, rng: Random) -> bytes:
    start, end = _stretch(content, rng)
    filling = rng.choice((b"\0", b"\xff", b"\x7f", b"9", rng.randbytes(1)))
    new = rng.randbytes(end - start) if rng.random() < 0.5 else filling * (end - start)
    return content[:start] + new + content[end:]


def _remove(content: bytes, _: bytes, rng: Random) -> bytes:
    start, end = _stretch(content, rng)
    return content[:start] + content[end:]


def _insert(content: bytes, _: bytes, rng: Random) -> bytes:
    start, end = _stretch(content, rng)
    return content[:start] + rng.randbytes(end - start) + content[start:]


def _repeat(content: bytes, _: bytes, rng: Random) -> bytes:
    start, end = _stretch(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 2, 100)) + content[end:]


def _exchange(content: bytes, _: bytes, rng: Random) -> bytes:
    (a, b), (c, d) = sorted((_stretch(content, rng), _stretch(content, rng)))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:] if b <= c else content[:a]


def _cut(content: bytes, _: bytes, rng: Random) -> bytes:
    return content[: _place(content, rng)]


def _append(content: bytes, other: bytes, rng: Random) -> bytes:
    return content + rng.choice((b"\0" * 1024, b"\n", b"\xff", content, other, rng.randbytes(100)))


def _splice(content: bytes, other: bytes, rng: Random) -> bytes:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


def _integer(content: bytes, _: bytes, rng: Random) -> bytes:
    """A binary number of 1, 2, 4 or 8 bytes, in either order, becomes an unlikely one or moves a little."""
    size = rng.choice((1, 2, 4, 8))
    order: Literal["little", "big"] = "little" if rng.random() < 0.5 else "big"
    start = _place(content, rng)
    start -= start % size if rng.random() < 0.7 else 0
    old = int.from_bytes(content[start : start + size], order)
    new: int = rng.choice((rng.choice(INTEGERS), old + rng.choice((-1, 1, 8)), old * 1000, len(content)))
    return content[:start] + binary(new, size, order) + content[start + size :]


def binary(value: int, size: int, order: Literal["little", "big"] = "little") -> bytes:
    """The lowest `size` bytes of a number of any sign."""
    made = value.to_bytes(64, order, signed=True)
    return made[:size] if order == "little" else made[-size:]


def _digits(content: bytes, _: bytes, rng: Random) -> bytes:
    """A number in the text becomes another one."""
    start = next((at for at in range(_place(content, rng), len(content)) if content[at : at + 1].isdigit()), None)
    if start is None:
        return content
    end = next((at for at in range(start, len(content)) if not content[at : at + 1].isdigit()), len(content))
    return content[:start] + number(rng).encode() + content[end:]


def number(rng: Random) -> str:
    """An unlikely number as text."""
    odd = ("1e9", "1e400", "-0", "0.5", "NaN", "inf", "0x10", "1_000", "٣", "9" * 5000, "")
    return str(rng.choice(INTEGERS)) if rng.random() < 0.7 else rng.choice(odd)


Change = Callable[[bytes, bytes, Random], bytes]
BLIND: tuple[Change, ...] = (
    _flip,
    _flip,
    _overwrite,
    _remove,
    _insert,
    _repeat,
    _exchange,
    _cut,
    _append,
    _splice,
    _integer,
    _integer,
    _integer,
    _digits,
)
