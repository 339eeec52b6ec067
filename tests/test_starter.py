"""The path of a new user, with the README's own commands: images of one's own, a timm encoder, a model, a sheet."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rcdm_fast.cli import main
from rcdm_fast.images import to_pil
from tests import small


@pytest.mark.long
def test_from_a_folder_and_a_timm_encoder_to_a_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    readme = (checkout / "README.md").read_text()
    train = 'rcdm train mine --config starter --data photos/ --encoder "timm:resnet18?pretrained=1"'
    sample = "rcdm sample photo.jpg --model runs/mine/mine.safetensors --out sheet.png"
    assert train in readme
    assert sample in readme
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(small.make_images(40, 48)):
        to_pil(image).save(tmp_path / "photos" / f"{number:02d}.jpg")
    to_pil(small.make_images(1, 64, seed=1)[0]).save(tmp_path / "photo.jpg")
    less = ["--images", "64", "--no-compile", "--set", "precision=fp32"]  # of the same; no network, so no weights
    main([*train.replace("?pretrained=1", "").replace('"', "").split()[1:], *less])
    main([*sample.split()[1:], "--steps", "4"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) >= 64
    assert (tmp_path / "runs" / "mine" / "environment.jsonl").exists()
