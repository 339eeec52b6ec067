"""Neighbours by samples, and unfamiliar photographs: decoders that obey, that are deaf, and that copy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import neighbours, reencoded, unfamiliar
from rcdm_fast.analysis.neighbours import NeighboursConfig
from rcdm_fast.analysis.reencoded import Reencoded
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.analysis.unfamiliar import UnfamiliarConfig
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.pipeline import Model
from rcdm_fast.training.data import ImageSet
from rcdm_fast.training.evaluate import Interval
from tests import small, training_process
from tests.test_analysis import Flat, photographs

NEAR = NeighboursConfig(sources=20, samples=2, neighbours=3, steps=2, resamples=200)
STRANGE = UnfamiliarConfig(sources=20, samples=2, steps=2, resamples=200)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return photographs(80)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose representation is the picture and whose samples are the representation."""
    model = small.model()
    monkeypatch.setattr(model, "_encoder", Flat())

    def draw(h: Tensor, *, per: int, **_: object) -> Tensor:
        return h.view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)

    monkeypatch.setattr(model, "sample", draw)
    return model


@pytest.fixture
def deaf(mirror: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The same, with samples that know nothing of h."""
    calls = iter(range(1000))

    def draw(h: Tensor, *, per: int, **_: object) -> Tensor:
        return small.pictures(len(h) * per, 16, seed=next(calls)).view(len(h), per, 3, 16, 16)

    monkeypatch.setattr(mirror, "sample", draw)
    return mirror


def cell(found: Analysis, row: int, place: int, table: int = 0) -> float:
    value = found.tables[table].rows[row][place]
    assert isinstance(value, Interval)
    return value.value


def inverted(pictures: ImageSet) -> ImageSet:
    """Pictures unlike the data: more contrast, colours turned round."""
    pixels = (255 - pictures.pixels.float()).sub(128).mul(2).add(128).clamp(0, 255).to(torch.uint8)
    return dataclasses.replace(pictures, pixels=pixels)


def test_distances_and_ranks() -> None:
    gallery = torch.tensor([[0.0, 0], [3, 4], [6, 8]])
    assert reencoded.to_gallery(torch.zeros(1, 2), gallery).tolist() == [[0, 5, 10]]
    assert reencoded.to_gallery(torch.zeros(1, 2), gallery, torch.tensor([0])).tolist() == [[torch.inf, 5, 10]]
    h = torch.tensor([[3.0, 4]])
    again = torch.tensor([[[3.0, 4], [0, 0], [6, 8]]])
    assert reencoded.ranks(again, h, gallery, torch.tensor([1])).tolist() == [[1, 2, 2]]
    assert reencoded.ranks(again, h, gallery).tolist() == [[1.5, 2.5, 2.5]]
    found = Reencoded(h, torch.zeros(1, 3, 3, 8, 8), again)
    assert found.distances().tolist() == [[0, 5, 5]]


def test_samples_are_drawn_with_their_items_noise() -> None:
    """In pieces, the samples are those of one call."""
    model = small.model()
    h = torch.randn(20, small.DIM)
    items = torch.arange(100, 120)
    told: list[int] = []
    found = reencoded.draw(model, h, items, NEAR, told.append)
    assert torch.equal(found.pictures, model.sample(h, items=items, per=2, steps=2))
    assert told == [16, 20]


def test_an_obedient_decoder_has_the_neighbours_of_h(mirror: Model, data: ImageSet) -> None:
    found = neighbours.run(mirror, data, NEAR)
    assert cell(found, 0, 1) == 1
    assert [finding.holds for finding in found.findings] == [True, True]
    assert cell(found, 1, 1) == pytest.approx(1)


def test_a_deaf_decoder_has_not(deaf: Model, data: ImageSet) -> None:
    found = neighbours.run(deaf, data, NEAR)
    assert cell(found, 0, 1) < 0.4


def test_copies_are_found(mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that gives the nearest real picture instead of one of its own."""
    everything = data.floats(slice(None)).flatten(1)

    def copy(h: Tensor, *, per: int, **_: object) -> Tensor:
        distances = reencoded.to_gallery(h, everything)
        second = distances.topk(len(data) // 2, largest=False).indices
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        known = set(order[: len(data) // 2].tolist())
        chosen = [next(place for place in row if place in known) for row in second.tolist()]
        return everything[chosen].view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)

    monkeypatch.setattr(mirror, "sample", copy)
    found = neighbours.run(mirror, data, NEAR)
    assert found.findings[1].holds is False
    assert cell(found, 1, 1) == 0


def test_classes_of_neighbours(mirror: Model, data: ImageSet) -> None:
    brightness = data.pixels.float().mean(dim=(1, 2, 3))
    labels = (brightness > brightness.median()).long()
    found = neighbours.run(mirror, dataclasses.replace(data, labels=labels, classes=("dark", "light")), NEAR)
    rows = {str(row[0]): row for row in found.tables[0].rows}
    of_h, of_samples = (
        rows["neighbours of h with the source's class"],
        rows["neighbours of samples with the source's class"],
    )
    assert of_h[1] == of_samples[1]
    chance = of_h[2]
    assert isinstance(chance, float)
    assert 0.4 < chance < 0.6


def test_familiar_and_unfamiliar(mirror: Model, data: ImageSet) -> None:
    found = unfamiliar.run(mirror, data, inverted(photographs(30)), STRANGE)
    near, far = (cell(found, row, 2) for row in (0, 1))
    assert near == pytest.approx(1, abs=0.2)
    assert far > near
    assert [cell(found, row, 3) for row in (0, 1)] == [0, 0]
    assert [cell(found, row, 4) for row in (0, 1)] == [1, 1]
    farther, less_faithful, lead_back = (finding.holds for finding in found.findings)
    assert (farther, less_faithful, lead_back) == (True, None, True)


def test_a_decoder_deaf_to_unfamiliar_pictures(mirror: Model, data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, strange = mirror.sample, inverted(photographs(20))
    theirs = strange.floats(slice(None)).flatten(1)

    def partly(h: Tensor, *, per: int, **_: object) -> Tensor:
        knows = not any(bool((theirs == row).all(dim=1).any()) for row in h)
        return draw(h, per=per) if knows else torch.zeros(len(h), per, 3, 16, 16)

    monkeypatch.setattr(mirror, "sample", partly)
    found = unfamiliar.run(mirror, data, strange, STRANGE)
    assert found.findings[1].holds is True
    assert cell(found, 0, 3) == 0
    assert cell(found, 1, 3) > 0
    assert cell(found, 1, 4) < 0.5


def test_few_photographs_decide_nothing(mirror: Model, data: ImageSet) -> None:
    found = unfamiliar.run(mirror, data, inverted(photographs(3)), STRANGE)
    assert [finding.holds for finding in found.findings] == [None, None, None]
    assert "of 3 photographs; 20 are needed" in found.findings[0].measured
    assert [row[0] for row in found.tables[1].rows] == ["0", "1", "2"]


def test_a_real_model_runs_both() -> None:
    data, model = training_process.data(), small.model()
    settings = {"sources": 20, "samples": 2, "steps": 2, "resamples": 200}
    for name in ("neighbours", "unfamiliar"):
        job = Job(model, data, data, settings=settings)
        found = EXPERIMENTS[name].run(job)
        assert found.figures
        assert found.as_json() == EXPERIMENTS[name].run(job).as_json()


def test_what_is_refused(
    data: ImageSet, mirror: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in (NeighboursConfig(sources=10), NeighboursConfig(neighbours=100)):
        with pytest.raises(ConfigError, match=r"at least|needed"):
            neighbours.run(mirror, data, config)
    for other in (UnfamiliarConfig(gallery=10), UnfamiliarConfig(sources=81)):
        with pytest.raises(ConfigError, match=r"are needed|the data has"):
            unfamiliar.run(mirror, data, data, other)
    with pytest.raises(ConfigError, match="at least 1"):
        NeighboursConfig(neighbours=0)
    with pytest.raises(ConfigError, match="at least 1"):
        UnfamiliarConfig(samples=0)
    with pytest.raises(ConfigError, match="needs photographs beside the data"):
        EXPERIMENTS["unfamiliar"].run(Job(mirror, data))
    assert main(["analyze", "unfamiliar", "cifar10-simclr-trunk", "--data", "x", "--out", str(tmp_path)]) == 2
    assert "needs photographs: name a folder of them with --photos" in capsys.readouterr().err
    monkeypatch.setattr(mirror, "_encoder", None)
    with pytest.raises(ConfigError, match="need the model's encoder"):
        neighbours.run(mirror, data, NEAR)
    with pytest.raises(ConfigError, match="need the model's encoder"):
        unfamiliar.run(mirror, data, data, STRANGE)
