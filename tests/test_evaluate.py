"""Rank, MRR and distances of re-encoded samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcdm_fast import unranked
from rcdm_fast.analysis import faithfulness as analysis
from rcdm_fast.cli.evaluate import table
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.image_set import ImageSet, check_classes
from rcdm_fast.encoders import ImageEncoder, features
from rcdm_fast.evaluation import (
    Drawn,
    EvaluateConfig,
    check_distribution,
    compare,
    counts,
    draw,
    evaluate,
    faithfulness,
    mrr_change,
    recognition,
)
from rcdm_fast.images import blur_images, from_uint8, to_uint8
from rcdm_fast.metrics import distributions
from rcdm_fast.metrics.intervals import bootstrap
from rcdm_fast.metrics.nearest import rank_of, squared_distances
from tests import small


def make_images(count: int) -> ImageSet:
    pixels = to_uint8(small.make_images(count))
    return ImageSet(pixels, None, (), tuple(Path(str(number)) for number in range(count)), "made-up")


def test_ranks_count_closer_ones_and_half_the_ties() -> None:
    distances = torch.tensor([[0.5, 0.1, 0.9], [0.0, 0.0, 0.0], [0.3, 0.3, 0.1]])
    assert rank_of(distances, 0).tolist() == [2.0, 2.0, 2.5]
    assert rank_of(distances, 1).tolist() == [1.0, 2.0, 2.5]


def test_distances() -> None:
    a, b = torch.randn(4, 5), torch.randn(3, 5)
    expected = (a[:, None].double() - b[None].double()).square().sum(dim=2)
    torch.testing.assert_close(squared_distances(a, b), expected)


def test_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        interval = bootstrap(rng.normal(3.0, 1.0, 60), 400, rng)
        assert interval.low < interval.value < interval.high
        hits += interval.low < 3.0 < interval.high
    assert 180 <= hits <= 199


def test_a_model_that_returns_the_source_ranks_first_and_noise_ranks_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_images(60)
    model = small.quick_model()
    floats = data.floats(slice(None))
    config = EvaluateConfig(sources=20, per=3, steps=2, resamples=200)

    def perfect(h: torch.Tensor, *, items: torch.Tensor, per: int, **_: object) -> torch.Tensor:
        return floats[items][:, None].expand(-1, per, -1, -1, -1)

    monkeypatch.setattr(model, "sample", small.asked(perfect))
    exact = evaluate(model, data, config)
    assert exact.mrr.value == 1
    assert exact.mean_rank.value == 1
    assert exact.distance.value == 0
    assert exact.nearest > 0
    assert exact.gallery == 60

    def unrelated(h: torch.Tensor, *, items: torch.Tensor, per: int, **_: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(items[0]))
        order = torch.randint(len(floats), (len(items), per), generator=generator)
        return floats[order]

    monkeypatch.setattr(model, "sample", small.asked(unrelated))
    chance = evaluate(model, data, dataclasses.replace(config, sources=60))
    assert chance.chance_mean_rank == 30.5
    assert chance.chance_mrr == pytest.approx(sum(1 / rank for rank in range(1, 61)) / 60)
    assert chance.mean_rank.low < 30.5 < chance.mean_rank.high


def test_the_real_path_and_its_numbers() -> None:
    result = evaluate(small.quick_model(), make_images(24), EvaluateConfig(per=2, gallery=20, steps=2, resamples=100))
    assert result.sources == result.gallery == 20
    assert 0 < result.mrr.low <= result.mrr.value <= result.mrr.high <= 1
    assert set(json.loads(json.dumps(dataclasses.asdict(result)))["mrr"]) == {"value", "low", "high"}


def test_too_few_images_are_named() -> None:
    with pytest.raises(ConfigError, match="the data has 5"):
        evaluate(small.quick_model(), make_images(5), EvaluateConfig(gallery=10))
    with pytest.raises(ConfigError, match="at least 2"):
        evaluate(small.quick_model(), make_images(5), EvaluateConfig(sources=1))


def test_a_change_of_mrr_is_measured_in_pairs() -> None:
    data = make_images(40)
    want = evaluate(small.quick_model(), data, EvaluateConfig(sources=20, per=2, steps=2, resamples=200))
    rng = np.random.default_rng(0)
    same = mrr_change(want, want)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    ranks = tuple(value * rng.uniform(0.88, 0.92) for value in want.reciprocal_ranks)
    less = mrr_change(dataclasses.replace(want, reciprocal_ranks=ranks), want)
    assert -0.12 < less.low < less.value < less.high < -0.08  # the MRR itself is not known half as well
    assert want.mrr.high - want.mrr.low > 2 * (less.high - less.low) * want.mrr.value
    with pytest.raises(ConfigError, match="the same sources"):
        mrr_change(dataclasses.replace(want, sources=21), want)


def test_the_gallery_is_spread_over_the_data_and_the_seed_reaches_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = make_images(40), small.quick_model()
    asked: list[dict[str, object]] = []
    floats = data.floats(slice(None))

    def sample(h: torch.Tensor, *, items: torch.Tensor, per: int, **rest: object) -> torch.Tensor:
        asked.append(rest)
        return torch.zeros(len(items), per, *floats.shape[1:])

    monkeypatch.setattr(model, "sample", small.asked(sample))
    config = EvaluateConfig(sources=4, per=1, gallery=5, steps=3, solver="ancestral", seed=7, batch_size=9)
    drawn = draw(model, data, config)
    assert torch.equal(drawn.real.pixels, data.pixels[[0, 10, 20, 29, 39]])  # 19.5 and 29.25 are rounded
    assert drawn.sources.tolist() == [0, 1, 3, 4]
    assert {tuple(sorted(rest.items())) for rest in asked} == {
        (
            ("batch_size", 9),
            ("clip", True),
            ("eta", 0.0),
            ("guidance", 1.0),
            ("guide", None),
            ("seed", 7),
            ("solver", "ancestral"),
            ("steps", 3),
        )
    }
    drawn = draw(model, data, dataclasses.replace(config, sources=20, gallery=20))
    found, other = (faithfulness(drawn, dataclasses.replace(config, seed=seed)) for seed in (7, 8))
    assert found == faithfulness(drawn, config)
    assert (found.distance.low, found.distance.high) != (other.distance.low, other.distance.high)


@pytest.mark.parametrize(("size", "known"), [(2, [1]), (5, [1]), (6, [1, 5]), (10, [1, 5]), (11, [1, 5, 10])])
def test_neighbors_as_far_as_the_gallery_goes(size: int, known: list[int]) -> None:
    """Of G images G - 1 are others: a tenth neighbor needs eleven."""
    gallery = torch.nn.functional.pad(torch.arange(size, dtype=torch.float32)[:, None] ** 1.5, (0, small.DIM - 1))
    sources = torch.tensor([0, size - 1])
    drawn = Drawn(
        small.encoder(), make_images(size), gallery, sources, torch.zeros(2, 1, 3, 8, 8), gallery[sources][:, None]
    )
    found = faithfulness(drawn, EvaluateConfig(per=1, resamples=100))
    assert sorted(found.nearest_real) == known
    for k in known:
        each = [(gallery - gallery[source]).square().sum(dim=1).sort().values[k] for source in sources.tolist()]
        assert found.nearest_real[k].value == pytest.approx(float(sum(each) / 2), rel=1e-5)
        assert found.nearest_real[k].value < float("inf")


def labeled(count: int, classes: tuple[str, ...] = ("dark", "light")) -> ImageSet:
    """Images of two classes that differ in their light."""
    floats = small.make_images(count) * 0.2
    labels = torch.arange(count) % 2
    floats = floats + torch.where(labels == 1, 0.6, -0.6)[:, None, None, None]
    paths = tuple(Path(str(number)) for number in range(count))
    return ImageSet(to_uint8(floats), labels, classes, paths, "made-up")


def test_guidance_reaches_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = small.quick_model(), make_images(8)
    asked: list[object] = []

    def sample(h: torch.Tensor, *, items: torch.Tensor, per: int, guidance: float, **_: object) -> torch.Tensor:
        asked.append(guidance)
        return torch.zeros(len(items), per, 3, 8, 8)

    monkeypatch.setattr(model, "sample", small.asked(sample))
    draw(model, data, EvaluateConfig(per=1, guidance=1.75))
    draw(model, data, EvaluateConfig(per=1))
    assert asked == [1.75, 1.0]
    with pytest.raises(ConfigError, match="guidance"):
        EvaluateConfig(guidance=-0.5)


def test_the_yardstick_is_the_blurred_source_and_variance_is_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: an encoder that gives pixels, sources that are rows of the gallery, samples of known spread."""
    model, data = small.quick_model(), make_images(12)
    config = EvaluateConfig(sources=6, per=4, steps=1, resamples=100)
    drawn = draw(model, data, config)
    spread = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)[None, :, None, None, None].expand(6, 4, 3, 8, 8).clone()
    spread[0] = 7
    found = faithfulness(dataclasses.replace(drawn, images=spread), config)
    assert found.variance is not None
    assert found.variance.value == pytest.approx(5 / 6 * 4 / 3, rel=1e-4)  # of -1, -1, 1, 1; none in the first
    seen = drawn.encoder.encode(blur_images(data.floats(drawn.sources), 1.0)).cpu()
    distances = squared_distances(seen, drawn.gallery)
    rows = torch.arange(6)
    ranks = (distances < distances[rows, drawn.sources][:, None]).sum(dim=1) + 1
    assert found.blurred_mrr is not None
    assert found.blurred_mrr.value == pytest.approx(float((1 / ranks.double()).mean()))
    assert found.blurred_distance is not None
    assert found.blurred_distance.value == pytest.approx(float(distances[rows, drawn.sources].mean()), rel=1e-5)
    assert found.blurred_distance.value > 0
    alone = dataclasses.replace(drawn, images=spread[:, :1], representations=drawn.representations[:, :1])
    assert faithfulness(alone, config).variance is None


