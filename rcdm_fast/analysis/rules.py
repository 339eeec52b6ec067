"""The rules by which a slope becomes a verdict: kept, dropped, or inconclusive.

A slope says how far samples follow a change: 1 entirely, 0 not at all. Its verdict asks for the whole 95 % interval:

* kept: all of it above `Rules.kept_above`;
* dropped: all of it within +-`Rules.dropped_within`, and no readout finds the change in the representation either (the
  cross-validated R^2 of each, a linear and a non-linear one, is surely below `Rules.readable`). Samples that do not
  move show a decoder that does not; without readouts nothing is called dropped;
* else inconclusive, with the smallest slope that the same run would have called kept with `Rules.detected_power`.

Who makes many claims expects some of them to be wrong by chance: `holm` corrects for that. Intervals are shown as they
are, unadjusted.

Sees numbers only. A change of a rule or a number is a new `VERSION`, which results name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from rcdm_fast.checks import Checked, ConfigError, Fraction, Positive
from rcdm_fast.metrics.intervals import Interval

VERSION = "2026-11-27"
LEVEL = 0.05  # of errors, over all claims of a report
UNADJUSTED = "Intervals: 95 %, each by itself (unadjusted)."
_NORMAL = NormalDist()
_SURE = _NORMAL.inv_cdf(0.975)  # standard errors from a value to the end of its interval


@dataclass(frozen=True)
class Rules(Checked):
    """The thresholds.

    Attributes:
        kept_above: a slope surely above it is kept.
        dropped_within: a slope surely between minus and plus this is dropped, if readouts agree.
        readable: an R^2 surely below it says that a readout finds nothing.
        detected_power: how often a run has to call a slope kept for that slope to count as detectable.
    """

    kept_above: Fraction = 0.25
    dropped_within: Positive = 0.1
    readable: Positive = 0.01
    detected_power: Fraction = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropped_within >= self.kept_above:
            raise ConfigError(
                f"a slope cannot be dropped within {self.dropped_within:g} and kept above {self.kept_above:g}"
            )
        if not 0.5 <= self.detected_power < 1:
            raise ConfigError(f"detected_power must be at least 0.5 and less than 1, got {self.detected_power:g}")


RULES = Rules()


@dataclass(frozen=True)
class Verdict:
    """What a slope says.

    Attributes:
        kept: True is kept, False dropped, None inconclusive.
        slope: with its interval.
        detectable: the smallest true slope that a run with this standard error calls kept in 80 % of cases.
        p: below 0.05 exactly where there is a verdict: twice the larger one-sided p-value of all that the nearer
            verdict asks for. Of a wrong verdict's chance it is the bound, whichever the truth is.
        reason: in a few words.
    """

    kept: bool | None
    slope: Interval
    detectable: float
    p: float
    reason: str

    @property
    def word(self) -> str:
        """Kept, dropped or inconclusive."""
        return word(self.kept)


def word(kept: bool | None) -> str:
    """What a verdict is called."""
    return {True: "kept", False: "dropped", None: "inconclusive"}[kept]


def verdict(slope: Interval, readouts: Sequence[Interval] = (), rules: Rules = RULES) -> Verdict:
    """The verdict on a slope (see the module).

    Args:
        slope: with its 95 % interval.
        readouts: cross-validated R^2 of readouts of the same change from the representation, with 95 % intervals.
        rules: the thresholds.

    Raises:
        ConfigError: an interval that is none.
    """
    for each in (slope, *readouts):
        _check(each)
    keeps = p_above(slope, rules.kept_above)
    within = max(p_above(slope, -rules.dropped_within), p_below(slope, rules.dropped_within))
    unread = max((p_below(each, rules.readable) for each in readouts), default=1.0)
    drops = max(within, unread)
    kept = True if keeps < LEVEL else False if drops < LEVEL else None
    power = _NORMAL.inv_cdf(rules.detected_power)
    detectable = rules.kept_above + (1 + power / _SURE) * (slope.high - slope.low) / 2
    return Verdict(kept, slope, detectable, min(keeps, drops), _reason(kept, slope, within, readouts, rules))


def _reason(kept: bool | None, slope: Interval, within: float, readouts: Sequence[Interval], rules: Rules) -> str:
    if kept:
        return f"the slope is surely above {rules.kept_above:g}"
    small = f"the slope is surely within +-{rules.dropped_within:g}"
    if kept is False:
        return f"{small}, and no readout finds it"
    if within < LEVEL:
        if not readouts:
            return f"{small}, but without readouts that may be the decoder's fault"
        if any(p_above(each, rules.readable) < LEVEL for each in readouts):
            return f"{small}, but a readout finds it in the representation"
        return f"{small}, but a readout may find it in the representation"
    if p_below(slope, 0.0) < LEVEL:
        return "the slope is surely negative: samples go the other way"
    if p_above(slope, rules.dropped_within) < LEVEL and p_below(slope, rules.kept_above) < LEVEL:
        return (
            f"the slope is surely between {rules.dropped_within:g} and {rules.kept_above:g}: a little of it is followed"
        )
    return "the interval is too wide to tell"


@dataclass(frozen=True)
class Between:
    """Whether the first of two representations keeps what the second drops.

    Attributes:
        holds: True, False, or None if it is inconclusive.
        difference: slope of the first minus that of the second, in pairs.
        first, second: each one's own verdict.
        p: below 0.05 where it holds or does not; 1 where it is inconclusive.
        reason: in a few words.
    """

    holds: bool | None
    difference: Interval
    first: Verdict
    second: Verdict
    p: float
    reason: str


def between(difference: Interval, a: Verdict, b: Verdict) -> Between:
    """Whether a keeps what b drops: only if a is kept, b is dropped and the paired difference lies above 0.

    It does not where a is dropped or b is kept. A decoder that is worse makes the slope of b smaller, but does not make
    it dropped.

    Raises:
        ConfigError: a difference that is no interval.
    """
    _check(difference)
    more = p_above(difference, 0.0)
    if a.kept and b.kept is False:
        holds, p = (True, max(a.p, b.p, more)) if more < LEVEL else (None, 1.0)
    elif b.kept:
        holds, p = False, b.p
    elif a.kept is False:
        holds, p = False, a.p
    else:
        holds, p = None, 1.0
    return Between(holds, difference, a, b, p, f"the first: {a.word}; the second: {b.word}")


def p_above(found: Interval, level: float) -> float:
    """Twice the one-sided p-value of "not above the level"; below 0.05 exactly where the interval lies above it."""
    return _p(found.value - level, found.value - found.low, found.low > level)


def p_below(found: Interval, level: float) -> float:
    """Twice the one-sided p-value of "not below the level"; below 0.05 exactly where the interval lies below it."""
    return _p(level - found.value, found.high - found.value, found.high < level)


def p_apart(found: Interval, level: float = 0.0) -> float:
    """Two-sided p-value of "at the level"; below 0.05 exactly where the interval lies on one side of it."""
    return min(p_above(found, level), p_below(found, level))


def _p(far: float, half: float, beyond: bool) -> float:
    """From how far the value is beyond a level, and the part of its interval on that side: the error is half / 1.96."""
    if half <= 0:  # no error, or a value that resamples hardly ever reach
        return 0.0 if beyond else 1.0
    p = min(1.0, 2 * _NORMAL.cdf(-_SURE * far / half))
    return min(p, math.nextafter(LEVEL, 0)) if beyond else max(p, LEVEL)  # whatever rounding says


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: who calls those below 0.05 sure is wrong anywhere in 5 % (Holm 1979).

    Raises:
        ConfigError: a number outside 0..1.
    """
    if not all(0 <= each <= 1 for each in p):
        raise ConfigError(f"p-values lie in 0..1, got {list(p)}")
    adjusted = [1.0] * len(p)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def _check(found: Interval) -> None:
    """Raise `ConfigError` if the interval is none."""
    if not (math.isfinite(found.value) and math.isfinite(found.low) and math.isfinite(found.high)):
        raise ConfigError(f"an interval needs finite numbers, got {found}")
    if found.low > found.high:
        raise ConfigError(f"an interval begins before it ends, got {found}")
