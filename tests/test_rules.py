"""Verdicts at their edges, p-values that agree with them, and how often the rules are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rcdm_fast.analysis import rules
from rcdm_fast.analysis.rules import RULES, Rules, Verdict, between, holm, verdict
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.metrics.slopes import bounds

NOTHING = (Interval(0.0, -0.004, 0.004), Interval(-0.002, -0.006, 0.003))  # readouts that find nothing


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "kept", "said"),
    [
        (0.251, 0.9, True, "surely above 0.25"),
        (0.249, 0.9, None, "too wide"),
        (-0.099, 0.099, False, "no readout finds it"),
        (-0.101, 0.05, None, "too wide"),
        (-0.05, 0.101, None, "too wide"),
        (0.02, 0.08, False, "no readout finds it"),
        (0.11, 0.24, None, "a little of it is followed"),
        (0.11, 0.26, None, "too wide"),
        (-0.9, -0.2, None, "surely negative"),
        (-0.3, 0.3, None, "too wide"),
    ],
)
def test_a_verdict_asks_the_whole_interval(low: float, high: float, kept: bool | None, said: str) -> None:
    found = verdict(interval(low, high), NOTHING)
    assert found.kept is kept
    assert said in found.reason
    assert (found.p < 0.05) is (kept is not None)
    assert found.slope == interval(low, high)


def test_what_a_readout_finds_is_not_dropped_and_without_one_nothing_is() -> None:
    still = interval(-0.02, 0.02)
    assert verdict(still, NOTHING).kept is False
    for readouts, said in (
        ((), "without readouts"),
        ((NOTHING[0], interval(0.2, 0.3)), "but a readout finds it"),
        ((NOTHING[0], interval(-0.02, 0.0101)), "may find it"),
        ((interval(0.009, 0.011), NOTHING[1]), "may find it"),
    ):
        found = verdict(still, readouts)
        assert found.kept is None
        assert found.p >= 0.05
        assert said in found.reason
    assert verdict(interval(0.3, 0.5)).kept is True  # what is followed needs no readout


def test_what_a_run_could_have_detected() -> None:
    """By simulation: a true slope of that size is called kept in 80 % of runs."""
    error = 0.07
    found = verdict(Interval(0.2, 0.2 - 1.959964 * error, 0.2 + 1.959964 * error))
    assert found.detectable == pytest.approx(0.25 + (1.959964 + 0.841621) * error, abs=1e-5)
    drawn = np.random.default_rng(0).normal(found.detectable, error, 20000)
    assert np.mean(drawn - 1.959964 * error > 0.25) == pytest.approx(0.8, abs=0.01)
    assert verdict(Interval(0.0, 0.0, 0.0), NOTHING).detectable == 0.25


def test_p_values_are_those_of_a_normal_test() -> None:
    assert rules.p_above(Interval(0.45, 0.25, 0.65), 0.25) == pytest.approx(0.05)
    assert rules.p_above(Interval(0.45, 0.25, 0.65), 0.45) == pytest.approx(1)
    assert rules.p_above(Interval(0.45, 0.25, 0.65), 0.65) == 1
    assert rules.p_above(Interval(3.0, 2.0, 4.0), 3.0 - 2.5758 / 1.959964) == pytest.approx(0.01, rel=1e-3)
    assert rules.p_below(Interval(-3.0, -4.0, -2.0), -3.0 + 2.5758 / 1.959964) == pytest.approx(0.01, rel=1e-3)
    lopsided = Interval(0.1, 0.0, 0.9)  # each side has its own error
    assert rules.p_above(lopsided, -0.01) < 0.05 < rules.p_above(lopsided, 0.01)
    assert rules.p_below(lopsided, 0.91) < 0.05 < rules.p_below(lopsided, 0.89)
    assert rules.p_above(Interval(1.0, 1.0, 1.0), 0.25) == 0
    assert rules.p_above(Interval(0.2, 0.2, 0.2), 0.25) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    for wrong in ([0.1, math.nan], [-0.1], [1.1]):
        with pytest.raises(ConfigError, match=r"lie in 0\.\.1"):
            holm(wrong)


def test_one_of_many_true_nulls_is_rejected_in_five_percent_at_most() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(min(holm(list(rng.random(10)))) < 0.05 for _ in range(2000))
    assert 0.03 < wrong / 2000 < 0.065
    assert np.mean([rng.random(10).min() < 0.05 for _ in range(2000)]) > 0.35  # unadjusted


def _verdict(kept: bool | None) -> Verdict:
    slope = {True: interval(0.5, 0.7), False: interval(-0.02, 0.02), None: interval(0.0, 0.6)}[kept]
    return verdict(slope, NOTHING)


@pytest.mark.parametrize(
    ("a", "b", "difference", "holds"),
    [
        (True, False, interval(0.3, 0.7), True),
        (True, False, interval(-0.1, 0.7), None),
        (True, None, interval(0.3, 0.7), None),
        (None, False, interval(0.3, 0.7), None),
        (True, True, interval(0.1, 0.3), False),
        (False, False, interval(-0.1, 0.1), False),
        (False, True, interval(-0.7, -0.3), False),
        (None, None, interval(0.3, 0.7), None),
        (None, True, interval(0.3, 0.7), False),
    ],
)
def test_between_two_each_ones_own_verdict_counts(
    a: bool | None, b: bool | None, difference: Interval, holds: bool | None
) -> None:
    found = between(difference, _verdict(a), _verdict(b))
    assert found.holds is holds
    assert (found.p < 0.05) is (holds is not None)
    assert (found.first.kept, found.second.kept) == (a, b)
    assert found.reason == f"the first: {rules.word(a)}; the second: {rules.word(b)}"


def test_the_p_of_a_comparison_is_the_largest_of_what_it_rests_on() -> None:
    """Three things have to be true at once; where it does not hold, one is enough."""
    clear, weak = interval(0.8, 0.9), interval(0.26, 0.9)
    dropped, hardly = verdict(interval(-0.01, 0.01), NOTHING), verdict(interval(-0.099, 0.0), NOTHING)
    for difference, a, b in (
        (interval(0.3, 0.7), weak, dropped),
        (interval(0.3, 0.7), clear, hardly),
        (interval(0.01, 1.6), clear, dropped),
    ):
        first = verdict(a, NOTHING)
        found = between(difference, first, b)
        assert found.holds
        assert found.p == max(first.p, b.p, rules.p_above(difference, 0.0))
    assert found.p == rules.p_above(interval(0.01, 1.6), 0.0) > max(first.p, dropped.p)
    kept = verdict(weak, NOTHING)
    assert between(interval(-0.7, 0.1), verdict(clear, NOTHING), kept).p == kept.p
    assert between(interval(-0.7, 0.1), hardly, dropped).p == hardly.p


@pytest.mark.parametrize("truth", [0.1, 0.17, 0.25])
def test_a_wrong_verdict_comes_in_five_percent_at_most(truth: float) -> None:
    """Slopes between the levels are neither kept nor dropped; at a level itself every second half interval errs."""
    for noise in (0.2, 1.0):
        rng = np.random.default_rng(4)
        x = rng.normal(size=(2000, 64, 4))
        y = truth * x + noise * rng.normal(size=x.shape)
        found = [
            verdict(Interval(*each), NOTHING)
            for each in zip(*(side.tolist() for side in bounds((x * y).sum(2), (x * x).sum(2))), strict=True)
        ]
        assert sum(each.kept is not None for each in found) / 2000 < 0.04  # 2.5 % and chance


def test_numbers_that_are_no_rules_and_no_intervals() -> None:
    assert Rules() == RULES == Rules(0.25, 0.1, 0.01, 0.8)
    with pytest.raises(ConfigError, match=r"cannot be dropped within 0\.3"):
        Rules(dropped_within=0.3)
    with pytest.raises(ConfigError, match="detected_power"):
        Rules(detected_power=1.0)
    with pytest.raises(ConfigError, match="finite numbers"):
        verdict(Interval(0.0, -math.inf, math.inf))
    with pytest.raises(ConfigError, match="begins before it ends"):
        verdict(Interval(0.0, 0.1, -0.1))
    with pytest.raises(ConfigError, match="finite numbers"):
        between(Interval(math.nan, 0, 1), _verdict(True), _verdict(False))


def test_other_thresholds_are_taken() -> None:
    strict = Rules(kept_above=0.5, dropped_within=0.01, readable=0.001)
    assert verdict(interval(0.3, 0.7), NOTHING, strict).kept is None
    assert verdict(interval(-0.02, 0.02), NOTHING, strict).kept is None
    assert verdict(interval(-0.002, 0.002), (interval(-0.01, 0.0009),), strict).kept is False
    assert verdict(interval(-0.002, 0.002), (interval(-0.01, 0.0011),), strict).kept is None


def test_reasons_and_what_is_detectable_are_those_of_other_thresholds() -> None:
    other = Rules(kept_above=0.6, dropped_within=0.3, readable=0.02, detected_power=0.5)
    assert verdict(interval(0.61, 0.9), NOTHING, other).reason == "the slope is surely above 0.6"
    assert verdict(interval(0.2, 0.29), NOTHING, other).reason == (
        "the slope is surely within +-0.3, and no readout finds it"
    )
    assert "surely between 0.3 and 0.6: " in verdict(interval(0.31, 0.59), NOTHING, other).reason
    seen = (interval(0.011, 0.019),)  # found by the usual rules, and not by these
    assert verdict(interval(0.0, 0.1), seen, other).kept is False
    assert verdict(interval(0.4, 0.8), NOTHING, other).detectable == pytest.approx(0.6 + 0.2)  # half of the time


def test_a_power_under_a_half_and_thresholds_that_touch_are_no_rules() -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.5"):
        Rules(detected_power=0.49)
    assert Rules(detected_power=0.5).detected_power == 0.5
    with pytest.raises(ConfigError, match=r"cannot be dropped within 0\.25"):
        Rules(dropped_within=0.25)
    with pytest.raises(ConfigError, match="finite numbers"):
        verdict(interval(0.0, 0.1), (NOTHING[0], Interval(0.0, -math.inf, math.inf)))


def test_apart_is_on_either_side_of_a_level() -> None:
    for found, level in ((interval(0.3, 0.5), 0.2), (interval(0.3, 0.5), 0.6), (interval(-0.5, -0.3), 0.0)):
        assert rules.p_apart(found, level) < 0.05
    for level in (0.31, 0.4, 0.49):
        assert rules.p_apart(interval(0.3, 0.5), level) >= 0.05
    assert rules.p_apart(Interval(3.0, 2.0, 4.0), 3.0 + 2.5758 / 1.959964) == pytest.approx(0.01, rel=1e-3)
