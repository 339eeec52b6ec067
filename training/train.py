"""Train an RCDM: a diffusion model conditioned on the representations of a frozen encoder.

Made for sets that fit in memory: pictures as uint8, representations computed once. AdamW, EMA, bf16 autocast, optional
torch.compile, exact resume: every random number of step k depends on (seed, k) alone.

With `standardize` the network is trained on (h - mean) / std and the affine map is folded into W when weights are
written, so a finished file takes raw representations and has the published structure.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcdm_fast import checkpoint
from rcdm_fast import encoders as encoder_room
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, ScheduleConfig, UNetConfig
from rcdm_fast.schedule import Schedule, network_timestep
from rcdm_fast.training import representations, sheets
from rcdm_fast.training.data import BatchOrder, ImageSet, step_generator
from rcdm_fast.training.losses import DiffusionLoss, LossConfig
from rcdm_fast.training.pretrain import learning_rate
from rcdm_fast.training.state import RunError, RunFolder
from rcdm_fast.unet import UNet

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """An RCDM training run.

    Attributes:
        name: name of the model, written into its file.
        unet: network; `representation_dim` 0 is filled in from the encoder.
        schedule: forward process.
        encoder: what conditions the model.
        loss: weighting and L_vlb.
        pictures: pictures seen in all; batches of `batch_size`.
        learning_rate: peak, after a linear warm-up over `warmup` of the run; cosine decay to zero.
        ema: decay per step of the averaged weights, reached gradually ((1 + step) / (10 + step) before).
        flips: mirror pictures at random, with the mirrored picture's own representation.
        standardize: see the module.
        init: name or file of a model to start from ("" for fresh weights); same network and encoder width.
        save_every, sheet_every: in steps; 0 means no sheets.
        weights: how the finished weights are stored.
    """

    name: str
    unet: UNetConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    encoder: EncoderConfig | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    pictures: int = 200_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.03
    ema: float = 0.999
    clip_norm: float = 1.0
    flips: bool = True
    standardize: bool = True
    bf16: bool = True
    compile: bool = True
    seed: int = 0
    init: str = ""
    save_every: int = 500
    sheet_every: int = 1000
    weights: Literal["fp32", "bf16", "fp16"] = "fp16"

    @property
    def steps(self) -> int:
        return self.pictures // self.batch_size


class Ema:
    """Exponential moving average of a network's parameters."""

    def __init__(self, network: UNet, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: UNet, step: int) -> None:
        """Move towards the parameters after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own = list(self.tensors.values())
        torch._foreach_lerp_(own, list(network.state_dict().values()), 1 - decay)


@dataclass(frozen=True)
class Standardisation:
    """h -> (h - mean) / std, folded into and out of the first linear layer W, b."""

    mean: Tensor
    std: Tensor

    def fold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights for raw h from weights for standardised h."""
        weight = state["ssl_emb.weight"] / self.std
        bias = state["ssl_emb.bias"] - weight @ self.mean
        return {**state, "ssl_emb.weight": weight, "ssl_emb.bias": bias}

    def unfold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `fold`."""
        weight, bias = state["ssl_emb.weight"], state["ssl_emb.bias"]
        return {**state, "ssl_emb.weight": weight * self.std, "ssl_emb.bias": bias + weight @ self.mean}


def train(
    config: TrainConfig, data: ImageSet, out: str | Path, device: str = "cpu", progress: Progress | None = None
) -> Path:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME.safetensors (EMA weights).

    Raises:
        RunError: the folder holds another run, the loss is not finite, or the data has the wrong size.
        ConfigError: the encoder's width contradicts the network.
    """
    if config.encoder is None:
        raise ConfigError("an RCDM needs an encoder; none is named in the configuration")
    if data.pixels.shape[-1] != config.unet.image_size:
        raise RunError(f"pictures are {data.pixels.shape[-1]} px, the network makes {config.unet.image_size} px")
    folder = RunFolder(out)
    encoder = encoder_room.build(config.encoder, device)
    bank = representations.cached(encoder, data, folder.path, config.flips)
    unet = _with_width(config.unet, bank.shape[-1])
    run = Run(config, unet, data, bank, device)
    state = folder.open({**dataclasses.asdict(config), "data": data.fingerprint})
    if state is not None:
        run.restore(state)
        log.info("resumed at step %d of %d", run.step, config.steps)
    elif config.init:
        run.start_from(config.init)
    fixed = sheets.FixedBatch.make(data, bank[0], count=8, per=6)
    since = time.monotonic()
    while run.step < config.steps:
        terms = run.advance()
        if not math.isfinite(terms["loss"]):
            raise RunError(f"the loss is {terms['loss']} at step {run.step}; the last good state is in {folder.path}")
        if progress is not None:
            progress(run.step, config.steps, terms["loss"])
        finished = run.step == config.steps
        if run.step % 50 == 0 or finished:
            rate = 50 * config.batch_size / max(1e-9, time.monotonic() - since)
            since = time.monotonic()
            seen = run.step * config.batch_size
            folder.log({"step": run.step, "pictures": seen, "pictures_per_s": round(rate, 1), **terms})
        if run.step % config.save_every == 0 or finished:
            folder.save(run.step, run.state())
        if config.sheet_every and (run.step % config.sheet_every == 0 or finished):
            sheets.write(folder.path / f"samples-{run.step:09d}.png", unet, config.schedule, run.weights(), fixed)
            since = time.monotonic()
    described = dataclasses.replace(encoder.config, dim=bank.shape[-1])
    info = {
        "pictures_seen": run.step * config.batch_size,
        "steps": run.step,
        "data": data.fingerprint,
        "run": dataclasses.asdict(config),
    }
    model = ModelConfig(unet, config.schedule, described, config.name, info)
    target = folder.path / f"{config.name}.safetensors"
    checkpoint.save_model(target, model, run.weights(), _DTYPES[config.weights])
    return target