def test_classes_are_read_off_samples_by_a_probe_of_other_images() -> None:
    model, data, known = small.quick_model(), labeled(40), labeled(60)
    config = EvaluateConfig(sources=20, per=4, steps=1, resamples=100)
    drawn = draw(model, data, config)
    assert drawn.real.labels is not None
    same = data.pixels[drawn.sources][:, None].expand(-1, 4, -1, -1, -1).clone()
    encoder = drawn.encoder
    found = recognition(dataclasses.replace(drawn, images=same), encoder, known)
    assert found.sources.value > 0.9
    assert found.samples.value == pytest.approx(found.sources.value)
    labels = drawn.real.labels[drawn.sources]
    turned = same.flip(0)
    same[:, :2] = turned[:, :2]  # half of the samples show another source
    mixed = recognition(dataclasses.replace(drawn, images=same), encoder, known)
    wrong = (labels != labels.flip(0)).double().mean()
    assert float(wrong) > 0.2
    assert mixed.samples.value == pytest.approx(1 - 0.5 * float(wrong), abs=0.1)
    assert mixed.sources.value == found.sources.value


def test_a_probe_needs_the_same_classes() -> None:
    with pytest.raises(ConfigError, match="the data have no labels"):
        check_classes(make_images(4), labeled(4))
    with pytest.raises(ConfigError, match="fitted on have no labels"):
        check_classes(labeled(4), make_images(4))
    with pytest.raises(ConfigError, match=r"classes of the data, dark, light.*on light, dark"):
        check_classes(labeled(4), labeled(4, ("light", "dark")))
    check_classes(labeled(4), labeled(6))


