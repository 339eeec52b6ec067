"""What representations keep: the recovery number against made-up samplers, shared noise, whole experiments."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.analysis import common, invariance, sweeps
from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.analysis.properties import PROPERTIES
from rcdm_fast.analysis.readout import BENT, LINEAR, Readout
from rcdm_fast.analysis.recovery import Changes, Recovery, difference, recovery
from rcdm_fast.analysis.rules import Verdict
from rcdm_fast.analysis.sweeps import InvarianceConfig, measure
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.engine_comparison import Case, with_engine
from rcdm_fast.images import to_uint8
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from tests import small

QUICK = InvarianceConfig(steps=2, resamples=200)
has_bf16 = not engines.reasons_unavailable("native", torch.device("cpu"), "bf16")  # the processor


def photographs(count: int, size: int = 16) -> ImageSet:
    """Colorful images with an off-center blob, so that every property differs between them."""
    generator = torch.Generator().manual_seed(1)
    images = small.make_images(count, size, seed=3) * 0.5
    for image in images:
        top, left = torch.randint(1, size - 4, (2,), generator=generator).tolist()
        image[:, top : top + 4, left : left + 3] += 0.8 * (torch.rand(3, 1, 1, generator=generator) - 0.4)
    pixels = to_uint8(images.clamp(-1, 1))
    return ImageSet(pixels, None, (), tuple(Path(str(number)) for number in range(count)), "made-up")


class Flat:
    """An encoder that keeps every pixel."""

    config = small.encoder().config
    dim = small.DIM
    device = torch.device("cpu")

    def encode(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def oracle(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Tensor]) -> Model:
    model = small.quick_model()
    monkeypatch.setattr(model, "_encoder", Flat())
    monkeypatch.setattr(model, "sample", small.asked(answer))
    return model


def test_a_sampler_that_returns_the_image_recovers_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def perfect(h: Tensor, *, per: int, **_: object) -> Tensor:
        return h.view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)

    found = measure(oracle(monkeypatch, perfect), photographs(24), dataclasses.replace(QUICK, per=2))
    assert found.sweeps.keys() == AUGMENTATIONS.keys()
    for each in found.sweeps.values():
        got = each.recovery
        assert got.correlation.value == pytest.approx(1, abs=1e-6)
        assert got.correlation.low == pytest.approx(1, abs=1e-6)
        assert got.slope.value == pytest.approx(1, abs=1e-6)
        assert 0.02 < got.chance < 0.5
        assert got.verdict.kept is True
        assert got.pairs == 24 * len(each.augmentation.magnitudes)


def test_a_sampler_that_ignores_the_representation_recovers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(oracle(monkeypatch, _deaf), photographs(24), QUICK)
    for each in found.sweeps.values():
        got = each.recovery
        assert (got.correlation.value, got.correlation.low, got.correlation.high) == (0, 0, 0)
        assert got.slope.low <= got.slope.value == 0 <= got.slope.high
        assert got.verdict.kept is None
        assert "without readouts" in got.verdict.reason


def _deaf(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
    own = {item: small.make_images(per, 16, seed=item) for item in set(items.tolist())}
    return torch.stack([own[item] for item in items.tolist()])


def test_a_bad_decoder_is_not_taken_for_a_representation_that_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder keeps every pixel, the samples follow nothing: "does not keep" would be wrong."""
    config = dataclasses.replace(QUICK, augmentations=("flip", "shift-x", "hue"))
    result = invariance.run(oracle(monkeypatch, _deaf), photographs(60), config)
    assert result.settings["fitted_on"] == 60
    for row in result.tables[0].rows:
        assert row[2:4] == (Interval(0.0, 0.0, 0.0), "inconclusive")
    assert [each.holds for each in result.findings] == [None] * 3
    assert all("it in the representation" in each.measured for each in result.findings)


