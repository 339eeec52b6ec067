"""Unfamiliar images beside familiar ones, with decoders whose answers are known; units, ranks, chance, commands."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis import out_of_distribution
from rcdm_fast.analysis.common import Redrawn, all_hold, below, difference
from rcdm_fast.analysis.out_of_distribution import UnfamiliarConfig
from rcdm_fast.analysis.registry import EXPERIMENTS, Job
from rcdm_fast.analysis.result import Analysis, Cell, cell_text
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import to_pil, to_uint8
from rcdm_fast.metrics import nearest
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.metrics.nearest import rank_of, squared_distances
from rcdm_fast.model import Model
from tests import small
from tests.test_analysis import Flat, oracle, photographs

QUICK = UnfamiliarConfig(sources=24, per=3, steps=2, resamples=200)
KNOWN = 30  # images of the data


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return photographs(KNOWN)


@pytest.fixture(scope="module")
def photos() -> ImageSet:
    """Checkerboards in colors: nothing of the kind is in the data."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 1.0 - 0.5
    images = small.make_images(24, 16, seed=8) * 0.4 + board
    paths = tuple(Path(f"photo-{number}.png") for number in range(24))
    return ImageSet(to_uint8(images.clamp(-1, 1)), None, (), paths, "elsewhere")


def spot(h: Tensor, items: Tensor, per: int, far: float) -> Tensor:
    """h with one pixel of each sample moved by `far`, another pixel for each sample."""
    drawn = h.view(-1, 1, 768).repeat(1, per, 1)
    for row, item in enumerate(items.tolist()):
        for number in range(per):
            drawn[row, number, (7 * item + number) % 768] += far
    return drawn.view(-1, per, 3, 16, 16)


