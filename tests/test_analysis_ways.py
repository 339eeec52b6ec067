"""Ways between representations, and inversion with an exchanged representation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import interpolate, invert
from rcdm_fast.analysis.interpolate import InterpolateConfig, fraction_of_way
from rcdm_fast.analysis.invert import InvertConfig
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from tests import small, training_process
from tests.test_analysis import Flat, photographs

WAYS = InterpolateConfig(sources=20, frames=5, steps=2, resamples=200)
BACK = InvertConfig(sources=20, steps=10, resamples=200)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return photographs(60)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose representation is the image and whose samples are the representation."""
    model = small.quick_model()
    monkeypatch.setattr(model, "_encoder", Flat())

    def draw(h: Tensor, *, per: int, **_: object) -> Tensor:
        return h.view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)

    monkeypatch.setattr(model, "sample", small.asked(draw))
    return model


def column(found: Analysis, table: int, place: int) -> list[float]:
    cells = [row[place] for row in found.tables[table].rows]
    return [cell.value for cell in cells if isinstance(cell, Interval)]


def test_share_of_a_way() -> None:
    start, end = torch.tensor([1.0, 0]), torch.tensor([3.0, 0])
    assert fraction_of_way(torch.tensor([[1.0, 9], [2, -4], [3, 0], [5, 1]]), start, end).tolist() == [0, 0.5, 1, 2]


def test_an_obedient_decoder_goes_evenly(mirror: Model, data: ImageSet) -> None:
    found = interpolate.run(mirror, data, WAYS)
    assert column(found, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-5)
    assert [finding.holds for finding in found.findings] == [True, True]
    asked = [row[0] for row in found.tables[0].rows]
    assert asked == [0, 0.25, 0.5, 0.75, 1]


def test_a_deaf_decoder_goes_nowhere(mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))

    def draw(h: Tensor, *, per: int, **_: object) -> Tensor:
        return small.make_images(len(h), 16, seed=next(calls))[:, None]

    monkeypatch.setattr(mirror, "sample", small.asked(draw))
    found = interpolate.run(mirror, data, WAYS)
    assert [finding.holds for finding in found.findings] == [False, False]


def ways(shape: str, seed: int, noise: float = 0.1, frames: int = 7, pairs: int = 32) -> np.ndarray:
    """Shares along ways that are lines, or steps at places of their own."""
    rng = np.random.default_rng(seed)
    place = np.linspace(0, 1, frames)[None].repeat(pairs, axis=0)
    if shape == "step":
        place = (place > rng.uniform(0.2, 0.8, (pairs, 1))).astype(float)
    return place + noise * rng.standard_normal(place.shape)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_lines_and_steps_are_told_apart(noise: float) -> None:
    """Both grow with the frame; steps at various places even have a straight mean."""
    config = InterpolateConfig(resamples=200)
    for seed in range(20):
        line, step = (
            interpolate._finding("linear", ways(shape, seed, noise), config).holds for shape in ("line", "step")
        )
        assert line is True
        assert step is False


@pytest.mark.parametrize(("whole", "holds"), [(0.4, False), (0.6, True), (-1.0, False)])
def test_a_line_must_go_more_than_half_of_the_way(whole: float, holds: bool) -> None:
    assert (
        interpolate._finding("linear", whole * ways("line", 0, 0.02), InterpolateConfig(resamples=200)).holds is holds
    )


def test_line_step_rise_and_jump_by_hand() -> None:
    line, late = np.linspace(0, 1, 5), np.array([0, 0, 0, 1.0, 1])
    shares = np.stack([line, late, 0.5 * late, np.zeros(5)])
    assert interpolate.evenness(shares) == pytest.approx([1, -1, -1, 0])
    assert interpolate.rise(shares) == pytest.approx([1, 1.2, 0.6, 0])
    assert interpolate.largest_jump(shares) == pytest.approx([0.25, 1, 0.5, 0])
    back = np.stack([1 - line, 1 - late, [0, 0.2, 1, 0.1, 0.3]])  # a way back, a step back, and one on the way
    assert interpolate.largest_jump(back) == pytest.approx([-0.25, 0, 0.8])
    assert interpolate.rise(back) == pytest.approx([-1, -1.2, 0.2])
    assert interpolate.evenness(back)[:2] == pytest.approx([1, -1])
    at_the_ends = np.array([[0, 0, 0, 0, 1.0], [0, 1.0, 1, 1, 1]])
    assert interpolate.evenness(at_the_ends) == pytest.approx([-1, -1])
    bent = np.array([[0, 0.1, 0.5, 0.9, 1]])
    residual = np.polyfit(np.arange(5), bent[0], 1, full=True)[1][0]
    levels = [np.var(bent[0, :at]) * at + np.var(bent[0, at:]) * (5 - at) for at in range(1, 5)]
    assert interpolate.evenness(bent)[0] == pytest.approx((min(levels) - residual) / (min(levels) + residual))


