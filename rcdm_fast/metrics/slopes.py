"""A slope with its interval: the ratio of two sums over sources, such as sum(x y) / sum(x x) of changes x and y.

Measurements of one source go together, so a source counts as one, and few sources (20 to 200) weigh very differently.
Percentiles of a bootstrap are too narrow then (`tests/test_slopes.py` says by how much). The interval is that of
regressions with few clusters: errors of sources grown by their leverage as in the jackknife (MacKinnon and White 1985,
HC3), and Student's t with as many degrees of freedom as the variance estimate has when errors grow with the square root
of a source's part of the denominator (Bell and McCaffrey 2002).

Sees numbers only. Regressing with an intercept is a ratio too: of x and y less their means, whose own errors do not
count to first order.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from rcdm_fast.config import ConfigError
from rcdm_fast.metrics.intervals import Floats, Interval

SURE = 0.95  # of intervals


def slope(top: Floats, bottom: Floats) -> Interval:
    """sum(top) / sum(bottom) with its 95 % interval; a source each, [S] and [S], bottom not negative.

    Raises:
        ConfigError: fewer than two sources, numbers that are not finite, or a bottom that sums to nothing.
    """
    if top.ndim != 1 or top.shape != bottom.shape or len(top) < 2:
        raise ConfigError(
            f"a slope needs two rows of at least two sources, got {list(top.shape)}, {list(bottom.shape)}"
        )
    if not (np.isfinite(top).all() and np.isfinite(bottom).all() and (bottom >= 0).all()):
        raise ConfigError("a slope needs finite numbers, and no negative ones below")
    if not bottom.sum() > 0:
        raise ConfigError("nothing changes, so there is no slope")
    value, low, high = bounds(top, bottom)
    return Interval(float(value), float(low), float(high))


def bounds(top: Floats, bottom: Floats) -> tuple[Floats, Floats, Floats]:
    """Many slopes at once: values [...], lower and upper bounds [...] of `slope` for [...,S] and [...,S]."""
    total = bottom.sum(axis=-1, keepdims=True)
    share = bottom / total
    value = top.sum(axis=-1, keepdims=True) / total
    grown = 1 / np.maximum(1 - share, 1e-9) ** 2
    squares = grown * (top - value * bottom) ** 2
    error = np.sqrt(squares.sum(axis=-1)) / total[..., 0]
    half = quantile(freedom(share, grown)) * error
    return value[..., 0], value[..., 0] - half, value[..., 0] + half


def freedom(share: Floats, grown: Floats) -> Floats:
    """Degrees of freedom of the variance estimate sum(grown * residuals^2) for shares [...,S] of the denominator."""
    own = grown * share
    mean = (own * (1 - share)).sum(axis=-1)
    spread = (own**2 * (1 - 2 * share)).sum(axis=-1) + (own * share).sum(axis=-1) ** 2
    found: Floats = np.maximum(mean**2 / np.maximum(spread, 1e-300), 1.0)
    return found


def quantile(degrees: Floats) -> Floats:
    """What Student's t stays below in size in 95 %, for degrees of freedom [...] (Abramowitz and Stegun 26.7.5).

    The expansion is 1 % short at two degrees and 0.1 % at three.
    """
    z = NormalDist().inv_cdf((1 + SURE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    found = np.full_like(degrees, z, dtype=np.float64)
    for power, term in enumerate(terms, 1):
        found = found + term / degrees**power
    return found