def test_blur_keeps_what_is_even_and_spreads_a_point() -> None:
    even = torch.full((1, 3, 9, 9), 0.25)
    torch.testing.assert_close(blur_images(even, 1.0), even)
    point = torch.zeros(1, 3, 15, 15)
    point[0, 1, 7, 7] = 1
    seen = blur_images(point, 1.0)
    assert seen[0, 0].abs().max() == 0
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)
    assert float(seen[0, 1, 7, 7]) == pytest.approx(1 / (2 * np.pi), rel=0.01)
    assert float(seen[0, 1, 7, 8] / seen[0, 1, 7, 7]) == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert blur_images(point, 0.0) is point


def test_a_rank_is_turned_over_sample_by_sample() -> None:
    """Two samples of one source, one beside it and one beside its third neighbor."""
    data = make_images(10)
    line = torch.eye(6)[0]
    gallery = torch.arange(10.0)[:, None] ** 2 * line
    again = torch.tensor([[0.0, 5.0], [81.0, 81.0]])[..., None] * line  # 5 is nearer to 1, 4 and 9 than to 0
    shown = torch.zeros(2, 2, 3, 8, 8, dtype=torch.uint8)
    drawn = Drawn(small.encoder(), data, gallery, torch.tensor([0, 9]), shown, again)
    found = faithfulness(drawn, EvaluateConfig(resamples=100))
    assert found.reciprocal_ranks == pytest.approx(((1 + 1 / 4) / 2, 1.0))
    assert found.mean_rank.value == pytest.approx((2.5 + 1) / 2)
    assert found.mrr.value == pytest.approx((0.625 + 1) / 2)