@pytest.mark.long
def test_a_real_model_runs_both() -> None:
    data, model = training_process.data(), small.quick_model()
    found = interpolate.run(model, data, dataclasses.replace(WAYS, solver="ddim"))  # what auto is in two steps
    assert found.figures["ways"].width > 7 * 64
    again = EXPERIMENTS["interpolate"].run(
        Job(model, data, settings={"sources": 20, "frames": 5, "steps": 2, "resamples": 200})
    )
    assert again.as_json() == found.as_json()


@pytest.mark.long
def test_a_round_trip_is_nearer_than_a_fresh_sample_with_any_h() -> None:
    """So it says nothing about what h lacks, and no finding does."""
    data, model = training_process.data(), small.quick_model()
    found = invert.run(model, data, BACK)
    back, fresh, wrong = column(found, 0, 1)
    assert back < fresh
    assert wrong < fresh
    assert all("x_T" not in finding.claim for finding in found.findings)
    more = invert.run(model, data, dataclasses.replace(BACK, steps=100))
    assert column(more, 0, 1)[0] < back


def test_exchange(mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that draws h alone takes everything from h; one that draws x_T alone takes nothing."""
    monkeypatch.setattr(mirror, "invert", lambda images, h, *_, **__: images)

    def from_noise(h: Tensor, *, noise: Tensor | None, **_: object) -> Tensor:
        return h.view(-1, 1, 3, 16, 16).flip(0) if noise is None else noise

    found = invert.run(mirror, data, BACK)
    assert column(found, 1, 1) == [1, 1]
    assert [finding.holds for finding in found.findings] == [True, True]
    monkeypatch.setattr(mirror, "sample", small.asked(from_noise))
    found = invert.run(mirror, data, BACK)
    assert column(found, 1, 1) == [0, 0]
    assert [finding.holds for finding in found.findings] == [False, False]


def test_what_is_refused(data: ImageSet) -> None:
    model = small.quick_model()
    with pytest.raises(ConfigError, match="at least 20"):
        interpolate.run(model, data, dataclasses.replace(WAYS, sources=3))
    with pytest.raises(ConfigError, match="at least 20"):
        invert.run(model, data, dataclasses.replace(BACK, sources=3))
    with pytest.raises(ConfigError, match="3 frames"):
        InterpolateConfig(frames=2)
    model._encoder = None
    with pytest.raises(ConfigError, match="encoder"):
        interpolate.run(model, data, WAYS)
    with pytest.raises(ConfigError, match="encoder"):
        invert.run(model, data, BACK)


def test_each_kind_of_way_is_asked_for_and_stands_under_its_own_name(
    mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind obeys, the other stays where it begins; ends of the figure are the images of the pair."""
    asked: list[Any] = []

    def between(a: Tensor, b: Tensor, frames: int, mode: str) -> Tensor:
        asked.append((frames, mode))
        weights = torch.linspace(0, 1, frames) * (mode == "linear")
        return torch.stack([torch.lerp(a, b, float(each)) for each in weights])

    def sample(h: Tensor, config: Any, *, items: list[int], batch_size: int) -> Tensor:
        drawn.append((config, items, batch_size))
        return h.view(-1, 1, 3, 16, 16)

    sheets: list[Any] = []
    drawn: list[Any] = []
    monkeypatch.setattr(interpolate, "interpolation_path", between)
    monkeypatch.setattr(mirror, "sample", sample)
    monkeypatch.setattr(interpolate, "image_sheet", lambda rows, **named: sheets.append((rows, named)))
    done: list[tuple[int, int]] = []
    config = dataclasses.replace(WAYS, batch_size=3, shown=2)
    found = interpolate.run(mirror, data, config, lambda *each: done.append(each))
    assert asked == [(5, mode) for _ in range(20) for mode in ("linear", "spherical")]
    assert drawn == [(config, [pair] * 5, 3) for pair in range(20) for _ in range(2)]  # each pair from its own x_T
    assert done == [(number, 20) for number in range(1, 21)]
    assert found.tables[0].columns[1:] == found.tables[1].columns[1:] == ("linear", "spherical")
    assert column(found, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-5)
    assert column(found, 0, 2) == pytest.approx([0] * 5, abs=1e-5)
    assert column(found, 1, 1) == pytest.approx([1, 1, 0.25], abs=1e-4)
    assert column(found, 1, 2) == pytest.approx([0, 0, 0], abs=1e-4)
    assert [(each.holds, "linear" in each.claim) for each in found.findings] == [(True, True), (False, False)]
    ((rows, named),) = sheets
    assert named["row_titles"] == ["linear", "spherical"] * 2
    for row, (a, b) in zip(rows[::2], interpolate._pairs(data, config).tolist(), strict=False):
        for shown, place in ((row[0], a), (row[-1], b), (row[1], a), (row[-2], b)):
            assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), data.pixels[place].numpy())


