"""Distances from h: with decoders that obey, drift and are deaf; groups by hand; the chart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import histograms, nearness
from rcdm_fast.analysis.nearness import ANY, BLURRED, CLASS, NEAREST, SAMPLES, VIEWS, Group, NearnessConfig, nearer
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import blur_images, to_uint8
from rcdm_fast.metrics.intervals import Interval
from tests.test_analysis import oracle
from tests.test_analysis_neighbors import deaf, obeys

QUICK = NearnessConfig(sources=24, per=2, steps=2, views=3, others=4, neighbor=5, resamples=200)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Noise around four colors, which are the classes; every image lies nearest to those of its class."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(80) % 4
    colors = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [-0.5, 0.5, 0], [0.5, 0.5, 0]])[labels]
    images = colors[:, :, None, None] + 0.2 * torch.randn(80, 3, 16, 16, generator=generator)
    return ImageSet(to_uint8(images.clamp(-1, 1)), labels, ("a", "b", "c", "d"), (), "made-up")


def rows(found: Analysis) -> dict[str, tuple[Interval, Interval | None]]:
    return {str(row[0]): (row[1], row[2]) for row in found.tables[0].rows}  # type: ignore[misc]


def test_a_decoder_that_obeys_is_nearer_than_anything(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    found = nearness.run(oracle(monkeypatch, obeys), data, QUICK)
    table = rows(found)
    assert table[SAMPLES][0].value == pytest.approx(0, abs=1e-6)
    for name, (distance, fraction) in table.items():
        if name != SAMPLES:
            assert distance.low > 0
            assert fraction is not None
            assert fraction.value == 1
    assert table["nearest neighbor"][0].value == pytest.approx(1, abs=1e-6)
    assert 1 < table["neighbor number 5"][0].value < table[ANY][0].value
    assert table[CLASS][0].value < 0.8 * table[ANY][0].value
    assert [each.holds for each in found.findings] == [True, True]
    assert found.settings["sources"] == 24


def test_a_deaf_decoder_is_nearer_than_nothing(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    found = nearness.run(oracle(monkeypatch, deaf), data, QUICK)
    assert [each.holds for each in found.findings] == [False, False]
    assert rows(found)[SAMPLES][0].low > rows(found)[CLASS][0].high


def test_samples_that_are_other_images_of_the_class_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet
) -> None:
    """Such samples show the class and nothing more: against the class the verdict has to stay open."""
    whole = data.floats(slice(None))

    def draw(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        return torch.stack([whole[[(int(item) + 4 * (1 + 3 * n)) % 80 for n in range(per)]] for item in items])

    found = nearness.run(oracle(monkeypatch, draw), data, dataclasses.replace(QUICK, others=19))
    views, of_class = found.findings
    assert "views" in views.claim
    assert of_class.holds is None
    fraction = rows(found)[CLASS][1]
    assert fraction is not None
    assert fraction.value == pytest.approx(0.5, abs=0.06)


def test_nearer_is_counted_in_pairs_of_one_source() -> None:
    samples = Group("samples", [np.array([1.0, 3.0]), np.array([10.0])])
    others = Group("others", [np.array([2.0, 3.0]), np.array([9.0, 11.0, 12.0, 10.0])])
    assert nearer(samples, others).tolist() == [(2 + 0.5) / 4, (2 + 0.5) / 4]
    assert samples.means().tolist() == [2.0, 10.0]


def test_views_are_keyed_by_the_source(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """A source's views are the same whichever other sources are asked for, and differ among themselves."""
    encoder = oracle(monkeypatch, obeys).encoder
    assert encoder is not None
    many = nearness._views(encoder, data, torch.tensor([3, 7, 9]), QUICK)
    alone = nearness._views(encoder, data, torch.tensor([7]), QUICK)
    torch.testing.assert_close(many[1:2], alone)
    assert (many[0, 0] - many[0, 1]).abs().max() > 0.01
    same = dataclasses.replace(data, pixels=data.pixels[:1].expand(80, -1, -1, -1))
    first, second = nearness._views(encoder, same, torch.tensor([0, 1]), QUICK)
    assert (first - second).abs().max() > 0.01
    other = nearness._views(encoder, data, torch.tensor([7]), dataclasses.replace(QUICK, seed=1))
    assert (other - alone).abs().max() > 0.01


