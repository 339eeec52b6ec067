"""Intervals of means over pictures, as experiments report them.

Knows nothing about what is averaged.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rcdm_fast.training.evaluate import Interval, bootstrap


class Resampling(Protocol):
    """Settings of a bootstrap."""

    @property
    def resamples(self) -> int:
        """How often pictures are drawn again."""

    @property
    def seed(self) -> int:
        """Of the drawing."""


def interval(values: NDArray[np.float64] | NDArray[np.bool_], config: Resampling) -> Interval:
    """Mean with a 95 % bootstrap interval; values [N], one for each picture. Same settings, same resamples."""
    return bootstrap(values.astype(np.float64), config.resamples, np.random.default_rng(config.seed))


def positive(found: Interval) -> bool | None:
    """Whether a number is surely above zero, surely below it, or neither."""
    if found.low > 0:
        return True
    return False if found.high < 0 else None


def percent(found: Interval) -> str:
    """A share for readers: "35 % [26, 45]"."""
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"
