"""The images of a set as they lie in their source, for encoders that see more of them than the set's pixels hold.

A decoder of 32 pixels is conditioned on what an encoder of 224 makes of a photograph, not of 32 pixels enlarged. So an
image is read from its source again when an encoder is to see it; nothing of it is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.data.readers.image_files import Item, Source
from rcdm_fast.doors import escaped, printable
from rcdm_fast.images import ImageError, to_uint8

_AT_ONCE = 8  # images that are decoded before they are seen, each by a thread: large ones are large in memory
_SAME = 4.0  # 8-bit levels, in the mean: libraries decode and resize an image not quite alike


class Viewer(Protocol):
    """An encoder, as far as it is needed here."""

    def view(self, images: Tensor) -> Tensor:
        """Float [N,3,H,W] in [-1,1] -> what it sees of them, [N,3,s,s]."""


class Originals:
    """See the module.

    Args:
        source: where the images come from; gives the same items in the same order every time.
        places: int64 [N]; the number among the source's items of each image.
        other: bool [N]; whether an image in the source has another size than in the set. Only those are read again.
        names: what each image was called when it was read, so that one whose source has changed is an error.
    """

    def __init__(
        self, source: Source, places: Tensor, other: Tensor, names: Sequence[str], cursor: _Cursor | None = None
    ) -> None:
        self.places, self.other = places, other
        self._source, self._names = source, names
        self._cursor = cursor or _Cursor(source)

    def __reduce__(self) -> tuple[type[Originals], tuple[Source, Tensor, Tensor, Sequence[str]]]:
        return Originals, (self._source, self.places, self.other, self._names)

    def subset(self, index: Tensor) -> Originals:
        """Those of the images at `index`, int64 [M]; parts of a set go through its source together."""
        names = [self._names[place] for place in index.tolist()]
        return Originals(self._source, self.places[index], self.other[index], names, self._cursor)

    def seen(self, index: Tensor, pixels: Tensor, viewer: Viewer) -> Tensor:
        """What an encoder sees of the images at some places.

        Args:
            index: int64 [M], on the CPU.
            pixels: the same images as the set holds them, float [M,3,S,S] in [-1,1]; those that have this size in the
                source, too, are seen from here.
            viewer: the encoder.

        Returns:
            float32 [M,3,s,s] in [-1,1].

        Raises:
            ImageError: an image is not in its source any more, or cannot be read.
        """
        other = self.other[index]
        found: dict[int, Tensor] = {}
        rows = other.nonzero().flatten()
        ordered = rows[self.places[index[rows]].argsort()]  # as they lie in the source, which is gone through once
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for part in ordered.split(_AT_ONCE):
                items = self._fetched(index[part])
                sides = [pixels.shape[-1]] * len(items)
                for row, (image, small) in zip(part.tolist(), pool.map(Item.whole, items, sides), strict=True):
                    if small is not None and _other(small, pixels[row]):
                        name = printable(self._names[int(index[row])])
                        raise ImageError(
                            f"{name}: another image than the one that was read before; read the data again"
                        )
                    found[row] = viewer.view(image.to(pixels.device))
        own = (~other).nonzero().flatten()  # seen here, whatever the others are: their order with what follows is fixed
        found |= zip(own.tolist(), viewer.view(pixels[own.to(pixels.device)]).split(1) if len(own) else (), strict=True)
        return torch.cat([found[row] for row in range(len(index))]) if found else pixels

    def _fetched(self, index: Tensor) -> list[Item]:
        """The items of images, in the order of the source; one image may be asked for twice."""
        items: list[Item] = []
        with self._cursor.lock:
            last: tuple[int, Item] | None = None
            for place, image in zip(self.places[index].tolist(), index.tolist(), strict=True):
                if last is None or last[0] != place:
                    last = place, self._cursor.item(place, self._names[image])
                items.append(last[1])
        return items


def _other(levels: np.ndarray, pixels: Tensor) -> bool:
    """Whether an image at the set's size, uint8 [S,S,3], is another one than the set has, float [3,S,S]."""
    had = to_uint8(pixels).permute(1, 2, 0).cpu().numpy()
    return bool(np.abs(levels.astype(np.int16) - had).mean() > _SAME)


class _Cursor:
    """A way through a source: on from where it is, or from the beginning."""

    def __init__(self, source: Source) -> None:
        self.lock = threading.Lock()
        self._source = source
        self._begin()

    def _begin(self) -> None:
        self._next, self._items = 0, self._source.items()

    def item(self, place: int, name: str) -> Item:
        """The item at a place, which must have that name; the lock is held."""
        if place < self._next:
            self._begin()
        try:
            item = next(islice(self._items, place - self._next, None), None)
            self._next = place + 1
            if item is None or escaped(str(item.path)) != name:
                raise ImageError(
                    f"{printable(name)}: not in its source any more, where an encoder would see it; read the data again"
                )
        except BaseException:  # a way that failed goes no further
            self._begin()
            raise
        return item