def test_pairs_are_of_different_images_by_the_seed_and_thirty_two_unless_asked(data: ImageSet) -> None:
    pairs = interpolate._pairs(data, InterpolateConfig(seed=1))
    assert pairs.shape == (30, 2)  # of 60 images
    assert len(pairs.unique()) == 60
    assert interpolate._pairs(data, InterpolateConfig(seed=1)).tolist() == pairs.tolist()
    assert interpolate._pairs(data, InterpolateConfig(seed=2)).tolist() != pairs.tolist()
    assert len(interpolate._pairs(photographs(90, 8), InterpolateConfig())) == 32
    assert len(interpolate._pairs(data, InterpolateConfig(sources=21))) == 21
    with pytest.raises(ConfigError, match="the data has 30"):
        interpolate._pairs(data, InterpolateConfig(sources=31))


def test_errors_of_round_trips_stand_under_what_they_are_of(
    mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own h an image comes back, with another's half as strong; from fresh noise all is gray."""
    asked: list[dict[str, Any]] = []

    def back(images: Tensor, h: Tensor, config: Any, **named: Any) -> Tensor:
        asked.append({**named, "config": config})
        own = (h == images.flatten(1)).all(dim=1)
        return images * torch.where(own, 1.0, 0.5)[:, None, None, None]

    def drawn(h: Tensor, *, noise: Tensor | None, **_: object) -> Tensor:
        return torch.zeros(len(h), 1, 3, 16, 16) if noise is None else noise

    monkeypatch.setattr(mirror, "invert", back)
    monkeypatch.setattr(mirror, "sample", small.asked(drawn))
    done: list[tuple[int, int]] = []
    config = dataclasses.replace(BACK, iterations=3, batch_size=6)
    found = invert.run(mirror, data, config, lambda *each: done.append(each))
    assert asked == [{"iterations": 3, "batch_size": 6, "config": config}] * 2
    assert done == [(part, 5) for part in range(1, 6)]
    sources = np.linspace(0, 59, 20).round().astype(int)
    levels = data.pixels.numpy()[sources].astype(float) - 127.5
    strength = float(np.sqrt((levels**2).mean(axis=(1, 2, 3))).mean())
    assert [row[0] for row in found.tables[0].rows] == [
        "own h, own x_T", "own h, fresh noise", "the next one's h, x_T found with it",
    ]  # fmt: skip
    assert column(found, 0, 1) == pytest.approx([0, strength, strength / 2], abs=1e-3)
    assert found.settings["sources"] == 20


def test_the_figure_of_exchanges_has_the_next_image_at_its_end(
    mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[Any] = []
    monkeypatch.setattr(mirror, "invert", lambda images, h, *_, **__: images)
    monkeypatch.setattr(invert, "image_sheet", lambda rows, **_: sheets.append(rows))
    invert.run(mirror, data, dataclasses.replace(BACK, shown=2))
    sources = np.linspace(0, 59, 20).round().astype(int)
    (rows,) = sheets
    assert len(rows) == 2
    for number, row in enumerate(rows):  # samples are what h says
        wanted = [sources[number + step] for step in (0, 0, 0, 1, 1)]
        for shown, place in zip(row, wanted, strict=True):
            assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), data.pixels[place].numpy())


def test_what_cannot_be_inverted_is_refused_before_anything_is_drawn() -> None:
    for changes in ({"solver": "ancestral"}, {"eta": 0.5}):
        with pytest.raises(ConfigError):
            InvertConfig(**changes)
    assert InvertConfig().solver == "ddim"


def test_sixty_four_images_are_inverted_unless_asked(mirror: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "invert", lambda images, h, *_, **__: images)
    found = invert.run(mirror, photographs(70), InvertConfig(resamples=100, steps=1))
    assert found.settings["sources"] == 64
