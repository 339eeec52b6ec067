"""What items of a job are: their kinds, what is asked of a source of them, their hashes and ids.

Knows nothing about where items come from (`random_access.py`, `data/readers/array_rows.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, Protocol

from PIL import Image
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.config import ConfigError

Kind = Literal["image", "representation", "label", "nothing"]

HASHES = 1 << 256  # hashes of items are added up modulo this


class Source(Protocol):
    """Items by index."""

    kind: Kind
    name: str

    def __len__(self) -> int:
        """How many items."""

    def id(self, index: int) -> str:
        """What an item is called in the manifest."""

    def read(self, index: int) -> Image.Image | Tensor:
        """An image (8-bit RGB), a representation float32 [D], or a label int64 []. Raises `images.ImageError`."""

    def width(self) -> int | None:
        """Numbers in every representation, as far as the source says."""

    def content(self, index: int) -> bytes:
        """What tells whether an item is still the same, as far as that can be told without decoding."""


def hash_of(source: Source, index: int) -> int:
    """SHA-256 of an item's index, id and content, as a number."""
    digest = hashlib.sha256(f"{index}\0{source.id(index)}\0".encode("utf-8", "surrogatepass"))
    digest.update(source.content(index))
    return int.from_bytes(digest.digest())


def fingerprint(source: Source) -> str:
    """Hash of all items, 64 hex digits: the sum of theirs, so that single items can be exchanged."""
    return f"{sum(hash_of(source, index) for index in range(len(source))) % HASHES:064x}"


def check_ids(ids: Sequence[str], name: str) -> None:
    """Raise `ConfigError` if ids occur twice, naming some."""
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice = [each for each in ids if each in seen or seen.add(each)]  # type: ignore[func-returns-value]
    shown = doors.printable(", ".join(sorted(set(twice))[:5]))
    raise ConfigError(
        f"{doors.printable(name)}: {len(twice)} of {len(ids)} items have an id that another one has: {shown}"
    )
