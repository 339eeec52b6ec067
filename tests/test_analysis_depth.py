"""One decoder adapted to layers and encoders: kept by hash, measured with shared noise, and the figure of depth."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFont

import rcdm_fast
from rcdm_fast import encoders
from rcdm_fast.analysis import adapted, depth, depth_figure, layers
from rcdm_fast.analysis import spread as spreads
from rcdm_fast.analysis.adapted import Wanted
from rcdm_fast.analysis.depth import DepthConfig
from rcdm_fast.analysis.layer import Layer
from rcdm_fast.analysis.result import Analysis, Finding
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.encoders import EncoderError, ImageEncoder, native
from rcdm_fast.images import to_pil
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.training import adapt as adapting
from rcdm_fast.training.pretrain import PretrainConfig
from tests import small
from tests.test_analysis import made_up_invariance, made_up_sweep, photographs

FEW: dict[str, Any] = {
    "sources": 20, "steps": 1, "augmentations": ("hue",), "resamples": 100, "spread_samples": 2, "fitted_on": 0,
    "adapt_images": 40, "mapped": 0, "shown": 0,
}  # fmt: skip
DATA = photographs(70, 8)
LAYERS = ("backbone.2", "backbone.3", "backbone")  # positions, positions, their mean


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a small encoder of layers, 8 and 16 channels wide."""
    folder = tmp_path_factory.mktemp("model")
    made = PretrainConfig(name="e", image_size=8, stem=8, widths=(16,), blocks=(1,), projector=(8, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        native.save(folder / "e.safetensors", made.network(), made.encoder(), {})
    named = EncoderConfig(f"file:{folder / 'e.safetensors'}", image_size=8, dim=16)
    unet = small.network(representation_dim=16)
    config = ModelConfig(unet.config, small.SCHEDULE, named, "small")
    return checkpoint.save_model(folder / "small.safetensors", config, unet.state_dict())


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, Path]:
    folder = tmp_path_factory.mktemp("adapted")
    return rcdm_fast.analyze(model, "layers", DATA, layers=LAYERS, folder=folder, **FEW), folder


def test_layers_are_measured_and_shown_by_depth(found: tuple[Analysis, Path]) -> None:
    result, folder = found
    rows = next(each for each in result.tables if each.name == "depth").rows
    assert [row[0] for row in rows] == list(LAYERS)
    budget = next(each for each in result.tables if each.name == "budget")
    assert [row[:6] for row in budget.rows] == [
        ("backbone.2", 8, "mean", False, 40, 0),
        ("backbone.3", 16, "mean", False, 40, 0),
        ("backbone", 16, "none", False, 40, 0),
    ]
    explained = [row[6] for row in budget.rows]
    assert isinstance(explained[0], float)
    assert isinstance(explained[1], float)
    assert explained[0] < explained[1] == pytest.approx(1, abs=1e-4), "the mean of the last block is the backbone"
    assert [each.claim for each in result.findings] == [f"{name} keeps hue (hue)" for name in LAYERS]
    assert all(each.p is not None and each.adjusted is not None for each in result.findings)
    assert {"depth", "rows-hue", "variance"} & set(result.figures) == {"depth"}
    assert "side-by-side-2" in {each.name for each in result.tables}
    told = json.loads(json.dumps(result.as_json()))["settings"]
    assert [each["layer"] for each in told["representations"]] == list(LAYERS)
    assert len({each["encoder"]["hash"] for each in told["representations"]}) == 3
    assert len({each["weights"] for each in told["representations"]}) > 1
    assert "closed form" in result.method
    assert "40 images" in result.method
    same, again = (row[2] for row in rows[1:])
    assert isinstance(same, Interval)
    assert isinstance(again, Interval)
    assert same.value == pytest.approx(again.value, rel=0.05), "the same representation, found in two ways"
    assert {path.name.rpartition("-")[0] for path in folder.iterdir()} == set(LAYERS)


def test_adapted_decoders_are_found_again(
    model: Path, found: tuple[Analysis, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result, folder = found
    calls: list[str] = []
    real = adapting.adapt

    def counted(settings: Any, *given: Any) -> Path:
        calls.append(settings.name)
        return real(settings, *given)

    monkeypatch.setattr(adapted, "adapt", counted)
    run = {"layers": LAYERS[::2], "folder": folder}
    again = rcdm_fast.analyze(model, "layers", DATA, **run, **FEW)  # type: ignore[arg-type]
    assert calls == []
    assert again.findings[0].measured == result.findings[0].measured
    file = next(folder.glob("backbone.2-*")) / "backbone.2.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert rcdm_fast.analyze(model, "layers", DATA, **run, **FEW).tables[0] == again.tables[0]  # type: ignore[arg-type]
    assert calls == ["backbone.2"]
    rcdm_fast.analyze(model, "layers", DATA, **run, **{**FEW, "adapt_images": 30})  # type: ignore[arg-type]
    assert calls == ["backbone.2", "backbone.2", "backbone"]
    assert len(list(folder.iterdir())) == 5
    calls.clear()
    before = model.read_bytes()
    config, weights = checkpoint.load_model(model)
    checkpoint.save_model(model, config, {name: value * 1.01 for name, value in weights.items()})
    try:
        rcdm_fast.analyze(model, "layers", DATA, **run, **FEW)  # type: ignore[arg-type]
    finally:
        model.write_bytes(before)
    assert calls == ["backbone.2", "backbone"], "other weights under the same name are another decoder"


def test_nothing_is_adapted_on_sources_or_other_cuts_of_their_photographs() -> None:
    sources = torch.arange(0, 70, 7)
    rest = adapted.apart(DATA, sources, 1000)
    assert len(rest) == 60
    assert not {path.name for path in rest.paths} & {str(place) for place in sources.tolist()}
    assert len(adapted.apart(DATA, sources, 25)) == 25
    cut = dataclasses.replace(DATA, photographs=torch.arange(70) // 2)
    left = adapted.apart(cut, sources, 1000)
    assert len(left) == 50
    assert not {int(path.name) // 2 for path in left.paths} & {place // 2 for place in sources.tolist()}
    with pytest.raises(ConfigError, match="are no sources"):
        adapted.apart(DATA, torch.arange(69), 10)


def test_layers_of_a_module_and_how_they_are_pooled() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Flatten())
    whole = encoders.build(net, config=EncoderConfig("module", image_size=8))
    assert isinstance(whole, ImageEncoder)
    inner = adapted.at(whole, "0", "max")
    assert (inner.config.layer, inner.config.pooling, inner.dim) == ("0", "max", 5)
    assert adapted.at(whole, "2", "max").config.pooling == "none"
    assert adapted.at(whole, "backbone", "max") is whole
    with pytest.raises(EncoderError, match="there are, for example, 0, 1, 2"):
        adapted.at(whole, "blocks.3", "mean")


def test_encoders_beside_each_other_by_name() -> None:
    text = "timm:resnet18?size=32&mean=0.5,0.5,0.5,bundled:cifar10-simclr, file:a,b.safetensors"
    assert adapted.split_encoders(text) == [
        "timm:resnet18?size=32&mean=0.5,0.5,0.5", "bundled:cifar10-simclr, file:a,b.safetensors",
    ]  # fmt: skip
    assert adapted.random_weights(EncoderConfig("timm:resnet18", image_size=32))
    assert not adapted.random_weights(EncoderConfig("timm:resnet18?pretrained=1", image_size=32))
    assert not adapted.random_weights(EncoderConfig("timm:resnet18?weights=w.pth", image_size=32))
    assert not adapted.random_weights(EncoderConfig("bundled:cifar10-simclr", image_size=32))
    one = encoders.build("bundled:cifar10-simclr")
    other = encoders.build("bundled:cifar10-supervised")
    assert adapted.labels([one, other]) == ["cifar10-simclr backbone", "cifar10-supervised backbone"]
    with pytest.raises(ConfigError, match="backbone is named twice"):
        adapted.labels([one, one])


def test_the_figure_puts_every_verdict_where_its_slope_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = rcdm_fast.load(model)
    config = DepthConfig(**FEW)
    (layer,) = layers.measured([loaded], ["a"], DATA, config)
    places = [depth_figure.Place(f"layer {number}", "net" if number < 2 else "other", 9, 0.5) for number in range(3)]
    slopes = (Interval(0.8, 0.6, 1.0), Interval(0.0, -0.05, 0.05), Interval(0.3, 0.1, 0.5))
    made = [_with_slope(layer, slope) for slope in slopes]
    claims = [Finding("", holds, "") for holds in (True, False, None)]
    picture = np.asarray(depth_figure.draw(made, places, claims, depth_figure.of_sources(made, DATA)))
    left = picture.shape[1] - 20 - 3 * depth_figure.COLUMN
    rows = []
    for number, (slope, kept) in enumerate(zip(slopes, (True, False, None), strict=True)):
        x = int(left + depth_figure.COLUMN * (number + 0.5))
        color = ImageColor.getrgb(depth_figure.COLORS[kept])
        marked = (np.abs(picture[:, x].astype(int) - color).sum(axis=1) == 0).nonzero()[0]
        rows.append(marked.min())
        long = depth_figure.PANEL * (slope.high - slope.low) / (depth_figure.HIGH - depth_figure.LOW)
        assert marked.max() - marked.min() == pytest.approx(max(long, 16), abs=4)
    assert rows[0] < rows[2] < rows[1], "larger slopes stand higher"
    column = picture[:, left + 5 : left + depth_figure.COLUMN - 5]
    cells = (column != 255).any(axis=(1, 2)).nonzero()[0]
    assert cells.min() < 2 * depth_figure.CELL, "samples above the panels"


def _with_slope(layer: Any, slope: Interval) -> Any:
    """The layer with another slope of the hue."""
    sweep = layer.invariance.sweeps["hue"]
    verdict = dataclasses.replace(sweep.recovery.verdict, slope=slope)
    changed = dataclasses.replace(sweep, recovery=dataclasses.replace(sweep.recovery, verdict=verdict))
    return dataclasses.replace(layer, invariance=dataclasses.replace(layer.invariance, sweeps={"hue": changed}))


def test_what_cannot_be_compared(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, image in enumerate(DATA.floats(slice(0, 24))):
        (tmp_path / "data").mkdir(exist_ok=True)
        to_pil(image).save(tmp_path / "data" / f"{number:02}.png")
    for given, said in (
        (("layers", "--layers", "backbone"), "name two layers at least"),
        (("layers", "--layers", "backbone,backbone"), "backbone is named twice"),
        (("layers", "--layers", "backbone,"), "a name is empty"),
        (("layers", "--layers", "backbone,bakbone.2"), "backbone.2"),
        (("layers", "--layers", "backbone,backbone.2", "--against", model), "not both"),
        (("invariance", "--layers", "backbone,backbone.2"), "takes no --layers"),
        (("layers", "--layers", "backbone,backbone.2", "--set", "pooling='best'"), "pooling"),
        (("layers", "--layers", "backbone,backbone.2", "--sources", "24"), "take fewer --sources"),
        (("layers",), "or two --layers"),
        (
            ("layers", "--against", model, "--photos", tmp_path / "data"),
            "takes no photographs (--photos) without layers or enc",
        ),
    ):
        words = [
            "analyze",
            str(model),
            *map(str, given),
            "--data",
            str(tmp_path / "data"),
            "--out",
            str(tmp_path / "o"),
        ]
        assert main(words) == 2, given
        assert said in capsys.readouterr().err
    many = DATA.subset(torch.arange(13))
    with pytest.raises(ConfigError, match="13 photographs make no figure"):
        rcdm_fast.analyze(model, "layers", DATA, layers=LAYERS, folder=tmp_path, photos=many, **FEW)
    with pytest.raises(ConfigError, match="name or file"):
        rcdm_fast.analyze(rcdm_fast.load(model), "layers", DATA, layers=LAYERS, folder=tmp_path)
    with pytest.raises(ConfigError, match="folder= says"):
        rcdm_fast.analyze(model, "layers", DATA, layers=LAYERS)
    module = Model(*_as_module(model))
    with pytest.raises(ConfigError, match="is a module"):
        depth.run(module, Wanted(model, tmp_path, LAYERS), DATA, DepthConfig(**FEW))


def _as_module(model: Path) -> tuple[Any, ...]:
    loaded = rcdm_fast.load(model)
    return loaded.config, loaded.unet, loaded.engine, small.encoder(), loaded.device


def test_encoders_by_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each encoder as it is specified, or each at every layer; the results and what was adapted in one folder."""
    for number, image in enumerate(DATA.floats(slice(0, 30))):
        (tmp_path / "data").mkdir(exist_ok=True)
        to_pil(image).save(tmp_path / "data" / f"{number:02}.png")
    own = rcdm_fast.load(model).encoder
    assert own is not None
    few = [f"--set={name}={json.dumps(value)}" for name, value in FEW.items() if name not in ("sources", "steps")]
    words = ["analyze", str(model), "layers", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "found")]
    specs = f"{own.config.source},{own.config.source}?layer=projector"
    (tmp_path / "photos").mkdir()
    to_pil(DATA.floats(slice(69, 70))[0]).save(tmp_path / "photos" / "last.png")
    shown: list[Any] = []
    real = depth_figure.draw

    def draw(*given: Any) -> Image.Image:
        shown.append(given)
        return real(*given)

    monkeypatch.setattr(depth_figure, "draw", draw)
    words += ["--photos", str(tmp_path / "photos")]
    assert main([*words, "--encoders", specs, "--sources", "20", "--steps", "1", *few]) == 0
    ((_, _, _, ((image, drawn),)),) = shown
    assert torch.equal((image * 127.5 + 127.5).round(), DATA.pixels[69].float())
    made = [rcdm_fast.load(each) for each in (tmp_path / "found/adapted").glob("*/*.safetensors")]
    models = {each.config.encoder.layer: each for each in made if each.config.encoder is not None}
    for layer, samples in zip(("backbone", "projector"), drawn, strict=True):
        h = models[layer].encode(image[None])
        assert torch.equal(samples, models[layer].sample(h, per=2, steps=1, items=torch.tensor([30]))[0])
    written = json.loads((tmp_path / "found" / "layers.json").read_text())
    assert [each["layer"] for each in written["settings"]["representations"]] == ["backbone", "projector"]
    assert written["made_by"]["data"]["data"]["images"] == 30
    assert Image.open(tmp_path / "found" / "layers-depth.png").width > 500
    assert len(list((tmp_path / "found" / "adapted").iterdir())) == 2


def _stub(**encoder: Any) -> Any:
    """As much of a model as adapting asks for."""
    own = SimpleNamespace(config=EncoderConfig("file:own.safetensors", image_size=8, **encoder))
    engine = SimpleNamespace(name="native", precision="bf16")
    return SimpleNamespace(encoder=own, weights="abc", device=torch.device("cpu"), engine=engine)


def _net() -> ImageEncoder:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Flatten())
    built = encoders.build(net, config=EncoderConfig("module", image_size=8))
    assert isinstance(built, ImageEncoder)
    return built


def test_layers_of_several_encoders_come_encoder_by_encoder(tmp_path: Path) -> None:
    one, other = _net(), _net()
    wanted = Wanted("m", tmp_path, ("0", "2"), (one, other))
    found = adapted.chosen(_stub(), wanted, "max")
    assert [(each.config.layer, each.config.pooling) for each in found] == [("0", "max"), ("2", "none")] * 2
    same = [each.network is net.network for each, net in zip(found, (one, one, other, other), strict=True)]  # type: ignore[attr-defined]
    assert same == [True] * 4
    assert adapted.chosen(_stub(), Wanted("m", tmp_path, (), (one, other)), "max") == [one, other]


def test_a_layer_by_its_short_name_is_pooled(model: Path) -> None:
    encoder = rcdm_fast.load(model).encoder
    assert encoder is not None
    assert adapted.at(encoder, "2", "max").config.pooling == "max"
    assert adapted.at(encoder, "backbone.2", "max").config.pooling == "max"


def test_networks_of_torchvision_are_random_without_weights() -> None:
    assert adapted.random_weights(EncoderConfig("torchvision:resnet18", image_size=32))
    assert not adapted.random_weights(EncoderConfig("torchvision:resnet18?weights=w.pth", image_size=32))
    assert not adapted.random_weights(EncoderConfig("module", image_size=32))


def test_images_to_adapt_on_are_spread_over_what_is_left() -> None:
    names = [int(path.name) for path in adapted.apart(DATA, torch.tensor([0, 69]), 12).paths]
    assert (names[0], names[-1], len(names)) == (1, 68, 12)
    assert {b - a for a, b in itertools.pairwise(names)} <= {6, 7}


def test_a_decoder_is_adapted_by_the_budget_and_runs_as_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    loaded: list[Any] = []
    monkeypatch.setattr(adapted, "adapt", lambda *given: asked.append(given))
    monkeypatch.setattr("rcdm_fast.model.load", lambda *given: loaded.append(given))
    encoders_ = [adapted.at(_net(), "0", "mean"), adapted.at(_net(), "0", "max")]
    done: list[int] = []
    model = _stub()
    adapted.adapted(model, Wanted("some model", tmp_path), encoders_, DATA, 7, done.append)
    assert done == [1, 2]
    for encoder, given, (file, _, read, device, *runs) in zip(encoders_, asked, loaded, strict=True):
        settings, data, folder, place, _, trusted, used = given
        assert (settings.steps, settings.model, settings.encoder) == (7, "some model", encoder.config)
        assert settings.old_encoder == model.encoder.config
        assert data is DATA
        assert used is read is encoder
        assert (place, device, runs, trusted) == ("cpu", model.device, ["native", "bf16"], [])
        assert file.parent == folder
    assert asked[0][2] != asked[1][2], "the same layer, pooled in another way"
    adapted.adapted(model, Wanted("some model", tmp_path), encoders_[:1], DATA, 8)
    adapted.adapted(model, Wanted("renamed", tmp_path), encoders_[:1], DATA, 7)
    model.weights = "abd"
    adapted.adapted(model, Wanted("some model", tmp_path), encoders_[:1], DATA, 7)
    folders = [given[2] for given in asked]
    assert folders[3] == folders[0], "a model counts by its weights, not by its name"
    assert len({folders[0], folders[2], folders[4]}) == 3


def _layers_by_hand() -> list[Layer]:
    """Of two representations and two properties, slope and R^2 by number."""
    made = []
    for number, name in enumerate("ab"):
        found = []
        for place, each in enumerate(("hue", "grayscale")):
            value = 0.1 + 0.2 * number + 0.4 * place
            read = {"linear": value, "non-linear": 0.05} if number == 0 else {}
            found.append(made_up_sweep(each, Interval(value, value - 0.02, value + 0.02), [True, None][number], read))
        samples = torch.rand(24, 2, 3, 8, 8, generator=torch.Generator().manual_seed(number)) * 2 - 1
        measured = dataclasses.replace(made_up_invariance(*found), sources=torch.arange(10, 34))
        made.append(Layer(name, measured, samples, spreads.spread(samples, samples[:, 0])))
    return made


def test_the_budget_and_the_settings_arrive_and_progress_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    done: list[tuple[int, int]] = []
    made = _layers_by_hand()
    nets = [adapted.at(_net(), "0", "max"), adapted.at(_net(), "2", "max")]
    models = []
    for net, explained in zip(nets, (0.25, 0.75), strict=True):
        each = small.quick_model()
        each.config = dataclasses.replace(each.config, info={"explained": explained})
        monkeypatch.setattr(each, "_encoder", net)
        models.append(each)

    def chosen(model: Any, wanted: Any, pooling: str) -> list[Any]:
        asked["pooling"] = pooling
        return nets

    def adapt(model: Any, wanted: Any, found: Any, images: Any, steps: int, told: Any) -> list[Any]:
        asked.update(images=images, steps=steps, found=found)
        told(1)
        told(2)
        return models

    def measured(given: Any, names: Any, data: Any, config: Any, progress: Any, shared: Any) -> list[Layer]:
        asked.update(names=names, shared=shared)
        for part in range(6):
            progress(part + 1, 6)
        return made

    monkeypatch.setattr(adapted, "chosen", chosen)
    monkeypatch.setattr(adapted, "adapted", adapt)
    monkeypatch.setattr(layers, "measured", measured)
    monkeypatch.setattr(layers, "compared", lambda *_: Analysis("layers", "t", "m", {"a": 1}, method="As ever."))
    monkeypatch.setattr(depth_figure, "draw", lambda measured, places, *_: places)
    known = Shared()
    config = DepthConfig(
        **{**FEW, "adapt_images": 15, "adapt_steps": 3, "pooling": "max", "augmentations": ("hue", "grayscale")}
    )
    found = depth.run(small.quick_model(), Wanted("m", tmp_path), DATA, config, lambda *each: done.append(each), known)
    assert (asked["pooling"], asked["steps"], asked["names"], asked["shared"]) == ("max", 3, ["0", "2"], known)
    assert done == [(part, 8) for part in range(1, 9)]
    assert found.settings["adapted_on"] == asked["images"].fingerprint != DATA.fingerprint
    assert len(asked["images"]) == 15
    assert found.settings["a"] == 1
    assert [each["explained"] for each in found.settings["representations"]] == [0.25, 0.75]
    assert [each["pooling"] for each in found.settings["representations"]] == ["max", "none"]
    for said in ("As ever.", "15 images", "3 optimizer steps", "(max)"):
        assert said in found.method
    places: Any = found.figures["depth"]
    assert [(each.layer, each.source, each.explained) for each in places] == [
        ("0", "module", 0.25),
        ("2", "module", 0.75),
    ]
    kept, budget = found.tables[:2]
    assert [(row[0], row[1], row[2].value) for row in kept.rows] == [  # type: ignore[union-attr]
        ("a", "hue", pytest.approx(0.1)), ("b", "hue", pytest.approx(0.3)),
        ("a", "grayscale: saturation", pytest.approx(0.5)), ("b", "grayscale: saturation", pytest.approx(0.7)),
    ]  # fmt: skip
    assert [getattr(row[5], "value", None) for row in kept.rows] == [pytest.approx(0.1), None, pytest.approx(0.5), None]
    assert [row[:7] for row in budget.rows] == [
        ("0", 5, "max", False, 15, 3, 0.25),
        ("2", 180, "none", False, 15, 3, 0.75),
    ]
    for row, layer in zip(budget.rows, made, strict=True):
        open_pixels = layer.spread.within["pixels"].mean() / layer.spread.between["pixels"]
        assert row[7].value == pytest.approx(open_pixels)  # type: ignore[union-attr]
    assert [(each.subject, each.group) for each in found.findings] == [
        ("hue (hue)", "a keeps"), ("hue (hue)", "b keeps"),
        ("saturation (grayscale)", "a keeps"), ("saturation (grayscale)", "b keeps"),
    ]  # fmt: skip


def test_names_of_random_networks_say_so_in_the_figure() -> None:
    places = depth._places(
        [
            SimpleNamespace(
                config=SimpleNamespace(info={"explained": 1}),
                encoder=SimpleNamespace(config=EncoderConfig(source, image_size=32, layer="x", dim=9)),
            )  # type: ignore[misc]
            for source in ("timm:resnet18", "timm:resnet18?pretrained=1")
        ]
    )
    assert [each.source for each in places] == ["resnet18, random weights", "resnet18"]


def test_the_figure_has_every_verdict_image_and_sample_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    marks, pasted, read = list[Any](), list[Any](), list[Any]()
    monkeypatch.setattr(depth_figure, "_mark", lambda pen, x, top, found, kept: marks.append((x, top, found[0], kept)))
    monkeypatch.setattr(depth_figure, "_diamond", lambda pen, x, top, found: read.append((x, top, found[0])))
    monkeypatch.setattr(depth_figure, "_paste", lambda canvas, image, x, y: pasted.append((np.asarray(image), x, y)))
    made = _layers_by_hand()
    places = [depth_figure.Place(name, "net", 9, 0.5) for name in "ab"]
    verdicts = [Finding("", holds, "") for holds in (True, False, None, True)]
    depth_figure.draw(made, places, verdicts, depth_figure.of_sources(made, DATA))
    assert [mark[3] for mark in marks] == [True, False, None, True]
    assert [mark[2] for mark in marks] == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert marks[0][0] == marks[2][0] < marks[1][0] == marks[3][0]
    assert marks[0][1] == marks[1][1] < marks[2][1] == marks[3][1]
    first = marks[0][0] + depth_figure.ASIDE  # the other one has no readouts
    assert read == [(first, marks[0][1], pytest.approx(0.1)), (first, marks[2][1], pytest.approx(0.5))]
    assert len(pasted) == 3 * (1 + 2 * 2)
    for row, source in enumerate((0, 12, 23)):  # of 24, which are images 10 to 33 of the data
        image, *samples = pasted[5 * row : 5 * row + 5]
        assert np.array_equal(image[0].transpose(2, 0, 1), DATA.pixels[10 + source].numpy())
        for (shown, x, y), (layer, number) in zip(samples, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
            np.testing.assert_allclose(
                shown.transpose(2, 0, 1), (made[layer].samples[source, number] + 1) * 127.5, atol=0.51
            )
            assert y == image[2]
            assert x > image[1]


class Pen:
    """Notes what is drawn."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, ...]] = []
        self.texts: dict[str, float] = {}

    def line(self, ends: Any, **_: object) -> None:
        self.lines.append(tuple(number for end in ends for number in (end if isinstance(end, tuple) else (end,))))

    def text(self, place: tuple[float, float], text: str, **_: object) -> None:
        self.texts[text] = place[0]


def test_lines_join_layers_of_one_encoder_alone() -> None:
    pen: Any = Pen()
    depth_figure._join(pen, ["a", "a", "b", "b", "a"], [0.0, 0.5, 0.1, 0.9, 1.0], (10, 20))
    assert [(line[0], line[2]) for line in pen.lines] == [
        tuple(10 + depth_figure.COLUMN * (column + 0.5) for column in pair) for pair in ((0, 1), (2, 3))
    ]
    assert pen.lines[0][1] > pen.lines[0][3], "larger slopes stand higher"


def test_encoders_stand_under_their_own_layers() -> None:
    pen: Any = Pen()
    long = "a.very.long.name.of.a.layer.with.its.number.17"
    places = [
        depth_figure.Place(layer, source, dim, explained)
        for layer, source, dim, explained in (
            ("x", "one", 5, 0.25), (long, "one", 6, 0.5), ("y", "two", 7, 0.755), ("z", "three", 8, 1.0),
        )
    ]  # fmt: skip
    depth_figure._axis(pen, ImageFont.load_default(size=depth_figure.SIZE), places, 0, 0)
    columns = [(line[0] / depth_figure.COLUMN, line[2] / depth_figure.COLUMN) for line in pen.lines]
    assert columns == [pytest.approx(ends) for ends in ((0.05, 1.95), (2.05, 2.95), (3.05, 3.95))]
    assert {"explains 25 %", "explains 50 %", "explains 76 %", "explains 100 %", "5 numbers", "8 numbers"} <= set(
        pen.texts
    )
    (shown,) = [text for text in pen.texts if text.startswith("...")]
    assert long.endswith(shown[3:])
    assert shown.endswith(".17")
    assert pen.texts["one"] < pen.texts["two"] < pen.texts["three"]
