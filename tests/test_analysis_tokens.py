"""Positions of maps: decoders whose pixels are known functions of the map, rings by hand, the command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import rcdm_fast
from rcdm_fast.analysis import registry, tokens
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.analysis.tokens import TokensConfig
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import to_pil
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from tests import small
from tests.test_analysis import Flat, photographs

SHAPE = (3, 8, 8)
QUICK = TokensConfig(sources=40, per=2, steps=2, resamples=200, sides=(2,))
DATA = photographs(90, 16)


class Pooled(Flat):
    """Means of 2 x 2 pixels: a map of 3 x 8 x 8."""

    def encode(self, images: Any, batch_size: int = 64) -> Tensor:
        return F.avg_pool2d(torch.as_tensor(images), 2).flatten(1)


def decoder(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Tensor], Tensor], noise: float = 0.0) -> Model:
    """Draws `answer` of the maps [S,3,8,8], an image [S,3,16,16], and as much noise, of the item."""
    model = small.quick_model()
    unet = dataclasses.replace(model.config.unet, condition_map=SHAPE, representation_dim=192)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, unet=unet))
    monkeypatch.setattr(model, "_encoder", Pooled())

    def sample(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        own = torch.stack([small.make_images(per, 16, seed=item) for item in items.tolist()])
        return answer(h.view(-1, *SHAPE))[:, None] + noise * own

    monkeypatch.setattr(model, "sample", small.asked(sample))
    return model


def local(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0)


def blurred(maps: Tensor) -> Tensor:
    """Every position is the mean of itself and its eight neighbors."""
    return local(F.avg_pool2d(F.pad(maps, (1, 1, 1, 1), mode="circular"), 3, 1))


def table(found: Analysis, name: str) -> Any:
    return next(each for each in found.tables if each.name == name).rows


def values(cells: Any) -> list[float]:
    return [each.value for each in cells if isinstance(each, Interval)]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_where_positions_are_drawn_alone_nothing_is_seen_of_others(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tokens.run(decoder(monkeypatch, local, noise), DATA, QUICK)
    assert [row[0] for row in table(found, "kept")] == [0, 1, 2, 3]
    assert values(row[1] for row in table(found, "kept")) == pytest.approx([1, 0, 0, 0], abs=1e-5)
    assert [each.holds for each in found.findings] == [True, True, False]
    assert [each.claim for each in found.findings][1:] == [
        "samples follow 2 x 2 positions in the middle where these lie",
        "2 x 2 positions in the middle are seen in what is drawn beside them",
    ]
    if not noise:
        assert values(table(found, "faithful")[0]) == pytest.approx([1, 0], abs=1e-6)
    assert found.settings["sources"] == 40


def test_what_is_drawn_of_neighbors_is_seen_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for maps whose positions have nothing in common: the fraction of a position's nine that are kept."""
    noise = ImageSet(torch.randint(0, 256, (160, 3, 16, 16), dtype=torch.uint8), None, (), (), "noise")
    found = tokens.run(decoder(monkeypatch, blurred), noise, dataclasses.replace(QUICK, sources=80))
    beside = (4 * 1 + 8 * 2) / 12 / 9  # of twelve positions around, four touch one of the kept ones and eight two
    assert values(row[1] for row in table(found, "kept")) == pytest.approx([4 / 9, beside, 0, 0], abs=0.03)
    assert [each.holds for each in found.findings] == [True, True, True]


def test_a_deaf_decoder_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws both maps alike: there is nothing to follow."""
    found = tokens.run(decoder(monkeypatch, lambda maps: torch.zeros(len(maps), 3, 16, 16), 1.0), DATA, QUICK)
    assert values(row[1] for row in table(found, "kept")) == [0, 0, 0, 0]
    assert [each.holds for each in found.findings][1:] == [None, None]
    assert table(found, "faithful")[0][1].value == pytest.approx(0.5, abs=0.1)


def test_what_fills_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is no source, each in one pair alone, or the mean of all data; maps arrive as they are said to."""
    asked: list[Tensor] = []

    def note(maps: Tensor) -> Tensor:
        asked.append(maps.clone())
        return local(maps)

    model = decoder(monkeypatch, note)
    h = Pooled().encode(DATA.floats(slice(None))).view(-1, *SHAPE)
    for fill in ("swap", "mean"):
        asked.clear()
        found = tokens.run(model, DATA, dataclasses.replace(QUICK, sources=45, sides=(1, 4), fill=fill))
        whole, filled, small_one, large = asked
        assert torch.equal(whole, h[::2])
        wanted = h[1::2].roll(22, 0) if fill == "swap" else h.mean(dim=0, keepdim=True).expand(45, -1, -1, -1)
        torch.testing.assert_close(filled, wanted)
        for kept, first, last in ((small_one, 3, 4), (large, 2, 6)):
            want = filled.clone()
            want[:, :, first:last, first:last] = whole[:, :, first:last, first:last]
            assert torch.equal(kept, want)
        assert tokens.FILLS[fill] in found.method
        assert values(table(found, "faithful")[0])[1] == pytest.approx(0, abs=1e-6)
    assert [len(row) for row in table(found, "kept")] == [5] * 5
    assert table(found, "kept")[4][2] is None  # from four in the middle the border is two away, from one four


