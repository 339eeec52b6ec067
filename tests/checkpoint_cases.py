"""A small model's configuration, flags and weights, and folders of its own for a test that loads by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcdm_fast.config import EncoderConfig, ModelConfig, ScheduleConfig, UNetConfig
from rcdm_fast.models import zoo
from rcdm_fast.models.flags import flags_from_configs
from rcdm_fast.models.unet import UNet
from tests import reference_weights

Tensors = dict[str, Tensor]

CONFIG = ModelConfig(
    UNetConfig(16, 32, (1, 2), num_res_blocks=1, attention_resolutions=(8,), representation_dim=5, learn_sigma=True),
    ScheduleConfig(variance="learned_range", noise_schedule="cosine"),
    EncoderConfig("bundled:small-encoder", image_size=32, dim=5),
    "small",
    {"steps": 12, "note": "for tests"},
)
FLAGS = flags_from_configs(CONFIG.unet, CONFIG.schedule)


def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache, bundled models and current folder below `tmp_path`."""
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RCDM_FAST_OFFLINE", raising=False)
    (tmp_path / "bundled").mkdir()
    monkeypatch.setattr(zoo, "bundled_folder", lambda: tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def make_weights() -> Tensors:
    with torch.device("meta"):
        network = UNet(CONFIG.unet)
    return reference_weights.make_tensors({name: tensor.shape for name, tensor in network.state_dict().items()})


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
