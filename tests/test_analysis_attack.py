"""Attacks against closed forms and a toy that can be separated; the experiment's tables, findings and errors."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import attack, common, robustness
from rcdm_fast.analysis.perturb import LEVEL, against_probe, fgsm, pgd
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.analysis.result import Analysis, Table
from rcdm_fast.analysis.robustness import AttackConfig, Attacked
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.images import to_uint8
from rcdm_fast.metrics import probes
from rcdm_fast.metrics.intervals import Interval
from tests import small

QUICK = AttackConfig(epsilons=(0, 2, 64), pgd_steps=5, steps=2, resamples=200, sources=20, seed=2)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Two classes, a little redder and a little bluer."""
    images = small.make_images(120) * 0.2
    labels = torch.arange(120) % 2
    images[labels == 0, 0] += 0.3
    images[labels == 1, 2] += 0.3
    pixels = images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    paths = tuple(Path(f"{number}.png") for number in range(120))
    return ImageSet(pixels, labels, ("red", "blue"), paths, "made-up")


def test_closed_form_of_a_linear_loss(generator: torch.Generator) -> None:
    images = torch.rand(4, 3, 8, 8, generator=generator) - 0.5
    weight = torch.randn(3, 8, 8, generator=generator)
    want = images + 8 * LEVEL * weight.sign()

    def gradient(x: Tensor) -> Tensor:
        return weight.expand_as(x)

    torch.testing.assert_close(fgsm(images, gradient, 8), want)
    torch.testing.assert_close(pgd(images, gradient, 8, 10), want)
    torch.testing.assert_close(pgd(images, gradient, 8, 10, generator), want)
    assert float(fgsm(images + 0.5, gradient, 100).max()) == 1.0


def test_never_farther_than_epsilon(data: ImageSet) -> None:
    encoder = small.encoder()
    assert data.labels is not None
    views = data.floats(slice(None))
    probe = probes.fit_linear_probe(encoder.encode(views), data.labels)
    for steps in (0, 4):
        changed = against_probe(views, data.labels, encoder, probe, 3, steps, batch_size=50)
        assert 2.9 * LEVEL < float((changed - views).abs().max()) <= 3 * LEVEL + 1e-6
        assert float(changed.abs().max()) <= 1
    assert against_probe(views, data.labels, encoder, probe, 0) is views


def test_pgd_finds_what_fgsm_does_not() -> None:
    """A loss with a ridge: the first gradient points over it."""

    def gradient(x: Tensor) -> Tensor:
        return -(x - 0.02).sign()

    start = torch.zeros(1, 3, 2, 2)
    assert float((fgsm(start, gradient, 16) - 0.02).abs().max()) > 0.1
    assert float((pgd(start, gradient, 16, 20) - 0.02).abs().max()) < 0.02


def test_every_image_starts_elsewhere_and_in_any_batch_there() -> None:
    """With a probe that has no slope PGD stays where it began."""
    encoder, probe = small.encoder(), torch.nn.Linear(small.DIM, 2)
    torch.nn.init.zeros_(probe.weight)
    views, labels = torch.zeros(7, 3, 8, 8), torch.zeros(7, dtype=torch.int64)
    begun = [against_probe(views, labels, encoder, probe, 4, 3, seed=5, batch_size=size) for size in (7, 3, 1)]
    assert torch.equal(begun[0], begun[1])
    assert torch.equal(begun[0], begun[2])
    assert len(begun[0].flatten(1).unique(dim=0)) == 7
    assert float(begun[0].abs().max()) == pytest.approx(4 * LEVEL, rel=0.02)
    other = against_probe(views, labels, encoder, probe, 4, 3, seed=6)
    assert float((begun[0] - other).abs().max()) > LEVEL


def value(found: Analysis, name: str, row: int, column: int = 1) -> float:
    table: Table = next(each for each in found.tables if each.name == name)
    cell = table.rows[row][column]
    assert isinstance(cell, Interval)
    return cell.value


def test_a_probe_under_attack(data: ImageSet) -> None:
    found = attack.run([small.quick_model(), small.quick_model()], data, QUICK)
    for method in robustness.METHODS:
        assert value(found, f"accuracy-{method}", 0) > 0.95
        assert value(found, f"accuracy-{method}", 2) < 0.1
        assert value(found, f"moved-{method}", 0) == value(found, f"moved-pairs-{method}", 0) == 0
        assert value(found, f"moved-{method}", 2) > value(found, f"moved-{method}", 1) > 0
    # the same model twice: nothing tells them apart
    assert all(finding.holds is None for finding in found.findings)
    assert len(found.findings) == 4
    assert found.settings["images"] == 60
    assert set(found.figures) == set(found.captions) == {"samples"}
    again = attack.run([small.quick_model(), small.quick_model()], data, QUICK)
    assert again.as_json() == found.as_json()