def test_another_encoder_ranks() -> None:
    """The samples are the same; ranks, distances and the blurred source are those of the encoder that is named."""

    class Rows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(1, 3))

    judge = ImageEncoder(Rows(), EncoderConfig("module:rows", image_size=8))
    model, data, config = small.quick_model(), make_images(20), EvaluateConfig(sources=6, per=2, steps=2, resamples=100)
    own, ranked = draw(model, data, config), draw(model, data, config, rank_by=judge)
    assert torch.equal(own.images, ranked.images)
    gallery = data.floats(slice(None)).mean(dim=(1, 3))
    torch.testing.assert_close(ranked.gallery, gallery)
    again = from_uint8(ranked.images).mean(dim=(2, 4))
    torch.testing.assert_close(ranked.representations, again, atol=0.005, rtol=0)
    result = evaluate(model, data, config, rank_by=judge)
    expected = (ranked.representations - gallery[ranked.sources][:, None]).square().sum(dim=2).mean()
    assert result.distance.value == pytest.approx(float(expected), rel=1e-4)
    assert result == faithfulness(ranked, config)
    assert result.mrr != faithfulness(own, config).mrr
    ranked_by = [each.ranked_by for each in (result, faithfulness(own, config))]
    assert ranked_by == ["module:rows, layer backbone", "module, layer backbone"]
    assert f"{'ranked by':34s} {ranked_by[0]}" in table(result)


def test_a_sample_has_the_label_of_its_source() -> None:
    data = labeled(8)
    assert data.labels is not None
    shown = torch.zeros(3, 2, 3, 8, 8, dtype=torch.uint8)
    sources = torch.tensor([0, 1, 4])
    drawn = Drawn(small.encoder(), data, torch.zeros(8, 6), sources, shown, torch.zeros(3, 2, 6))
    wanted = [int(data.labels[source]) for source in (0, 0, 1, 1, 4, 4)]
    assert drawn.labels is not None
    assert drawn.labels.tolist() == wanted
    assert len(set(wanted)) == 2
    assert dataclasses.replace(drawn, real=make_images(8)).labels is None


