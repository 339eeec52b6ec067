"""Which images belong together: items x samples cut into units, the same way on every machine.

A unit is what is drawn, written and committed at once, and what a worker is given: one shard. Units hold whole items
where several fit, else a part of one item's samples, the parts alike. Nothing here depends on batch sizes or on how
many workers there are, so a unit has the same images wherever it is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Samples `first_sample`..`last_sample` - 1 of items `first_item`..`last_item` - 1."""

    number: int
    first_item: int
    last_item: int
    first_sample: int
    last_sample: int

    @property
    def items(self) -> range:
        return range(self.first_item, self.last_item)

    @property
    def images(self) -> int:
        return (self.last_item - self.first_item) * (self.last_sample - self.first_sample)

    def pairs(self, without: frozenset[int] = frozenset()) -> Iterator[tuple[int, int]]:
        """(item, sample) of every image, in order, without those of some items."""
        for item in self.items:
            if item not in without:
                for sample in range(self.first_sample, self.last_sample):
                    yield item, sample


@dataclass(frozen=True)
class Layout:
    """All units of a job.

    Attributes:
        items: how many there are.
        per: samples of each.
        limit: most images in a unit.
    """

    items: int
    per: int
    limit: int

    @property
    def images(self) -> int:
        return self.items * self.per

    @property
    def units(self) -> int:
        """How many units there are."""
        if self.per > self.limit:
            return self.items * self._parts
        return -(-self.items // self._together)

    @property
    def _together(self) -> int:
        return self.limit // self.per

    @property
    def _parts(self) -> int:
        return -(-self.per // self.limit)

    def unit(self, number: int) -> Unit:
        """The unit of that number, 0..units - 1."""
        if not 0 <= number < self.units:
            raise IndexError(f"unit {number} of {self.units}")
        if self.per <= self.limit:
            first = number * self._together
            return Unit(number, first, min(first + self._together, self.items), 0, self.per)
        item, part = divmod(number, self._parts)
        size = -(-self.per // self._parts)
        return Unit(number, item, item + 1, part * size, min((part + 1) * size, self.per))