def test_what_the_representation_does_not_hold_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and spread of colors stay when an image is mirrored, and change when it is made gray."""
    model = oracle(monkeypatch, _deaf)
    monkeypatch.setattr(model, "_encoder", small.encoder())
    config = dataclasses.replace(QUICK, augmentations=("flip", "grayscale"))
    found = measure(model, photographs(60), config)
    assert found.sweeps["flip"].recovery.verdict.kept is False
    assert found.sweeps["grayscale"].recovery.verdict.kept is None
    assert found.sweeps["flip"].readout.movement.high < 1e-6 < found.sweeps["grayscale"].readout.movement.low
    alone = measure(model, photographs(60), dataclasses.replace(config, fitted_on=0))
    assert alone.sweeps["flip"].recovery.verdict.kept is None
    findings = {each.subject: each for each in invariance.run(model, photographs(60), config).findings}
    flip = findings["left-right orientation"]
    assert flip.holds is False
    assert flip.p is not None
    assert flip.adjusted is not None
    assert flip.p <= flip.adjusted < 0.05


def test_what_does_not_change_in_the_images_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = photographs(24)
    gray = dataclasses.replace(gray, pixels=gray.pixels[:, :1].expand(-1, 3, -1, -1).contiguous())
    config = dataclasses.replace(QUICK, augmentations=("hue", "flip"))
    result = invariance.run(oracle(monkeypatch, _deaf), gray, config)
    assert result.settings["left_out"] == ["hue"]
    assert [row[0] for row in result.tables[0].rows] == ["flip"]
    assert "nothing changes in these images: hue" in result.tables[0].note
    with pytest.raises(ConfigError, match="no property that changes under hue"):
        measure(oracle(monkeypatch, _deaf), gray, dataclasses.replace(config, augmentations=("hue",)))


def test_changes_by_chance_give_an_interval_that_contains_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def restless(h: Tensor, *, per: int, **_: object) -> Tensor:
        seed = int(torch.frexp(h.double().sum()).mantissa * 1e9) & 0xFFFF
        return small.make_images(len(h) * per, 16, seed=seed).view(len(h), per, 3, 16, 16)

    found = measure(oracle(monkeypatch, restless), photographs(60), QUICK)
    contained = [each.recovery.correlation.low < 0 < each.recovery.correlation.high for each in found.sweeps.values()]
    assert sum(contained) >= 8  # of ten 95 % intervals
    assert all(abs(each.recovery.correlation.value) < 0.4 for each in found.sweeps.values())
    assert sum(each.recovery.verdict.kept is True for each in found.sweeps.values()) <= 1


def test_half_followed_changes_have_slope_one_half() -> None:
    rng = torch.Generator().manual_seed(0)
    linear = torch.randn(40, 3, generator=rng).double()
    weight = torch.ones(40, dtype=torch.float64)
    got = recovery(Changes(linear, 0.5 * linear + 3, weight), 200)
    assert got.correlation.value == pytest.approx(1)
    assert got.slope.value == pytest.approx(0.5)
    angles = torch.tensor([-90.0, -45.0, 45.0, 90.0]).double().expand(40, 4)
    noise = 5 * torch.randn(40, 4, generator=rng).double()
    turned = recovery(Changes(angles, 0.5 * angles + noise, weight, 360.0), 200)
    assert turned.slope.value == pytest.approx(0.5, abs=0.03)
    assert turned.correlation.value > 0.97
    past = torch.tensor([150.0, 160.0, 170.0, -175.0]).double().repeat(30, 1) + 4 * torch.randn(30, 1, generator=rng)
    wrapped = recovery(Changes(past, past % 360, weight[:30], 360.0), 200)  # the same angles, written in another way
    assert wrapped.correlation.value == pytest.approx(1)


def test_a_linear_correlation_is_numpys_and_weights_count() -> None:
    rng = np.random.default_rng(2)
    p = rng.normal(size=(30, 2))
    q = 0.4 * p + rng.normal(size=(30, 2)) + 5
    ones = torch.ones(30, dtype=torch.float64)
    got = recovery(Changes(torch.tensor(p), torch.tensor(q), ones), 2000)
    assert got.correlation.value == pytest.approx(np.corrcoef(p.ravel(), q.ravel())[0, 1])
    assert got.slope.value == pytest.approx(np.polyfit(p.ravel(), q.ravel(), 1)[0])
    half = torch.cat([torch.ones(15), torch.zeros(15)]).double()
    weighed = recovery(Changes(torch.tensor(p), torch.tensor(q), half), 200)
    assert weighed.correlation.value == pytest.approx(np.corrcoef(p[:15].ravel(), q[:15].ravel())[0, 1])


def test_intervals_cover_the_truth_and_know_that_magnitudes_of_a_source_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        p = np.repeat(rng.normal(size=(40, 1)), 4, axis=1)  # four times the same: 40 dimensions, not 160
        q = 0.5 * p + np.sqrt(0.75) * np.repeat(rng.normal(size=(40, 1)), 4, axis=1)
        changes = Changes(torch.tensor(p), torch.tensor(q), torch.ones(40, dtype=torch.float64))
        low, high = np.quantile(
            changes.correlation(rng.multinomial(40, [1 / 40] * 40, 300).astype(float)), [0.025, 0.975]
        )
        covered += low < 0.5 < high
    assert 85 <= covered <= 100


def test_a_difference_is_measured_in_pairs() -> None:
    rng = np.random.default_rng(1)
    p = torch.tensor(rng.normal(size=(60, 3)))
    weight = torch.ones(60, dtype=torch.float64)
    good = Changes(p, p + 0.5 * torch.tensor(rng.normal(size=(60, 3))), weight)
    bad = Changes(p, torch.tensor(rng.normal(size=(60, 3))), weight)
    apart = difference(good, bad)
    assert apart.low > 0.5
    same = difference(good, good)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert apart.value == pytest.approx(recovery(good, 100).slope.value - recovery(bad, 100).slope.value)
    assert difference(bad, good).value == pytest.approx(-apart.value)
    with pytest.raises(ConfigError, match="same images"):
        difference(good, Changes(p + 1, p, weight))


@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ancestral", 0.0)])
@pytest.mark.parametrize("case", ["eager", "native", *(["native:bf16"] * has_bf16)])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_rows_with_the_same_representation_are_identical_at_every_step(
    solver: str, eta: float, case: str, batch_size: int
) -> None:
    model = with_engine(small.quick_model(), Case.parse(case))
    h = torch.randn(1, small.DIM, generator=torch.Generator().manual_seed(0))
    _identical_rows(model, h, solver, eta, batch_size)


@pytest.mark.parametrize("eta", [pytest.param(0.0, marks=pytest.mark.long), 0.7])
def test_noise_is_shared_by_the_engine_that_users_run(eta: float) -> None:
    model = rcdm_fast.load("cifar10-simclr-head", precision="bf16", device="cpu")
    _identical_rows(model, model.encode(small.make_images(1, 32)), "ddim", eta, 4)


def _identical_rows(model: Model, h: Tensor, solver: str, eta: float, batch_size: int) -> None:
    """Rows 0, 2 and 4 share representation, item and so the noise; row 1 differs in h, row 3 in its item."""
    rows = torch.cat([h, 0.5 * h, h, h, h])
    request = model.request(rows, items=[7, 7, 7, 8, 7], per=2, steps=4, solver=solver, eta=eta, seed=3)
    seen: list[tuple[int, Tensor]] = []
    options = SolverOptions(eta=eta, observer=lambda step, x: seen.append((step, x.clone())))
    request = dataclasses.replace(request, options=options)
    finished = torch.cat([images for _, images in model.batches(request, batch_size)])
    steps = [torch.cat([x for number, x in seen if number == step]) for step in range(4)]
    for x in [*steps, finished]:
        each = x.view(5, 2, *x.shape[1:])
        assert torch.equal(each[0], each[2])
        assert torch.equal(each[0], each[4])
        assert not torch.equal(each[0], each[1])
        assert not torch.equal(each[0], each[3])
        assert not torch.equal(each[0, 0], each[0, 1])


def test_the_experiment_shares_noise_and_says_so() -> None:
    model = small.quick_model()
    h = model.encode(small.make_images(3))
    drawn = sweeps.draw(model, torch.stack([h, h.flip(0), h]), torch.tensor([4, 5, 6]), QUICK, per=2)
    assert drawn.shape == (3, 3, 2, 3, 8, 8)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0, 1], drawn[1, 1])
    assert not torch.equal(drawn[0, 0], drawn[1, 0])
    alone = model.sample(h[1:2], items=[5], per=2, steps=2)
    assert torch.equal(alone[0], drawn[0, 1])
    result = invariance.run(model, photographs(20, 8), dataclasses.replace(QUICK, augmentations=("flip",)))
    assert result.settings["same_noise_difference"] == 0


def test_the_real_path_gives_tables_findings_and_figures() -> None:
    done: list[tuple[int, int]] = []
    config = dataclasses.replace(QUICK, augmentations=("hue", "grayscale"), sources=20)
    result = invariance.run(small.quick_model(), photographs(30, 8), config, lambda *each: done.append(each))
    assert done == [(1, 2), (2, 2)]
    assert result.figures.keys() == {"rows-hue", "rows-grayscale"}
    assert result.captions.keys() == result.figures.keys()
    assert result.figures["rows-hue"].width > 5 * 96
    recovered = json.loads(json.dumps(result.as_json()))["tables"][0]
    assert [row[0] for row in recovered["rows"]] == ["hue", "grayscale"]
    assert -1 <= recovered["rows"][0][5]["low"] <= recovered["rows"][0][5]["high"] <= 1
    assert len(result.findings) == 2
    assert "grayscale" in result.as_text()
    again = invariance.run(small.quick_model(), photographs(30, 8), config)
    assert again.tables == result.tables


def test_wrong_input() -> None:
    with pytest.raises(ConfigError, match="at least 20 of them, got 19"):
        measure(small.quick_model(), photographs(19, 8), QUICK)
    with pytest.raises(ConfigError, match="the data has 25"):
        measure(small.quick_model(), photographs(25, 8), dataclasses.replace(QUICK, sources=30))
    with pytest.raises(ConfigError, match="known: flip"):
        measure(small.quick_model(), photographs(20, 8), dataclasses.replace(QUICK, augmentations=("twist",)))
    with pytest.raises(ConfigError, match="needs an encoder"):
        measure(Model.from_network(small.network(), small.SCHEDULE), photographs(20, 8), QUICK)
    with pytest.raises(ConfigError, match="per must be"):
        measure(small.quick_model(), photographs(20, 8), dataclasses.replace(QUICK, per=0))
    with pytest.raises(ConfigError, match="resamples must be at least 100"):
        measure(small.quick_model(), photographs(20, 8), dataclasses.replace(QUICK, resamples=5))


def test_every_setting_of_an_experiment_reaches_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, h, items = small.quick_model(), torch.randn(4, small.DIM), torch.tensor([3, 1, 4, 1])
    config = common.ExperimentConfig(steps=7, seed=5, batch_size=9, per=3, solver="ancestral")
    sample, asked = model.sample, []

    def noted(given: Tensor, **options: Any) -> Tensor:
        asked.append({**options, "h": given, "items": options["items"].tolist()})
        return sample(given, **options)

    monkeypatch.setattr(model, "sample", small.asked(noted))
    drawn = common.draw(model, h, items, config)
    (first,) = asked
    assert torch.equal(first.pop("h"), h)
    assert first == {
        "items": items.tolist(), "per": 3, "steps": 7, "solver": "ancestral", "seed": 5, "batch_size": 9,
        "eta": 0.0, "guidance": 1.0, "clip": True,
    }  # fmt: skip
    again = common.redraw(model, h, items, config)
    for each in asked[1:]:
        assert {name: each[name] for name in ("per", "steps", "solver", "seed")} == {
            "per": 3, "steps": 7, "solver": "ancestral", "seed": 5,
        }  # fmt: skip
    torch.testing.assert_close(again.images, drawn, atol=1e-5, rtol=1e-4)
    assert common.draw(model, h, items, config, per=1).shape[1] == 1


def test_progress_of_redrawing_counts_sources() -> None:
    """Of five sources with three samples each two are drawn at a time, and each one is encoded beside its own."""
    model, done = small.quick_model(), list[tuple[int, int]]()
    h = torch.randn(5, small.DIM, generator=torch.Generator().manual_seed(2))
    config = common.ExperimentConfig(steps=1, batch_size=7, per=3)
    found = common.redraw(model, h, torch.arange(5), config, lambda *each: done.append(each))
    assert done == [(2, 5), (4, 5), (5, 5)]
    for images, read in zip(found.images, found.representations, strict=True):
        torch.testing.assert_close(model.encode(images), read)


def test_the_spread_of_samples_is_in_levels_of_eight_bits() -> None:
    samples = torch.rand(4, 3, 3, 8, 8) * 2 - 1
    want = [np.std((each.numpy() + 1) * 127.5, axis=0, ddof=1).mean() for each in samples.double()]
    assert common.spread_of(samples).tolist() == pytest.approx(want)


def test_sources_are_sixty_four_from_first_to_last_unless_asked() -> None:
    data = photographs(100, 8)
    for asked, count in ((0, 64), (30, 30), (100, 100)):
        places = common.choose_sources(data, asked).tolist()
        assert len(places) == len(set(places)) == count
        assert (places[0], places[-1]) == (0, 99)
        assert max(b - a for a, b in itertools.pairwise(places)) <= -(-99 // (count - 1))
    assert len(common.choose_sources(data, 0, 25)) == 25
    assert len(common.choose_sources(photographs(40, 8), 0)) == 40


def made_up_sweep(
    name: str, slope: Interval, kept: bool | None, r2: dict[str, float] | None = None, count: int = 24
) -> sweeps.Sweep:
    """A sweep whose numbers are all known: r 0.6, chance 0.2, detectable 0.4, p 0.01; h moves by a half."""
    each, size = AUGMENTATIONS[name], (1, len(AUGMENTATIONS[name].magnitudes) + 1, 3, 8, 8)
    shape = (count, len(each.magnitudes))
    verdict = Verdict(kept, slope, 0.4, 0.01, "as it is")
    found = Recovery(Interval(0.6, 0.5, 0.7), 0.2, verdict, count, count * len(each.magnitudes))
    ones = np.ones(count)
    read = Readout(
        0.5 * ones, ones, {kind: value * ones for kind, value in (r2 or {}).items()}, dict.fromkeys(r2 or {}, ones)
    )
    changes = Changes(torch.ones(shape).double(), torch.ones(shape).double(), torch.ones(count).double())
    images = torch.arange(size[1], dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(size)
    return sweeps.Sweep(each, changes, found, read, images, 100 + images)


def made_up_invariance(
    *found: sweeps.Sweep, read_on: int = 60, kept: dict[str, Changes] | None = None
) -> sweeps.Invariance:
    return sweeps.Invariance(
        "it", torch.arange(24), {each.augmentation.name: each for each in found}, kept or {}, 0.0, (), read_on
    )


def test_tables_of_invariance_have_each_number_in_its_column() -> None:
    wide = Interval(0.3, 0.1, 0.5)
    read, unread = {LINEAR: 0.25, BENT: 0.75}, {BENT: 0.5}
    found = made_up_invariance(made_up_sweep("hue", wide, None, read), made_up_sweep("grayscale", wide, True, unread))
    rows = invariance.recovered_table(found)
    assert rows.columns[2:] == ("slope", "verdict", "detectable slope", "r", "chance of |r|", "h moves")
    wanted: tuple[Any, ...] = (
        ("hue", "hue", wide, "inconclusive", 0.4, Interval(0.6, 0.5, 0.7), 0.2, pytest.approx(0.5)),
        ("grayscale", "saturation", wide, "kept", 0.4, Interval(0.6, 0.5, 0.7), 0.2, pytest.approx(0.5)),
    )
    assert rows.rows == wanted
    readouts = invariance.readout_table(found)
    assert readouts.columns[2:4] == ("linear R^2", "non-linear R^2")
    values = [[getattr(cell, "value", cell) for cell in row[2:4]] for row in readouts.rows]
    assert values == [pytest.approx([0.25, 0.75]), [None, pytest.approx(0.5)]]
    assert "left-out images of 60" in readouts.note
    alone = invariance.readout_table(dataclasses.replace(found, read_on=0))
    assert "at least 50 images" in alone.note


@pytest.mark.parametrize("kept", [True, False, None])
def test_what_a_run_could_have_found_is_told_where_it_found_nothing(kept: bool | None) -> None:
    each = made_up_sweep("grayscale", Interval(0.3, 0.1, 0.5), kept, {LINEAR: 0.25})
    said = invariance.sentence(each)
    assert said.startswith(
        "slope 0.3 [0.1, 0.5]: as it is; r = 0.6 [0.5, 0.7], chance 0.2; R^2 of readouts: linear 0.25"
    )
    assert ("such a run calls a slope of 0.40 kept in 80 %" in said) is (kept is None)
    found = invariance._finding(each)
    assert (found.holds, found.p, found.subject, found.group) == (kept, 0.01, "saturation", "the representation keeps")
    begins = {True: "The representation keeps", False: "The representation drops", None: "Inconclusive: the repres"}[
        kept
    ]
    assert found.sentence.startswith(begins)
    assert found.sentence.endswith("saturation (slope 0.3 [0.1, 0.5]).")


def test_properties_that_images_share_with_samples_are_resampled_by_the_settings() -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(2, 24, 1, generator=rng).double()
    kept = {"mass-x": Changes(values[0], values[0] + values[1], torch.ones(24).double())}
    found = made_up_invariance(made_up_sweep("hue", Interval(0.3, 0.1, 0.5), None), kept=kept)
    (first,), (again,), (other,), (more,) = (
        invariance.kept_table(found, InvarianceConfig(seed=seed, resamples=resamples)).rows
        for seed, resamples in ((1, 200), (1, 200), (2, 200), (1, 300))
    )
    assert first[0] == "mass-x"
    assert isinstance(first[2], Interval)
    assert first[2].value == pytest.approx(np.corrcoef(values[0].flatten(), (values[0] + values[1]).flatten())[0, 1])
    assert first == again
    assert other[2] != first[2] != more[2]


def test_rows_of_the_figure_are_images_and_the_samples_of_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(invariance, "image_sheet", lambda *given, **named: seen.append((given, named)))
    one, other = (made_up_sweep("grayscale", Interval(0.3, 0.1, 0.5), None) for _ in range(2))
    invariance.rows([one, dataclasses.replace(other, samples=one.samples + 100)], ["a", "b"])
    ((lines,), named) = seen[0]
    assert named["row_titles"] == ["image", "a", "b"]
    assert named["column_titles"] == ["as it is", "0.33", "0.67", "1"]
    pixels = [[image.getpixel((0, 0))[0] for image in line] for line in lines]
    assert pixels == [[0, 1, 2, 3], [100, 101, 102, 103], [200, 201, 202, 203]]


def test_the_figure_of_a_sweep_shows_sources_of_all_parts_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside each the samples of its own versions; sources may lie by class, so the first ones alone would not do."""

    def half(h: Tensor, *, per: int, **_: object) -> Tensor:
        return 0.5 * h.view(-1, 1, 3, 16, 16).repeat(1, per, 1, 1, 1)

    data, each = photographs(24), AUGMENTATIONS["hue"]
    config = dataclasses.replace(QUICK, augmentations=("hue",), shown=3, fitted_on=0)
    found = measure(oracle(monkeypatch, half), data, config).sweeps["hue"]
    plain = data.floats(torch.tensor([0, 12, 23]))
    want = torch.stack([plain, *(each(plain, magnitude) for magnitude in each.magnitudes)], dim=1)
    for got, images in ((found.images, want), (found.samples, 0.5 * want)):
        assert got.shape == images.shape
        for number in range(3):
            torch.testing.assert_close(got[number].int(), to_uint8(images[number]).int(), atol=1, rtol=0)