def test_neither_the_source_nor_a_copy_of_it_is_held_against_it(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet
) -> None:
    twice = dataclasses.replace(data.subset(torch.arange(160) % 80), photographs=None)
    found = nearness.run(oracle(monkeypatch, obeys), twice, dataclasses.replace(QUICK, others=200))
    table = rows(found)
    assert table["nearest neighbor"][0].value == pytest.approx(1, abs=1e-6)
    fraction = table[ANY][1]
    assert fraction is not None
    assert fraction.value == 1  # a copy would be as near as the sample itself


def test_crops_of_its_photograph_are_not_held_against_a_source(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """A crop that differs by a shade would be the nearest neighbor, and the unit of nothing."""
    shade = (data.pixels.to(torch.int16) + 1).clamp(max=255).to(torch.uint8)
    both = torch.cat([data.pixels, shade])
    crops = ImageSet(both, None, (), (), "crops", photographs=torch.arange(160) % 80)
    apart = dataclasses.replace(crops, photographs=None)
    with_crops, without = (nearness.run(oracle(monkeypatch, obeys), each, QUICK) for each in (crops, apart))
    assert with_crops.settings["unit"] > 3 * without.settings["unit"]


def test_without_labels_nothing_is_said_of_classes(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    job = Job(oracle(monkeypatch, obeys), dataclasses.replace(data, labels=None), settings=dataclasses.asdict(QUICK))
    found = EXPERIMENTS["distances"].run(job)
    assert (found.name, [each.claim for each in found.findings]) == (
        "distances",
        [f"samples lie nearer to h than {nearness.HELD_AGAINST[VIEWS]}"],
    )
    assert CLASS not in rows(found)
    assert "Nothing is said of classes" in found.tables[0].note


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    model = oracle(monkeypatch, obeys)
    with pytest.raises(ConfigError, match="neighbor number 80 needs more images than 80"):
        nearness.run(model, data, dataclasses.replace(QUICK, neighbor=80))
    same = dataclasses.replace(data.subset(torch.arange(80) % 3), photographs=None)
    with pytest.raises(ConfigError, match="too many images are the same"):
        nearness.run(model, same, dataclasses.replace(QUICK, neighbor=60))
    with pytest.raises(ConfigError, match="at least 20"):
        nearness.run(model, data, dataclasses.replace(QUICK, sources=19))
    monkeypatch.setattr(model, "_encoder", None)
    with pytest.raises(ConfigError, match="encoder"):
        nearness.run(model, data, QUICK)


def test_histograms_show_where_values_lie() -> None:
    low, high = np.linspace(0, 1, 50), np.full(50, 9.0)
    chart = np.asarray(histograms.histograms([("low", low), ("high", high)], "title", plot=600))
    colors = [np.argwhere((chart == tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))).all(axis=2))
              for color in histograms.COLORS[:2]]  # fmt: skip
    assert colors[0][:, 1].max() < colors[1][:, 1].min()
    assert colors[0][:, 0].max() < colors[1][:, 0].min()
    with pytest.raises(ValueError, match="needs rows"):
        histograms.histograms([], "none")
    assert histograms.histograms([("still", np.zeros(3))], "all zero").width > 0


@pytest.mark.parametrize(("most", "step"), [(9.0, 2.0), (4.0, 1.0), (0.7, 0.1), (25.0, 5.0), (1.0, 0.2)])
def test_steps_of_the_axis_are_round(most: float, step: float) -> None:
    assert histograms._round_step(most) == pytest.approx(step)


def _lanes(rows: list[tuple[str, np.ndarray]], plot: int = 600) -> tuple[np.ndarray, int]:
    """The chart, and where its axis begins (its title is short)."""
    chart = np.asarray(histograms.histograms(rows, "t", plot=plot)).astype(int)
    return chart, chart.shape[1] - plot - 60


def _painted(chart: np.ndarray, number: int) -> np.ndarray:
    color = tuple(int(histograms.COLORS[number][at : at + 2], 16) for at in (1, 3, 5))
    found: np.ndarray = (chart == color).all(axis=2)
    return found


def test_what_lies_beyond_the_axis_is_in_the_last_bin() -> None:
    chart, left = _lanes([("a", np.concatenate([np.linspace(0, 1, 991), np.full(9, 50.0)]))])
    heights = _painted(chart, 0).sum(axis=0)
    middle, last = heights[left + 305], heights[left + 595]
    assert last == pytest.approx(66, abs=2)
    assert middle == pytest.approx(66 * 16.5 / 25.5, abs=5)


