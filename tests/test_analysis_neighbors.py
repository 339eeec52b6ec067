"""Neighbors of samples beside neighbors of h, with decoders that obey, copy, average or are deaf; lists by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import common, neighbors
from rcdm_fast.analysis.common import Redrawn
from rcdm_fast.analysis.neighbors import NeighborsConfig, Setting, overlap, split
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.analysis.result import Analysis, Cell, Table
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import to_uint8
from rcdm_fast.metrics import nearest
from rcdm_fast.metrics.intervals import Interval, fraction_difference
from tests import small
from tests.test_analysis import oracle, photographs

QUICK = NeighborsConfig(sources=24, per=2, neighbors=3, steps=2, resamples=200)
COUNT = 100


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Noise, so that no image is near another; one of four colors added, which is the class."""
    generator = torch.Generator().manual_seed(4)
    images = 0.3 * torch.randn(COUNT, 3, 16, 16, generator=generator)
    labels = torch.arange(COUNT) % 4
    for number, label in enumerate(labels.tolist()):
        images[number] += torch.tensor([[-0.2, -0.2, 0], [0.2, -0.2, 0], [-0.2, 0.2, 0], [0.2, 0.2, 0]])[
            label, :, None, None
        ]
    return ImageSet(to_uint8(images.clamp(-1, 1)), labels, ("a", "b", "c", "d"), (), "made-up")


def obeys(h: Tensor, *, per: int, **_: object) -> Tensor:
    return h.view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)


