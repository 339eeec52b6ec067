"""Encoders in a Python file: made, weighted, trusted for a run alone; what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rcdm_fast
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.encoders import EncoderError, build
from rcdm_fast.errors import RunError
from rcdm_fast.images import to_uint8
from rcdm_fast.models import checkpoint
from tests import small
from tests.encoder_checks import close, make_images

NET = """
from dataclasses import dataclass

import torch
from torch import nn

from blocks import SCALE


@dataclass
class Shape:
    width: int = 6


class TinyNet(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, Shape(width).width, 3, 2), nn.ReLU())
        self.relu = nn.ReLU()
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.relu(SCALE * self.trunk(x))
        return self.head(self.relu(x - 0.1).mean((2, 3)))


def wide():
    return TinyNet(9)


def broken():
    return 3


plain = TinyNet(4)
"""
CONVENTION = "size=8&mean=0.5&std=0.5"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "blocks.py").write_text("SCALE = 1.0\n")
    return tmp_path / "net.py"


def test_what_python_knew_before_is_put_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = object()
    monkeypatch.setitem(sys.modules, "net", mine)
    path, finders = list(sys.path), list(sys.meta_path)
    for name in ("TinyNet", "nothing"):
        with contextlib.suppress(EncoderError):
            build(f"python:{file}:{name}?{CONVENTION}&trust=1")
        assert (sys.path, sys.meta_path) == (path, finders)
        assert sys.modules["net"] is mine
        assert "blocks" not in sys.modules


def test_a_network_with_weights_of_a_training_script(file: Path) -> None:
    spec = f"python:{file}:TinyNet?{CONVENTION}&trust=1"
    first = build(spec)
    images = make_images(8)
    assert torch.equal(first.encode(images), build(spec).encode(images)), "random weights, repeatable"
    with torch.no_grad():
        module = first.network.trunk  # type: ignore[attr-defined]
        expected = {name: torch.rand_like(value) for name, value in first.network.state_dict().items()}  # type: ignore[attr-defined]
    saved = file.with_name("net.pth")
    torch.save({"model": {f"module.{name}": value for name, value in expected.items()}, "step": 3}, saved)
    loaded = build(f"{spec}&weights={saved}&key=model&prefix=module.&layer=trunk&pooling=mean")
    module.load_state_dict({name.removeprefix("trunk."): v for name, v in expected.items() if "trunk" in name})
    assert close(loaded.encode(images), module(images).mean((2, 3)).detach())
    assert loaded.config.source == f"python:{file}:TinyNet?key=model&prefix=module.&weights={saved}"
    assert (loaded.config.image_size, loaded.config.mean) == (8, (0.5, 0.5, 0.5))
    for name, width in (("wide", 9), ("plain", 4)):
        assert build(f"python:{file}:{name}?{CONVENTION}&trust=1&layer=trunk&pooling=mean").dim == width
    sized = f'python:{file}:TinyNet?{CONVENTION}&trust=1&layer=trunk&pooling=max&arguments={{"width": 5}}'
    assert build(sized).dim == 5
    with pytest.raises(EncoderError, match=r"net\.pth: holds weights without their network; .*python:net\.py:TinyNet"):
        build(f"file:{saved}")
    with pytest.raises(ConfigError, match=r"names no encoder.*python:NET\.py:NAME\?weights=FILE\.pth"):
        build(str(saved))


def test_two_files_with_modules_of_the_same_name_beside_them(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.py").write_text(NET)
    (other / "blocks.py").write_text("SCALE = 3.0\n")
    images = make_images(8)
    layer = f"?{CONVENTION}&trust=1&layer=relu%231&pooling=mean"
    one, three = (build(f"python:{each}:TinyNet{layer}").encode(images) for each in (file, other / "net.py"))
    assert close(three, 3 * one)


@pytest.mark.parametrize("place", ["blocks.py", "parts/scale.py"])
def test_what_a_file_imports_from_its_folder_is_what_it_says_now(tmp_path: Path, place: str) -> None:
    """However soon it was changed after it was run, to whatever of the same size; and nothing is left there."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "net.py").write_text(NET.replace("blocks", place.removesuffix(".py").replace("/", ".")))
    imported, images, found = tmp_path / place, make_images(8), []
    for scale in (1.0, 3.0):
        imported.write_text(f"SCALE = {scale}\n")
        os.utime(imported, (1e9, 1e9))
        spec = f"python:{tmp_path / 'net.py'}:TinyNet?{CONVENTION}&trust=1&layer=relu%231&pooling=mean"
        found.append(build(spec).encode(images))
    assert close(found[1], 3 * found[0])
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:{file}:TinyNet?size=8&mean=0.5&std=0.5", r"runs the code of .*say so: python:.*&trust=1"),
        ("python:{file}:TinyNet?trust=1&size=8", "nothing tells what images it takes; give mean, std"),
        ("python:{file}:TinyNets?trust=1&size=8&mean=0&std=1", "has no TinyNets; it has TinyNet"),
        ("python:{file}:broken?trust=1&size=8&mean=0&std=1", "is int, not a network"),
        ('python:{file}:TinyNet?trust=1&size=8&mean=0&std=1&arguments={{"w": 1}}', "cannot be made .*unexpected"),
        ("python:{file}:TinyNet?trust=1&size=8&mean=0&std=1&arguments=[1]", "a JSON object"),
        ("python:{file}x:TinyNet?trust=1&size=8&mean=0&std=1", r"expected python:FILE\.py:NAME"),
        ("python:/nothing/net.py:TinyNet?trust=1&size=8&mean=0&std=1", "no such file"),
        ("python:{folder}/fails.py:TinyNet?trust=1&size=8&mean=0&std=1", "the file fails .ZeroDivisionError"),
        ("python:{file}:TinyNet?trust=1&size=8&image_size=9&mean=0&std=1", "image_size is given twice"),
        ("python:{file}:TinyNet?trust=1&size=8&mean=0&std=1&layer=relu&pooling=mean", "2 times.*relu#1 to relu#2"),
    ],
)  # fmt: skip
def test_what_is_refused(spec: str, message: str, file: Path) -> None:
    file.with_name("fails.py").write_text("1 / 0\n")
    with pytest.raises((EncoderError, ConfigError), match=message):
        build(spec.format(file=file, folder=file.parent))