def test_what_samples_share_with_their_image_is_a_mean_over_them() -> None:
    """A sum of directions for a hue, of which the longer ones count more."""

    def flat(*colors: tuple[float, float, float]) -> Tensor:
        return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 8, 8)

    red, green, faint = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (0.5, -0.5, -0.5)
    plain = flat(red, faint)
    base = torch.stack([flat(red, green, green), flat(faint, faint, green)])
    bright = sweeps.kept_values(PROPERTIES["brightness"], plain, base)
    levels = {red: 0.299, green: 0.587, faint: 0.25 + 0.5 * 0.299}
    assert bright.image[:, 0].tolist() == pytest.approx([levels[red], levels[faint]], abs=1e-6)
    assert bright.samples[:, 0].tolist() == pytest.approx(
        [(levels[red] + 2 * levels[green]) / 3, (2 * levels[faint] + levels[green]) / 3], abs=1e-6
    )
    hue = sweeps.kept_values(PROPERTIES["hue"], plain, base)
    of_two = [np.angle(1 + 2 * np.exp(2j * np.pi / 3), deg=True), np.angle(1 + np.exp(2j * np.pi / 3), deg=True)]
    assert hue.samples[:, 0].tolist() == pytest.approx(of_two, abs=1e-4)
    assert hue.weight.tolist() == pytest.approx([1, 0.5], abs=1e-6)
    assert (hue.period, bright.period) == (360.0, None)


