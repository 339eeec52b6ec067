"""What a shard is made of, and what is asked of a form of shards (`formats.py` has them all)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class ShardImage:
    """One finished image.

    Attributes:
        key: name in the shard, without extension.
        about: what readers of the shard may want to know of it: item, id, sample, seed.
        payload: its bytes (see module).
    """

    key: str
    about: Mapping[str, Any]
    payload: bytes


class Shards(Protocol):
    """A form of shards."""

    @property
    def suffix(self) -> str:
        """Of a shard's name."""

    def encode(self, levels: np.ndarray) -> bytes:
        """uint8 [H,W,3] -> payload."""

    def write(self, path: Path, images: Sequence[ShardImage], shape: tuple[int, int]) -> list[int]:
        """Write a shard atomically; returns every image's offset. Raises `StorageError`."""

    def read(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """Payloads of the manifest's rows of a shard, in their order. Raises `StorageError`."""