def test_a_reference_takes_the_place_of_the_gallery() -> None:
    model, data = small.quick_model(), make_images(20)
    drawn = draw(model, data, EvaluateConfig(sources=8, per=2, steps=1))
    space = features.of_encoder(drawn.encoder)
    own = compare(drawn, space)
    others = drawn.real.pixels[[place for place in range(20) if place not in drawn.sources.tolist()]]
    as_gallery = compare(drawn, space, reference=others)
    assert as_gallery.frechet_distance == pytest.approx(own.frechet_distance, rel=1e-3)
    dark = compare(drawn, space, reference=drawn.real.pixels // 8)
    assert dark.frechet_distance != pytest.approx(own.frechet_distance, rel=0.05)
    assert (own.real, own.samples, dark.real, dark.samples) == (12, 8, 20, 8)


def test_samples_that_are_their_sources_are_as_good_as_real_images() -> None:
    """The ceiling is what the sources have in the place of samples: one of each, held against all other images."""
    data, encoder = make_images(90), small.encoder()
    sources = torch.arange(0, 90, 3)
    shown = data.pixels[sources][:, None].repeat(1, 2, 1, 1, 1)
    shown[:, 1] = 0  # the second samples take no part
    gallery = encoder.encode(data.floats(slice(None)))
    again = torch.stack([gallery[sources], torch.zeros(30, small.DIM)], dim=1)
    drawn = Drawn(encoder, data, gallery, sources, shown, again)
    for space in (features.of_encoder(encoder), features.of_encoder(small.encoder())):
        found = compare(drawn, space)
        assert found.of_real is not None
        assert (found.real, found.samples, found.of_real.samples) == (60, 30, 30)
        for name in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"):
            assert getattr(found, name) == pytest.approx(getattr(found.of_real, name), abs=1e-4)
        assert found.coverage < 1
        assert found.frechet_distance > 0.001
    everything = dataclasses.replace(
        drawn, sources=torch.arange(90), images=data.pixels[:, None], representations=gallery[:, None]
    )
    assert (
        compare(everything, features.of_encoder(encoder)).samples,
        compare(everything, features.of_encoder(encoder)).real,
    ) == (45, 45)


def test_a_perfect_reconstruction_has_another_mrr_with_another_encoder() -> None:
    """Sources blurred by one pixel, and nothing else: what an encoder makes of that is no merit of what it keeps."""
    generator = torch.Generator().manual_seed(3)
    grain = torch.linspace(0.05, 0.5, 60)[:, None, None, None] * torch.randn(60, 3, 8, 8, generator=generator)
    data = dataclasses.replace(make_images(60), pixels=to_uint8(0.3 * small.make_images(60) + grain))
    found = {}
    for name, weight in (("coarse", 0.0), ("fine", 60.0)):

        class Both(torch.nn.Module):
            """Coarse colors, and the differences of neighboring pixels times a weight."""

            def forward(self, x: torch.Tensor, weight: float = weight) -> torch.Tensor:
                coarse = torch.nn.functional.avg_pool2d(x, 4).flatten(1)
                return torch.cat([coarse, weight * x.diff(dim=3).flatten(1)], dim=1)

        encoder = ImageEncoder(Both(), EncoderConfig("module", image_size=8))
        gallery, sources = encoder.encode(data.floats(slice(None))), torch.arange(60)
        drawn = Drawn(encoder, data, gallery, sources, data.pixels[:, None], gallery[:, None])
        found[name] = faithfulness(drawn, EvaluateConfig(per=1, resamples=100))
        assert found[name].mrr.value == 1
    coarse, fine = (each.blurred_mrr for each in found.values())
    assert coarse is not None
    assert fine is not None
    assert coarse.low > fine.high
    said = table(found["fine"])
    assert said[1].startswith("  of the source, blurred by 1 px")
    assert f"{fine.value:.4g} [" in said[1]
    assert "numbers of different ones are not to be compared" in said[-1]
    tables = analysis._ranks(found["fine"]), analysis._better_than_chance(found["fine"])
    assert tables[0].rows[0][2] == fine
    assert tables[0].rows[1][2] == found["fine"].blurred_mean_rank
    assert "of the source blurred by 1 px" in tables[1].measured


@pytest.mark.parametrize(
    ("gallery", "sources", "reference", "enough"),
    [
        (12, 6, None, True),
        (12, 12, None, True),
        (11, 11, None, False),
        (30, 5, None, False),
        (6, 6, 6, True),
        (6, 5, 9, False),
    ],
)
def test_how_many_images_distances_need(gallery: int, sources: int, reference: int | None, enough: bool) -> None:
    if enough:
        check_distribution(gallery, sources, reference)
    else:
        with pytest.raises(ConfigError, match="at least 6 real images and 6 samples"):
            check_distribution(gallery, sources, reference)


@pytest.mark.parametrize("door", ["draw", "evaluate", "unranked"])
def test_a_guide_and_progress_arrive_batch_by_batch(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven sources, three samples of each, at most eight images at once: two sources at a time, the last one alone."""
    model, data, guide = small.quick_model(), make_images(12), small.quick_model()
    asked: list[tuple[object, list[int]]] = []
    seen: list[tuple[int, int]] = []

    def sample(h: torch.Tensor, *, items: torch.Tensor, per: int, guide: object, **_: object) -> torch.Tensor:
        asked.append((guide, items.tolist()))
        return torch.zeros(len(items), per, 3, 8, 8)

    monkeypatch.setattr(model, "sample", small.asked(sample))
    config = EvaluateConfig(sources=7, per=3, steps=1, batch_size=8, resamples=100)

    def told(done: int, total: int) -> None:
        seen.append((done, total))

    if door == "draw":
        draw(model, data, config, told, guide)
    elif door == "evaluate":
        evaluate(model, data, config, told, guide=guide)
    else:
        unranked.draw(model, data, torch.zeros(12, small.DIM), config, told, guide)
    assert all(each is guide for each, _ in asked)
    assert [len(items) for _, items in asked] == [2, 2, 2, 1]
    assert [item for _, items in asked for item in items] == [0, 2, 4, 6, 7, 9, 11]
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]


def test_so_many_sources_as_the_configuration_says_or_256() -> None:
    data = dataclasses.replace(make_images(1), pixels=torch.zeros(300, 3, 8, 8, dtype=torch.uint8))
    for sizes, wanted in (
        ({}, (300, 256)),
        ({"gallery": 280}, (280, 256)),
        ({"gallery": 40}, (40, 40)),
        ({"sources": 290}, (300, 290)),
        ({"sources": 20, "gallery": 20}, (20, 20)),
    ):
        assert counts(data, EvaluateConfig(**sizes)) == wanted  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="21 sources in a gallery of 20"):
        counts(data, EvaluateConfig(sources=21, gallery=20))


def test_ranks_end_with_the_gallery() -> None:
    """One source of many is last by far: neither interval of a mean rank goes beyond what there is."""
    data, count = make_images(30), 24
    gallery = torch.arange(30.0)[:, None] * torch.eye(6)[0]
    again = gallery[:count, None].clone()
    again[0, 0, 0] = 1000.0
    shown = torch.zeros(count, 1, 3, 8, 8, dtype=torch.uint8)

    class Far(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            near = gallery[: len(x)].clone()
            near[0, 0] = 1000.0
            return near

    encoder = ImageEncoder(Far(), EncoderConfig("module", image_size=8))
    found = faithfulness(
        Drawn(encoder, data, gallery, torch.arange(count), shown, again), EvaluateConfig(per=1, resamples=200)
    )
    for each in (found.mean_rank, found.blurred_mean_rank):
        assert each is not None
        assert each.value == pytest.approx((23 + 30) / 24)
        assert each.high == pytest.approx(30), "half of the resamples are without it"


def test_changes_of_mrr_are_those_of_one_measurement() -> None:
    """The interval is drawn by the seed, from so many resamples; other sizes or another encoder do not compare."""
    rng = np.random.default_rng(5)
    data = make_images(24)
    want = evaluate(small.quick_model(), data, EvaluateConfig(per=1, steps=1, resamples=100))
    a, b = (rng.uniform(0.2, 1, 24) for _ in range(2))
    got, base = (dataclasses.replace(want, reciprocal_ranks=tuple(each)) for each in (a, b))
    for resamples, seed in ((100, 3), (150, 4)):
        places = np.random.default_rng(seed).integers(0, 24, (resamples, 24))
        changes = [a[row].mean() / b[row].mean() - 1 for row in places]
        found = mrr_change(got, base, resamples, seed)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(changes, [0.025, 0.975])))
        assert found.value == pytest.approx(a.mean() / b.mean() - 1)
    others: list[dict[str, Any]] = [{"sources": 23}, {"samples": 2}, {"gallery": 25}]
    for changed in others:
        with pytest.raises(ConfigError, match="the same sources, samples and gallery"):
            mrr_change(dataclasses.replace(got, **changed), base)
    with pytest.raises(ConfigError, match=f"not another and {want.ranked_by}"):
        mrr_change(dataclasses.replace(got, ranked_by="another"), base)


def test_distributions_and_classes_are_those_of_the_seed_and_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SUBSETS", 2), ("SUBSET_SIZE", 5)):
        monkeypatch.setattr(distributions, name, value)
    model, data, known = small.quick_model(), labeled(24), labeled(30)
    config = EvaluateConfig(sources=12, per=2, steps=1, resamples=100, seed=3)
    drawn, space = draw(model, data, config), features.of_encoder(small.encoder())
    kernels = {compare(drawn, space, seed).kernel_distance for seed in (0, 3)}
    assert len(kernels) == 2
    of_evaluation = evaluate(model, data, config, space=space).distribution
    assert of_evaluation == compare(drawn, space, 3)
    of_h = unranked.draw(model, data, drawn.gallery, config)
    reference = known.pixels
    for given in (None, reference):
        found = unranked.measure(model, of_h, config, space=space, reference=given)
        assert found.distribution == compare(drawn, space, 3, given)

    class Light(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    judge = ImageEncoder(Light(), EncoderConfig("module:light", image_size=8))
    assert recognition(drawn, judge, known).encoder == features.of_encoder(judge).name
    assert recognition(drawn, judge, known).encoder != features.of_encoder(drawn.encoder).name


def test_the_interval_of_a_variance_is_drawn_as_asked_for() -> None:
    data, rng = make_images(24), np.random.default_rng(9)
    shown = torch.randint(0, 255, (24, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shown = (shown * torch.linspace(0.1, 1, 24)[:, None, None, None, None]).to(torch.uint8)
    of_h = unranked.Samples(data, torch.arange(24), shown, torch.zeros(24, small.DIM))
    config = EvaluateConfig(per=2, resamples=130, seed=9)
    each = [float(((a.double() - b.double()) / 127.5).square().mean() / 2) for a, b in shown]
    wanted = np.quantile(np.array(each)[rng.integers(0, 24, (130, 24))].mean(axis=1), [0.025, 0.975])
    found = unranked.measure(small.quick_model(), of_h, config)
    assert found.variance is not None
    assert (found.variance.low, found.variance.high) == pytest.approx(tuple(wanted), rel=1e-5)
    assert (found.sources, found.samples) == (24, 2)
    alone = dataclasses.replace(of_h, images=shown[:, :1])
    assert unranked.measure(small.quick_model(), alone, config).variance is None
