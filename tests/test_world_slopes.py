"""Slopes of factors in samples, against samplers whose truth is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis.world_slopes import Cell, DecoderSampler, IdealSampler, SlopesConfig, cells
from rcdm_fast.config import ConfigError
from rcdm_fast.data.world import World
from rcdm_fast.encoders.oracle import Oracle
from rcdm_fast.encoders.oracle_code import Code, subsets
from rcdm_fast.images import to_uint8
from rcdm_fast.model import Model
from tests import small

WORLD = World(count=200, size=8)
CONFIG = SlopesConfig(sources=60, noises=2)


class Exact:
    """Hands factors on in place of images, so that nothing is lost in reading them."""

    def __init__(self, follows: float = 1.0, change: float = 1.0) -> None:
        self.ideal, self.change = IdealSampler(WORLD, seed=1, follows=follows), change

    def __call__(self, factors: Tensor, kept: Sequence[str], noise: Sequence[int]) -> Tensor:
        drawn = self.ideal.factors(factors, kept, noise)
        drawn[:, 1] *= self.change  # x is exaggerated
        return drawn


def as_it_is(drawn: Tensor) -> Tensor:
    return drawn


def by_name(found: list[Cell]) -> dict[str, Cell]:
    return {cell.factor: cell for cell in found}


def test_kept_factors_have_slope_one_and_dropped_ones_none_in_all_128_cells() -> None:
    found = cells(Exact(), as_it_is, WORLD, subsets(), CONFIG)
    assert len(found) == 128
    assert sum(cell.kept for cell in found) == 64
    for cell in found:
        if cell.kept:
            assert (cell.slope.value, cell.slope.low, cell.slope.high) == pytest.approx((1, 1, 1))
    dropped = [cell.slope for cell in found if not cell.kept]
    covered = sum(slope.low <= 0 <= slope.high for slope in dropped)
    assert covered >= 55  # 95 % of 64 are 60.8; fewer than 55 once in 200 times
    assert abs(sum(slope.value for slope in dropped) / 64) < 0.03
    assert all(slope.high - slope.low < 0.8 for slope in dropped)
    assert len({slope.value for slope in dropped}) == 64  # every subset has noise of its own


def test_an_interval_is_as_wide_as_samples_allow() -> None:
    """A number that is dropped has the slope of two independent rows: deviation 1 / root of the number of samples."""
    for noises in (1, 4):
        config = SlopesConfig(sources=200, noises=noises)
        slope = by_name(cells(Exact(), as_it_is, WORLD, [("x",)], config))["size"].slope
        assert (slope.high - slope.low) / 2 == pytest.approx(1.97 / math.sqrt(200 * noises), rel=0.15)


def test_a_factor_that_is_followed_half_of_the_time_has_slope_one_half() -> None:
    config = dataclasses.replace(CONFIG, sources=200, noises=3)
    found = by_name(cells(Exact(follows=0.5), as_it_is, WORLD, [WORLD.names], config))
    for cell in found.values():
        assert cell.slope.value == pytest.approx(0.5, abs=0.08)
        assert abs(cell.slope.value - 0.5) < 1.5 * (cell.slope.high - cell.slope.low) / 2  # three standard errors


def test_the_slope_is_that_of_the_change_not_its_correlation() -> None:
    found = by_name(cells(Exact(change=0.4), as_it_is, WORLD, [("x", "y")], CONFIG))
    assert found["x"].slope.value == pytest.approx(0.4)
    assert found["y"].slope.value == pytest.approx(1)


def test_a_choice_has_the_accuracy_above_chance_and_degrees_the_mean_turn() -> None:
    def misread(drawn: Tensor) -> Tensor:
        """Every other shape is read wrong, evenly; hues are all read 60 degrees too far."""
        read = drawn.clone()
        generator = torch.Generator().manual_seed(0)
        wrong = torch.rand(len(read), generator=generator) < 0.5
        away = torch.randint(1, 4, (len(read),), generator=generator)
        read[:, 0] = torch.where(wrong, (read[:, 0] + away) % 4, read[:, 0])
        read[:, 5] = (read[:, 5] + 60) % 360
        return read

    config = dataclasses.replace(CONFIG, sources=200, noises=8)
    found = by_name(cells(Exact(), misread, WORLD, [("shape", "hue")], config))
    assert found["shape"].slope.value == pytest.approx((0.5 - 0.25) / 0.75, abs=0.05)
    assert found["hue"].slope.value == pytest.approx(math.cos(math.pi / 3), abs=1e-6)


def test_the_ideal_sampler_renders_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ideal, oracle = IdealSampler(WORLD), Oracle(WORLD, Code("shapes", ("x",)))
    factors = WORLD.factors(range(6))
    drawn = ideal.factors(factors, ("x", "light"), [0, 1, 2, 3, 4, 4])
    assert torch.equal(drawn[:, [1, 7]], factors[:, [1, 7]])
    assert torch.equal(drawn[4, [0, 2, 3, 4, 5, 6]], drawn[5, [0, 2, 3, 4, 5, 6]])  # the same key
    oracle.learn(drawn)
    seen = ideal(factors, ("x", "light"), [0, 1, 2, 3, 4, 4])
    assert torch.equal(oracle.recognized(to_uint8(seen)), drawn)


def test_a_decoder_is_given_the_oracles_code_and_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model(representation_dim=22)
    given: dict[str, object] = {}

    def sample(self: Model, h: Tensor, config: SlopesConfig, **settings: object) -> Tensor:
        given.update(settings, h=h, per=config.per, steps=config.steps, seed=config.seed)
        return torch.zeros(len(h), 1, 3, 8, 8)

    monkeypatch.setattr(Model, "sample", sample)
    factors = WORLD.factors(range(4))
    drawn = DecoderSampler(model, WORLD, SlopesConfig(steps=3, seed=9))(factors, ("hue", "x"), [5, 5, 6, 7])
    assert drawn.shape == (4, 3, 8, 8)
    assert torch.equal(given.pop("h"), Code("shapes", ("x", "hue"), masked=True)(factors))  # type: ignore[arg-type]
    assert given == {"items": [5, 5, 6, 7], "per": 1, "steps": 3, "seed": 9, "batch_size": 64}
    with pytest.raises(ConfigError, match=r"per must be in 1\.\.1, got 2"):  # more would be drawn and thrown away
        SlopesConfig(per=2)
    with pytest.raises(ConfigError, match="have 22 numbers, the model takes 6"):
        DecoderSampler(small.model(), WORLD)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="at least 20"):
        cells(Exact(), as_it_is, WORLD, subsets(), dataclasses.replace(CONFIG, sources=19))
    with pytest.raises(ConfigError, match="the data has 200"):
        cells(Exact(), as_it_is, WORLD, subsets(), dataclasses.replace(CONFIG, sources=201))
    with pytest.raises(ConfigError, match="factors that were read are"):
        cells(Exact(), lambda drawn: drawn[:, :3], WORLD, subsets(), CONFIG)


def test_progress_counts_subsets_and_only_the_first_eight_factors_are_measured() -> None:
    done: list[tuple[int, int]] = []
    found = cells(Exact(), as_it_is, WORLD, [("x",), ("y",), ()], CONFIG, lambda *each: done.append(each))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [cell.factor for cell in found] == [*WORLD.names[:8]] * 3


def test_a_batch_and_the_noise_are_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three subsets each has keys of its own, and every drawing of an item."""
    model, asked = small.model(representation_dim=22), list[tuple[list[int], int]]()

    def sample(self: Model, h: Tensor, config: SlopesConfig, **settings: object) -> Tensor:
        asked.append((settings["items"], settings["batch_size"]))  # type: ignore[arg-type]
        return torch.zeros(len(h), 1, 3, 8, 8)

    monkeypatch.setattr(Model, "sample", sample)
    config = SlopesConfig(sources=20, noises=2, batch_size=5)
    given = WORLD.factors(range(20)).repeat(2, 1)
    cells(DecoderSampler(model, WORLD, config), lambda _: given, WORLD, [("x",), ("y",), ()], config)
    assert [key for keys, _ in asked for key in keys] == [*range(120)]
    assert {size for _, size in asked} == {5}


def test_what_is_not_kept_is_drawn_anew_by_seed_and_key() -> None:
    factors = WORLD.factors(range(3))
    one, again, other = (IdealSampler(WORLD, seed).factors(factors, (), [4, 5, 4]) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one[0], one[2])
    assert not torch.equal(one[0], one[1])
    assert (one != other).any(dim=1).all()
