"""Figures inside a page: PNG as they are; WebP, at last smaller, where all together would make the page too long.

Knows nothing about pages.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

MOST_BYTES = 3_300_000  # of all figures of a page; a third more as text, which leaves room under 5 MB
_WAYS = ((95, 1), (85, 1), (70, 1), (50, 1), (50, 2), (50, 4))  # WebP's quality, and what sides are divided by


@dataclass(frozen=True)
class Stored:
    """A figure as a file: its content, its format's name, and its size in pixels."""

    content: bytes
    kind: str
    width: int
    height: int

    @property
    def source(self) -> str:
        """What an img tag takes."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode('ascii')}"


Key = tuple[str, str]  # experiment, figure


def stored(given: Sequence[tuple[str, Mapping[str, Image.Image]]], most: int = MOST_BYTES) -> dict[Key, Stored]:
    """The figures of a page, in the best quality in which all of them together are at most `most` bytes.

    Args:
        given: names of experiments, and their figures by name.
        most: bytes.
    """
    images = {(name, figure): image for name, figures in given for figure, image in figures.items()}
    found = {key: _stored(image) for key, image in images.items()}
    for quality, part in _WAYS:
        if sum(len(each.content) for each in found.values()) <= most:
            break
        found = {key: _stored(image.reduce(part), quality) for key, image in images.items()}
    return found


def inline(image: Image.Image) -> str:
    """The attributes of an img tag that holds a small image."""
    found = _stored(image)
    return f'src="{found.source}" width="{found.width}" height="{found.height}"'


def _stored(image: Image.Image, quality: int | None = None) -> Stored:
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=quality)
    return Stored(buffer.getvalue(), "png" if quality is None else "webp", image.width, image.height)
