"""One decoder adapted to layers and encoders: kept by hash, measured with shared noise, and the figure of depth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import rcdm_fast
from rcdm_fast import encoders
from rcdm_fast.analysis import adapted, depth, depth_figure, layers
from rcdm_fast.analysis.adapted import Wanted
from rcdm_fast.analysis.depth import DepthConfig
from rcdm_fast.analysis.result import Analysis, Finding
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
from tests.test_analysis import photographs

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
    picture = np.asarray(depth_figure.draw(made, places, claims, DATA, config))
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


def test_encoders_by_the_command(model: Path, tmp_path: Path) -> None:
    """Each encoder as it is specified, or each at every layer; the results and what was adapted in one folder."""
    for number, image in enumerate(DATA.floats(slice(0, 30))):
        (tmp_path / "data").mkdir(exist_ok=True)
        to_pil(image).save(tmp_path / "data" / f"{number:02}.png")
    own = rcdm_fast.load(model).encoder
    assert own is not None
    few = [f"--set={name}={json.dumps(value)}" for name, value in FEW.items() if name not in ("sources", "steps")]
    words = ["analyze", str(model), "layers", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "found")]
    specs = f"{own.config.source},{own.config.source}?layer=projector"
    assert main([*words, "--encoders", specs, "--sources", "20", "--steps", "1", *few]) == 0
    written = json.loads((tmp_path / "found" / "layers.json").read_text())
    assert [each["layer"] for each in written["settings"]["representations"]] == ["backbone", "projector"]
    assert written["made_by"]["data"]["data"]["images"] == 30
    assert Image.open(tmp_path / "found" / "layers-depth.png").width > 500
    assert len(list((tmp_path / "found" / "adapted").iterdir())) == 2