def test_a_line_is_at_the_median() -> None:
    values = np.concatenate([np.full(60, 0.2), np.full(40, 1.0)])
    chart, left = _lanes([("a", values)])
    black = (chart == 0).all(axis=2).sum(axis=0)
    assert abs(int(black[left - 5 :].argmax()) + left - 5 - (left + 120)) <= 1
    assert black[left + 600 * 52 // 100] < 20  # the mean


def test_every_row_reaches_the_same_height() -> None:
    rows = [("one", np.full(30, 0.5)), ("many", np.linspace(0, 1, 600))]
    chart, _ = _lanes(rows)
    high = [np.ptp(np.nonzero(_painted(chart, number))[0]) for number in (0, 1)]
    assert high == pytest.approx([66, 66], abs=2)


def test_real_images_are_counted_from_the_nearest_and_drawn_by_the_seed(data: ImageSet) -> None:
    gallery, places = torch.arange(1.0, 81)[:, None] ** 1.5, [3, 41]
    labels = data.labels
    assert labels is not None

    def groups(seed: int) -> dict[str, list[list[float]]]:
        found = nearness._real(data, torch.tensor(places), gallery, dataclasses.replace(QUICK, seed=seed))
        return {each.name: [far.tolist() for far in each.far] for each in found}

    found = groups(0)
    for number, place in enumerate(places):
        far = {other: abs(float(gallery[other] - gallery[place])) for other in range(80) if other != place}
        ordered = sorted(far.values())
        assert found[NEAREST][number] == pytest.approx(ordered[:1])
        assert found["neighbor number 5"][number] == pytest.approx(ordered[4:5])
        alike = [far[other] for other in far if labels[other] == labels[place]]
        for name, known in ((ANY, list(far.values())), (CLASS, alike)):
            drawn = found[name][number]
            assert len(drawn) == 4
            assert all(min(abs(each - other) for other in known) < 1e-3 for each in drawn)
            assert sorted(drawn) != pytest.approx(sorted(known[:4]))  # not those that come first
    assert groups(0) == found
    assert all(groups(1)[name] != found[name] for name in (ANY, CLASS))


def test_as_many_views_as_are_asked_for_and_a_blur_of_one_pixel(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet
) -> None:
    encoder, places = oracle(monkeypatch, obeys).encoder, torch.tensor([5, 2])
    assert encoder is not None
    for views in (1, 3):
        asked = dataclasses.replace(QUICK, views=views)
        assert nearness._views(encoder, data, places, asked).shape == (2, views, 768)
    blurred = nearness._blurred(encoder, data, places)
    torch.testing.assert_close(blurred[:, 0], blur_images(data.floats(places), 1.0).flatten(1))


def test_the_chart_has_every_distance_and_the_sentence_the_tables_means(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet
) -> None:
    drawn: list[tuple[str, int]] = []
    done: list[tuple[int, int]] = []

    def chart(rows: list[tuple[str, np.ndarray]], _: str) -> object:
        drawn.extend((name, len(values)) for name, values in rows)
        return real(rows, _)

    real = histograms.histograms
    monkeypatch.setattr(histograms, "histograms", chart)
    found = nearness.run(oracle(monkeypatch, deaf), data, QUICK, lambda *each: done.append(each))
    assert done[-1] == (24, 24)
    counts = {SAMPLES: 2, BLURRED: 1, VIEWS: 3, NEAREST: 1, "neighbor number 5": 1, CLASS: 4, ANY: 4}
    assert dict(drawn) == {name: 24 * count for name, count in counts.items()}
    table = rows(found)
    for finding, name in zip(found.findings, (VIEWS, CLASS), strict=True):
        means = (table[each][0].value for each in (SAMPLES, name))
        assert finding.measured.endswith("mean distances {:.3g} and {:.3g}".format(*means))


def test_nothing_is_said_of_classes_where_a_source_is_the_only_one_of_its_own(data: ImageSet) -> None:
    labels = torch.arange(80) % 4
    labels[7] = 9
    alone = dataclasses.replace(data, labels=labels)
    gallery = torch.arange(80.0)[:, None]
    names = [each.name for each in nearness._real(alone, torch.tensor([3, 7]), gallery, QUICK)]
    assert CLASS not in names
    assert CLASS in [each.name for each in nearness._real(alone, torch.tensor([3, 4]), gallery, QUICK)]
