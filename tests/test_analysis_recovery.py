"""The recovery number itself: its level of chance, its verdicts at their edges, weighted differences."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from rcdm_fast.analysis.recovery import FOLLOWED, Changes, Recovery, difference, recovery
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


def _recovery(r: tuple[float, float], slope: tuple[float, float], chance: float = 0.2) -> Recovery:
    def interval(low: float, high: float) -> Interval:
        return Interval((low + high) / 2, low, high)

    return Recovery(interval(*r), interval(*slope), chance, 40, 200)


@pytest.mark.parametrize(
    ("r", "slope", "kept"),
    [
        ((0.21, 0.6), (0.3, 0.7), True),
        ((0.19, 0.9), (0.3, 0.7), None),  # the value is above chance, its interval is not
        ((-0.1, 0.15), (-0.05, FOLLOWED - 0.01), False),
        ((-0.1, 0.15), (-0.15, FOLLOWED + 0.01), None),  # the value is below the level, its interval is not
        ((0.21, 0.3), (0.0, 0.05), True),
    ],
)
def test_verdicts_ask_the_ends_of_the_intervals(
    r: tuple[float, float], slope: tuple[float, float], kept: bool | None
) -> None:
    assert _recovery(r, slope).kept is kept


def test_a_difference_weighs_the_first_side_and_keeps_its_sign() -> None:
    rng = np.random.default_rng(1)
    p = rng.normal(size=(50, 4))
    exact, noisy = _changes(p, 2 * p), _changes(p, p + 1.5 * rng.normal(size=p.shape))
    r = recovery(noisy, resamples=100).correlation.value
    assert 0.3 < r < 0.75
    assert difference(exact, noisy, 200).value == pytest.approx(1 - r)
    assert difference(noisy, exact, 200).value == pytest.approx(r - 1)
    halved = difference(exact, noisy, 200, fraction=0.5)
    assert halved.value == pytest.approx(0.5 - r)
    assert halved.low < halved.value < halved.high
    assert halved.high - halved.low == pytest.approx(
        difference(exact, noisy, 200).high - difference(exact, noisy, 200).low, rel=1e-6
    )  # r of the exact side is 1 in every resample
    fixed = difference(noisy, noisy, 200, fraction=0.5)
    assert fixed.value == pytest.approx(-0.5 * r)
    whole = recovery(dataclasses.replace(noisy), resamples=200)
    assert fixed.high - fixed.low == pytest.approx(0.5 * (whole.correlation.high - whole.correlation.low), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_circular_correlation_is_around_the_mean_of_each(seed: int) -> None:
    """By the formula itself (Jammalamadaka and SenGupta 2001), for angles with different means."""
    rng = np.random.default_rng(seed)
    p = rng.normal(20, 25, (30, 4))
    q = 0.7 * p + rng.normal(95, 15, (30, 4))
    found, _ = Changes(torch.from_numpy(p), torch.from_numpy(q), torch.ones(30), 360.0).statistics(np.ones((1, 30)))
    a, b = np.deg2rad(p).ravel(), np.deg2rad(q).ravel()
    off = [np.sin(each - np.angle(np.exp(1j * each).mean())) for each in (a, b)]
    want = (off[0] * off[1]).sum() / math.sqrt((off[0] ** 2).sum() * (off[1] ** 2).sum())
    assert found[0] == pytest.approx(want, abs=1e-9)
    assert 0.3 < want < 0.95
