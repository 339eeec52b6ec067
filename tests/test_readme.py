"""What README and docs/sampling.md show in Python is run, on small sets of made-up images and at short sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast.images import save_image, to_uint8
from tests import small

ROOT = Path(__file__).resolve().parents[1]
SHORTER = (  # what is said there, and what is run here
    ('"photos/", per=100', '"photos/", per=1, steps=2'),
    ("sources=64", "sources=20, per=1, steps=2, augmentations=('flip',)"),
    ("per=4, gallery=10_000", "sources=20, per=1, steps=2"),
    ('train("starter"', 'train("starter.json"'),
    ('"timm:resnet18?pretrained=1")', '"bundled:cifar10-simclr", images=16, batch_size=8)'),
    ('"resnet18", pretrained=True', '"test_resnet", pretrained=False'),
    ('"runs/net")', '"runs/net", steps=0)'),
    ("per=8, seed=0", "per=8, steps=2, seed=0"),
    ('invert(["cat.jpg"])', 'invert(["cat.jpg"], steps=2)'),
    ("per=1, noise=", "per=1, steps=2, noise="),
    ("frames=8)", "frames=8, steps=2)"),
    ('"dog.jpg"], per=4)', '"dog.jpg"], per=4, steps=2)'),
    ("model.sequence(h, per=2)", "model.sequence(h, per=2, steps=2)"),
    ('export(model, "onnx"', 'export(few_layers, "onnx"'),  # those of bundled models are tested in test_onnx_only.py
)


UNET = {"image_size": 32, "num_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}


def blocks() -> list[str]:
    """The Python of both, block by block."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/sampling.md"))
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.long
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = to_uint8(small.make_images(48, size=32)).permute(0, 2, 3, 1).numpy()
    for folder in ("photos", "cifar10/test", "cifar10/train"):
        Path(folder).mkdir(parents=True)
        for number, each in enumerate(pixels[:8] if folder == "photos" else pixels):
            save_image(Image.fromarray(each), f"{folder}/{number:02d}.png")
    for name in ("cat.jpg", "dog.jpg", "coffee.jpg", "rocket.jpg"):
        save_image(Image.fromarray(np.tile(pixels[0], (3, 3, 1))), name)
    values = {"name": "x", "unet": UNET, "encoder": None, "precision": "fp32", "sheet_every": 0, "compile": False}
    Path("starter.json").write_text(json.dumps(values))
    text = "\n".join(blocks())
    lines = [line for line in text.splitlines() if "my-rcdm.safetensors" not in line]  # a file of the reader's own
    text = "\n".join(lines)
    for said, run in SHORTER:
        assert said in text
        text = text.replace(said, run)
    names: dict[str, object] = {"torch": torch, "rcdm_fast": rcdm_fast, "few_layers": small.model(channel_mult=(1,))}
    exec(compile(text, "README.md", "exec"), names)
    h, drawn, way = (names[name] for name in ("h", "images", "way"))
    assert isinstance(h, torch.Tensor)
    assert isinstance(drawn, torch.Tensor)
    assert isinstance(way, torch.Tensor)
    assert (tuple(h.shape), tuple(drawn.shape), tuple(way.shape)) == ((2, 256), (2, 8, 3, 32, 32), (1, 8, 3, 32, 32))
    assert Path("runs/mine/x.safetensors").is_file()
    assert Path("sheet.png").is_file()
    assert Path("runs/net/net.safetensors").is_file()
    assert (Path("exported") / "network.onnx").is_file()
    assert re.search(r"torch\.Size\(\[\d+, 3, 32, 32\]\)", capsys.readouterr().out)
