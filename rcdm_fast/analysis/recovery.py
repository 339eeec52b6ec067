"""How well a change of an image's property is recovered from samples: slope and verdict, correlation, intervals.

The unit of everything is the change from the untransformed version of the same source: p[s,m] in the image, q[s,m]
in the samples drawn from its representation with the same noise, a mean over noise that is drawn again for every
sample. Over all (s, m):

* slope: how much of it is followed; 1 is entirely, 0 not at all. Linear: cov(p, q) / var(p). Circular: sum p q / sum
  p^2 of angles in (-period/2, period/2], without an offset, so that samples of any direction have none. Noise in q
  makes its interval wider and not the slope smaller. The verdict is on the slope alone (`rules.py`).
* correlation r, which describes and decides nothing, since noise makes it smaller: does the samples' change go with
  the image's? For a linear property Pearson's. For a circular one that of Jammalamadaka and SenGupta (2001, section
  8.2): sum sin(p - mean p) sin(q - mean q) over the root of the product of the sums of squares, means being circular.

If the samples do not change at all, both are 0. Intervals are over sources, since the magnitudes of one source are not
independent: those of slopes from `metrics/slopes.py`, those of r from a bootstrap. Two models on the same sources are
compared in pairs. The level of chance is the 95th percentile of |r| when the samples' changes are dealt out again: to
another source, in another order of magnitudes.

Sees numbers only: knows nothing about images, models or augmentations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.analysis import rules
from rcdm_fast.analysis.rules import Verdict
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals, slopes
from rcdm_fast.metrics.intervals import LEAST, Floats, Interval, resampled

SHUFFLES = 500
Total = Callable[[Any], Any]  # sums over sources and magnitudes of [S,M] or [B,S,M]
STILL = 1e-12  # what a sum of squared changes is at most where nothing changes


def check_sources(count: int, available: int) -> None:
    """Raise `ConfigError` unless there are enough source images for an interval."""
    if count < LEAST:
        raise ConfigError(f"an interval over source images needs at least {LEAST} of them, got {count}")
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

    def correlation(self, counts: Floats) -> Floats:
        """Correlation [B] when source s counts counts[b,s] times; counts float64 [B,S]."""
        p, q, weight = self._numbers()
        return self._correlated(p, q, weight, lambda each: counts @ each.sum(axis=1))

    def shuffled(self, times: int, rng: np.random.Generator) -> Floats:
        """Correlations [times] with the samples' changes dealt to other sources and magnitudes, each time anew."""
        p, q, weight = self._numbers()
        count, magnitudes = q.shape
        source = rng.permuted(np.tile(np.arange(count), (times, 1)), axis=1)[..., None]
        order = rng.permuted(np.tile(np.arange(magnitudes), (times, count, 1)), axis=2)
        found = self._correlated(p, q[source, order], weight, lambda each: each.sum(axis=(-2, -1)))
        return np.broadcast_to(found, times)

    def _correlated(self, p: Floats, q: Floats, weight: Floats, total: Total) -> Floats:
        return (_linear if self.period is None else _circular)(p, q, weight, total)

    @property
    def measurable(self) -> bool:
        """Whether the property changes at all in the images."""
        return bool(self.sums()[1].sum() > STILL)

    def sums(self) -> tuple[Floats, Floats]:
        """What the slope is the ratio of, by source: p q and p^2, float64 [S] each; linear ones less their means."""
        p, q, weight = self._numbers()
        if self.period is None:
            total = max(float((weight * np.ones_like(p)).sum()), 1e-300)
            p, q = (each - (weight * each).sum() / total for each in (p, q))
        else:
            p, q = (np.angle(np.exp(1j * each)) for each in (p, q))
        return (weight * p * q).sum(axis=1), (weight * p * p).sum(axis=1)

    def _numbers(self) -> tuple[Floats, Floats, Floats]:
        """Changes, of a circular property in radians of its period, and weights [S,1]."""
        scale = 1.0 if self.period is None else 2 * math.pi / self.period
        p, q = (each.double().numpy() * scale for each in (self.image, self.samples))
        return p, q, self.weight.double().numpy()[:, None]


