"""Models side by side, variance at fixed h, linear readout, faithfulness, the registry and `rcdm analyze`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast import evaluation
from rcdm_fast.analysis import faithfulness, layer_figures, layers, readout, registry, rules, sweeps
from rcdm_fast.analysis import spread as spreads
from rcdm_fast.analysis.augment import AUGMENTATIONS
from rcdm_fast.analysis.layer import Layer, LayersConfig
from rcdm_fast.analysis.properties import PROPERTIES
from rcdm_fast.analysis.recovery import Changes, recovery
from rcdm_fast.analysis.result import Analysis, Table, cell_text
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.analysis.sweeps import Invariance, Sweep
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.evaluation import EvaluateConfig, evaluate
from rcdm_fast.images import to_pil
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from tests import small
from tests.test_analysis import Flat, made_up_invariance, made_up_sweep, photographs

QUICK = LayersConfig(steps=2, resamples=200, spread_samples=3, augmentations=("grayscale", "hue", "shift-x"))


class Blind(Flat):
    """An encoder that tells its images apart by their places alone, so that no change of them reaches it."""

    def encode(self, images: Tensor) -> Tensor:
        known = 24 if len(images) % 24 == 0 else 100  # versions of all sources come together
        rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
        return rows[torch.arange(len(images)) % known]


def sampler(monkeypatch: pytest.MonkeyPatch, deaf: bool, encoder: Flat | None = None) -> Model:
    """A model that draws what it is given, or (deaf) images that depend on the noise alone."""
    model = small.quick_model()
    monkeypatch.setattr(model, "_encoder", encoder or Flat())

    def draw(h: Tensor, *, items: Tensor, per: int, **_: object) -> Tensor:
        if deaf:
            return torch.stack([small.make_images(per, 16, seed=item) for item in items.tolist()])
        return h.view(-1, 1, 3, 16, 16).expand(-1, per, -1, -1, -1)

    monkeypatch.setattr(model, "sample", small.asked(draw))
    return model


def table(found: Analysis, name: str) -> Table:
    return next(each for each in found.tables if each.name == name)


def test_one_that_keeps_beside_one_that_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photographs(100)
    config = dataclasses.replace(QUICK, sources=24)
    keeps, drops = sampler(monkeypatch, False), sampler(monkeypatch, True, Blind())
    found = layers.run([keeps, drops], data, config)
    for row in table(found, "side-by-side").rows:
        assert isinstance(row[4], Interval)
        assert row[4].value == pytest.approx(1, abs=1e-6)
        assert row[5:8] == ("kept", "dropped", True)
    read = [None, True, None]  # saturation and place are no linear matters of pixels
    assert [each.holds for each in found.findings] == [True] * 4 + read + [True]
    color = next(each for each in found.findings if "keeps color" in each.claim)
    assert color.measured == "saturation: holds, hue: holds"
    assert all(each.adjusted is not None and (each.adjusted < 0.05) == bool(each.holds) for each in found.findings)
    opened = {row[0]: row for row in table(found, "open").rows}
    for name in ("pixels", "saturation", "mass-x", "hue"):
        certain, free = opened[name][1:]
        assert isinstance(certain, Interval)
        assert isinstance(free, Interval)
        assert certain.value == pytest.approx(0, abs=1e-9)
        assert free.low > 0.1
    own = {row[0]: row[1:] for row in table(found, "open-own").rows}
    assert isinstance(own["saturation"][1], Interval)
    assert own["saturation"][1].value == pytest.approx(1, abs=0.3)
    reverse = layers.run([drops, keeps], data, config)
    assert [each.holds for each in reverse.findings] == [False] * 4 + [None, False, None, False]
    same = layers.run([keeps, keeps], data, config)
    assert [each.holds for each in same.findings] == [False] * 4 + [None] * 4


def test_a_worse_decoder_beside_a_good_one_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both encoders keep every pixel; the second decoder draws what it likes. It was said to drop all of it."""
    models = [sampler(monkeypatch, False), sampler(monkeypatch, True)]
    for fitted_on, augmentations in ((0, QUICK.augmentations), (60, ("hue",))):
        config = dataclasses.replace(QUICK, sources=24, fitted_on=fitted_on, augmentations=augmentations)
        said = [each for each in layers.run(models, photographs(100), config).findings if "drops it" in each.claim]
        assert [each.holds for each in said] == [None] * (4 if fitted_on == 0 else 1)
        assert "readout" in said[0].measured


