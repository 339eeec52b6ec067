"""Which factors of a world are kept: decoders and encoders whose truth is known, sets without one, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import encoders
from rcdm_fast.analysis import factors, registry
from rcdm_fast.analysis.factors import FactorsConfig
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.analysis.world_slopes import IdealSampler
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data import world as worlds
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.data.sources import open_data
from rcdm_fast.data.world import FACTORS, World
from rcdm_fast.encoders.oracle_code import Code, factors_of
from rcdm_fast.images import from_uint8, to_uint8
from rcdm_fast.metrics import mlp_probe
from rcdm_fast.model import Model
from tests import small

WORLD = World("shapes", 1500, 32, 2)
NAME = WORLD.name
KEPT = ("x", "size", "hue")
QUICK = FactorsConfig(sources=300, per=2, steps=2, readable=750, shown=2)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return open_data(NAME, 32)


def oracle(
    monkeypatch: pytest.MonkeyPatch, drawn: tuple[str, ...], form: str = "", kept: tuple[str, ...] = KEPT
) -> Model:
    """A model whose encoder knows `kept`, and whose decoder draws `drawn` as it is and all else anew."""
    model = small.quick_model()
    spec = f"oracle:shapes?count=1500&seed=2&factors={','.join(kept)}{form}"
    monkeypatch.setattr(model, "_encoder", encoders.build(spec))
    unet = dataclasses.replace(model.config.unet, image_size=32)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, unet=unet))
    ideal = IdealSampler(WORLD)

    def sample(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        rows = WORLD.factors(items).repeat_interleave(per, 0)
        keys = [100 * item + number for item in items.tolist() for number in range(per)]
        return ideal(rows, drawn, keys).view(len(items), per, 3, 32, 32)

    monkeypatch.setattr(model, "sample", small.asked(sample))
    return model


def verdicts(found: Analysis) -> dict[Any, Any]:
    return {row[0]: row[2] for row in found.tables[0].rows}


def test_what_an_oracle_keeps_is_found_and_nothing_else(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    told: list[tuple[int, int]] = []
    found = factors.run(oracle(monkeypatch, KEPT), data, QUICK, lambda done, of: told.append((done, of)))
    assert {name for name, word in verdicts(found).items() if word == "kept"} == set(KEPT)
    assert told[-1] == (301, 301)
    rows = {str(row[0]): row for row in found.tables[0].rows}
    assert list(rows) == list(WORLD.names)
    said: Any
    for name, said in rows.items():
        _, slope, word, _, linear, bent, network, images = said
        assert images.value > 0.9
        if name in KEPT:
            assert min(each.value for each in (slope, linear, bent, network)) > 0.85
        else:
            assert abs(slope.value) < 0.15
            assert max(linear.value, network.value) < 0.02
            assert word in ("dropped", "inconclusive")
    assert verdicts(found)["ground_hue"] == verdicts(found)["angle"] == "dropped"
    settings = found.settings
    assert (settings["reader"], settings["world"], settings["readable"]) == ("shapes-reader", NAME, 750)
    assert found.figures["samples"].width > 9 * 64
    claims = {each.claim: each.holds for each in found.findings}
    assert claims["the representation keeps the object's hue"] is True
    assert claims["the representation keeps the shape"] is not True
    assert "non-linear" in found.findings[0].measured
    dropped = next(each for each in found.findings if each.subject == "the ground's hue")
    assert dropped.holds is False
    assert dropped.sentence.startswith("The representation drops the ground's hue")


def test_what_is_not_drawn_is_read_off_h_all_the_same(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """A decoder that does not draw the hue: the readouts know it, so nothing is called dropped."""
    found = factors.run(oracle(monkeypatch, ("x", "size")), data, QUICK)
    hue = next(row for row in found.tables[0].rows if row[0] == "hue")
    assert hue[2] == "inconclusive"
    assert hue[6].value > 0.9  # type: ignore[union-attr]


def test_what_a_network_reads_is_not_dropped(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    """Cosines and sines of 6 and 7 turns: readouts of changes between unrelated items find nothing, a network does."""
    known = tuple(name for name in WORLD.names if name != "shape")
    intricate = f"&high={','.join(known)}&frequency=6"
    found = factors.run(oracle(monkeypatch, (), intricate, known), data, dataclasses.replace(QUICK, sources=1000))
    hue: Any = next(each for each in found.tables[0].rows if each[0] == "hue")
    assert max(-hue[1].low, hue[1].high) < 0.1
    assert max(hue[4].high, hue[5].high) < 0.01
    assert hue[6].value > 0.5
    assert hue[2] == "inconclusive"


def test_the_probe_is_judged_on_a_fifth_that_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def read(known: Tensor, targets: Tensor, asked: Tensor, seed: int) -> Tensor:
        seen.append((known, targets, asked))
        return Code("shapes", WORLD.names)(WORLD.factors(asked[:, 0].long())).double()

    monkeypatch.setattr(mlp_probe, "read", read)
    h = torch.arange(100.0)[:, None]  # the number of the item
    found = factors.probe(h, WORLD.factors(range(100)), WORLD.about, "shapes", 0)
    assert [each.value for each in found.values()] == pytest.approx([1.0] * 8, abs=1e-6)
    known, targets, asked = seen[0]
    assert asked.flatten().tolist() == list(range(0, 100, 5))
    assert sorted(known.flatten().tolist() + asked.flatten().tolist()) == list(range(100))
    assert torch.equal(targets, Code("shapes", WORLD.names)(WORLD.factors(known.flatten().long())))


def test_what_has_no_known_factors(monkeypatch: pytest.MonkeyPatch, data: ImageSet) -> None:
    model = oracle(monkeypatch, KEPT)
    other = ImageSet(to_uint8(small.make_images(300, 32)), None, (), tuple(map(Path, map(str, range(300)))), "x")
    with pytest.raises(ConfigError, match="factors of these images are not known"):
        factors.run(model, other, QUICK)
    with pytest.raises(ConfigError, match="not known"):
        factors.run(model, dataclasses.replace(other, paths=()), QUICK)
    with pytest.raises(ConfigError, match="at least 200 items of a world, got 199"):
        factors.run(model, data.subset(torch.arange(199)), QUICK)
    with pytest.raises(ConfigError, match=r"no reader of world:textured in 32 px ships.*--set reader=FILE"):
        factors.run(model, open_data("world:textured?count=200", 32), QUICK)
    unet = dataclasses.replace(model.config.unet, image_size=16)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, unet=unet))
    with pytest.raises(ConfigError, match=r"no reader of world:shapes in 16 px ships"):
        factors.run(model, open_data("world:shapes?count=200&size=16", 16), QUICK)
    with pytest.raises(ConfigError, match=r"reads world:shapes in 32 px; the images .* the samples 16 px"):
        factors.run(model, open_data("world:shapes?count=200", 16), dataclasses.replace(QUICK, reader="shapes-reader"))
    without = small.quick_model()
    monkeypatch.setattr(without, "_encoder", None)
    with pytest.raises(ConfigError, match="an encoder"):
        factors.run(without, data, QUICK)
    lacking = registry.find("factors").lacks
    assert "world:shapes" in lacking(data=True, photos=False, against=False, world=False)
    assert lacking(data=True, photos=False, against=False) == ""


def test_a_part_of_a_world_is_of_it(data: ImageSet) -> None:
    chosen = torch.tensor([5, 3, 599])
    assert worlds.behind(data.subset(chosen).paths) == (WORLD, [5, 3, 599])
    assert worlds.behind(()) is None
    assert worlds.behind((Path("world:shapes/1"), Path("elsewhere/1"))) is None
    assert worlds.behind((Path("a/1"),)) is None
    for folder in ("world:shapes/a.png", "world:nowhere/1", "world:shapes?count=5/5", "world:shapes?count=x/1"):
        assert worlds.behind((Path(folder),)) is None


@pytest.mark.parametrize("name", FACTORS)
def test_factors_come_back_out_of_a_code(name: Any) -> None:
    world = World(name, 50, 8)
    true = world.factors(range(50))
    torch.testing.assert_close(factors_of(world.about, Code(name, world.names)(true)), true, rtol=0, atol=1e-4)


def test_a_network_is_judged_on_rows_that_it_has_not_seen() -> None:
    """A product of two inputs, which no line reads; noise is not read, however long it is looked at."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 5, generator=generator)
    x[:, 4] = 1e6  # says nothing
    targets = torch.stack([50 + 9 * x[:, 0] * x[:, 1], torch.randn(1200, generator=generator)], dim=1)
    state = torch.get_rng_state()
    read = mlp_probe.read(x[:1000], targets[:1000], x[1000:], seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert read.dtype == torch.float64
    errors = (read - targets[1000:]).square().mean(dim=0) / targets[1000:].var(dim=0)
    assert float(errors[0]) < 0.15
    assert 0.9 < float(errors[1]) < 1.3
    assert torch.equal(read, mlp_probe.read(x[:1000], targets[:1000], x[1000:], seed=3))
    assert not torch.equal(read, mlp_probe.read(x[:1000], targets[:1000], x[1000:], seed=4))
    still = mlp_probe.read(torch.ones(50, 3), targets[:50], torch.ones(2, 3))
    torch.testing.assert_close(still, targets[:50].double().mean(dim=0).expand(2, -1))


def test_a_network_says_what_it_said_when_it_was_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of noise the mean is the best that is known, however well the rows themselves are learned by heart later."""
    monkeypatch.setattr(mlp_probe, "PATIENCE", 1000)
    generator = torch.Generator().manual_seed(0)
    x, targets = (torch.randn(60, width, generator=generator) for width in (20, 1))
    read = mlp_probe.read(x, targets, torch.randn(500, 20, generator=generator))
    assert float(read.std()) < 0.5 * float(targets.std())


def test_the_command_and_the_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["analyze", "shapes-oracle", "factors", "--data", "world:shapes?count=200&seed=2", "--sources", "20"]
    words += ["--per", "1", "--steps", "2", "--out", str(tmp_path), "--device", "cpu"]
    assert main(words) == 0
    assert "how far samples follow each factor" in capsys.readouterr().out
    written = json.loads((tmp_path / "factors.json").read_text())
    assert written["settings"]["readable"] == 100
    assert (tmp_path / "factors-samples.png").is_file()
    pixels = from_uint8(World(count=20).pixels(range(20)))
    with pytest.raises(ConfigError, match="not known"):
        rcdm_fast.analyze("shapes-oracle", "factors", data=pixels)