def test_the_film_of_kept_positions_by_interpolation() -> None:
    """By hand, of four positions and eight pixels a side: pixels take 3/4 and 1/4 of the two that are nearest."""
    rings = tokens.ring_of((4, 4), (8, 8), 2)
    weights = torch.tensor([0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0])
    part = torch.outer(weights, weights)
    want = [float(part[rings == ring].mean()) for ring in (0, 1)]
    assert tokens.film_of((4, 4), rings, 2) == pytest.approx(want)


def test_rings_by_hand() -> None:
    assert tokens.steps_to((3, 5), 1).tolist() == [[2, 1, 1, 1, 2], [2, 1, 0, 1, 2], [2, 1, 1, 1, 2]]
    assert tokens.steps_to((4, 4), 2).tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    rings = tokens.ring_of((2, 3), (4, 9), 1)
    assert rings.tolist() == [[1] * 3 + [0] * 3 + [1] * 3] * 2 + [[1] * 9] * 2


def test_nearer_and_distances_by_hand() -> None:
    h, other = torch.zeros(1, 2, 1, 3), torch.full((1, 2, 1, 3), 2.0)
    again = torch.tensor([[0.5, 1.0, 1.5], [0.5, 0.5, 3.0]]).view(1, 2, 1, 1, 3).expand(-1, -1, 2, -1, -1)
    assert tokens.nearer(again, h, other).tolist() == [[1.0, 0.75, 0.0]]
    to_own, between = tokens.distances(again, h, other)
    assert to_own.tolist() == [[0.5, 1.25, 11.25]]
    assert between.tolist() == [[8.0, 8.0, 8.0]]


def test_the_figure_frames_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    pasted: list[Any] = []

    def sheet(rows: Any, **titles: Any) -> Any:
        pasted.append((rows, titles))
        return rows[0][0]

    monkeypatch.setattr(tokens, "image_sheet", sheet)
    tokens.run(decoder(monkeypatch, local), DATA, dataclasses.replace(QUICK, sources=45, shown=3))
    ((rows, titles),) = pasted
    assert titles["column_titles"] == ["source", "its map", "2 x 2 kept", "the other map"]
    h = Pooled().encode(DATA.floats(slice(None))).view(-1, *SHAPE)
    for row, image, other in zip(rows, (0, 44, 88), (47, 1, 45), strict=True):  # of 45 pairs
        assert np.array_equal(np.asarray(row[0]).transpose(2, 0, 1), DATA.pixels[image].numpy())
        assert np.array_equal(np.asarray(row[1]), np.asarray(to_pil(local(h[image : image + 1])[0])))
        assert np.array_equal(np.asarray(row[3]), np.asarray(to_pil(local(h[other : other + 1])[0])))
    frame = np.asarray(tokens._framed(torch.zeros(3, 16, 16), (8, 8), 2))
    red = (frame != frame[0, 0]).any(axis=2).nonzero()
    assert [(int(each.min()), int(each.max())) for each in red] == [(36, 59), (36, 59)]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(monkeypatch, local)
    with pytest.raises(ConfigError, match="is a decoder of vectors"):
        tokens.run(small.quick_model(), DATA, QUICK)
    with pytest.raises(ConfigError, match="92 source images were asked for, the data has 90"):
        tokens.run(model, DATA, dataclasses.replace(QUICK, sources=46))
    with pytest.raises(ConfigError, match="at least 20 of them, got 19"):
        tokens.run(model, DATA.subset(torch.arange(38)), dataclasses.replace(QUICK, sources=0))
    with pytest.raises(ConfigError, match="positions without a pixel in images of 16 px"):
        tokens._sides(QUICK, (3, 24, 24), 16)
    with pytest.raises(ConfigError, match="8 positions leaves nothing of 8 x 8"):
        tokens.run(model, DATA, dataclasses.replace(QUICK, sides=(2, 8)))
    for changes in ({"sides": (0,)}, {"sides": (2, 2)}, {"fill": "zero"}):
        with pytest.raises(ConfigError):
            TokensConfig(**changes)
    assert "decoder of vectors" in registry.find("tokens").lacks(data=True, photos=False, against=False, maps=False)


@pytest.mark.long
def test_a_network_of_maps_by_the_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    for number, image in enumerate(photographs(40, 32).floats(slice(None))):
        to_pil(image).save(tmp_path / "data" / f"{number:02}.png")
    words = ["analyze", "cifar10-simclr-map", "tokens", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "o")]
    assert main([*words, "--steps", "1", "--per", "1", "--set", "sides=[4]"]) == 0
    assert "What positions of the map hold (cifar10-simclr-map, 8 x 8)" in capsys.readouterr().out
    assert (tmp_path / "o" / "tokens-samples.png").exists()
    model = rcdm_fast.load("cifar10-simclr-map", device="cpu")
    with pytest.raises(ConfigError, match="needs a set of images"):
        rcdm_fast.analyze(model, "tokens")