def deaf(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
    return torch.stack([small.make_images(per, 16, seed=item) for item in items.tolist()])


def interval(cell: Cell) -> Interval:
    assert isinstance(cell, Interval)
    return cell


def table(found: Analysis, name: str) -> Table:
    return next(each for each in found.tables if each.name == name)


def verdicts(found: Analysis) -> dict[str, bool | None]:
    """By the first word that tells findings apart."""
    words = {"neighborhood": "lists", "class": "class", "nearer to h": "near", "copies": "copies"}
    return {name: each.holds for each in found.findings for word, name in words.items() if word in each.claim}


def test_a_decoder_that_obeys(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    done: list[tuple[int, int]] = []
    found = neighbors.run(oracle(monkeypatch, obeys), data, QUICK, lambda *each: done.append(each))
    assert verdicts(found) == {"lists": True, "class": True, "near": True, "copies": None}
    for row in table(found, "overlap").rows:
        assert (interval(row[1]).value, interval(row[1]).low) == pytest.approx((1, 24 / (24 + 1.959964**2)))  # Wilson's
        assert interval(row[2]).high < 0.3
        assert row[3] == 3 / (COUNT - 24)
    h, mean, each = table(found, "class").rows
    assert interval(h[1]) == interval(mean[1]) == interval(each[1])
    assert interval(h[1]).value > 0.9
    assert interval(each[2]).value == 0
    assert h[3] == pytest.approx(0.25, abs=0.02)
    assert done[-1] == (24, 24)
    assert found.settings["gallery"] == COUNT - 24
    assert found.figures["neighbors"].width > (1 + 3 + 2 + 3) * 72


def test_a_deaf_decoder(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    found = neighbors.run(oracle(monkeypatch, deaf), data, QUICK)
    got = verdicts(found)
    assert got["lists"] is not True
    assert got["class"] is not True
    assert got["near"] is False


def test_hubs_are_no_merit(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """The same sample whatever h is: what its neighbors share with those of h they share with those of any h."""
    floats = data.floats(slice(None))

    def average(h: Tensor, *, per: int, **_: object) -> Tensor:
        return floats.mean(dim=0).expand(len(h), per, -1, -1, -1)

    found = neighbors.run(oracle(monkeypatch, average), data, QUICK)
    _, each = table(found, "overlap").rows
    assert interval(each[1]).value == pytest.approx(interval(each[2]).value, abs=1e-9)
    got = verdicts(found)
    assert got["lists"] is None


def test_lists_by_hand() -> None:
    of_h = torch.tensor([[[0, 1]], [[2, 3]], [[4, 5]]])
    lists = torch.tensor([[[0, 1], [1, 9]], [[2, 9], [8, 9]], [[0, 2], [1, 3]]])
    own, others = overlap(lists, of_h, 10)
    assert own.tolist() == [0.75, 0.25, 0]
    assert others.tolist() == [0, 0, 0.5]
    gallery = torch.tensor([[0.0], [1], [3], [7]])
    assert nearest.neighbors(torch.tensor([[2.5], [9]]), gallery, 2).tolist() == [[2, 1], [3, 2]]


def test_lists_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """Overlap of another image's samples, beside one computed in a plain way."""

    def next_one(h: Tensor, *, per: int, **_: object) -> Tensor:
        return (0.5 * h + 0.5 * h.roll(1, 0)).view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)

    config = dataclasses.replace(QUICK, batch_size=64)
    found = neighbors.run(oracle(monkeypatch, next_one), data, config)
    sources, rest = split(data, config)
    h, gallery = data.floats(sources).flatten(1).numpy(), data.floats(rest).flatten(1).numpy()
    mixed = 0.5 * h + 0.5 * np.roll(h, 1, axis=0)

    def lists(x: np.ndarray) -> list[set[int]]:
        return [set(np.linalg.norm(gallery - row, axis=1).argsort()[:3].tolist()) for row in x]

    shared = [len(a & b) / 3 for a, b in zip(lists(mixed), lists(h), strict=True)]
    assert interval(table(found, "overlap").rows[1][1]).value == pytest.approx(np.mean(shared))
    far = np.linalg.norm(mixed - h, axis=1) / [np.linalg.norm(gallery - row, axis=1).min() for row in h]
    near = next(each for each in found.findings if "nearer to h" in each.claim)
    assert f"distance to h {far.mean():.3g} [" in near.measured


def test_without_labels_from_the_registry() -> None:
    plain = photographs(50, 8)
    settings = {"sources": 20, "per": 2, "steps": 2, "resamples": 100}
    found = EXPERIMENTS["neighbors"].run(Job(small.quick_model(), plain, settings=settings))
    assert [each.name for each in found.tables] == ["overlap"]
    assert json.loads(json.dumps(found.as_json()))["settings"]["gallery"] == 30
    again = EXPERIMENTS["neighbors"].run(Job(small.quick_model(), plain, settings=settings))
    assert again.as_json() == found.as_json()


def test_sources_and_gallery_have_nothing_in_common(data: ImageSet) -> None:
    for config in (QUICK, NeighborsConfig(), NeighborsConfig(neighbors=70)):
        sources, rest = split(data, config)
        assert sorted([*sources.tolist(), *rest.tolist()]) == list(range(COUNT))
        assert len(sources) >= 20
        assert len(rest) > config.neighbors
    assert len(split(data, NeighborsConfig())[0]) == 50
    assert len(split(data, NeighborsConfig(neighbors=70))[0]) == 29


def test_what_is_refused(data: ImageSet) -> None:
    model = small.quick_model()
    with pytest.raises(ConfigError, match="at least 40 images are needed, 20 of them as sources; got 30"):
        neighbors.run(model, data.subset(torch.arange(30)), QUICK)
    with pytest.raises(ConfigError, match="at least 101 images"):
        split(data, NeighborsConfig(neighbors=80))
    with pytest.raises(ConfigError, match="98 sources: at least 20, at most 96"):
        split(data, dataclasses.replace(QUICK, sources=98))
    with pytest.raises(ConfigError, match="5 sources: at least 20"):
        split(data, dataclasses.replace(QUICK, sources=5))
    with pytest.raises(ConfigError, match="neighbors and shown"):
        NeighborsConfig(neighbors=0)
    with pytest.raises(ConfigError, match="per must be"):
        NeighborsConfig(per=0)
    model._encoder = None
    with pytest.raises(ConfigError, match="encoder"):
        neighbors.run(model, data, QUICK)


def made_up(data: ImageSet) -> Setting:
    """Lists at random: of h, of the mean and of two samples of every second image, among all others."""
    generator = torch.Generator().manual_seed(6)
    sources, rest = torch.arange(0, 50, 2), torch.cat([torch.arange(1, 50, 2), torch.arange(50, COUNT)])
    of_h, of_mean, of_each = (
        torch.stack([torch.randperm(75, generator=generator)[:3] for _ in range(25 * per)]).view(25, per, 3)
        for per in (1, 1, 2)
    )
    drawn = Redrawn(torch.zeros(25, 2, 3, 16, 16), torch.zeros(25, 2, 4))
    h, gallery = torch.ones(25, 4), 2 + torch.arange(300.0).view(75, 4)
    return Setting(sources, rest, h, gallery, drawn, of_h, of_mean, of_each)


def test_classes_of_neighbors_by_hand(data: ImageSet) -> None:
    found, labels = made_up(data), torch.arange(COUNT) % 3
    lists = {"the mean of samples": found.of_mean, "each sample": found.of_each}

    def of_class(each: Tensor) -> np.ndarray:
        return np.array([
            np.mean([labels[found.rest[place]] == labels[source] for place in each[number].flatten().tolist()])
            for number, source in enumerate(found.sources.tolist())
        ])  # fmt: skip

    rest = labels[found.rest].tolist()
    chance = np.mean([rest.count(int(labels[source])) / 75 for source in found.sources.tolist()])
    h, mean, each = neighbors._class_table(found, lists, labels, QUICK).rows
    of_h = of_class(found.of_h)
    assert interval(h[1]).value == pytest.approx(of_h.mean())
    assert h[2] is None
    assert h[3] == pytest.approx(chance)
    for row, given in ((mean, found.of_mean), (each, found.of_each)):
        assert interval(row[1]).value == pytest.approx(of_class(given).mean())
        assert interval(row[2]).value == pytest.approx((of_class(given) - of_h).mean())
        assert row[3] == pytest.approx(chance)
    told = neighbors._class_finding(found, labels, QUICK).measured
    values, usual = (common.percent(common.fraction(of_class(each))) for each in (found.of_each, found.of_h))
    assert told == (
        f"{values} of a sample's neighbors, {usual} of the neighbors of h, {100 * chance:.0f} % of the gallery"
    )


def test_a_sentence_tells_of_each_sample_and_not_of_their_mean(data: ImageSet) -> None:
    found = made_up(data)
    own, others = overlap(found.of_each, found.of_h, 75)
    values = map(common.percent, (common.fraction(own), fraction_difference(own, others)))
    told = "{} of a sample's neighbors are neighbors of its h, {} more than of another source's h".format(*values)
    assert neighbors._overlap_finding(found, QUICK).measured == told
    lists = {"the mean of samples": found.of_mean, "each sample": found.of_each}
    rows = neighbors._overlap_table(found, lists, QUICK).rows
    assert interval(rows[1][1]).value == pytest.approx(own.mean())
    assert interval(rows[0][1]).value == pytest.approx(overlap(found.of_mean, found.of_h, 75)[0].mean())


def test_the_figure_shows_neighbors_of_h_samples_and_neighbors_of_their_mean(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet
) -> None:
    found, sheets = made_up(data), list[list[list[Tensor]]]()
    drawn = small.make_images(50, 16).view(25, 2, 3, 16, 16)
    found = dataclasses.replace(found, drawn=Redrawn(drawn, found.drawn.representations))
    monkeypatch.setattr(neighbors, "to_pil", lambda image: image)
    monkeypatch.setattr(neighbors, "image_sheet", lambda rows, **_: sheets.append(rows))
    neighbors._sheet(found, data, dataclasses.replace(QUICK, shown=3))
    (rows,) = sheets
    assert len(rows) == 3
    for row, number in zip(rows, (0, 12, 24), strict=True):
        near = (data.floats(found.rest[each[number, 0]]) for each in (found.of_h, found.of_mean))
        of_h, of_mean = near
        want = [*data.floats(found.sources[number][None]), *of_h, *drawn[number], *of_mean]
        assert all(torch.equal(*each) for each in zip(row, want, strict=True))


def test_eighty_sources_where_there_are_images_enough() -> None:
    plain = ImageSet(torch.zeros(200, 3, 8, 8, dtype=torch.uint8), None, (), (), "plain")
    assert len(split(plain, NeighborsConfig())[0]) == 80
