"""What a new user comes for, by the lines of the pages: a hue shift, two layers, samples in a folder.

Other jobs are tested where their pages are: modules, training loops and .npy files in `test_docs_encoders.py`,
sequences in `test_sequences.py`, ONNX with numpy in `test_onnx_only.py`, notebooks in `test_notebooks.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rcdm_fast
from rcdm_fast.cli import main
from rcdm_fast.images import to_uint8
from tests import small

DOCS = Path(__file__).resolve().parents[1] / "docs"
FEW = {"sources": 20, "steps": 1, "resamples": 100, "fitted_on": 0, "shown": 1}
DEEP = {"augmentations": ["flip"], "spread_samples": 2, "mapped": 0}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 photographs, and one beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(to_uint8(small.make_images(40, size=32)).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    Image.fromarray(np.tile(pixels, (3, 2, 1))).save(tmp_path / "photo.jpg")
    return folder


def commands(page: str, *having: str) -> list[list[str]]:
    """The words of a page's commands that have all of these."""
    lines = re.findall(r"^ {4,}(rcdm [^#\n]*)", (DOCS / page).read_text(encoding="utf-8"), re.M)
    return [shlex.split(line)[1:] for line in lines if all(each in line for each in having)]


def settings(**more: Any) -> list[str]:
    return [f"--set={name}={json.dumps(value)}" for name, value in {**FEW, **more}.items()]


def test_a_hue_shift(photos: Path) -> None:
    (words,) = commands("tutorial.md", "hue")
    assert main([*words, *settings()]) == 0
    found = json.loads(Path("hue/invariance.json").read_text())
    assert [each["subject"] for each in found["findings"]] == ["hue"]
    assert Image.open("hue/invariance-rows-hue.png").height > 2 * 96


@pytest.mark.long
def test_two_layers(photos: Path) -> None:
    """Of one encoder through one decoder, by the command and in Python; two models: `test_analysis_layers.py`."""
    (words,) = commands("experiments.md", "--layers backbone.3")
    small_decoder = {"cifar10-simclr-wide": "cifar10-simclr-trunk"}
    words = [small_decoder.get(word, word) for word in words]
    assert main([*words, *settings(adapt_images=20, **DEEP)]) == 0
    told = json.loads(Path("found/layers.json").read_text())["settings"]["representations"]
    assert [each["name"] for each in told] == words[words.index("--layers") + 1].split(",")
    assert Image.open("found/layers-depth.png").width > 500
    text = (DOCS / "experiments.md").read_text(encoding="utf-8").partition("## Depth")[2]
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    block = block.replace("cifar10-simclr-wide", "cifar10-simclr-trunk").replace("folder=", "**few, folder=")
    few = {**FEW, **DEEP, "adapt_images": 20, "augmentations": ("flip",)}
    exec(compile(block, "experiments.md", "exec"), {"rcdm_fast": rcdm_fast, "few": few})
    assert Image.open("depth.png").width > 500
    assert len(list(Path("found/adapted").iterdir())) == len(told), "adapted once, found again"


def test_samples_in_a_folder(photos: Path) -> None:
    first, second = commands("generate.md", "--out job")[:2]
    words = ["cifar10-simclr-head" if word == "cifar10-simclr-wide" else word for word in first]
    words[words.index("--per") + 1] = "2"
    assert main([*words, "--steps", "1", "--format", "folder"]) == 0
    assert len(list(Path("job").rglob("*.png"))) == 80, "a file for each sample"
    assert main(second) == 0
