"""Every line of the pages about encoders is run, on made-up images and at tiny sizes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rcdm_fast
from rcdm_fast.callbacks import SheetOf
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.encoders import EncoderError, build
from rcdm_fast.images import to_uint8
from rcdm_fast.models import checkpoint
from tests import small
from tests.test_callbacks import stand_in

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = "\n".join(
    (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("encoders", "embeddings", "training_loop")
)
NET = """
from torch import nn

class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.trunk(x).mean((2, 3)))
"""
VIT = """
import torch
from torch import nn

class MyViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.patches = nn.Conv2d(3, 4, 16, 16)
        self.blocks = nn.Sequential(*(nn.LayerNorm(4) for _ in range(12)))

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))[:, 0]
"""
SHORT = {  # what is added to the commands
    "analyze": "--steps 1 --per 1 --set sides=[1]",
    "encoders": "",
    "adapt": "--set steps=0",
    "train": "--images 16 --set batch_size=8 --set sheet_every=0",
    "sample": "--steps 1 --per 1",
    "interpolate": "--steps 1 --per 1 --frames 2",
    "evaluate": "--steps 1 --per 1",
    "encode": "",
}
UNET = {"image_size": 32, "num_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's reader has: photographs, a network with its checkpoint, representations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    pixels = to_uint8(small.make_images(12, size=32)).permute(0, 2, 3, 1).numpy()
    np.savez("images.npz", images=pixels)
    np.save("h.npy", np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32))
    Path("photos").mkdir()
    for number, each in enumerate(to_uint8(small.make_images(40, size=32)).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(each).save(f"photos/{number:02}.png")
    Image.fromarray(np.tile(pixels[0], (2, 3, 1))).save("photo.jpg")
    Path("net.py").write_text(NET)
    net = build("python:net.py:TinyNet?size=32&mean=0.5&std=0.5&trust=1").network  # type: ignore[attr-defined]
    torch.save({"model": net.state_dict()}, "net.pth")
    Path("vit.py").write_text(VIT)
    net = build("python:vit.py:MyViT?size=224&mean=0.5&std=0.5&trust=1").network  # type: ignore[attr-defined]
    torch.save(net.state_dict(), "vit.pth")
    values = {"name": "x", "unet": UNET, "encoder": None, "precision": "fp32"}
    Path("starter.json").write_text(json.dumps(values))
    return tmp_path


@pytest.mark.long
def test_every_command_of_the_pages_runs(folder: Path) -> None:
    lines = re.findall(r"^    (rcdm .*)$", TEXT, re.M)
    assert len(lines) == 18
    ((name, value),) = re.findall(r"^    (E)='(.*)'$", TEXT, re.M)
    for line in lines:
        words = shlex.split(line.replace(f"${name}", value))[1:]
        words = ["starter.json" if word == "starter" else word for word in words]
        assert main([*words, *SHORT[words[0]].split()]) == 0, line
    for made in ("seen.png", "sheet.png", "way.png", "runs/tiny/tiny.safetensors", "runs/h/h.safetensors", "maps.png"):
        assert Path(made).is_file(), made
    assert Path("runs/mine/mine.safetensors").is_file()


def test_every_block_of_the_pages_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) == 4
    text = "\n".join(blocks)
    for said, run in (
        ('"starter"', '"starter.json"'),
        ('"trunk", pooling="mean")\npath', '"trunk", pooling="mean", **tiny)\npath'),
        ('pooling="mean"\n)', 'pooling="mean", steps=0\n)'),
        ("representations=h)", "representations=h, steps=0)"),
        ("per=4)", "per=1, steps=1)"),
        ('pooling="mean")\nfor', 'pooling="mean", config=fast)\nfor'),
    ):
        assert said in text
        text = text.replace(said, run)
    net = build("python:net.py:TinyNet?size=32&mean=0.5&std=0.5&trust=1").network  # type: ignore[attr-defined]
    assert isinstance(net, nn.Module)
    net.train()
    written: list[Any] = []
    names: dict[str, Any] = {
        "rcdm_fast": rcdm_fast, "net": net, "h": np.load("h.npy"), "batch": small.make_images(4, 32),
        "optimizer": torch.optim.SGD(net.parameters(), 0.1), "fast": SamplingConfig(per=1, steps=1),
        "tiny": {"images": 16, "batch_size": 8, "sheet_every": 0},
        "module": SimpleNamespace(encoder=net), "batches": [0],
        "writer": SimpleNamespace(add_image=lambda *given, **named: written.append((given, named))),
    }  # fmt: skip
    exec(compile(text, "docs", "exec"), names)
    assert Path("sheet.png").is_file()
    assert checkpoint.load_model(Path("runs/own/x.safetensors"))[0].unet.representation_dim == 6
    assert names["model"].config.encoder.layer == "trunk.0"
    assert checkpoint.load_model(names["path"])[0].unet.representation_dim == 5
    (first, options), (second, _) = written
    assert [given[2] for given in (first, second)] == [0, 1]
    assert options == {"dataformats": "HWC"}
    assert first[1].shape == second[1].shape
    assert not np.array_equal(first[1], second[1]), "the encoder has changed"
    assert net.training
    assert [path.name for path in sorted(Path("sheets").iterdir())] == ["samples-0000.png", "samples-0001.png"]


def test_a_sheet_leaves_the_loop_as_it_was(tmp_path: Path) -> None:
    """Modes, random numbers, gradients; the same network gives the same sheet."""
    unet, pixels = small.network(representation_dim=192), to_uint8(small.make_images(40))
    named = EncoderConfig("bundled:cifar10-simclr", image_size=32, dim=192)
    path = tmp_path / "m.safetensors"
    checkpoint.save_model(path, ModelConfig(unet.config, small.SCHEDULE, named, "m"), unet.state_dict())
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5)).train()
    images = pixels.permute(0, 2, 3, 1).numpy()
    given: dict[str, Any] = {"convention": EncoderConfig("module", image_size=8), "pooling": "mean", "device": "cpu"}
    look = SheetOf(path, images, list(images[:2]), config=SamplingConfig(per=2, steps=2), count=30, **given)
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    loss = net(small.make_images(2)).sum()
    torch.set_rng_state(before)
    one = look.array(net)
    assert torch.equal(torch.get_rng_state(), before)
    assert look.explained == look.explained <= 1, "of what it explains, on images held out"
    assert all(part.training for part in net.modules())
    state |= {name: net.state_dict()[name] for name in state if name.startswith("1.")}  # the loop's own step
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    loss.backward()
    first = net[0]
    assert isinstance(first, nn.Conv2d)
    assert first.weight.grad is not None
    assert np.array_equal(look.array(net), one)
    assert np.array_equal(np.asarray(look(net)), one)
    with torch.no_grad():
        first.weight.mul_(-1)
    assert not np.array_equal(look.array(net), one)
    with pytest.raises(EncoderError, match="nothing tells what images"):
        SheetOf(path, images, list(images[:2]), device="cpu")(net)
    checkpoint.save_model(path, ModelConfig(unet.config, small.SCHEDULE, None, "m"), unet.state_dict())
    with pytest.raises(ConfigError, match="knows its encoder"):
        SheetOf(path, images, list(images[:2]))
