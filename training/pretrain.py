"""Pre-train a small encoder: SimCLR (backbone + projector) or its supervised twin.

SimCLR: two random views of every picture, NT-Xent loss between their projections (Chen et al. 2020, section 2.1; the
loss is lightly's). Supervised: one view (crop, flip, mild colour), cross-entropy on the projector's logits.
AdamW, linear warm-up and cosine decay, bf16 autocast, optional torch.compile; exact resume.

Knows nothing about diffusion.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import native
from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.training import probes
from rcdm_fast.training.augment import AugmentConfig, random_views
from rcdm_fast.training.data import BatchOrder, ImageSet, step_generator
from rcdm_fast.training.state import RunError, RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """A pre-training run; `pictures` counts distinct pictures shown (SimCLR shows two views of each)."""

    name: str
    method: Literal["simclr", "supervised"] = "simclr"
    image_size: int = 32
    stem: int = 24
    widths: tuple[int, ...] = (48, 96, 192)
    blocks: tuple[int, ...] = (1, 1, 1)
    projector: tuple[int, ...] = (192, 128)
    pictures: int = 1_000_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05  # share of the run
    temperature: float = 0.2
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    bf16: bool = True
    compile: bool = True
    seed: int = 0
    save_every: int = 500  # steps

    @property
    def steps(self) -> int:
        return self.pictures // self.batch_size

    def network(self) -> SmallResNet:
        """A fresh network with this run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return SmallResNet(self.stem, self.widths, self.blocks, self.projector)

    def encoder(self) -> EncoderConfig:
        """The convention that the trained encoder expects."""
        return EncoderConfig(
            source="module",
            image_size=self.image_size,
            architecture={
                "stem": self.stem,
                "widths": list(self.widths),
                "blocks": list(self.blocks),
                "projector": list(self.projector),
            },
        )


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Linear warm-up over `warmup` x `steps`, then cosine decay to zero."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def pretrain(
    config: PretrainConfig,
    train: ImageSet,
    out: str | Path,
    test: ImageSet | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME-encoder.safetensors (float16).

    Args:
        config: the run.
        train: pictures of `config.image_size` pixels; labels are needed by the supervised method and the probes.
        test: where given (with labels), kNN and linear-probe accuracy are measured and stored with the encoder.
        progress: called with (steps done, steps in all, loss).

    Returns:
        Path of the encoder file, and its accuracies (empty without `test`); see `accuracy`. The same network untrained
        is measured too, under names that begin with "untrained_".
    """
    if config.method == "supervised":
        if train.labels is None:
            raise RunError("supervised pre-training needs sub-folders as classes; this folder has none")
        if config.projector[-1] != len(train.classes):
            raise ConfigError(f"projector ends in {config.projector[-1]} but the data has {len(train.classes)} classes")
    folder = RunFolder(out)
    state = folder.open({**dataclasses.asdict(config), "data": train.fingerprint})
    network = config.network().to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    step = 0
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        log.info("resumed at step %d of %d", step, config.steps)
    compute_loss = _loss_function(config, network, train)
    order = BatchOrder(len(train), config.batch_size, config.seed)
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.warmup, config.learning_rate)
        loss = compute_loss(order(step), step_generator(config.seed, step), device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} at step {step}; the last state in {folder.path} is from before")
        step += 1
        if progress is not None:
            progress(step, config.steps, value)
        if step % 50 == 0 or step == config.steps:
            folder.log({"step": step, "loss": round(value, 5), "pictures": step * config.batch_size})
        if step % config.save_every == 0 or step == config.steps:
            folder.save(step, {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
    measured: dict[str, float] = {}
    if test is not None:
        measured = accuracy(network, train, test)
        untrained = accuracy(config.network(), train, test)
        measured.update({f"untrained_{name}": value for name, value in untrained.items()})
        folder.log(measured)
    info: dict[str, Any] = {"run": dataclasses.asdict(config), "data": train.fingerprint, "accuracy": measured}
    target = folder.path / f"{config.name}-encoder.safetensors"
    native.save(target, network, config.encoder(), info, torch.float16)
    return target, measured


def _loss_function(
    config: PretrainConfig, network: SmallResNet, train: ImageSet
) -> Callable[[Tensor, torch.Generator, str], Tensor]:
    forward: nn.Module = torch.compile(network) if config.compile else network  # type: ignore[assignment]
    contrast: nn.Module | None = None
    if config.method == "simclr":
        try:
            from lightly.loss import NTXentLoss
        except ImportError as error:
            raise RunError("SimCLR's loss comes from lightly: pip install 'rcdm_fast[train]'") from error
        contrast = NTXentLoss(temperature=config.temperature)

    def compute(index: Tensor, generator: torch.Generator, device: str) -> Tensor:
        pictures = train.floats(index)
        count = 2 if contrast is not None else 1
        views = torch.cat([random_views(pictures, config.augment, generator) for _ in range(count)])
        views = views.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            outputs = forward(views).float()
        if contrast is not None:
            loss: Tensor = contrast(*outputs.chunk(2))
            return loss
        assert train.labels is not None
        return F.cross_entropy(outputs, train.labels[index].to(device))

    return compute


@torch.no_grad()
def features(network: SmallResNet, data: ImageSet) -> tuple[Tensor, Tensor]:
    """Backbone and projector outputs of every picture, float32, evaluation mode; [N,D] and [N,P]."""
    network.eval()
    device = next(network.parameters()).device
    backbone, projector = [], []
    for start in range(0, len(data), 1000):
        trunk = network.backbone(data.floats(slice(start, start + 1000)).to(device))
        backbone.append(trunk.cpu())
        projector.append(network.projector(trunk).cpu())
    return torch.cat(backbone), torch.cat(projector)


def accuracy(network: SmallResNet, train: ImageSet, test: ImageSet) -> dict[str, float]:
    """kNN and linear-probe accuracy of the backbone and of the projector, in [0,1]."""
    if train.labels is None or test.labels is None:
        raise RunError("accuracy needs labels: put the pictures into one sub-folder per class")
    results: dict[str, float] = {}
    pairs = zip(("backbone", "projector"), features(network, train), features(network, test), strict=True)
    for name, bank, queries in pairs:
        results[f"{name}_knn"] = round(probes.knn_accuracy(bank, train.labels, queries, test.labels), 4)
        results[f"{name}_linear"] = round(probes.linear_probe_accuracy(bank, train.labels, queries, test.labels), 4)
    return results
