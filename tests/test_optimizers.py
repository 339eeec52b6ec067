"""What the three loops (train, pre-train, adapt) do with a step's gradient, by hand from the states that they write."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast import sealed
from rcdm_fast.config import EncoderConfig, ModelConfig
from rcdm_fast.encoders import native
from rcdm_fast.models import checkpoint
from rcdm_fast.models.unet import UNet
from rcdm_fast.training import adapt, pretrain, train
from rcdm_fast.training.loop import learning_rate
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.ssl_momentum import BYOL
from tests import small, training_process

DATA = training_process.data()
PEAK, DECAY, CLIP = 2e-3, 0.125, 1e-3
STEPS = 3  # the states of the last two are kept
State = dict[str, Any]


def encoder(folder: Path) -> Path:
    config = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    native.save(folder / "encoder.safetensors", config.network(), config.encoder(), {})
    return folder / "encoder.safetensors"


def trained(folder: Path, **settings: Any) -> int:
    """Train; the number of trained tensors."""
    more = {"ema": 0.25, "ema_decays": (0.9,), "clip_norm": CLIP, "save_every": 1, "images": 16 * STEPS}
    train.train(training_process.config(str(encoder(folder)), **settings, **more), DATA, folder)
    return len(list(small.network(representation_dim=8).parameters()))


def pretrained(folder: Path, **settings: Any) -> int:
    config = PretrainConfig(
        name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4), images=16 * STEPS,
        batch_size=16, compile=False, bf16=False, save_every=1, method="byol", **settings,
    )  # fmt: skip
    pretrain.pretrain(config, DATA, folder)
    network = config.network()
    predictor = [name for name, _ in BYOL(config, network).named_parameters() if name.startswith("predictor")]
    return len(list(network.parameters())) + len(predictor)


def adapted(folder: Path, **settings: Any) -> int:
    source = EncoderConfig(f"file:{encoder(folder)}", image_size=8)
    network = small.network(representation_dim=8)
    model = ModelConfig(network.config, small.SCHEDULE, source, "small")
    file = checkpoint.save_model(folder / "small.safetensors", model, network.state_dict())
    config = adapt.AdaptConfig(
        "new", str(file), source, steps=STEPS, batch_size=16, bf16=False, save_every=1, rank=1, ema=0.9,
        clip_norm=CLIP, **settings,
    )  # fmt: skip
    adapt.adapt(config, DATA, folder)
    return 2 + 2 * sum(name.endswith("emb_layers.1.weight") for name in network.state_dict())


@pytest.mark.parametrize("loop", [trained, pretrained, adapted])
def test_a_step_by_hand(loop: Callable[..., int], tmp_path: Path) -> None:
    """Weight decay and rate arrive at every group, all that learns is in one, gradients are cut, averages follow."""
    tensors = loop(tmp_path, weight_decay=DECAY, learning_rate=PEAK, warmup=0.5)
    before, after = (sealed.load(tmp_path / f"state-{step:09d}.pt") for step in (2, 3))
    for state, rate in ((before, PEAK), (after, PEAK / 2)):  # warm after one step, then half a cosine over two
        groups = state["optimizer"]["param_groups"]
        assert sum(len(group["params"]) for group in groups) == tensors
        assert [group["weight_decay"] for group in groups] == [DECAY] * len(groups)
        assert [group["lr"] for group in groups] == pytest.approx([rate] * len(groups))
    first, second = (momenta(state) for state in (before, after))
    gradient = torch.cat([(10 * (new - 0.9 * old)).flatten() for old, new in zip(first, second, strict=True)])
    if loop is not pretrained:
        assert float(gradient.norm()) == pytest.approx(CLIP, rel=1e-3)
        for decay, old, new, weights in averages(before, after):
            fractions = min(decay, (1 + STEPS) / (10 + STEPS))
            for name, value in new.items():
                want = fractions * old[name].double() + (1 - fractions) * weights[name].double()
                torch.testing.assert_close(value.double(), want, atol=1e-7, rtol=1e-5)


def momenta(state: State) -> list[Tensor]:
    return [each["exp_avg"].double() for each in state["optimizer"]["state"].values()]


def averages(
    before: State, after: State
) -> list[tuple[float, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]]:
    """Decay, average before and after the step, weights after it."""
    if "average" in after:
        return [(0.9, before["average"], after["average"], after["trained"])]
    pairs = zip((0.25, 0.9), before["emas"], after["emas"], strict=True)
    return [(decay, old, new, after["network"]) for decay, old, new in pairs]


def test_weights_decay_by_the_rate_times_the_decay(tmp_path: Path) -> None:
    """Two runs of one step that differ in weight decay alone differ by rate x decay x weights (Loshchilov, eq. 12).

    The last state is there, whenever states are saved.
    """
    weights = []
    for decay in (0.0, 0.5):
        (tmp_path / str(decay)).mkdir()
        settings = {"weight_decay": decay, "learning_rate": PEAK, "images": 16, "ema": 0.0, "save_every": 100}
        config = training_process.config(str(encoder(tmp_path)), **settings)
        train.train(config, DATA, tmp_path / str(decay))
        weights.append(sealed.load(tmp_path / str(decay) / "state-000000001.pt")["network"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = UNet(dataclasses.replace(small.UNET, representation_dim=8)).state_dict()
    for name, start in fresh.items():
        torch.testing.assert_close(weights[1][name], weights[0][name] - PEAK * 0.5 * start, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),
        (3, 0.4),
        (9, 1.0),
        (10, 1.0),
        (40, 0.75),
        (55, 0.5),
        (70, 0.25),
        (99, 0.5 - 0.5 * math.cos(math.pi / 90)),
    ],
)
def test_rates_by_hand(step: int, rate: float) -> None:
    """Ten steps up, ninety down a cosine; half-way (3 pi / 6) it is half, at a third of the angle three quarters."""
    assert learning_rate(step, 100, 0.1, 1.0) == pytest.approx(rate)
    assert learning_rate(step, 100, 0.1, 3e-4) == pytest.approx(3e-4 * rate)
    assert learning_rate(0, 100, 0.0, 1.0) == 1.0  # one step of warm-up at least, which is the peak
