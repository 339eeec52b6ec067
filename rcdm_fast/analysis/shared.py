"""What several experiments of one report need and what is the same for all of them, made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import Encoder
from rcdm_fast.training import representations

T = TypeVar("T")


class Shared:
    """Keeps what is made for as long as it lives. Numbers are those of an experiment by itself, but for rounding."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Any, Any]] = {}

    def once(self, owner: object, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made when it is first asked for with this key by this very owner, a model or encoder."""
        full = (id(owner), key)
        if full not in self._kept:
            self._kept[full] = owner, make()  # the owner is kept, so that no other one gets its number
        found: T = self._kept[full][1]
        return found


def encoded(shared: Shared | None, encoder: Encoder, data: ImageSet, places: Tensor | None = None) -> Tensor:
    """Representations of the images at `places` (int64 [M]), or of all; float32 [M,D] on the CPU.

    Where something is shared all of the data is encoded, once; else what is asked for.
    """
    if shared is None:
        return representations.compute(encoder, data if places is None else data.subset(places))
    key = ("representations", data.identity)
    whole = shared.once(encoder, key, lambda: representations.compute(encoder, data))
    return whole if places is None else whole[places]