def _with_width(unet: UNetConfig, width: int) -> UNetConfig:
    if unet.representation_dim not in (0, width):
        raise ConfigError(f"the encoder gives {width} numbers, the network expects {unet.representation_dim}")
    return dataclasses.replace(unet, representation_dim=width)


class Run:
    """The moving parts of a training run: network, optimiser, EMA and the step counter."""

    def __init__(self, config: TrainConfig, unet: UNetConfig, data: ImageSet, bank: Tensor, device: str) -> None:
        self.config, self.data, self.device = config, data, device
        mean, std = representations.standardisation(bank)
        if not config.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        self.standard = Standardisation(mean, std)
        self.bank = (bank - mean) / std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = UNet(unet)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.network.train()
        self.ema = Ema(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay, foreach=True
        )
        self.loss = DiffusionLoss(Schedule.make(config.schedule), config.loss, device)
        self.order = BatchOrder(len(data), config.batch_size, config.seed)
        self.step = 0
        self._forward = torch.compile(self.network) if config.compile else self.network

    def advance(self) -> dict[str, float]:
        """One optimiser step; returns the loss terms and the gradient's norm."""
        config = self.config
        index = self.order(self.step)
        generator = step_generator(config.seed, self.step)
        x0 = self.data.floats(index)
        view = torch.zeros(len(index), dtype=torch.int64)
        if config.flips:
            view = (torch.rand(len(index), generator=generator) < 0.5).long()
            x0 = torch.where(view.bool()[:, None, None, None], x0.flip(3), x0)
        h = self.bank[view, index].to(self.device)
        t = torch.randint(config.schedule.diffusion_steps, (len(index),), generator=generator).to(self.device)
        eps = torch.randn(x0.shape, generator=generator).to(self.device)
        x0 = x0.to(self.device)
        x_t = self.loss.noisy(x0, eps, t).contiguous(memory_format=torch.channels_last)
        seen = t.float() * network_timestep(config.schedule, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config.steps, config.warmup, config.learning_rate)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            output = self._forward(x_t, seen, h)
        terms = self.loss(output, x0, x_t, eps, t)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm, foreach=True)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.network, self.step)
        return {name: round(float(value.detach()), 6) for name, value in {**terms, "gradient_norm": norm}.items()}

    def weights(self) -> dict[str, Tensor]:
        """Averaged weights that take raw representations."""
        return self.standard.fold({name: value.cpu() for name, value in self.ema.tensors.items()})

    def start_from(self, source: str) -> None:
        """Begin with the weights of another model."""
        config, tensors = checkpoint.load_model(source)
        if config.unet != self.network.config:
            raise ConfigError(f"init {source}: its network is {config.unet}, this run's is {self.network.config}")
        self.network.load_state_dict(self.standard.unfold(tensors), strict=True)
        self.ema = Ema(self.network, self.config.ema)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self.ema.tensors,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.step = int(state["step"])
        self.network.load_state_dict(state["network"], strict=True)
        self.ema.tensors = {name: value.to(self.device) for name, value in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