@pytest.mark.long
def test_figures_and_json_of_the_real_path() -> None:
    done: list[tuple[int, int]] = []
    config = dataclasses.replace(QUICK, sources=20, mapped=4)
    found = layers.run([small.quick_model()] * 3, photographs(80, 8), config, lambda *each: done.append(each))
    assert done == [(part, 12) for part in range(1, 13)]  # three augmentations and a variance; three models
    rows = {f"rows-{name}" for name in QUICK.augmentations}
    assert found.figures.keys() == {"variance"} | rows
    assert found.captions.keys() == found.figures.keys()
    assert found.figures["variance"].width > 4 * 96
    names = [each["name"] for each in json.loads(json.dumps(found.as_json()))["tables"]]
    assert len(set(names)) == len(names)
    assert {"side-by-side", "side-by-side-2", "open", "readouts", "readouts-2"} <= set(names)
    assert found.settings["fitted_on"] == 80
    assert found.settings["same_noise_difference"] == 0
    alone = layers.run(
        [small.quick_model()] * 2, photographs(60, 8), dataclasses.replace(config, sources=20, fitted_on=0)
    )
    assert "readouts" not in {each.name for each in alone.tables}
    assert alone.settings["fitted_on"] == 0


def test_models_are_called_by_layer_where_that_tells_them_apart() -> None:
    one, other = small.quick_model(), small.quick_model()
    assert layers.names([one, other]) == ["(unnamed) (1)", "(unnamed) (2)"]
    encoder = small.encoder().config
    for model, layer in ((one, "backbone"), (other, "projector")):
        model.config = dataclasses.replace(
            model.config, encoder=dataclasses.replace(encoder, layer=layer), name=layer * 2
        )
    assert layers.names([one, other]) == ["backbone", "projector"]
    other.config = dataclasses.replace(other.config, encoder=dataclasses.replace(encoder, source="another"))
    assert layers.names([one, other]) == ["backbonebackbone", "projectorprojector"]


def test_variances_of_made_up_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    free = (torch.randn(30, 8, 3, 8, 8, generator=generator) * 0.2).clamp(-1, 1)
    fixed = free[:, :1].expand(-1, 8, -1, -1, -1)
    counts = np.ones((1, 30))
    opened = spreads.spread(free, free.flatten(0, 1))
    assert float(spreads.fraction(opened, "pixels", counts)[0]) == pytest.approx(1, abs=0.02)
    for name in ("hue", "brightness", "mass-x", "saturation"):
        assert float(spreads.fraction(opened, name, counts)[0]) == pytest.approx(1, abs=0.25), name
    assert opened.maps.shape == (30, 8, 8)
    torch.testing.assert_close(opened.maps[2], free[2].double().var(dim=0).mean(dim=0))
    closed = spreads.spread(fixed, free.flatten(0, 1))
    assert all(abs(float(spreads.fraction(closed, name, counts)[0])) < 1e-9 for name in closed.within)
    with pytest.raises(ConfigError, match="at least 2 samples"):
        spreads.spread(free[:, :1], free[0])
    colors = spreads.heat(torch.tensor([[[0.0, 1 / 3, 2 / 3, 1.0, 5.0]]]), 1.0)[0, :, 0].T
    expected = torch.tensor([[-1, -1, -1], [1, -1, -1], [1, 1, -1], [1, 1, 1], [1, 1, 1]], dtype=torch.float32)
    torch.testing.assert_close(colors, expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="positive"):
        spreads.heat(torch.zeros(1, 2, 2), 0.0)


def test_readouts_read_changes_that_the_representation_has_and_nothing_else() -> None:
    images = photographs(120).floats(slice(None))
    reader = readout.Reader(small.encoder(), images)  # mean and spread of each color
    bright, mirrored = (reader.read(AUGMENTATIONS[name]) for name in ("brightness", "flip"))
    assert bright.explained(readout.LINEAR).low > 0.98
    assert bright.explained(readout.BENT).low > 0.9
    for name in (readout.LINEAR, readout.BENT):
        assert abs(mirrored.explained(name).value) < 1e-9
    assert mirrored.movement.high < 1e-9
    assert bright.movement.low > 0.1
    again = readout.difference(bright, bright, readout.LINEAR)
    assert (again.value, again.low, again.high) == (0, 0, 0)
    with pytest.raises(ConfigError, match="the same images"):
        readout.difference(bright, mirrored, readout.LINEAR)
    with pytest.raises(ConfigError, match="at least 50 images, got 10"):
        readout.Reader(small.encoder(), images[:10])
    assert readout.Reader(small.encoder(), images[:10], fits=False).read(AUGMENTATIONS["flip"]).gained == {}