def test_an_engine_that_depends_on_the_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifts(h: Tensor, *, per: int, **_: object) -> Tensor:
        return torch.full((len(h), per, 3, 16, 16), 0.25 if len(h) == 1 else 0.0)

    config = dataclasses.replace(QUICK, augmentations=("hue",), fitted_on=0)
    result = invariance.run(oracle(monkeypatch, drifts), photographs(24), config)
    assert result.settings["same_noise_difference"] == 0.25


def test_a_change_of_hue_counts_by_the_sources_chroma_and_settings_reach_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean over samples of each source, whose samples before are those with the same number."""
    moved = [small.make_images(24 * 2, 16, seed=seed).view(24, 2, 3, 16, 16) for seed in range(9)]
    calls = iter(range(9))

    def drawn(h: Tensor, *, per: int, **_: object) -> Tensor:
        parts = [moved[next(calls)] for _ in range(max(1, len(h) // 24))]
        return torch.cat(parts)[: len(h)]

    asked: list[tuple[Any, ...]] = []

    def noted(changes: Changes, *given: Any, **more: Any) -> Any:
        asked.append((*given, *more.values()))
        return recovery(changes, *given, **more)

    monkeypatch.setattr(sweeps, "recovery", noted)
    data = photographs(24)
    config = dataclasses.replace(QUICK, augmentations=("hue",), per=2, seed=6, resamples=150, fitted_on=0)
    found = measure(oracle(monkeypatch, drawn), data, config).sweeps["hue"].changes
    assert asked[0][:2] == (150, 6)
    hue = PROPERTIES["hue"]
    torch.testing.assert_close(found.weight, hue(data.floats(slice(None))).abs())
    before, after = hue(moved[0].flatten(0, 1)).view(24, 2), hue(moved[2].flatten(0, 1)).view(24, 2)
    want = torch.angle((after * before.conj()).sum(dim=1)).rad2deg()
    torch.testing.assert_close(found.samples[:, 0], want)


def test_readouts_are_fitted_on_images_of_all_parts_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    class Stop(Exception):
        """The rest need not be measured."""

    def reader(_: object, images: Tensor, fits: bool) -> None:
        given.append(images)
        assert fits
        raise Stop

    monkeypatch.setattr(sweeps, "Reader", reader)
    data = photographs(100, 8)
    with pytest.raises(Stop):
        measure(small.quick_model(), data, dataclasses.replace(QUICK, sources=20, fitted_on=60))
    assert torch.equal(given[0][[0, -1]], data.floats(torch.tensor([0, 99])))
    assert len(given[0]) == 60