def test_a_deaf_encoder_does_not_move(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loud, quiet = small.quick_model(), small.quick_model()
    assert quiet.encoder is not None
    before = quiet.encoder.represent  # type: ignore[attr-defined]
    monkeypatch.setattr(quiet.encoder, "represent", lambda views: before(views.detach() + 0 * views))
    found = attack.run([quiet, loud], data, QUICK)
    moved, part, among, _ = found.findings
    assert (moved.holds, part.holds, among.holds) == (True, True, True)
    assert "moves h of" in moved.claim
    assert "a larger part of its accuracy" in part.claim
    assert "epsilon 64: " in moved.measured
    assert part.measured.startswith("clean: 100 % [94, 100] and 100 % [94, 100]; left of that, epsilon 2: ")
    assert "of 60 images" in among.measured


def test_what_is_refused(data: ImageSet) -> None:
    model = small.quick_model()
    with pytest.raises(ConfigError, match="labelled images"):
        attack.run([model], dataclasses.replace(data, labels=None), QUICK)
    with pytest.raises(ConfigError, match="at least 40 images"):
        attack.run([model], data.subset(torch.arange(30)), QUICK)
    with pytest.raises(ConfigError, match="at least 2 classes"):
        attack.run([model], dataclasses.replace(data, labels=torch.zeros(120, dtype=torch.int64)), QUICK)
    with pytest.raises(ConfigError, match="images to attack"):
        attack.run([model], data, dataclasses.replace(QUICK, images=500))
    with pytest.raises(ConfigError, match="begin with 0"):
        AttackConfig(epsilons=(1, 2))
    model._encoder = None
    with pytest.raises(ConfigError, match="no encoder"):
        attack.run([model], data, QUICK)


def test_the_probe_takes_features_as_they_are(generator: torch.Generator) -> None:
    features = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3
    labels = (features[:, 1] > 3).long()
    probe = probes.fit_linear_probe(features, labels)
    assert float((probe(features).argmax(dim=1) == labels).float().mean()) > 0.99
    assert not any(parameter.requires_grad for parameter in probe.parameters())


def test_from_the_registry(data: ImageSet) -> None:
    settings = {name: getattr(QUICK, name) for name in ("epsilons", "pgd_steps", "steps", "resamples", "sources")}
    settings["epsilons"] = list(settings["epsilons"])
    found = EXPERIMENTS["attack"].run(Job(small.quick_model(), data, against=(small.quick_model(),), settings=settings))
    assert found.name == "attack"
    assert np.isfinite(value(found, "samples", 0, 3))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("images", [0, 30, 60])
def test_what_is_attacked_was_not_fitted_on(data: ImageSet, seed: int, images: int) -> None:
    known, attacked = attack.halves(data, dataclasses.replace(QUICK, seed=seed, images=images))
    assert len(known) == 60
    assert len(attacked) == (images or 60)
    assert not set(known.tolist()) & set(attacked.tolist())
    assert len(set(known.tolist())) == 60
    assert len(set(attacked.tolist())) == len(attacked)
    other, _ = attack.halves(data, dataclasses.replace(QUICK, seed=seed + 1, images=images))
    assert other.tolist() != known.tolist()
    rest = sorted(set(range(120)) - set(known.tolist()))
    assert (int(attacked[0]), int(attacked[-1])) == (rest[0], rest[-1])  # spread over the half


class _Pixels(torch.nn.Module):
    """The image itself as its representation."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_movement_is_a_distance_in_units_of_the_nearest_neighbors(data: ImageSet) -> None:
    """With the image as h one step of FGSM moves every number by epsilon: the length of the way is known."""
    model = small.quick_model()
    model._encoder = ImageEncoder(_Pixels(), EncoderConfig("module", image_size=8))
    config = dataclasses.replace(QUICK, epsilons=(0, 2), sources=20)
    known, attacked = attack.halves(data, config)
    model.sample = small.asked(lambda h, *, per, **_: torch.zeros(len(h), per, 3, 8, 8))  # type: ignore[method-assign]
    found = attack._attack(model, "it", data, known, attacked, config)
    floats = data.floats(attacked).flatten(1).double()
    apart = torch.stack([(floats - row).square().sum(dim=1).sqrt().topk(2, largest=False).values[1] for row in floats])
    want = 2 * LEVEL * 192**0.5 / apart.numpy()
    np.testing.assert_allclose(found.moved["fgsm"][1], want, rtol=1e-4)
    assert (found.moved["fgsm"][0] == 0).all()
    every = torch.stack([(floats - row).square().sum(dim=1).sqrt() for row in floats])
    between = every[torch.triu(torch.ones_like(every), 1) > 0].median()
    np.testing.assert_allclose(found.moved_pairs["fgsm"][1], 2 * LEVEL * 192**0.5 / float(between), rtol=1e-4)
    assert (found.moved["pgd"][1] <= want * 1.0001).all()
    assert found.kept.shape == (2, 20)


def test_samples_are_held_against_their_own_sources_and_the_seed_reaches_the_attack(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = small.quick_model(), dataclasses.replace(QUICK, sources=20, images=50, seed=7)
    known, attacked = attack.halves(data, config)
    assert data.labels is not None
    sources = attack._sources(attacked, config)
    assert data.labels[attacked[sources]].tolist() != data.labels[attacked[:20]].tolist()

    def themselves(h: Tensor, *, per: int, **_: object) -> Tensor:
        return data.floats(attacked[sources])[:, None].expand(-1, per, -1, -1, -1)

    seeds = []

    def noted(*given: Any, **options: Any) -> Tensor:
        seeds.append((given + tuple(options.values()))[6])
        return against_probe(*given, **options)

    monkeypatch.setattr(model, "sample", small.asked(themselves))
    monkeypatch.setattr(attack, "against_probe", noted)
    found = attack._attack(model, "it", data, known, attacked, config)
    assert found.kept.mean() > 0.95
    assert seeds == [7] * 6


def _attacked(name: str, right: tuple[float, ...], moved: tuple[float, ...], kept: tuple[float, float]) -> Attacked:
    """A model whose probe is right in these fractions of 100 images, by epsilon."""
    correct = np.stack([np.arange(100) < round(100 * fraction) for fraction in right])
    far = np.stack([np.full(100, value) + np.linspace(-0.01, 0.01, 100) for value in moved])
    kept_of = np.stack([np.full(40, value) for value in kept])
    by = {"fgsm": far, "pgd": far}
    return Attacked(
        name, {"fgsm": correct, "pgd": correct}, by, {key: each / 2 for key, each in by.items()}, kept_of, []
    )


THREE = AttackConfig(epsilons=(0, 1, 2), resamples=200)


def test_what_is_left_is_a_part_of_what_there_was() -> None:
    """Less robust accuracy may be a larger part: 24 of 60 beside 30 of 90 images, all of the 24 among the 30."""
    weak = _attacked("weak", (0.6, 0.24, 0.24), (0, 0.2, 0.4), (0.5, 0.45))
    strong = _attacked("strong", (0.9, 0.3, 0.3), (0, 0.5, 0.9), (0.9, 0.3))
    _, part, among, _ = robustness.findings(weak, strong, THREE)
    assert robustness.kept_part(weak, 1, THREE).value == pytest.approx(0.4)
    assert robustness.kept_part(strong, 1, THREE).value == pytest.approx(1 / 3)
    assert "difference of the means over epsilons 0.0667 " in part.measured
    assert part.holds is None
    assert robustness.both_right((weak, strong)).sum() == 60
    assert "40 % " in among.measured
    assert "50 % " in among.measured
    assert "difference in pairs -0.1 " in among.measured
    assert among.holds is False  # of the images that both had right the strong one keeps more


@pytest.mark.parametrize("method", ["part", "right"])
def test_a_better_probe_with_the_same_robustness_is_no_more_robust(method: str) -> None:
    """Both lose half of what they have right, at random: no claim in four of five runs and more, whatever is clean.

    By accuracy alone the first one "is right more often" in nearly all of them.
    """
    rng = np.random.default_rng(0)
    told = []
    for _ in range(40):
        made = []
        for clean in (0.8, 0.6):
            right = rng.random(300) < clean
            left = right & (rng.random(300) < 0.5)
            correct = np.stack([right, left, left])
            flat = {"pgd": np.zeros((3, 300))}
            made.append(Attacked(str(clean), {"pgd": correct}, flat, flat, np.zeros((2, 30)), []))
        if method == "part":
            told.append(robustness._part(made[0], made[1], THREE).holds)
        else:
            a, b = (each.correct["pgd"][1].astype(float) for each in made)
            told.append(common.above(common.interval(a - b, THREE)))
    wrong = sum(each is not None for each in told)
    assert wrong <= 5 if method == "part" else wrong >= 30


def test_a_probe_that_had_nothing_right_has_no_part_of_it() -> None:
    none, some = (
        _attacked(name, right, (0, 0.2, 0.4), (0.5, 0.4)) for name, right in (("none", (0, 0, 0)), ("some", (1, 1, 1)))
    )
    _, part, among, _ = robustness.findings(none, some, THREE)
    assert (part.holds, among.holds) == (None, None)
    assert "left-pgd" not in [each.name for each in robustness.tables([none, some], THREE)]
    few = _attacked("few", (0.1, 0.1, 0.1), (0, 0.2, 0.4), (0.5, 0.4))
    among = robustness.findings(few, some, THREE)[2]
    assert among.holds is None
    assert "[none: n < 20]" in among.measured


def test_both_units_of_movement_are_stated_and_both_have_to_agree() -> None:
    near, far = (
        _attacked(name, (0.9, 0.5, 0.5), moved, (0.5, 0.4))
        for name, moved in (("near", (0, 0.2, 0.4)), ("far", (0, 0.5, 0.9)))
    )
    moved = robustness.findings(near, far, THREE)[0]
    assert moved.holds is True
    assert "difference in distances to the nearest other image, epsilon 1: -0.30 " in moved.measured
    assert "difference in median distances between two images, epsilon 1: -0.15 " in moved.measured
    for unit in ("moved", "moved_pairs"):
        changes: dict[str, Any] = {unit: {key: 9 * each for key, each in getattr(far, unit).items()}}
        turned = dataclasses.replace(near, **changes)
        assert robustness.findings(turned, far, THREE)[0].holds is False


def test_findings_have_the_sign_of_what_they_say_and_leave_the_clean_images_out() -> None:
    config = THREE
    calm = _attacked("calm", (0.8, 0.6, 0.6), (0, 0.2, 0.4), (0.5, 0.45))
    shy = _attacked("shy", (1.0, 0.15, 0.15), (0, 0.5, 0.9), (0.9, 0.3))
    moved, part, _, kept = robustness.findings(calm, shy, config)
    assert (moved.holds, part.holds, kept.holds) == (True, True, True)
    assert moved.claim == "PGD moves h of calm less than h of shy"
    assert "epsilon 1: -0.30 " in moved.measured
    assert "epsilon 2: -0.50 " in moved.measured
    assert "difference of the means over epsilons 0.6 " in part.measured  # with the clean ones it would be 0.4
    assert "clean: 80 % " in part.measured
    assert "difference of the changes in accuracy 0.55 " in kept.measured
    turned = robustness.findings(shy, calm, config)
    assert [each.holds for each in turned] == [False, False, False, False]
    assert "epsilon 1: 0.30 " in turned[0].measured


def test_what_is_said_of_several_models_is_of_all_of_them(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one beside each of the others; how many images were fitted on, and the largest epsilon."""
    made = iter(_attacked(name, (0.9, 0.5, 0.4), (0, 0.2, 0.4), (0.5, 0.4)) for name in ("a", "b", "c"))
    monkeypatch.setattr(attack, "_attack", lambda *_: next(made))
    monkeypatch.setattr(attack, "image_sheet", lambda *_, **__: None)
    done: list[tuple[int, int]] = []
    config = dataclasses.replace(THREE, images=30, sources=25)
    found = attack.run([small.quick_model()] * 3, data, config, lambda *each: done.append(each))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert found.title == "a, b and c under attack"
    assert len(found.findings) == 8
    for place, name in ((0, "b"), (4, "c")):
        assert found.findings[place].claim == f"PGD moves h of a less than h of {name}"
    assert {name: found.settings[name] for name in ("images", "fitted_on", "sources")} == {
        "images": 30, "fitted_on": 60, "sources": 25,
    }  # fmt: skip
    assert "epsilon 2;" in found.captions["samples"]


def test_samples_and_the_figure_are_of_clean_images_and_then_of_attacked_ones(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the image as h, and samples that are what h says; attacks keep to the batch size."""
    model, config = small.quick_model(), dataclasses.replace(QUICK, epsilons=(0, 64), images=50, shown=3, batch_size=17)
    monkeypatch.setattr(model, "_encoder", ImageEncoder(_Pixels(), EncoderConfig("module", image_size=8)))
    drawn = small.asked(lambda h, *, per, **_: h.view(-1, 1, 3, 8, 8).expand(-1, per, -1, -1, -1))
    monkeypatch.setattr(model, "sample", drawn)
    sizes = set()

    def noted(*given: Any) -> Tensor:
        sizes.add(given[7])
        return against_probe(*given)

    monkeypatch.setattr(attack, "against_probe", noted)
    known, attacked = attack.halves(data, config)
    found = attack._attack(model, "it", data, known, attacked, config)
    assert sizes == {17}
    places = attacked[attack._sources(attacked, config)]
    assert len(found.rows) == 3
    assert all(len(row) == 2 * (1 + config.per) for row in found.rows)
    for place, row in zip(places.tolist(), found.rows, strict=False):
        clean, after = row[0], row[1 + config.per]
        torch.testing.assert_close(clean, data.floats(torch.tensor([place]))[0])
        assert torch.equal(row[1], clean)
        assert 60 * LEVEL < float((after - clean).abs().max()) <= 64 * LEVEL + 1e-6
        assert torch.equal(row[2 + config.per], after)
    assert found.kept[0].mean() > 0.9 > found.kept[1].mean() + 0.5


def test_images_of_another_size_are_attacked_as_the_encoder_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    images = small.make_images(80, 16)
    labels = torch.arange(80) % 2
    data = ImageSet(to_uint8(images), labels, ("a", "b"), (), "made-up")
    seen = []

    def noted(views: Tensor, *_: Any) -> Tensor:
        seen.append(views.shape[-1])
        return views

    monkeypatch.setattr(attack, "against_probe", noted)
    model, config = small.quick_model(), dataclasses.replace(QUICK, epsilons=(0, 1))
    drawn = small.asked(lambda h, *, per, **_: torch.zeros(len(h), per, 3, 8, 8))
    monkeypatch.setattr(model, "sample", drawn)
    known, attacked = attack.halves(data, config)
    found = attack._attack(model, "it", data, known, attacked, config)
    assert seen == [8] * 4
    assert {tuple(shown.shape) for row in found.rows for shown in row} == {(3, 8, 8)}


def test_a_class_that_the_probe_has_not_seen_is_refused(data: ImageSet) -> None:
    data = dataclasses.replace(data, classes=("red", "blue", "rare", "odd"))
    known, rest = data.halves(QUICK.seed)
    assert data.labels is not None
    labels = data.labels.clone()
    labels[rest[3]], labels[known[3]] = 2, 3  # as many classes in both halves
    with pytest.raises(ConfigError, match=r"none of 1 classes of the other half, rare among them: .* images of each"):
        attack.halves(dataclasses.replace(data, labels=labels), QUICK)
    labels[known[3]] = int(data.labels[known[3]])
    with pytest.raises(ConfigError, match="images of each"):
        attack.halves(dataclasses.replace(data, labels=labels), QUICK)
    labels = data.labels.clone()
    labels[known[3]] = 2  # seen and not attacked: no harm
    assert len(attack.halves(dataclasses.replace(data, labels=labels), QUICK)[1]) == 60


def test_a_copy_of_an_image_is_no_unit_of_movement(data: ImageSet) -> None:
    """Images that are in a set twice lie at no distance from each other, in which nothing can be told."""
    _, rest = data.halves(QUICK.seed)
    pixels = data.pixels.clone()
    pixels[rest[1]] = pixels[rest[0]]
    model, config = small.quick_model(), dataclasses.replace(QUICK, epsilons=(0, 2))
    known, attacked = attack.halves(data, config)
    assert {int(rest[0]), int(rest[1])} <= set(attacked.tolist())
    found = attack._attack(model, "it", dataclasses.replace(data, pixels=pixels), known, attacked, config)
    usual = attack._attack(model, "it", data, known, attacked, config)
    for method in robustness.METHODS:
        assert float(found.moved[method].max()) < 2 * float(usual.moved[method].max())


def test_sources_are_sixty_four_unless_asked_and_no_more_than_there_are() -> None:
    config = AttackConfig()
    assert len(attack._sources(torch.arange(100), config)) == 64
    assert attack._sources(torch.arange(30), config).tolist() == list(range(30))
    assert attack._sources(torch.arange(100), AttackConfig(sources=20))[[0, -1]].tolist() == [0, 99]
    for asked, available in ((19, 100), (31, 30)):
        with pytest.raises(ConfigError, match=f"{asked} sources: at least 20, at most the {available} attacked"):
            attack._sources(torch.arange(available), AttackConfig(sources=asked))


def test_every_table_has_its_own_numbers() -> None:
    """By hand: two methods, two units, two models, three epsilons, and another number for each."""
    rng = np.random.default_rng(5)
    results = []
    for name, clean in (("one", 0.9), ("two", 0.7)):
        right = rng.random(100) < clean
        correct = {method: np.stack([right, *(rng.random((2, 100)) < clean / 2)]) for method in ("fgsm", "pgd")}
        far = [{method: rng.random((3, 100)) for method in ("fgsm", "pgd")} for _ in range(2)]
        results.append(Attacked(name, correct, far[0], far[1], rng.random((2, 30)), []))
    found = {table.name: table for table in robustness.tables(results, dataclasses.replace(THREE, epsilons=(0, 1, 16)))}

    def values(name: str) -> list[list[float]]:
        rows = found[name].rows
        assert [row[0] for row in rows] == [0, 1, 16]
        assert found[name].columns == ("epsilon (8-bit levels)", "one", "two")
        return [[cell.value for cell in row[1:] if isinstance(cell, Interval)] for row in rows]

    def check(name: str, expected: list[np.ndarray]) -> None:
        np.testing.assert_allclose(values(name), np.stack(expected, axis=1), err_msg=name)

    both = results[0].correct["pgd"][0] & results[1].correct["pgd"][0]
    check("left-pgd", [each.correct["pgd"].mean(axis=1) / each.correct["pgd"][0].mean() for each in results])
    check("both-pgd", [each.correct["pgd"][:, both].mean(axis=1) for each in results])
    assert f"the {both.sum()} clean images" in found["both-pgd"].note
    for method in ("fgsm", "pgd"):
        check(f"accuracy-{method}", [each.correct[method].mean(axis=1) for each in results])
        check(f"moved-{method}", [each.moved[method].mean(axis=1) for each in results])
        check(f"moved-pairs-{method}", [each.moved_pairs[method].mean(axis=1) for each in results])
    samples = found["samples"]
    assert "epsilon 16" in samples.title
    for row, each in zip(samples.rows, results, strict=True):
        clean, attacked = each.kept.mean(axis=1)
        got = [cell.value for cell in row[1:] if isinstance(cell, Interval)]
        assert row[0] == each.name
        assert got == pytest.approx([clean, attacked, attacked - clean])
    left = [f"{values('left-pgd')[1][number]:.0%}".replace("%", " %") for number in (0, 1)]
    said = robustness.findings(results[0], results[1], dataclasses.replace(THREE, epsilons=(0, 1, 16)))[1].measured
    assert re.search(rf"epsilon 1: {left[0]} \[[^]]*\] and {left[1]} \[", said)


def test_the_seed_reaches_the_interval_of_what_is_left() -> None:
    one = _attacked("one", (0.6, 0.24, 0.24), (0, 0.2, 0.4), (0.5, 0.45))
    found = [robustness.kept_part(one, 1, dataclasses.replace(THREE, seed=seed)) for seed in (0, 3, 3)]
    assert found[0] != found[1] == found[2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilons": (0, 2, 2)}, "begin with 0 and grow"),
        ({"epsilons": (0, 2, 1)}, "begin with 0 and grow"),
        ({"epsilons": (0,)}, "begin with 0 and grow"),
        ({"pgd_steps": 0}, "pgd_steps and shown"),
        ({"shown": 0}, "pgd_steps and shown"),
    ],
)
def test_attacks_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AttackConfig(**settings)


def test_an_attack_stays_among_colors() -> None:
    """Also of images that are black or white, from any start."""
    images = torch.ones(3, 3, 4, 4) * torch.tensor([1.0, -1.0, 0.99]).view(3, 1, 1, 1)
    seen: list[Tensor] = []

    def gradient(x: Tensor) -> Tensor:
        seen.append(x)
        return x.sign()

    last = pgd(images, gradient, 8, 3, torch.Generator().manual_seed(0))
    assert all(float(each.abs().max()) <= 1 for each in [*seen, last])


def test_no_more_images_are_attacked_at_once_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, probe, sizes = small.encoder(), torch.nn.Linear(small.DIM, 2), list[int]()
    before = encoder.represent

    def represent(views: Tensor) -> Tensor:
        sizes.append(len(views))
        return before(views)

    monkeypatch.setattr(encoder, "represent", represent)
    against_probe(small.make_images(7), torch.zeros(7, dtype=torch.int64), encoder, probe, 4, batch_size=3)
    assert sizes == [3, 3, 1]
