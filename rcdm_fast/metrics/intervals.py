"""95 % intervals: of means by bootstrap over items, of fractions by Wilson's score, of ranks on a logarithmic scale.

Under `LEAST` items there is none: a value is known, its interval is not, and no claim can rest on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rcdm_fast.config import ConfigError

Floats = npt.NDArray[np.float64]

LEAST = 20  # items: of fewer, percentiles of a bootstrap cover far less than they say
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, from -inf to inf where there are too few items for one."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def text(self, form: str = ".3g", scale: float = 1.0, unit: str = "") -> str:
        """For readers: "0.52 [0.41, 0.6]", or the value and why it has no interval. `form` as in `format`."""
        value = f"{scale * self.value:{form}}{unit}"
        if not self.known:
            return f"{value} [none: n < {LEAST}]"
        return f"{value} [{scale * self.low:{form}}, {scale * self.high:{form}}]"


def alone(value: float) -> Interval:
    """A value that has no interval."""
    return Interval(float(value), -math.inf, math.inf)


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
    """Mean of `values` [N] with its interval; none under `LEAST` values."""
    if len(values) < LEAST:
        return alone(values.mean())
    return of(float(values.mean()), values[draws(len(values), resamples, rng)].mean(axis=1))


def difference(a: np.ndarray, b: np.ndarray, resamples: int, rng: np.random.Generator) -> Interval:
    """mean(a) - mean(b) of two groups, not paired, [N] and [M], with its interval; none under `LEAST` of either."""
    if min(len(a), len(b)) < LEAST:
        return alone(a.mean() - b.mean())
    of_a, of_b = (each[draws(len(each), resamples, rng)].mean(axis=1) for each in (a, b))
    return of(a.mean() - b.mean(), of_a - of_b)


def ratio(top: np.ndarray, bottom: np.ndarray, resamples: int, rng: np.random.Generator) -> Interval:
    """mean(top) / mean(bottom) of pairs, [N] and [N], with its interval.

    A resample in which all of bottom is zero gives a large one; under `LEAST` pairs there is no interval.
    """
    if len(top) < LEAST:
        return alone(top.mean() / bottom.mean())
    drawn = draws(len(top), resamples, rng)
    return of(top.mean() / bottom.mean(), top[drawn].mean(axis=1) / np.maximum(bottom[drawn].mean(axis=1), 1e-12))


def fraction(values: np.ndarray) -> Interval:
    """Mean of fractions in [0,1], [N], with its score interval (Wilson 1927); none under `LEAST` values.

    What is right or wrong counts as one trial each. Values between (the fraction of a source's samples, say) vary less
    than such trials would, and count as so many trials as would vary as little, at least N.

    Raises:
        ConfigError: a value outside [0,1].
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise ConfigError(f"a fraction lies in 0..1, got {values.min():g} to {values.max():g}")
    mean = float(values.mean())
    if len(values) < LEAST:
        return alone(mean)
    count, spread = float(len(values)), float(values.var(ddof=1))
    if 0 < mean < 1:
        trials = mean * (1 - mean) / max(spread, 1e-12)
        count *= max(1.0, trials)
    return score(mean, count)


def score(mean: float, count: float) -> Interval:
    """A fraction of so many trials with its score interval (Wilson 1927), however few they are; 0..1 without any."""
    if not count:
        return Interval(0.0, 0.0, 1.0)
    middle = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    return Interval(mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half)))


def fraction_difference(a: np.ndarray, b: np.ndarray) -> Interval:
    """mean(a) - mean(b) of fractions in [0,1] in pairs, [N] and [N], with its interval; none under `LEAST` pairs.

    The distances to the ends of both score intervals, added as squares and less what the pairs have in common (Newcombe
    1998, method 10 without continuity correction). Unlike a bootstrap it has some width where all pairs are equal.

    Raises:
        ConfigError: a value outside [0,1].
    """
    a, b = (np.asarray(each, dtype=np.float64) for each in (a, b))
    first, second = fraction(a), fraction(b)
    value = first.value - second.value
    if not (first.known and second.known):
        return alone(value)
    varied = np.ptp(a) > 0 and np.ptp(b) > 0
    together = float(np.corrcoef(a, b)[0, 1]) if varied else 0.0

    def length(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x + y * y - 2 * together * x * y))

    low = length(first.value - first.low, second.high - second.value)
    high = length(first.high - first.value, second.value - second.low)
    return Interval(value, max(-1.0, value - low), min(1.0, value + high))


def mean_rank(values: np.ndarray, most: float, resamples: int, rng: np.random.Generator) -> Interval:
    """Mean of ranks [N], from 1 to `most`, with its interval; none under `LEAST` ranks.

    Few sources with large ranks make most of a mean rank. So the bootstrap is one of the logarithm of the mean, and of
    its distance in standard errors (bootstrap-t; Efron and Tibshirani 1993, section 12.5). Where all ranks are
    equal the interval is that value.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < LEAST:
        return alone(mean)
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) / mean
    if error == 0:
        return Interval(mean, mean, mean)
    drawn = values[draws(len(values), resamples, rng)]
    means = drawn.mean(axis=1)
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(len(values)) / means
    distances = (np.log(means) - math.log(mean)) / np.maximum(errors, 1e-3 * error)
    low, high = np.quantile(distances, [0.025, 0.975])
    up = min(-low * error, math.log(most / mean))
    return Interval(mean, max(1.0, mean * math.exp(-high * error)), mean * math.exp(up))


def ratio_difference(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], resamples: int, rng: np.random.Generator
) -> Interval:
    """mean(top) / mean(bottom) of `a` less that of `b`, all [N] of the same items, with its interval.

    A resample in which all of a bottom is zero gives a large one; under `LEAST` items there is no interval.
    """
    value = a[0].mean() / a[1].mean() - b[0].mean() / b[1].mean()
    if len(a[0]) < LEAST:
        return alone(value)
    drawn = draws(len(a[0]), resamples, rng)
    of_a, of_b = (top[drawn].mean(axis=1) / np.maximum(bottom[drawn].mean(axis=1), 1e-12) for top, bottom in (a, b))
    return of(value, of_a - of_b)