class Turned(Flat):
    """Keeps the direction of the mean hue as cosine and sine of a multiple, and nothing else."""

    def __init__(self, times: int) -> None:
        self.times = times

    def encode(self, images: Tensor) -> Tensor:
        turn = torch.angle(PROPERTIES["hue"](images)) * self.times
        return torch.stack([turn.cos(), turn.sin()], dim=1).float()


def test_a_direction_is_read_from_its_cosine_and_sine_and_a_code_by_a_non_linear_readout_alone() -> None:
    images = photographs(200).floats(slice(None))
    codes: list[Any] = [Turned(1), Turned(3)]
    plain, coded = (readout.Reader(code, images).read(AUGMENTATIONS["hue"]) for code in codes)
    assert plain.explained(readout.LINEAR).low > 0.7
    assert plain.explained(readout.BENT).low > 0.6
    assert coded.explained(readout.LINEAR).high < 0.01
    assert coded.explained(readout.BENT).low > 0.6


def test_faithfulness_is_what_evaluate_measures() -> None:
    data = photographs(40, 8)
    config = EvaluateConfig(sources=20, per=2, steps=2, resamples=100)
    found = faithfulness.run(small.quick_model(), data, config)
    expected = evaluate(small.quick_model(), data, config)
    assert table(found, "ranks").rows[0][1] == expected.mrr
    assert table(found, "distances").rows[0][1] == expected.distance
    names = ["the source, blurred by 1 px", *(f"real neighbor number {k}" for k in (1, 5, 10))]
    assert [row[0] for row in table(found, "distances").rows[1:]] == names
    assert found.figures["samples"].height > 6 * 96
    assert len(found.findings) == 2
    with pytest.raises(ConfigError, match="at least 20 of them, got 5"):
        faithfulness.run(small.quick_model(), data, dataclasses.replace(config, sources=5))


def test_faithfulness_is_found_by_the_ends_of_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = photographs(40, 8), EvaluateConfig(sources=20, per=1, steps=1, resamples=100)
    measured = evaluate(small.quick_model(), data, config)

    def verdicts(mrr: tuple[float, float], distance: tuple[float, float]) -> list[bool | None]:
        """Of a chance of 0.1, and a nearest neighbor at 4 to 6."""
        told = dataclasses.replace(
            measured,
            mrr=Interval(sum(mrr) / 2, *mrr),
            chance_mrr=0.1,
            distance=Interval(sum(distance) / 2, *distance),
            nearest_real={1: Interval(5, 4, 6)},
        )
        monkeypatch.setattr(evaluation, "faithfulness", lambda *_: told)
        return [each.holds for each in faithfulness.run(small.quick_model(), data, config).findings]

    assert verdicts((0.11, 0.3), (1, 3.9)) == [True, True]
    assert verdicts((0.09, 0.3), (1, 4.1)) == [None, None]
    assert verdicts((0.01, 0.11), (5.9, 20)) == [None, None]
    assert verdicts((0.01, 0.09), (6.1, 20)) == [False, False]


def test_too_few_models_samples_and_images() -> None:
    data = photographs(30, 8)
    with pytest.raises(ConfigError, match="--against"):
        layers.run([small.quick_model()], data, QUICK)
    with pytest.raises(ConfigError, match="at least 2 samples"):
        layers.run([small.quick_model()] * 2, data, dataclasses.replace(QUICK, spread_samples=1))
    with pytest.raises(ConfigError, match="at least 20 of them, got 10"):
        layers.run([small.quick_model()] * 2, photographs(10, 8), QUICK)
    with pytest.raises(ConfigError, match="--data"):
        registry.EXPERIMENTS["invariance"].run(registry.Job(small.quick_model()))