def configuration(tmp_path: Path) -> Path:
    np.savez(tmp_path / "set.npz", images=to_uint8(small.make_images(40)).permute(0, 2, 3, 1).numpy())
    unet = {"image_size": 8, "num_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    values = {"name": "tiny", "images": 32, "batch_size": 16, "precision": "fp32", "sheet_every": 0, "save_every": 1}
    (tmp_path / "tiny.json").write_text(json.dumps({**values, "unet": unet}))
    return tmp_path / "tiny.json"


def test_a_run_of_the_command_is_trusted_and_its_model_file_is_not(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a file and for a torch.hub repository: resumed without asking again, refused in the model file."""
    monkeypatch.chdir(tmp_path)
    spec = f"python:net.py:TinyNet?{CONVENTION}&layer=trunk&pooling=mean"
    words = ["train", "tiny", "--config", str(configuration(tmp_path)), "--data", "set.npz", "--out", "run"]
    words += ["--encoder", spec]
    assert main(words) == 2
    assert f"{spec}&trust=1" in capsys.readouterr().err
    assert main([*words, "--trust", "--minutes", "0"]) == 0
    assert main(words) == 0  # it remembers
    model = rcdm_fast.load("run/tiny.safetensors")
    assert "trust" not in str(model.config)
    with pytest.raises(EncoderError, match="a stored name is no leave") as refused:
        model.encode(small.make_images(2))
    offered = str(refused.value).rpartition("give the encoder as ")[2]
    again = rcdm_fast.load("run/tiny.safetensors", encoder=offered)
    assert again.encoder is not None
    assert again.encoder.config == model.config.encoder
    drawn = ["analyze", "run/tiny.safetensors", "layers", "--encoder", offered, "--data", "set.npz", "--sources", "20"]
    drawn += ["--steps", "1", "--set", "fitted_on=0", "--set", 'augmentations=["flip"]', "--out", "found"]
    drawn += ["--against", "run/tiny.safetensors"]
    assert main(drawn) == 2
    assert "a stored name is no leave" in capsys.readouterr().err
    assert main([*drawn, "--against-encoder", offered]) == 0

    (tmp_path / "hubconf.py").write_text(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{NET}")
    hub = f"torchhub:{tmp_path}:wide?{CONVENTION}&resize_to=8&layer=trunk&pooling=mean"
    words = ["adapt", "run/tiny.safetensors", "--data", "set.npz", "--out", "new", "--set", "steps=0"]
    words += ["--old-encoder", f"{spec}&trust=1", "--encoder", hub]
    assert main(words) == 2
    assert main([*words, "--trust"]) == 0
    assert main(words) == 0


def test_a_file_that_says_something_else_now_is_another_run(file: Path, tmp_path: Path) -> None:
    config, spec = configuration(tmp_path), f"python:{file}:TinyNet?{CONVENTION}&layer=trunk&pooling=mean"
    given = (config, tmp_path / "set.npz", tmp_path / "run")
    made = rcdm_fast.train(*given, encoder=spec, trust_repo=True)
    assert rcdm_fast.train(*given, encoder=spec) == made
    moment = file.stat().st_mtime_ns
    file.write_text(NET.replace("nn.ReLU())", "nn.GELU())"))
    os.utime(file, ns=(moment, moment))  # as large as before, and no newer
    assert not (file.parent / "__pycache__").exists()
    with pytest.raises(RunError, match="answers"):
        rcdm_fast.train(*given, encoder=spec)


def test_a_foreign_model_file_runs_no_file(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "net.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    network = small.network()
    for ending in ("", "?trust=1"):
        named = EncoderConfig(f"python:{tmp_path}/net.py:Net{ending}", image_size=8, dim=6)
        model = ModelConfig(network.config, small.SCHEDULE, named, "foreign")
        path = checkpoint.save_model(tmp_path / "foreign.safetensors", model, network.state_dict())
        with pytest.raises((EncoderError, ConfigError)):
            rcdm_fast.load(path).encode(small.make_images(1))
    assert not mark.exists()
