"""Intervals: how often they hold the truth in made-up data, and that there is none of a handful of items."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from rcdm_fast.analysis import common
from rcdm_fast.analysis.result import Analysis, Table, cell_text
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Floats, Interval


def covered(draw: Callable[[], Floats], made: Callable[[Floats], Interval], truth: float, times: int) -> float:
    found = [made(draw()) for _ in range(times)]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


@pytest.mark.parametrize(("count", "truth"), [(20, 0.95), (20, 0.5), (64, 0.02), (500, 0.76)])
def test_an_interval_of_a_fraction_holds_it(count: int, truth: float) -> None:
    """Counted out, not drawn: every number of successes with its probability."""
    inside = 0.0
    for successes in range(count + 1):
        found = intervals.fraction(np.arange(count) < successes)
        probability = math.comb(count, successes) * truth**successes * (1 - truth) ** (count - successes)
        inside += probability * (found.low <= truth <= found.high)
    assert 0.915 < inside < 0.99  # the bootstrap of a share of 0.95 at n = 20: 0.63


def test_all_right_of_twenty_is_not_certain() -> None:
    found = intervals.fraction(np.ones(20))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-3)
    none = intervals.fraction(np.zeros(20))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - found.low)


def test_samples_of_a_source_count_as_much_as_they_tell() -> None:
    """Four samples of each of 30 sources: as good as 120 where they differ freely, as 30 where they are equal."""
    rng = np.random.default_rng(0)
    free, tied = (rng.random((30, 4)) < 0.7).mean(axis=1), np.repeat(rng.random((30, 1)) < 0.7, 4, axis=1).mean(axis=1)
    width = {
        name: each.high - each.low
        for name, each in (("free", intervals.fraction(free)), ("tied", intervals.fraction(tied)))
    }
    assert width["tied"] == pytest.approx(2 * width["free"], rel=0.25)

    def draw() -> Floats:
        own = rng.beta(7, 3, size=(30, 1))
        drawn: Floats = (rng.random((30, 4)) < own).mean(axis=1)
        return drawn

    assert covered(draw, intervals.fraction, 0.7, 500) > 0.91
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        intervals.fraction(np.full(20, 1.5))


def test_a_difference_of_fractions_in_pairs() -> None:
    rng = np.random.default_rng(1)

    def draw() -> Floats:
        common_part = rng.random(64)
        return np.stack([common_part < 0.12, np.where(rng.random(64) < 0.5, common_part, rng.random(64)) < 0.04])

    inside = covered(draw, lambda pair: intervals.fraction_difference(pair[0] * 1.0, pair[1] * 1.0), 0.08, 500)
    assert 0.92 < inside
    nothing = intervals.fraction_difference(np.zeros(64), np.zeros(64))
    assert nothing.low < 0 < nothing.high == pytest.approx(0.0566, abs=1e-3)  # a bootstrap gives [0, 0]
    twins = np.arange(60) < 20
    assert intervals.fraction_difference(twins, twins).high < 0.05


def test_an_interval_of_a_mean_rank_holds_it_where_few_sources_have_large_ones() -> None:
    rng = np.random.default_rng(2)
    ranks = np.clip(np.exp(rng.normal(1.5, 1.5, 100_000)), 1, 10_000).round()
    data = [rng.choice(ranks, 64) for _ in range(200)]
    truth = float(ranks.mean())
    kinds: tuple[Callable[..., Interval], ...] = (
        functools.partial(intervals.mean_rank, most=10_000),
        intervals.bootstrap,
    )
    inside = [
        covered(iter(data).__next__, functools.partial(made, resamples=300, rng=rng), truth, 200) for made in kinds
    ]
    assert inside[0] > 0.85
    assert inside[0] > inside[1] + 0.04  # percentiles of a bootstrap: about 0.8
    even = intervals.mean_rank(np.ones(30), 99, 200, rng)
    assert (even.value, even.low, even.high) == (1, 1, 1)
    one = intervals.mean_rank(np.array([1.0] * 29 + [300]), 500, 200, rng)  # half of the resamples are without it
    assert one.low >= 1
    assert one.high == pytest.approx(500)


def test_a_difference_of_ratios_is_that_of_the_same_items() -> None:
    rng = np.random.default_rng(3)
    clean = np.stack([rng.random(400) < each for each in (0.6, 0.8)]).astype(float)
    robust = clean * (rng.random(400) < 0.4)
    found = intervals.ratio_difference((robust[0], clean[0]), (robust[1], clean[1]), 500, rng)
    assert found.value == pytest.approx(robust[0].sum() / clean[0].sum() - robust[1].sum() / clean[1].sum())
    assert found.low < 0 < found.high
    same = intervals.ratio_difference((robust[0], clean[0]), (robust[0], clean[0]), 500, rng)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_handful_of_items_has_no_interval() -> None:
    rng = np.random.default_rng(4)
    values = np.linspace(0.5, 1, 19)
    found = (
        intervals.bootstrap(values, 100, rng),
        intervals.fraction(values),
        intervals.mean_rank(1 / values, 9, 100, rng),
        intervals.difference(values, np.ones(50), 100, rng),
        intervals.ratio(values, values, 100, rng),
        intervals.fraction_difference(values, values),
        intervals.ratio_difference((values, values), (values, values), 100, rng),
    )
    for each in found:
        assert math.isfinite(each.value)
        assert not each.known
        assert common.above(each, -1e9) is None
        assert common.below(each, 1e9) is None
        assert cell_text(each) == common.text(each).replace(f"{each.value:.2f}", f"{each.value:.3g}")
        assert cell_text(each).endswith("[none: n < 20]")
    assert all(intervals.bootstrap(np.linspace(0.5, 1, count), 100, rng).known is (count == 20) for count in (19, 20))
    assert common.percent(found[1]) == "75 % [none: n < 20]"
    table = Table("t", "t", ("of", "value"), (("a", found[1]),))
    cell = Analysis("x", "x", "m", {}, (table,)).as_json()["tables"][0]["rows"][0][1]
    assert cell == {"value": pytest.approx(0.75), "low": None, "high": None}


def test_an_interval_that_touches_a_level_decides_nothing() -> None:
    for low, high, above in ((0.5, 1, None), (0.51, 1, True), (0, 0.5, None), (0, 0.49, False), (0.4, 0.6, None)):
        found = Interval(0.5, low, high)
        assert common.above(found, 0.5) is above
        assert common.below(found, 0.5) is (None if above is None else not above)
    assert (common.above(Interval(1, 0, 2)), common.below(Interval(-1, -2, 0))) == (None, None)


@pytest.mark.parametrize(
    ("verdicts", "holds"),
    [
        ((True, True), True), ((True, None), None), ((None, True), None), ((None, False, True), False), ((), True),
    ],
)  # fmt: skip
def test_all_hold_where_each_one_does(verdicts: tuple[bool | None, ...], holds: bool | None) -> None:
    assert common.all_hold(iter(verdicts)) is holds


@pytest.mark.parametrize("name", ["interval", "difference"])
def test_settings_of_an_experiment_decide_what_is_resampled(name: str) -> None:
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((2, 40))

    def ends(**settings: int) -> tuple[float, float, float]:
        config = common.ExperimentConfig(**settings)  # type: ignore[arg-type]
        found = getattr(common, name)(*groups[: 1 if name == "interval" else 2], config)
        return found.value, found.low, found.high

    first = ends(seed=3, resamples=300)
    assert ends(seed=3, resamples=300) == first
    for other in (ends(seed=4, resamples=300), ends(seed=3, resamples=400)):
        assert other[0] == first[0]
        assert other[1:] != first[1:]


def normal(values: Floats) -> float:
    return float(1.959964 * values.std(ddof=1) / math.sqrt(len(values)))


def test_intervals_are_as_wide_as_the_normal_law_has_them() -> None:
    """Of many items: means, differences of two groups, ratios of pairs, and their differences to first order."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(3, 1, 400), rng.normal(5, 2, 100)
    bottom = rng.normal(4, 1, 400)
    top = bottom * 0.5 + rng.normal(0, 0.1, 400)
    other = bottom * 0.25 + rng.normal(0, 0.1, 400)
    of_ratio = (top - 0.5 * bottom) / 4
    of_both = (top - other - 0.25 * bottom) / 4
    draw = {"resamples": 2000, "rng": rng}
    found = {
        "mean": (intervals.bootstrap(a, **draw), a.mean(), normal(a)),  # type: ignore[arg-type]
        "difference": (
            intervals.difference(a, b, **draw),  # type: ignore[arg-type]
            a.mean() - b.mean(),
            math.hypot(normal(a), normal(b)),
        ),
        "ratio": (intervals.ratio(top, bottom, **draw), top.sum() / bottom.sum(), normal(of_ratio)),  # type: ignore[arg-type]
        "ratios": (
            intervals.ratio_difference((top, bottom), (other, bottom), **draw),  # type: ignore[arg-type]
            (top.sum() - other.sum()) / bottom.sum(),
            normal(of_both),
        ),
    }
    for name, (each, value, half) in found.items():
        assert each.value == pytest.approx(value), name
        assert (each.high - each.value, each.value - each.low) == pytest.approx((half, half), rel=0.12), name