def test_experiments_are_listed_without_loading_them() -> None:
    code = (
        "import sys; from rcdm_fast.analysis import registry; assert 'layers' in registry.EXPERIMENTS;"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    for number, image in enumerate(photographs(24, 32).floats(slice(None))):
        to_pil(image).save(place / f"{number:02d}.png")
    return place


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_writes_figures_and_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        "analyze", "cifar10-simclr-trunk", "layers", "--against", "cifar10-simclr-head", "--data", folder, "--out",
        tmp_path, "--steps", 2, "--sources", 20, "--set", 'augmentations=["grayscale"]', "--set", "spread_samples=2",
        "--set", "resamples=100",
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    files = {"layers.json", "layers-charts.svg", "layers-variance.png", "layers-rows-grayscale.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    numbers = json.loads((tmp_path / "layers.json").read_text())
    assert numbers["model"] == "cifar10-simclr-trunk, cifar10-simclr-head"
    assert numbers["settings"]["steps"] == 2
    assert numbers["tables"][0]["columns"][2:4] == ["slope backbone", "slope projector"]
    assert numbers["settings"]["rules"] == rules.VERSION
    assert "Left open at fixed h" in (tmp_path / "layers-charts.svg").read_text()
    text = capsys.readouterr().out
    assert "backbone keeps saturation, projector drops it" in text


def test_wrong_commands_say_what_is_missing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = "cifar10-simclr-head", ("--out", tmp_path / "out")
    for given, said in (
        (("analyze", model, "astrology", *out), "known: photos ("),
        (("analyze", model, "invariance", *out), "--data"),
        (("analyze", model, "layers", *out, "--data", folder), "--against"),
        (("analyze", model, "invariance", *out, "--data", folder, "--against", model), "takes no --against"),
        (("analyze", model, "invariance", *out, "--data", folder, "--sources", 3), "at least 20"),
        (("analyze", model, "invariance", *out, "--data", folder, "--set", "color=1"), "unknown key color"),
        (("analyze", model, "invariance", *out, "--data", tmp_path / "nowhere"), "no such folder"),
    ):
        assert run(*given) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_faithfulness_tells_every_number_of_evaluate_in_its_place() -> None:
    data, done = photographs(40, 8), list[tuple[int, int]]()
    config = EvaluateConfig(sources=20, per=1, steps=1, resamples=100, gallery=30)
    model = small.quick_model()
    found = faithfulness.run(model, data, config, lambda *each: done.append(each))
    expected = evaluate(model, data, config)
    assert table(found, "ranks").columns[1:] == ("samples", "the source, blurred by 1 px", "chance")
    assert table(found, "ranks").rows == (
        ("mean reciprocal rank", expected.mrr, expected.blurred_mrr, expected.chance_mrr),
        ("mean rank", expected.mean_rank, expected.blurred_mean_rank, expected.chance_mean_rank),
    )
    nearest = [expected.nearest_real[k] for k in (1, 5, 10)]
    assert [row[1] for row in table(found, "distances").rows] == [
        expected.distance, expected.blurred_distance, *nearest,
    ]  # fmt: skip
    assert (found.settings["gallery"], found.settings["sources"]) == (30, 20)
    assert done[-1] == (20, 20)
    first, near = found.findings
    assert first.numbers == (("MRR of samples", expected.mrr), ("of sources blurred by 1 px", expected.blurred_mrr))
    assert [number for _, number in near.numbers] == [expected.distance, nearest[0]]
    together = faithfulness.run(model, data, config, None, Shared())  # all of the data is encoded, a part of it ranks
    assert together.tables == found.tables


def test_the_figure_of_faithfulness_has_each_source_beside_its_own_samples() -> None:
    data = photographs(40, 8)
    sources = torch.arange(1, 40, 2)
    images = data.pixels[sources][:, None].expand(-1, 3, -1, -1, -1)
    nothing = torch.zeros(40, 1)
    drawn = evaluation.Drawn(Flat(), data, nothing, sources, images, nothing)  # type: ignore[arg-type]
    rows = faithfulness._rows(drawn, 6)
    assert [len(row) for row in rows] == [4] * 6
    for row, place in zip(rows, np.linspace(0, 19, 6).round().astype(int), strict=True):
        for shown in row:
            assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), data.pixels[sources[place]].numpy())


