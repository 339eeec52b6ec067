"""How well a change of an image's property is recovered from samples: correlation, slope, intervals, chance.

The unit of everything is the change from the untransformed version of the same source: p[s,m] in the image, q[s,m]
in the samples drawn from its representation with the same noise. Over all (s, m):

* correlation r: does the samples' change go with the image's? For a linear property Pearson's. For a circular one
  that of Jammalamadaka and SenGupta (2001, section 8.2): sum sin(p - mean p) sin(q - mean q) over the root of the
  product of the sums of squares, means being circular.
* slope: how much of it is followed; 1 is entirely, 0 not at all. Linear: cov(p, q) / var(p). Circular: the b in
  [-1,2] with the largest mean cos(q - b p) (Kempter et al. 2012), without an offset.

If the samples do not change at all, both are 0. Intervals are bootstrap intervals over sources, since the magnitudes
of one source are not independent; two models on the same sources are compared in pairs. The level of chance is the
95th percentile of |r| when the samples' changes are dealt out again: to another source, in another order of magnitudes.

Sees numbers only: knows nothing about images, models or augmentations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Floats, Interval, resampled

MIN_SOURCES = 20  # below, the percentiles of a bootstrap over sources mean little
SHUFFLES = 500
FOLLOWED = 0.1  # a slope surely below it counts as "dropped"
SLOPES = np.linspace(-1, 2, 301)


def check_sources(count: int, available: int) -> None:
    """Raise `ConfigError` unless there are enough source images for an interval."""
    if count < MIN_SOURCES:
        raise ConfigError(f"an interval over source images needs at least {MIN_SOURCES} of them, got {count}")
    if count > available:
        raise ConfigError(f"{count} source images were asked for, the data has {available}")


@dataclass(frozen=True)
class Changes:
    """Changes of one property, S sources at M magnitudes.

    Attributes:
        image, samples: float64 [S,M], in the property's unit.
        weight: of each source, float64 [S]; the strength of a circular property in the source image.
        period: degrees after which the property repeats; None for a linear one.
    """

    image: Tensor
    samples: Tensor
    weight: Tensor
    period: float | None = None

    def __post_init__(self) -> None:
        if self.image.shape != self.samples.shape or self.image.shape[:1] != self.weight.shape:
            shapes = [list(each.shape) for each in (self.image, self.samples, self.weight)]
            raise ValueError(f"changes need [S,M], [S,M] and [S], got {shapes}")

    def shuffled(self, rng: np.random.Generator) -> Changes:
        """The same with the samples' changes dealt to other sources and magnitudes."""
        count, magnitudes = self.samples.shape
        source = torch.from_numpy(rng.permutation(count))[:, None]
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(magnitudes), (count, 1)), axis=1))
        return Changes(self.image, self.samples[source, order], self.weight, self.period)

    def statistics(self, counts: Floats) -> tuple[Floats, Floats]:
        """Correlation [B] and slope [B] when source s counts counts[b,s] times; counts float64 [B,S]."""
        p, q, weight = self._numbers()
        if self.period is None:
            return _linear(p, q, weight, counts)
        return _circular(p, q, weight, counts), _circular_slope(p, q, weight, counts)

    def correlation(self, counts: Floats) -> Floats:
        """The first of `statistics` alone: a circular slope takes many times as long."""
        p, q, weight = self._numbers()
        return _linear(p, q, weight, counts)[0] if self.period is None else _circular(p, q, weight, counts)

    def _numbers(self) -> tuple[Floats, Floats, Floats]:
        """Changes, of a circular property in radians of its period, and weights [S,1]."""
        scale = 1.0 if self.period is None else 2 * math.pi / self.period
        p, q = (each.double().numpy() * scale for each in (self.image, self.samples))
        return p, q, self.weight.double().numpy()[:, None]