def obeys(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
    return spot(h, items, per, 0.5)


def obeys_what_it_knows(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
    """Exact for the data; photographs become noise."""
    noise = torch.stack([small.make_images(per, 16, seed=item) for item in items.tolist()])
    known = (items < KNOWN).view(-1, 1, 1, 1, 1)
    return torch.where(known, h.view(-1, 1, 3, 16, 16).expand_as(noise), noise)


def deaf(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
    return torch.stack([small.make_images(per, 16, seed=item) for item in items.tolist()])


def value(cell: Cell) -> float:
    assert isinstance(cell, Interval)
    return cell.value


def verdicts(found: Analysis) -> list[bool | None]:
    return [each.holds for each in found.findings]


def test_a_decoder_that_obeys_everywhere(monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet) -> None:
    done: list[tuple[int, int]] = []
    found = out_of_distribution.run(oracle(monkeypatch, obeys), data, photos, QUICK, lambda *each: done.append(each))
    assert verdicts(found) == [True, True]
    familiar, other = found.tables[0].rows
    # the distances by hand: every sample is 0.5 from h
    known, shown = data.floats(slice(None)).flatten(1).numpy(), photos.floats(slice(None)).flatten(1).numpy()
    places = np.linspace(0, KNOWN - 1, 24).round().astype(int)
    to_data = np.array([np.sort(np.linalg.norm(known - known[place], axis=1))[1] for place in places])
    from_photos = np.array([np.linalg.norm(known - image, axis=1).min() for image in shown])
    unit = to_data.mean()
    assert [value(cell) for cell in familiar[2:5]] == pytest.approx([1, (0.5 / to_data).mean(), 0.5 / unit], rel=1e-5)
    assert [value(cell) for cell in other[2:5]] == pytest.approx(
        [from_photos.mean() / unit, (0.5 / from_photos).mean(), 0.5 / unit], rel=1e-5
    )
    assert value(familiar[5]) == value(other[5]) == 1
    assert value(familiar[6]) < 0.2
    assert value(other[6]) < 0.2
    per_pixel = np.zeros(3)
    per_pixel[0] = 0.5 * 127.5
    assert value(other[7]) == pytest.approx(3 * per_pixel.std(ddof=1) / 768, rel=1e-4)
    assert done[-1] == (48, 48)
    assert [part for part, _ in done] == sorted(part for part, _ in done)
    assert set(found.figures) == set(found.captions) == {"unfamiliar", "familiar"}
    assert (found.settings["data"], found.settings["photos"]) == ("made-up", "elsewhere")


def test_a_decoder_that_knows_only_the_data(monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet) -> None:
    found = out_of_distribution.run(oracle(monkeypatch, obeys_what_it_knows), data, photos, QUICK)
    assert found.findings[0].holds is False
    assert found.findings[1].holds is not True
    familiar, other = found.tables[0].rows
    assert value(familiar[3]) == 0
    assert value(other[4]) > 1


def test_a_deaf_decoder(monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet) -> None:
    found = out_of_distribution.run(oracle(monkeypatch, deaf), data, photos, QUICK)
    assert True not in verdicts(found)


def test_far_from_everything_is_no_merit(monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet) -> None:
    """All samples are one checkerboard: nearer to any photograph than to the data, whichever photograph it was."""
    same = photos.floats(slice(None)).mean(dim=0)

    def board(h: Tensor, *, per: int, **_: object) -> Tensor:
        return same.expand(len(h), per, -1, -1, -1)

    found = out_of_distribution.run(oracle(monkeypatch, board), data, photos, QUICK)
    other = found.tables[0].rows[1]
    chance = float(np.mean(1 / np.arange(1, KNOWN + 24 + 1)))
    assert value(other[5]) > 1.5 * chance  # before the data, whatever the photograph was
    assert value(other[5]) == pytest.approx(value(other[6]), abs=1e-12)
    assert verdicts(found)[1] is None
    assert verdicts(found)[0] is not True  # nor do samples of familiar images lead back


def test_few_photographs_are_shown_but_not_compared(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet
) -> None:
    model = oracle(monkeypatch, obeys)
    whole = out_of_distribution.run(model, data, photos, QUICK)
    assert [table.name for table in whole.tables] == ["groups"]
    found = out_of_distribution.run(model, data, photos.subset(torch.arange(3)), QUICK)
    assert verdicts(found) == [None, None]
    assert all("at least 20 of them, got 3" in each.measured for each in found.findings)
    assert [row[0] for row in found.tables[1].rows] == ["photo-0.png", "photo-1.png", "photo-2.png"]
    mean = np.mean([row[2] for row in found.tables[1].rows if isinstance(row[2], float)])
    assert found.tables[0].rows[1][3] == pytest.approx(mean)
    alone = out_of_distribution.run(model, data, photos.subset(torch.arange(1)), QUICK)
    assert alone.tables[0].rows[1][6] is None  # no other samples to measure chance with
    assert alone.as_text()


def test_units_leave_out_the_image_itself_and_its_copies() -> None:
    gallery = torch.tensor([[3.0, 0], [3, 0], [3, 4], [3, 5]])
    assert nearest.apart(gallery, gallery).tolist() == [4, 4, 1, 1]
    for scale in (1e-7, 1e7):  # of whatever unit h is: what is the same is so in proportion to it
        copied = scale * torch.cat([gallery, gallery * (1 + 5e-6)])
        found = nearest.apart(copied[:4], copied) / scale
        assert found.tolist() == pytest.approx([4, 4, 1, 1], rel=1e-4)
    assert nearest.distance(gallery, gallery).tolist() == [0, 0, 0, 0]
    assert nearest.distance(torch.tensor([[0.0, 0]]), gallery).tolist() == [3]
    with pytest.raises(ConfigError, match="same representation"):
        nearest.apart(gallery[:1], gallery[:2])
    again = torch.tensor([[[3.0, 2], [3, -2]], [[6, 4], [0, 0]]])  # samples on opposite sides are as far as they are
    assert nearest.relative(again, gallery[[0, 2]], torch.tensor([4.0, 1])).tolist() == [0.5, 4]


def test_chance_is_the_rank_of_an_image_by_samples_of_others() -> None:
    real = out_of_distribution.Real(torch.tensor([[0.0], [1], [10], [11]]), 4, 2.0)
    again = torch.tensor([[[0.1]] * 2, [[0.9]] * 2])  # of the images at 0 and at 10
    drawn = Redrawn(torch.zeros(2, 2, 3, 8, 8), again)
    found = out_of_distribution._group("made up", torch.zeros(2, 3, 8, 8), drawn, torch.tensor([0, 2]), real)
    assert found.back.tolist() == pytest.approx([1, 1 / 3])
    assert found.chance is not None
    assert found.chance.tolist() == pytest.approx([1 / 2, 1 / 3])  # from 0.9 to 0, from 0.1 to 10
    assert found.own.tolist() == pytest.approx([0.1, 9.1])
    assert found.shared.tolist() == pytest.approx([0.05, 4.55])
    assert found.apart.tolist() == pytest.approx([0.5, 0.5])


def test_faithful_in_both_units_and_where_familiar_images_lead_back() -> None:
    jitter = np.linspace(-0.01, 0.01, 24)

    def verdict(own: float, shared: float, back: float = 0.9) -> bool | None:
        """Of unfamiliar images so much further away than familiar ones, whose samples lead back so well."""
        plain = torch.zeros(24, 3, 8, 8)
        familiar = out_of_distribution.Group(
            "familiar", plain, plain[:, None], jitter, jitter, jitter, back + jitter, 0.1 - jitter, jitter
        )
        other = dataclasses.replace(familiar, own=jitter + own, shared=jitter + shared)
        return out_of_distribution._as_faithful(other, familiar, QUICK).holds

    assert verdict(0, 0) is True
    assert verdict(1, 0) is False
    assert verdict(0, 1) is False
    assert verdict(0.25, 0) is None
    assert verdict(0, 0.25) is None
    assert verdict(0, 0, back=0.1) is None


def test_ranks_are_those_of_evaluate(generator: torch.Generator) -> None:
    gallery = torch.randint(0, 3, (80, 3), generator=generator).float()  # many ties
    again, places = torch.randn(70, 3, generator=generator).round(), torch.tensor([4, 9, 60])
    to_gallery = squared_distances(again, gallery)
    found = nearest.ranks(again, gallery, places)
    want = torch.stack([rank_of(to_gallery, place) for place in places.tolist()], dim=1)
    torch.testing.assert_close(found, want)


def test_a_difference_of_groups_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    config = dataclasses.replace(QUICK, resamples=400)
    covered = 0
    for _ in range(100):
        found = difference(rng.normal(1.5, 1, 30), rng.normal(1, 2, 50), config)
        covered += found.low < 0.5 < found.high
    assert 87 <= covered <= 100
    assert below(Interval(1, 0, 2), 3) is True
    assert below(Interval(1, 0, 2), 1) is None
    assert below(Interval(1, 0, 2), -1) is False
    assert (all_hold([True, True]), all_hold([True, None]), all_hold([None, False])) == (True, None, False)


def test_the_real_path_from_the_registry() -> None:
    data, photos = photographs(24, 8), photographs(20, 8)
    settings = {"sources": 20, "per": 2, "steps": 2, "resamples": 100}
    found = EXPERIMENTS["unfamiliar"].run(Job(small.quick_model(), data, photos, settings=settings))
    assert json.loads(json.dumps(found.as_json()))["name"] == "unfamiliar"
    again = EXPERIMENTS["unfamiliar"].run(Job(small.quick_model(), data, photos, settings=settings))
    assert again.as_json() == found.as_json()


def test_what_is_refused(data: ImageSet, photos: ImageSet) -> None:
    model = small.quick_model()
    with pytest.raises(ConfigError, match="at least 20 of them, got 10"):
        out_of_distribution.run(model, data.subset(torch.arange(10)), photos, dataclasses.replace(QUICK, sources=0))
    with pytest.raises(ConfigError, match="the data has 30"):
        out_of_distribution.run(model, data, photos, dataclasses.replace(QUICK, sources=40))
    with pytest.raises(ConfigError, match="no photographs"):
        out_of_distribution.run(model, data, photos.subset(torch.arange(0)), QUICK)
    with pytest.raises(ConfigError, match="at least 2 of each image"):
        UnfamiliarConfig(per=1)
    with pytest.raises(ConfigError, match="shown"):
        UnfamiliarConfig(shown=0)
    with pytest.raises(ConfigError, match="resamples must be at least 100"):
        UnfamiliarConfig(resamples=5)
    with pytest.raises(ConfigError, match="--photos"):
        EXPERIMENTS["unfamiliar"].run(Job(model, data))
    with pytest.raises(ConfigError, match="--data"):
        EXPERIMENTS["unfamiliar"].run(Job(model, photos=photos))
    model._encoder = None
    with pytest.raises(ConfigError, match="encoder"):
        out_of_distribution.run(model, data, photos, QUICK)


def test_an_encoder_that_sees_nothing(monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet) -> None:
    class Blind(Flat):
        def encode(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 768)

    model: Model = oracle(monkeypatch, deaf)
    monkeypatch.setattr(model, "_encoder", Blind())
    with pytest.raises(ConfigError, match="same representation"):
        out_of_distribution.run(model, data, photos, QUICK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    for number, image in enumerate(photographs(22, 32).floats(slice(None))):
        to_pil(image).save(place / f"{number:02d}.png")
    return place


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, quick = "cifar10-simclr-head", ["--steps", "1", "--per", "2", "--set", "resamples=100"]
    with_both = ["--data", str(folder), "--photos", str(folder)]
    assert main(["analyze", model, "unfamiliar", *with_both, "--out", str(tmp_path), *quick]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "unfamiliar.json",
        "unfamiliar-familiar.png",
        "unfamiliar-unfamiliar.png",
    }
    assert json.loads((tmp_path / "unfamiliar.json").read_text())["settings"]["photographs"] == 22
    few = tmp_path / "few"
    few.mkdir()
    (few / "0.png").write_bytes((folder / "00.png").read_bytes())
    assert main(["analyze", model, "photos", "--photos", str(few), "--out", str(tmp_path), *quick]) == 0
    capsys.readouterr()
    for given, said in (
        ((model, "unfamiliar", "--data", str(folder)), "--photos"),
        ((model, "unfamiliar", "--photos", str(folder)), "--data"),
        ((model, "interpolate", *with_both), "takes no photographs"),
    ):
        assert main(["analyze", *given, "--out", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


def test_a_report_without_photographs_leaves_it_out(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    arguments = ["report", "cifar10-simclr-head", "--data", str(folder), "--out", str(page), "--steps", "1"]
    assert main([*arguments, "--experiments", "unfamiliar,faithfulness", "--sources", "20"]) == 0
    found = json.loads(page.with_suffix(".json").read_text())
    assert set(found["experiments"]) == {"faithfulness"}
    assert "--photos" in found["left_out"]["unfamiliar"]
    assert "--photos" in page.read_text()


def two_groups() -> tuple[out_of_distribution.Group, out_of_distribution.Group]:
    """Of 24 familiar and 22 unfamiliar images, with another number everywhere."""
    images = small.make_images(46, 16)
    made = []
    for name, count, more in (("familiar", 24, 0.0), ("unfamiliar", 22, 0.07)):
        jitter = np.linspace(-0.01, 0.01, count) + more
        shown = images[:count] if name == "familiar" else images[24:]
        numbers = (jitter + level for level in (1.1, 0.2, 0.3, 0.9, 0.4, 5.0))
        made.append(out_of_distribution.Group(name, shown, (shown * 0.5)[:, None].repeat(1, 3, 1, 1, 1), *numbers))
    return made[0], made[1]


def test_sentences_name_the_right_numbers() -> None:
    familiar, unfamiliar = two_groups()
    back = out_of_distribution._back(unfamiliar)
    (_, own), (other, chance) = back.numbers
    assert other == "of other photographs' samples"
    assert (own.value, chance.value) == pytest.approx((0.97, 0.47))
    assert back.measured.startswith(
        f"MRR {cell_text(own)}, by the samples of other photographs {cell_text(chance)}, difference 0.5 ["
    )
    farther = dataclasses.replace(unfamiliar, shared=unfamiliar.shared + 0.1)
    measured = out_of_distribution._as_faithful(farther, familiar, QUICK).measured
    assert re.findall(r"([\d.]+) \[[^]]*\] of (the \w+)", measured) == [("0.07", "the own"), ("0.17", "the data")]


def test_a_figure_shows_images_beside_their_own_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[list[list[Tensor]]] = []
    monkeypatch.setattr(out_of_distribution, "to_pil", lambda image: image)
    monkeypatch.setattr(out_of_distribution, "image_sheet", lambda rows, **_: sheets.append(rows))
    _, group = two_groups()
    out_of_distribution._sheet(group, dataclasses.replace(QUICK, shown=3))
    (rows,) = sheets
    assert len(rows) == 3
    for row, number in zip(rows, (0, 10, 21), strict=True):
        assert len(row) == 4
        assert torch.equal(row[0], group.images[number])
        assert torch.equal(row[1], group.images[number] * 0.5)


def test_figures_settings_and_chance_are_of_both_sets(
    monkeypatch: pytest.MonkeyPatch, data: ImageSet, photos: ImageSet
) -> None:
    shown: list[str] = []

    def sheet(group: out_of_distribution.Group, _: UnfamiliarConfig) -> str:
        shown.append(group.name)
        return group.name

    monkeypatch.setattr(out_of_distribution, "_sheet", sheet)
    config = dataclasses.replace(QUICK, sources=0)
    found = out_of_distribution.run(oracle(monkeypatch, obeys), data, photos.subset(torch.arange(4)), config)
    assert found.figures == {"unfamiliar": "unfamiliar", "familiar": "familiar"}
    assert (found.settings["sources"], found.settings["photographs"]) == (KNOWN, 4)
    chance = sum(1 / rank for rank in range(1, 35)) / 34
    assert f"from 34 images would give an MRR of {chance:.2g}." in found.tables[0].note