def test_ends_of_intervals_and_what_is_said_of_them() -> None:
    assert intervals.score(0.0, 0) == Interval(0, 0, 1)
    assert not Interval(1.0, -math.inf, 2.0).known
    assert not Interval(1.0, 0.0, math.inf).known
    assert Interval(0.5, 0.25, 0.75).text(".1f", 100, " %") == "50.0 % [25.0, 75.0]"
    assert intervals.alone(0.5).text(".1f", 100, " %") == "50.0 % [none: n < 20]"
    opposite = intervals.fraction_difference(np.ones(20), np.zeros(20))
    assert (opposite.value, opposite.high) == (1, 1)
    assert intervals.fraction_difference(np.zeros(20), np.ones(20)).low == -1
    low = intervals.mean_rank(np.array([1.0] * 25 + [1.5]), 9, 300, np.random.default_rng(0))
    assert low.low >= 1


@pytest.mark.parametrize(("first", "second"), [(19, 50), (50, 19)])
def test_a_difference_needs_enough_items_on_both_sides(first: int, second: int) -> None:
    found = intervals.difference(np.ones(first), np.zeros(second), 100, np.random.default_rng(0))
    assert (found.value, found.known) == (1, False)


def test_resampled_weights_are_numbers_of_draws_by_the_seed() -> None:
    found = intervals.resampled(25, 400, 3)
    assert found.shape == (400, 25)
    assert (found.sum(axis=1) == 25).all()
    assert found.var() == pytest.approx(24 / 25, rel=0.1)
    assert np.array_equal(found, intervals.resampled(25, 400, 3))
    assert not np.array_equal(found, intervals.resampled(25, 400, 4))
    with pytest.raises(ConfigError, match="at least 100 resamples, got 99"):
        intervals.resampled(25, 99, 0)
