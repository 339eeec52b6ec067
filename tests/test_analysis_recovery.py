"""The recovery numbers themselves: slopes, what verdicts are on, the level of chance, differences in pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rcdm_fast.analysis.recovery import Changes, difference, recovery
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import slopes
from rcdm_fast.metrics.intervals import Interval


def _changes(p: np.ndarray, q: np.ndarray) -> Changes:
    return Changes(torch.from_numpy(p), torch.from_numpy(q), torch.ones(len(p), dtype=torch.float64))


def test_chance_is_passed_once_in_twenty_times_on_both_sides_together() -> None:
    """For unrelated normal numbers |r| passes 1.96 / sqrt(n) in 5 %; r alone would pass 1.64 / sqrt(n)."""
    rng = np.random.default_rng(0)
    levels, passed, runs = [], 0, 16
    for _ in range(runs):
        changes = _changes(rng.normal(size=(40, 5)), rng.normal(size=(40, 5)))
        found = recovery(changes, resamples=100)
        levels.append(found.chance * math.sqrt(200))
        passed += abs(found.correlation.value) > found.chance
    assert 1.8 < np.mean(levels) < 2.12
    assert passed <= 4  # of 16 with 5 %: five or more in one run of a thousand
    # A strong negative relation is far beyond chance, and chance stays positive and where it is.
    p = rng.normal(size=(40, 5))
    against = recovery(_changes(p, -p + 0.1 * rng.normal(size=(40, 5))), resamples=100)
    assert against.correlation.high < -0.9
    assert 1.7 < against.chance * math.sqrt(200) < 2.3


def test_the_verdict_is_on_the_slope_whatever_r_is() -> None:
    rng = np.random.default_rng(1)
    p = rng.normal(size=(60, 4))
    faint = recovery(_changes(p, 0.05 * p + 0.01 * rng.normal(size=p.shape)), 200)
    assert faint.correlation.low > 0.9 > faint.chance
    assert faint.verdict.kept is None
    nothing = [Interval(0.0, -0.004, 0.004)] * 2
    assert recovery(_changes(p, 0.05 * p), 200, readouts=nothing).verdict.kept is False
    noisy = recovery(_changes(p, p + 2 * rng.normal(size=p.shape)), 200)
    assert noisy.correlation.value < 0.6
    assert noisy.verdict.kept is True
    assert noisy.slope == noisy.verdict.slope


def test_a_difference_is_of_slopes_and_keeps_its_sign() -> None:
    rng = np.random.default_rng(1)
    p = rng.normal(size=(50, 4))
    exact, noisy = _changes(p, 2 * p), _changes(p, p + 1.5 * rng.normal(size=p.shape))
    slope = recovery(noisy, resamples=100).slope
    assert difference(exact, noisy).value == pytest.approx(2 - slope.value)
    assert difference(noisy, exact).value == pytest.approx(slope.value - 2)
    apart = difference(exact, noisy)
    assert apart.high - apart.low == pytest.approx(slope.high - slope.low, rel=1e-6)  # the exact side has no error
    both = _changes(p, noisy.samples.numpy() + 0.3 * p)  # the same noise: the pairs differ by 0.3, surely
    assert difference(both, noisy).low == pytest.approx(0.3)


def test_a_circular_slope_is_of_angles_in_one_turn_and_random_directions_have_none() -> None:
    rng = np.random.default_rng(2)
    p = np.tile([-90.0, -45.0, 45.0, 90.0], (400, 1))
    weight = torch.ones(400, dtype=torch.float64)

    def slope(q: np.ndarray, p: np.ndarray = p) -> Interval:
        return slopes.slope(*Changes(torch.tensor(p), torch.tensor(q), weight, 360.0).sums())

    turned = np.where(p > 0, p + 360, p)  # of some alone: turns of all would cancel where changes are as often negative
    for q, whole in ((turned, p), (p, turned), (p + 360, p)):
        assert slope(q, whole).value == pytest.approx(1)
    assert slope(1.5 * p).value == pytest.approx(1.5)  # more than was asked, as of any property
    assert slope(-0.5 * p).value == pytest.approx(-0.5)
    anywhere = slope(rng.uniform(0, 360, p.shape))
    assert anywhere.low < 0 < anywhere.high
    assert anywhere.high - anywhere.low < 0.3
    assert recovery(Changes(torch.tensor(p), torch.tensor(1.5 * p), weight, 360.0), 100).slope == slope(1.5 * p)


def test_what_does_not_change_has_no_slope() -> None:
    still = _changes(np.zeros((30, 2)), np.random.default_rng(0).normal(size=(30, 2)))
    assert not still.measurable
    with pytest.raises(ConfigError, match="does not change in these images"):
        recovery(still)


@pytest.mark.parametrize("seed", range(3))
def test_the_circular_correlation_is_around_the_mean_of_each(seed: int) -> None:
    """By the formula itself (Jammalamadaka and SenGupta 2001), for angles with different means."""
    rng = np.random.default_rng(seed)
    p = rng.normal(20, 25, (30, 4))
    q = 0.7 * p + rng.normal(95, 15, (30, 4))
    found = Changes(torch.from_numpy(p), torch.from_numpy(q), torch.ones(30), 360.0).correlation(np.ones((1, 30)))
    a, b = np.deg2rad(p).ravel(), np.deg2rad(q).ravel()
    off = [np.sin(each - np.angle(np.exp(1j * each).mean())) for each in (a, b)]
    want = (off[0] * off[1]).sum() / math.sqrt((off[0] ** 2).sum() * (off[1] ** 2).sum())
    assert found[0] == pytest.approx(want, abs=1e-9)
    assert 0.3 < want < 0.95


def test_a_source_without_a_direction_counts_for_nothing() -> None:
    """Weights of 3 are those of a source three times there, of 0 of one that is not, in slope and correlation."""
    rng = np.random.default_rng(4)
    p, q = rng.normal(0, 40, (2, 24, 3))
    times = np.repeat([0, 1, 3], 8)
    of = np.repeat(np.arange(24), times)
    for period in (360.0, None):
        weighed = Changes(torch.tensor(p), torch.tensor(q), torch.tensor(times).double(), period)
        plain = Changes(torch.tensor(p[of]), torch.tensor(q[of]), torch.ones(len(of)), period)
        a, b = ([float(each.sum()) for each in changes.sums()] for changes in (weighed, plain))
        assert a == pytest.approx(b)
        r = [float(each.correlation(np.ones((1, len(each.weight))))[0]) for each in (weighed, plain)]
        assert r[0] == pytest.approx(r[1])


def test_seed_and_resamples_reach_the_bootstrap_and_all_readouts_the_verdict() -> None:
    rng = np.random.default_rng(1)
    p = rng.normal(size=(30, 2))
    changes = _changes(p, p + rng.normal(size=p.shape))
    one, other, more = (recovery(changes, *each) for each in ((200, 1), (200, 2), (300, 1)))
    assert one.correlation != other.correlation
    assert one.chance != other.chance
    assert one.correlation != more.correlation
    assert one.chance == more.chance
    assert one.slope == other.slope
    assert (one.sources, one.pairs) == (30, 60)
    nothing, read = Interval(0.0, -0.004, 0.004), Interval(0.4, 0.3, 0.5)
    still = _changes(p, 0.01 * p)
    assert [recovery(still, 100, readouts=(nothing, each)).verdict.kept for each in (nothing, read)] == [False, None]