def _linear(p: Floats, q: Floats, w: Floats, counts: Floats) -> tuple[Floats, Floats]:
    p, q = p - p.mean(), q - q.mean()  # near the mean of every resample, so that nothing cancels
    total, sum_p, sum_q, pp, qq, pq = (
        counts @ (w * each).sum(axis=1) for each in (np.ones_like(p), p, q, p * p, q * q, p * q)
    )
    total = np.maximum(total, 1e-300)
    cov, var_p, var_q = pq - sum_p * sum_q / total, pp - sum_p**2 / total, qq - sum_q**2 / total
    return _ratio(cov, np.sqrt(np.maximum(var_p, 0) * np.maximum(var_q, 0))), _ratio(cov, var_p)


def _circular(p: Floats, q: Floats, w: Floats, counts: Floats) -> Floats:
    angles = (p, q, p - q, p + q, 2 * p, 2 * q)
    of_p, of_q, less, more, twice_p, twice_q = (counts @ (w * np.exp(1j * each)).sum(axis=1) for each in angles)
    total = counts @ (w * np.ones_like(p)).sum(axis=1)
    mean_p, mean_q = np.angle(of_p), np.angle(of_q)
    both = ((less * np.exp(-1j * (mean_p - mean_q))).real - (more * np.exp(-1j * (mean_p + mean_q))).real) / 2
    alone_p = (total - (twice_p * np.exp(-2j * mean_p)).real) / 2
    alone_q = (total - (twice_q * np.exp(-2j * mean_q)).real) / 2
    return _ratio(both, np.sqrt(np.maximum(alone_p, 0) * np.maximum(alone_q, 0)))


def _circular_slope(p: Floats, q: Floats, w: Floats, counts: Floats) -> Floats:
    fit = (w[..., None] * np.cos(q[..., None] - SLOPES * p[..., None])).sum(axis=1)  # [S,slopes]
    slope: Floats = SLOPES[(counts @ fit).argmax(axis=1)]
    return slope


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, 0 where there is nothing to divide by (no variance)."""
    some = bottom > 1e-12
    return np.where(some, top / np.where(some, bottom, 1), 0.0)


@dataclass(frozen=True)
class Recovery:
    """What `recovery` measured.

    Attributes:
        correlation, slope: see the module.
        chance: the level that |r| passes once in twenty times by chance.
        sources, pairs: how many source images, and (source, magnitude) pairs.
    """

    correlation: Interval
    slope: Interval
    chance: float
    sources: int
    pairs: int

    @property
    def kept(self) -> bool | None:
        """True: the interval of r lies above chance. False: it does not, and the slope is surely under 0.1."""
        if self.correlation.low > self.chance:
            return True
        return False if self.slope.high < FOLLOWED else None


def recovery(changes: Changes, resamples: int = 2000, seed: int = 0) -> Recovery:
    """Correlation and slope with 95 % intervals, and chance. Raises `ConfigError` if there are too few sources."""
    count = len(changes.weight)
    check_sources(count, count)
    correlation, slope = changes.statistics(np.ones((1, count)))
    drawn_r, drawn_slope = changes.statistics(resampled(count, resamples, seed))
    rng = np.random.default_rng([seed, 1])
    shuffles = (changes.shuffled(rng).correlation(np.ones((1, count)))[0] for _ in range(SHUFFLES))
    chance = float(np.quantile(np.abs(np.fromiter(shuffles, np.float64, SHUFFLES)), 0.95))
    return Recovery(
        intervals.of(correlation[0], drawn_r),
        intervals.of(slope[0], drawn_slope),
        chance,
        count,
        changes.image.numel(),
    )


def difference(a: Changes, b: Changes, resamples: int = 2000, seed: int = 0, fraction: float = 1.0) -> Interval:
    """share r(a) - r(b) with its interval, the same sources drawn for both. Raises `ConfigError` for other sources."""
    count = len(a.weight)
    check_sources(count, count)
    if a.image.shape != b.image.shape or not torch.allclose(a.image, b.image):
        raise ConfigError("a difference of correlations needs the same images on both sides")
    alone, drawn = np.ones((1, count)), resampled(count, resamples, seed)
    value = fraction * a.statistics(alone)[0] - b.statistics(alone)[0]
    return intervals.of(value[0], fraction * a.statistics(drawn)[0] - b.statistics(drawn)[0])