def test_the_figure_of_variances_has_each_image_above_its_own_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of every model on its own scale; of twelve sources two are shown, the first and the last."""
    data, sources = photographs(40, 8), torch.arange(5, 17)
    made = []
    for number in range(2):
        samples = torch.rand(12, 4, 3, 8, 8, generator=torch.Generator().manual_seed(number)) * 2 - 1
        found = spreads.spread(samples, (0.5 + 0.5 * number) * samples[:, 0])
        measured = made_up_invariance(made_up_sweep("hue", Interval(0.3, 0.1, 0.5), None))
        made.append(Layer("ab"[number], dataclasses.replace(measured, sources=sources), samples, found))
    seen: list[Any] = []
    monkeypatch.setattr(layer_figures, "image_sheet", lambda lines, **named: seen.append((lines, named)))
    layer_figures.figures_of(made, data, LayersConfig(mapped=2, shown=0))
    ((lines, named),) = seen
    assert named["row_titles"] == ["image", "a", "", "", "variance", "b", "", "", "variance"]
    shown = [np.stack([np.asarray(image) for image in line]).transpose(0, 3, 1, 2) for line in lines]
    assert np.array_equal(shown[0], data.pixels[[5, 16]].numpy())
    for number, layer in enumerate(made):
        for sample in range(3):
            wanted = (layer.samples[[0, 11], sample] + 1) * 127.5
            np.testing.assert_allclose(shown[1 + 4 * number + sample], wanted, atol=0.51)
        level = layer.samples[[0, 11]].var(dim=1).mean(dim=1) / layer.spread.between["pixels"]
        red = shown[4 + 4 * number][:, 0] / 255
        np.testing.assert_allclose(red, (3 * level).clamp(0, 1), atol=0.01)
    figures, captions = layer_figures.figures_of(made, data, LayersConfig(mapped=0, shown=1))
    assert figures.keys() == captions.keys() == {"rows-hue"}
    figures, captions = layer_figures.figures_of(made, data, LayersConfig(mapped=1, shown=0))
    assert figures.keys() == captions.keys() == {"variance"}
    assert len(seen[-1][0][0]) == 1


def made_up(name: str, slopes: dict[str, float], seed: int, repeated: float, found: bool = False) -> Layer:
    """What would be found of a model whose samples follow changes so far; readouts find something or nothing."""
    rng = np.random.default_rng(seed)
    p = np.random.default_rng(0).normal(size=(30, 3))
    known = np.random.default_rng(1).random(60) + 0.5
    swept = {}
    for augmentation, slope in slopes.items():
        gained = {
            kind: (0.4 + more) * known + 0.2 * rng.normal(size=60) if found else 1e-4 * rng.normal(size=60)
            for kind, more in ((readout.LINEAR, 0.0), (readout.BENT, 0.3))
        }
        read = readout.Readout(rng.random(60), rng.random(60) + 1, gained, dict.fromkeys(gained, known))
        q = slope * p + 0.02 * rng.normal(size=p.shape)
        changes = Changes(torch.tensor(p), torch.tensor(q), torch.ones(30).double())
        none = torch.zeros(0, 4, 3, 8, 8, dtype=torch.uint8)
        verdict = recovery(changes, 100, readouts=read.all_explained)
        swept[augmentation] = Sweep(AUGMENTATIONS[augmentation], changes, verdict, read, none, none)
    samples = small.make_images(60, 8, seed).view(30, 2, 3, 8, 8) * (0.2 + 0.2 * seed)
    alike = Invariance("(unnamed)", torch.arange(30), swept, {}, repeated, (), 60)
    return Layer(name, alike, samples, spreads.spread(samples, small.make_images(20)))


def compared(*given: Layer) -> Analysis:
    config = LayersConfig(shown=0, mapped=0, resamples=100, seed=4)
    return layers.compared(list(given), [small.quick_model()] * len(given), photographs(30, 8), config)


def test_each_column_of_a_comparison_is_of_its_own_model() -> None:
    first = made_up("one", {"grayscale": 0.9, "hue": 0.6}, 1, 0.25, found=True)
    other = made_up("two", {"grayscale": 0.0, "hue": 0.15}, 2, 0.5, found=True)
    found = compared(first, other)
    for row in table(found, "side-by-side").rows:
        a, b = (each.invariance.sweeps[str(row[0])].recovery for each in (first, other))
        assert row[2:4] == (a.slope, b.slope)
        assert row[5:7] == (a.verdict.word, b.verdict.word)
        assert row[8:] == (a.correlation.value, b.correlation.value)
        assert isinstance(row[4], Interval)
        assert row[4].value == pytest.approx(a.slope.value - b.slope.value)
    read = table(found, "readouts").rows
    assert [row[0] for row in read] == ["grayscale", "grayscale", "hue", "hue"]
    for row in read:
        c, d = (each.invariance.sweeps[str(row[0])].readout.explained(str(row[2])) for each in (first, other))
        assert row[3:5] == (c, d)
        assert isinstance(row[5], Interval)
        assert row[5].value == pytest.approx(c.value - d.value)
    claim = next(each for each in found.findings if each.claim.startswith("one keeps saturation"))
    one, two = (each.invariance.sweeps["grayscale"] for each in (first, other))
    slopes = [each.recovery.slope for each in (one, two)]
    assert claim.numbers == (("slope of one", slopes[0]), ("slope of two", slopes[1]))
    assert claim.measured.startswith(f"slopes {cell_text(slopes[0])} and {cell_text(slopes[1])}, diff")
    moved = [cell_text(each.readout.movement) for each in (one, two)]
    assert "; h moves by {} and {} of the squared".format(*moved) in claim.measured
    r = [each.recovery.correlation.value for each in (one, two)]
    assert "; r = {:.2f} and {:.2f}; ".format(*r) in claim.measured
    said = next(each for each in found.findings if each.claim.startswith("a change of saturation"))
    linear = [each.readout.explained(readout.LINEAR) for each in (one, two)]
    assert said.numbers == (("R^2 from one", linear[0]), ("R^2 from two", linear[1]))
    opened = next(each for each in found.findings if "leaves more of the pixels open" in each.claim)
    rows = {row[0]: row for row in table(found, "open").rows}["pixels"][1:]
    shares = [cell.value for cell in rows if isinstance(cell, Interval)]
    assert opened.measured.startswith("{:.3g} and {:.3g} of the variance".format(*shares))
    assert opened.numbers[0][1].value == pytest.approx(shares[1] - shares[0])


def test_color_is_kept_where_both_parts_are_and_named_in_their_order() -> None:
    keeps = made_up("one", {"grayscale": 0.9, "hue": 0.9}, 1, 0)
    unsure = made_up("two", {"grayscale": 0.0, "hue": 0.15}, 2, 0)
    drops = made_up("two", {"grayscale": 0.0, "hue": 0.0}, 3, 0)
    also = made_up("two", {"grayscale": 0.0, "hue": 0.9}, 4, 0)
    for other, said, holds in (
        (drops, "saturation: holds, hue: holds", True),
        (unsure, "saturation: holds, hue: is inconclusive", None),
        (also, "saturation: holds, hue: does not hold", False),
    ):
        config = LayersConfig(resamples=100)
        found = layers._findings(keeps, other, config)
        color = next(each for each in found if "keeps color" in each.claim)
        assert (color.measured, color.holds) == (said, holds)
        parts = [layers.compare(keeps, other, name).p for name in ("grayscale", "hue")]
        assert color.p == (parts[1] if holds is False else max(parts))
    unsure_parts = [layers.compare(keeps, unsure, name).p for name in ("grayscale", "hue")]
    assert unsure_parts[0] < unsure_parts[1]


def test_what_is_true_instead_is_said_of_the_model_that_it_is_true_of() -> None:
    def otherwise(first: float, other: float) -> str:
        one, two = (made_up(name, {"hue": slope}, 1, 0) for name, slope in (("one", first), ("two", other)))
        return layers._findings(one, two, LayersConfig(resamples=100))[0].otherwise

    assert otherwise(0.0, 0.0) == otherwise(0.0, 0.9) == "one drops hue"
    assert otherwise(0.9, 0.9) == otherwise(0.15, 0.9) == "two keeps hue, too"


def test_tables_of_three_models_have_names_of_their_own_and_the_largest_difference_counts() -> None:
    given = [made_up(name, {"hue": 0.5}, seed, 0.1 * seed) for name, seed in (("one", 1), ("two", 3), ("three", 2))]
    found = compared(*given)
    names = [each.name for each in found.tables]
    assert len(set(names)) == len(names)
    assert {"side-by-side-2", "recovered-3", "readouts-2"} <= set(names)
    assert found.settings["same_noise_difference"] == pytest.approx(0.3)
    recovered = [each.title.split(":")[0] for each in found.tables if each.name.startswith("recovered")]
    assert recovered == ["one", "two", "three"]
    assert found.title == "What one, two and three keep of transformed images"


def test_progress_goes_on_from_model_to_model_and_the_variance_has_samples_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[int, int]] = []
    real: list[Tensor] = []
    one = dataclasses.replace(made_up("x", {}, 1, 0).invariance, sources=torch.tensor([3, 1]))

    def measure(model: Model, data: Any, config: Any, progress: Any, _: object) -> Any:
        progress(1, 2)
        progress(2, 2)
        return one

    def spread(samples: Tensor, images: Tensor) -> Any:
        assert samples.shape == (2, 5, 3, 8, 8)
        real.append(images)

    monkeypatch.setattr(sweeps, "measure", measure)
    monkeypatch.setattr(spreads, "spread", spread)
    data = photographs(12, 8)
    config = LayersConfig(steps=1, per=1, spread_samples=5, augmentations=("hue", "flip"))
    model = small.quick_model()
    monkeypatch.setattr(
        model, "sample", small.asked(lambda h, *, per, **_: small.make_images(len(h) * per).view(-1, per, 3, 8, 8))
    )
    found = layers.measured([model] * 2, ["a", "b"], data, config, lambda *each: done.append(each))
    assert done == [(part, 6) for part in range(1, 7)]
    assert [each.name for each in found] == ["a", "b"]
    assert all(torch.equal(each, data.floats(slice(None))) for each in real)


def test_movement_is_a_mean_square_over_magnitudes_and_its_unit_a_square() -> None:
    """By hand, of a representation that is the image."""
    images, each = photographs(8).floats(slice(None)), AUGMENTATIONS["grayscale"]
    read = readout.Reader(Flat(), images, fits=False).read(each)  # type: ignore[arg-type]
    flat = images.flatten(1).double().numpy()
    moved = [((each(images, m).flatten(1).numpy() - flat) ** 2).sum(axis=1) for m in each.magnitudes]
    np.testing.assert_allclose(read.moved, np.mean(moved, axis=0), rtol=1e-5)
    far = ((flat[:, None] - flat[None]) ** 2).sum(axis=2) + 1e9 * np.eye(8)
    np.testing.assert_allclose(read.unit, far.min(axis=1), rtol=1e-5)


def test_a_difference_of_readouts_has_the_sign_of_the_first() -> None:
    a, b = (made_up("x", {"hue": 0.5}, seed, 0, found=True).invariance.sweeps["hue"].readout for seed in (1, 2))
    for kind in (readout.LINEAR, readout.BENT):
        want = (a.gained[kind].sum() - b.gained[kind].sum()) / a.spread[kind].sum()
        assert readout.difference(a, b, kind).value == pytest.approx(want)
    assert a.all_explained == (a.explained(readout.LINEAR), a.explained(readout.BENT))
    assert len(set(a.all_explained)) == 2


@pytest.mark.parametrize(
    ("saturation", "hue", "p"),
    [
        ((True, 0.01), (False, 0.003), 0.003),
        ((False, 0.02), (False, 0.004), 0.004),
        ((True, 0.01), (True, 0.002), 0.01),
        ((None, 1.0), (True, 0.002), 1.0),
    ],
)
def test_the_p_of_color_is_the_largest_of_both_or_the_smallest_that_speaks_against_it(
    saturation: tuple[bool | None, float], hue: tuple[bool | None, float], p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"grayscale": saturation, "hue": hue}
    first, other = (made_up(name, {"grayscale": 0.5, "hue": 0.5}, 1, 0) for name in ("one", "two"))
    real = layers.compare

    def decided(a: Layer, b: Layer, name: str) -> rules.Between:
        return dataclasses.replace(real(a, b, name), holds=given[name][0], p=given[name][1])

    monkeypatch.setattr(layers, "compare", decided)
    found = layers._findings(first, other, LayersConfig(resamples=100))
    assert next(each for each in found if "keeps color" in each.claim).p == p
