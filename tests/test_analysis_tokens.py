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
DATA = photographs(60, 16)


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
def test_where_positions_are_drawn_alone_nothing_is_known_of_others(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tokens.run(decoder(monkeypatch, local, noise), DATA, QUICK)
    assert [row[0] for row in table(found, "kept")] == [0, 1, 2, 3]
    assert values(row[1] for row in table(found, "kept")) == pytest.approx([1, 0, 0, 0], abs=1e-5)
    assert values(row[1] for row in table(found, "replaced")) == pytest.approx([1], abs=1e-5)
    assert [each.holds for each in found.findings] == [True, True, False, False]
    assert [each.claim for each in found.findings][1:] == [
        "samples follow 2 x 2 positions of the source where these lie",
        "2 x 2 positions of the source are seen in what is drawn beside them",
        "what stands around 2 x 2 positions is drawn over them",
    ]
    whole, least, most = table(found, "faithful")
    if not noise:
        assert values(whole) == pytest.approx([1, 0], abs=1e-6)
    assert least[1].value <= whole[1].value <= most[1].value


def test_what_is_drawn_of_neighbors_is_known_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for maps whose positions have nothing in common: the fraction of a position's nine that are kept."""
    noise = ImageSet(torch.randint(0, 256, (80, 3, 16, 16), dtype=torch.uint8), None, (), (), "noise")
    found = tokens.run(decoder(monkeypatch, blurred), noise, dataclasses.replace(QUICK, sources=80))
    beside = (4 * 1 + 8 * 2) / 12 / 9  # of twelve positions around, four touch one of the kept ones and eight two
    assert values(row[1] for row in table(found, "kept")) == pytest.approx([4 / 9, beside, 0, 0], abs=0.03)
    assert values(row[1] for row in table(found, "replaced")) == pytest.approx([4 / 9], abs=0.03)
    assert [each.holds for each in found.findings] == [True, True, True, True]


def test_a_deaf_decoder_follows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tokens.run(decoder(monkeypatch, lambda maps: torch.zeros(len(maps), 3, 16, 16), 1.0), DATA, QUICK)
    assert values(row[1] for row in table(found, "kept")) == [0, 0, 0, 0]
    assert [each.holds for each in found.findings][1:3] == [False, False]
    assert table(found, "faithful")[0][1].value == pytest.approx(0.5, abs=0.1)


def test_what_fills_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source, half of them away, or the mean of all data; mixed maps arrive as they are said to be."""
    asked: list[Tensor] = []

    def note(maps: Tensor) -> Tensor:
        asked.append(maps.clone())
        return local(maps)

    model = decoder(monkeypatch, note)
    h = Pooled().encode(DATA.floats(slice(None))).view(-1, *SHAPE)
    for fill in ("swap", "mean"):
        asked.clear()
        found = tokens.run(model, DATA, dataclasses.replace(QUICK, sources=60, sides=(1, 4), fill=fill))
        whole, filled, kept, replaced, *others = asked
        assert torch.equal(whole, h)
        wanted = h.roll(30, 0) if fill == "swap" else h.mean(dim=0, keepdim=True).expand_as(h)
        torch.testing.assert_close(filled, wanted)
        assert torch.equal(kept[:, :, 3, 3], h[:, :, 3, 3])
        assert (kept == h).flatten(1).sum(dim=1).max() <= 3 + (wanted == h).flatten(1).sum(dim=1).max()
        assert torch.equal(replaced[:, :, 3, 3], filled[:, :, 3, 3])
        assert torch.equal(replaced[:, :, 4], h[:, :, 4])
        assert torch.equal(others[0][:, :, 2:6, 2:6], h[:, :, 2:6, 2:6])
        assert tokens.FILLS[fill] in found.method
    assert [len(row) for row in table(found, "kept")] == [3] * 5
    assert table(found, "kept")[4][2] is None  # from four in the middle the border is two away, from one four


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
    found = tokens.run(decoder(monkeypatch, local), DATA, dataclasses.replace(QUICK, shown=3))
    frame = np.asarray(tokens._framed(torch.zeros(3, 16, 16), (8, 8), 2))
    red = (frame != frame[0, 0]).any(axis=2).nonzero()
    assert [(int(each.min()), int(each.max())) for each in red] == [(36, 59), (36, 59)]
    assert found.figures["samples"].width > 5 * tokens.CELL


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = decoder(monkeypatch, local)
    with pytest.raises(ConfigError, match="is a decoder of vectors"):
        tokens.run(small.quick_model(), DATA, QUICK)
    with pytest.raises(ConfigError, match="8 positions leaves nothing of 8 x 8"):
        tokens.run(model, DATA, dataclasses.replace(QUICK, sides=(2, 8)))
    for changes in ({"sides": (0,)}, {"sides": (2, 2)}, {"fill": "zero"}):
        with pytest.raises(ConfigError):
            TokensConfig(**changes)
    assert "decoder of vectors" in registry.find("tokens").lacks(data=True, photos=False, against=False, maps=False)


@pytest.mark.long
def test_a_network_of_maps_by_the_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    for number, image in enumerate(photographs(20, 32).floats(slice(None))):
        to_pil(image).save(tmp_path / "data" / f"{number:02}.png")
    words = ["analyze", "cifar10-simclr-map", "tokens", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "o")]
    assert main([*words, "--steps", "1", "--per", "1", "--set", "sides=[4]"]) == 0
    assert "What positions of the map hold (cifar10-simclr-map, 8 x 8)" in capsys.readouterr().out
    assert (tmp_path / "o" / "tokens-samples.png").exists()
    model = rcdm_fast.load("cifar10-simclr-map", device="cpu")
    with pytest.raises(ConfigError, match="needs a set of images"):
        rcdm_fast.analyze(model, "tokens")
