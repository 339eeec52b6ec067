"""The search for copies: decoders that copy training images, return their source, average, or draw something new."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import common, memorization, neighbors
from rcdm_fast.analysis.neighbors import NeighborsConfig, split
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import from_uint8, to_uint8
from rcdm_fast.metrics import nearest
from rcdm_fast.metrics.intervals import Floats
from tests import small
from tests.test_analysis import oracle

CONFIG = NeighborsConfig(sources=80, per=2, neighbors=3, steps=2, resamples=200)


def noise(count: int, seed: int) -> ImageSet:
    """Images that are near to none."""
    images = 0.3 * torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return ImageSet(to_uint8(images.clamp(-1, 1)), None, (), (), f"made-up {seed}")


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return noise(90, 0)


@pytest.fixture(scope="module")
def training() -> ImageSet:
    return noise(200, 1)


def source(h: Tensor, *, per: int, **_: object) -> Tensor:
    return h.view(-1, 1, 3, 16, 16).repeat(1, per, 1, 1, 1)


def verdicts(
    monkeypatch: pytest.MonkeyPatch, draw: object, data: ImageSet, training: ImageSet | None
) -> dict[str, tuple[bool | None, str]]:
    model = oracle(monkeypatch, draw)  # type: ignore[arg-type]
    found = neighbors.run(model, data, CONFIG, training=training)
    claims = [each for each in found.findings if "copies" in each.claim]
    return {each.subject: (each.holds, each.measured) for each in claims}


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_exact_training_images_are_found(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet, training: ImageSet, fraction: float
) -> None:
    pixels = training.floats(slice(None))

    def copied(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        drawn = 0.3 * torch.randn(len(h), per, 3, 16, 16, generator=torch.Generator().manual_seed(int(items[0])))
        drawn[:, : round(fraction * per)] = pixels[items % len(pixels)][:, None]
        return drawn

    found = verdicts(monkeypatch, copied, data, training)
    assert {name: holds for name, (holds, _) in found.items()} == {"by pixels": False, "by representations": False}
    assert f"{100 * fraction:.0f} % [" in found["by pixels"][1]


def test_sources_returned_say_nothing(monkeypatch: pytest.MonkeyPatch, data: ImageSet, training: ImageSet) -> None:
    """They are as far from training images as held-out images are, because they are held-out images."""
    found = verdicts(monkeypatch, source, data, training)
    assert [holds for holds, _ in found.values()] == [None, None]
    assert all("samples lie at their own sources" in measured for _, measured in found.values())


def test_something_new_is_no_copy(monkeypatch: pytest.MonkeyPatch, data: ImageSet, training: ImageSet) -> None:
    def new(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        return 0.3 * torch.randn(len(h), per, 3, 16, 16, generator=torch.Generator().manual_seed(9 + int(items[0])))

    found = verdicts(monkeypatch, new, data, training)
    assert [holds for holds, _ in found.values()] == [True, True]


def test_without_training_images_there_is_no_claim(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """Not even of a decoder that returns gallery images: nobody said that it was trained on them."""
    floats = data.floats(split(data, CONFIG)[1])

    def gallery(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        return floats[items % len(floats)][:, None].expand(-1, per, -1, -1, -1)

    ((holds, measured),) = verdicts(monkeypatch, gallery, data, None).values()
    assert holds is None
    assert "--train-data" in measured


def distances(draw: Tensor, h: Tensor, known: Tensor) -> tuple[Floats, Floats, Floats]:
    near = nearest.distance(draw.flatten(0, 1), known).view(draw.shape[:2])
    return near.numpy(), nearest.distance(h, known).numpy(), (draw - h[:, None]).norm(dim=2).double().numpy()


def test_few_copies_leave_it_open_and_averages_are_none() -> None:
    generator = torch.Generator().manual_seed(0)
    known, h, drawn = (torch.randn(count, 200, generator=generator) for count in (60, 80, 160))
    again = drawn.view(80, 2, 200).clone()
    assert memorization.compared("x", *distances(again, h, known), 0, CONFIG).finding().holds is True
    again[:8, 0] = known[:8]  # 5 % of all samples
    assert memorization.compared("x", *distances(again, h, known), 0, CONFIG).finding().holds is None
    again[:40, 0] = known[:40]  # 25 %, and the mean distance is still three quarters of the usual one
    found = memorization.compared("x", *distances(again, h, known), 0, CONFIG)
    assert found.ratio.value == pytest.approx(0.75, abs=0.03)
    assert found.finding().holds is False
    average = torch.zeros(80, 2, 200)
    found = memorization.compared("x", *distances(average, h, known), 0, CONFIG)
    assert 0.65 < found.ratio.value < 0.9
    assert found.finding().holds is True


def test_all_distances_are_in_units_of_the_sources_mean() -> None:
    generator = np.random.default_rng(0)
    samples, real, own = 5 + generator.random((300, 2)), 3 + generator.random(300), 2 + generator.random((300, 2))
    found = memorization.compared("x", samples, real, own, 0, CONFIG)
    assert found.samples.value == pytest.approx(samples.mean() / real.mean())
    assert found.real.value == pytest.approx(1)
    assert found.own.value == pytest.approx(own.mean() / real.mean())
    assert found.own.low < found.own.value < found.own.high < 1
    (row,) = [row for row in memorization.table([found]).rows if row[0] == "samples to source, x"]
    assert row[1] == found.own
    at_home = memorization.compared("x", samples, real, 0.3 * real.mean() * np.ones((300, 2)), 0, CONFIG)
    assert "samples lie at their own sources (0.3" in at_home.finding().measured


def test_twins_in_the_data_do_not_accuse_the_decoder() -> None:
    """A third of the sources have a twin among training images, and samples of those are it, as they should be."""
    far = np.ones(60)
    far[::3] = 0.01
    samples = np.stack([far, far], axis=1)
    found = memorization.compared("x", samples, far, np.ones((60, 2)), 0, CONFIG)
    assert found.near.value == found.near_real.value == pytest.approx(1 / 3)
    assert found.finding().holds is True
    others = np.ones((60, 2))
    others[1::3] = 0.01  # as often, but where nothing asks for it
    assert memorization.compared("x", others, far, np.ones((60, 2)), 0, CONFIG).finding().holds is None


def test_pixels_are_searched_in_parts_and_exactly(monkeypatch: pytest.MonkeyPatch, training: ImageSet) -> None:
    monkeypatch.setattr(nearest, "IMAGES", 64)
    images = torch.cat([training.floats(torch.tensor([3, 70, 199])), noise(4, 5).floats(slice(None))])
    every = (images.double()[:, None] - from_uint8(training.pixels).double()[None]).flatten(2).norm(dim=2)
    found = nearest.pixel_distance(images, training.pixels)
    torch.testing.assert_close(found, every.min(dim=1).values)
    assert found[:3].tolist() == [0, 0, 0]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, data: ImageSet, training: ImageSet) -> None:
    with pytest.raises(ConfigError, match="all sources are training images, by pixels"):
        verdicts(monkeypatch, source, data, data)
    small_ones = dataclasses.replace(training, pixels=training.pixels[:, :, :8, :8])
    with pytest.raises(ConfigError, match=r"training images of \(3, 8, 8\) cannot be compared with samples of \(3, 16"):
        verdicts(monkeypatch, source, data, small_ones)


def test_from_the_registry() -> None:
    plain, known = (ImageSet(to_uint8(small.make_images(50, seed=seed)), None, (), (), str(seed)) for seed in (0, 1))
    settings = {"sources": 20, "per": 1, "steps": 1, "resamples": 100}
    found = EXPERIMENTS["neighbors"].run(Job(small.quick_model(), plain, settings=settings, training=known))
    assert found.settings["training"] == "1"
    assert [row[0] for row in found.tables[-1].rows][:2] == ["samples, pixels", "held-out images, pixels"]
    assert "training images" in found.method


def test_samples_and_held_out_images_are_not_taken_for_each_other() -> None:
    """One of two samples of each source is a copy, and a tenth of the held-out images."""
    samples, own, real = np.ones((60, 2)), np.ones((60, 2)), np.ones(60)
    samples[:, 0], real[:6] = 0.1, 0.1
    found = memorization.compared("x", samples, real, own, 0, CONFIG)
    near, near_real = (common.percent(each) for each in (found.near, found.near_real))
    assert (near[:5], near_real[:5]) == ("50 % ", "10 % ")
    assert f"; {near} of samples are under 0.5, {near_real} of held-out real images" in found.finding().measured
    rows = memorization.table([found, dataclasses.replace(found, space="y")]).rows
    assert [row[0] for row in rows] == [
        f"{what}, {space}" for space in "xy" for what in ("samples", "held-out images", "samples to source")
    ]
    assert [row[1:] for row in rows[:3]] == [
        (found.samples, found.near), (found.real, found.near_real), (found.own, None),
    ]  # fmt: skip
    assert found.excess.value == pytest.approx(0.4)


def test_the_seed_and_the_number_of_resamples_reach_the_ratio() -> None:
    rng = np.random.default_rng(0)
    given = rng.random((60, 2)), 1 + rng.random(60), rng.random((60, 2))
    one, again, other, more = (
        memorization.compared("x", *given, 0, dataclasses.replace(CONFIG, seed=seed, resamples=resamples)).ratio
        for seed, resamples in ((3, 200), (3, 200), (4, 200), (3, 300))
    )
    assert one == again
    assert len({one, other, more}) == 3
    assert one.value == other.value == more.value


def test_sources_of_another_size_are_refused(training: ImageSet) -> None:
    drawn = torch.zeros(20, 1, 3, 16, 16), torch.zeros(20, 1, 4)
    real = torch.zeros(20, 3, 8, 8), torch.zeros(20, 4)
    with pytest.raises(ConfigError, match="cannot be compared"):
        memorization.search(drawn, real, training, torch.zeros(200, 4), CONFIG)


def test_samples_that_may_lie_at_their_sources_leave_it_open() -> None:
    """Whether they do is unknown where the interval of their distance has the limit inside."""
    samples, real, own = np.ones((300, 2)), np.ones(300), np.tile(np.linspace(0.1, 0.9, 300)[:, None], 2)
    found = memorization.compared("x", samples, real, own, 0, CONFIG)
    assert found.own.low < memorization.COPY < found.own.high
    assert found.finding().holds is None
    assert memorization.compared("x", samples, real, own + 0.5, 0, CONFIG).finding().holds is True