def _linear(p: Floats, q: Floats, w: Floats, sums: Total) -> Floats:
    p, q = p - p.mean(), q - q.mean()  # near the mean of every resample, so that nothing cancels
    total, sum_p, sum_q, pp, qq, pq = (sums(w * each) for each in (np.ones_like(p), p, q, p * p, q * q, p * q))
    total = np.maximum(total, 1e-300)
    cov, var_p, var_q = pq - sum_p * sum_q / total, pp - sum_p**2 / total, qq - sum_q**2 / total
    return _ratio(cov, np.sqrt(np.maximum(var_p, 0) * np.maximum(var_q, 0)))


def _circular(p: Floats, q: Floats, w: Floats, sums: Total) -> Floats:
    angles = (p, q, p - q, p + q, 2 * p, 2 * q)
    of_p, of_q, less, more, twice_p, twice_q = (sums(w * np.exp(1j * each)) for each in angles)
    total = sums(w * np.ones_like(p))
    mean_p, mean_q = np.angle(of_p), np.angle(of_q)
    both = ((less * np.exp(-1j * (mean_p - mean_q))).real - (more * np.exp(-1j * (mean_p + mean_q))).real) / 2
    alone_p = (total - (twice_p * np.exp(-2j * mean_p)).real) / 2
    alone_q = (total - (twice_q * np.exp(-2j * mean_q)).real) / 2
    return _ratio(both, np.sqrt(np.maximum(alone_p, 0) * np.maximum(alone_q, 0)))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, 0 where there is nothing to divide by (no variance)."""
    some = bottom > 1e-12
    return np.where(some, top / np.where(some, bottom, 1), 0.0)


@dataclass(frozen=True)
class Recovery:
    """What `recovery` measured.

    Attributes:
        correlation: see the module.
        chance: the level that |r| passes once in twenty times by chance.
        verdict: on the slope, with it.
        sources, pairs: how many source images, and (source, magnitude) pairs.
    """

    correlation: Interval
    chance: float
    verdict: Verdict
    sources: int
    pairs: int

    @property
    def slope(self) -> Interval:
        """See the module."""
        return self.verdict.slope


def recovery(changes: Changes, resamples: int = 2000, seed: int = 0, readouts: Sequence[Interval] = ()) -> Recovery:
    """Slope with its verdict, correlation with its interval, and chance.

    Args:
        changes: of the property.
        resamples, seed: of the bootstrap of r.
        readouts: R^2 of the same change read off the representation; without, nothing is called dropped.

    Raises:
        ConfigError: too few sources, or the property does not change in the images.
    """
    count = len(changes.weight)
    check_sources(count, count)
    if not changes.measurable:
        raise ConfigError("the property does not change in these images, so nothing can be followed")
    alone = np.ones((1, count))
    correlation = intervals.of(changes.correlation(alone)[0], changes.correlation(resampled(count, resamples, seed)))
    chance = float(np.quantile(np.abs(changes.shuffled(SHUFFLES, np.random.default_rng([seed, 1]))), 0.95))
    verdict = rules.verdict(slopes.slope(*changes.sums()), readouts)
    return Recovery(correlation, chance, verdict, count, changes.image.numel())


def difference(a: Changes, b: Changes) -> Interval:
    """Slope of a minus that of b with its interval, in pairs. Raises `ConfigError` for other images or too few."""
    check_sources(len(a.weight), len(a.weight))
    if a.image.shape != b.image.shape or not torch.allclose(a.image, b.image):
        raise ConfigError("a difference of slopes needs the same images on both sides")
    (of_a, bottom), (of_b, _) = a.sums(), b.sums()
    return slopes.slope(of_a - of_b, bottom)
