"""95 % bootstrap intervals: a value, and the percentiles of what it is in resamples of its items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rcdm_fast.config import ConfigError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def of(value: float, drawn: Floats) -> Interval:
    """A value with the middle 95 % of what it is in resamples [B]."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def draws(count: int, resamples: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places of the items of every resample, drawn with replacement; int64 [resamples,count]."""
    return rng.integers(0, count, size=(resamples, count))


def resampled(count: int, resamples: int, seed: int) -> Floats:
    """How often each item is drawn in every resample, for statistics of weighted items; float64 [resamples,count].

    Raises:
        ConfigError: too few resamples for an interval.
    """
    if resamples < 100:
        raise ConfigError(f"a 95 % interval needs at least 100 resamples, got {resamples}")
    equal = np.full(count, 1 / count)
    return np.random.default_rng(seed).multinomial(count, equal, size=resamples).astype(np.float64)


def bootstrap(values: np.ndarray, resamples: int, rng: np.random.Generator) -> Interval:
    """Mean of `values` [N] with its interval."""
    return of(float(values.mean()), values[draws(len(values), resamples, rng)].mean(axis=1))


def difference(a: np.ndarray, b: np.ndarray, resamples: int, rng: np.random.Generator) -> Interval:
    """mean(a) - mean(b) of two groups that are not paired, [N] and [M], with its interval."""
    of_a, of_b = (each[draws(len(each), resamples, rng)].mean(axis=1) for each in (a, b))
    return of(a.mean() - b.mean(), of_a - of_b)


def ratio(top: np.ndarray, bottom: np.ndarray, resamples: int, rng: np.random.Generator) -> Interval:
    """mean(top) / mean(bottom) of pairs, [N] and [N], with its interval.

    A resample in which all of bottom is zero gives a large one.
    """
    drawn = draws(len(top), resamples, rng)
    return of(top.mean() / bottom.mean(), top[drawn].mean(axis=1) / np.maximum(bottom[drawn].mean(axis=1), 1e-12))
