"""The diffusers folder: same eps, same pictures with its scheduler, read back bit for bit; the rest is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import rcdm_fast
from rcdm_fast import Model, names
from rcdm_fast.config import ConfigError
from rcdm_fast.export import diffusers as exported
from rcdm_fast.export.onnx import ExportError
from rcdm_fast.storage import StorageError
from tests import small

pytest.importorskip("diffusers", reason="diffusers is not installed")

FITTING: dict[str, object] = {
    "resblock_updown": True,
    "image_size": 16,
    "channel_mult": (1, 2, 2),
    "attention_resolutions": (8, 4),
    "num_res_blocks": 2,
}


def _model(**changes: object) -> Model:
    return small.model(**{**FITTING, **changes})


@pytest.mark.parametrize("changes", [{}, {"use_new_attention_order": True}, {"learn_sigma": False}], ids=str)
def test_eps_and_reading_back(tmp_path: Path, changes: dict[str, object]) -> None:
    from diffusers import UNet2DModel

    model = _model(**changes)
    files = model.export("diffusers", tmp_path / "out")
    assert all(file.is_file() for file in files)
    unet = UNet2DModel.from_pretrained(tmp_path / "out/unet")
    x, h, t = torch.randn(3, 3, 16, 16), torch.randn(3, small.DIM), torch.tensor([0, 500, 999])
    with torch.inference_mode():
        want = model.unet(x, t, h)
        got = unet(x, t, class_labels=model.unet.ssl_emb(h)).sample
    assert float((got - want).norm() / want.norm()) < 1e-5

    again = rcdm_fast.load(tmp_path / "out", engine="eager")
    assert dataclasses.replace(again.config, encoder=None) == dataclasses.replace(model.config, encoder=None)
    for name, value in model.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value), name


def _pictures(folder: Path, model: Model, h: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    from diffusers import DDIMScheduler, UNet2DModel
    from safetensors.torch import load_file

    unet = UNet2DModel.from_pretrained(folder / "unet")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    embedding = load_file(folder / exported.EMBEDDING)
    labels = torch.nn.functional.linear(h, embedding["weight"], embedding["bias"])
    scheduler.set_timesteps(25)
    x = noise
    with torch.inference_mode():
        for t in scheduler.timesteps:
            output = unet(x, t, class_labels=labels).sample[:, :3]
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    return x


def _compare_pictures(folder: Path, model: Model) -> None:
    model.export("diffusers", folder)
    h = torch.randn(2, model.config.unet.representation_dim)
    noise = torch.randn(2, 1, 3, model.image_size, model.image_size)
    want = model.sample(h, per=1, steps="ddim25", noise=noise)[:, 0]
    got = _pictures(folder, model, h, noise[:, 0])
    assert float((got - want).abs().max()) < 1e-3


def test_the_same_pictures(tmp_path: Path) -> None:
    _compare_pictures(tmp_path / "linear", _model())


@pytest.mark.parametrize("name", names.list_bundled())
def test_the_same_pictures_of_bundled_models(tmp_path: Path, name: str) -> None:
    model = rcdm_fast.load(name, engine="eager")
    if exported.reasons_unavailable(model.config.unet):
        with pytest.raises(ConfigError, match="cannot be diffusers' UNet2DModel"):
            model.export("diffusers", tmp_path / name)
        return
    _compare_pictures(tmp_path / name, model)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resblock_updown": False}, "resample in residual blocks"),
        ({"use_scale_shift_norm": False}, "scale-shift norm"),
        ({"representation_dim": 0, "num_classes": 3}, "take representations"),
        ({"attention_resolutions": (16, 8)}, "one width of attention heads"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        _model(**changes).export("diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_numbers_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "TOLERANCE", 0.0)
    monkeypatch.setattr(exported, "_split_qkv", lambda *_: None)
    with pytest.raises(ExportError, match="another eps"):
        _model().export("diffusers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="no earlier export"):
        _model().export("diffusers", tmp_path)
    out = tmp_path / "out"
    _model().export("diffusers", out)
    _model().export("diffusers", out)  # over an earlier one
    weights = out / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no complete diffusers export"):
        rcdm_fast.load(out)
    monkeypatch.setattr(exported, "missing_packages", lambda: ["diffusers"])
    with pytest.raises(ValueError, match="needs diffusers"):
        rcdm_fast.load(out)
    with pytest.raises(ConfigError, match="not installed: diffusers"):
        _model().export("diffusers", tmp_path / "other")
