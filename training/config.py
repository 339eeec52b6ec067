"""What an RCDM training run is: one frozen, JSON-readable description."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch

from rcdm_fast.checks import (
    Checked,
    Count,
    CountOrNone,
    Fraction,
    FractionBelowOne,
    LearningRate,
    NotNegative,
    Positive,
    Range,
    Seed,
)
from rcdm_fast.config import ConfigError, EncoderConfig, ScheduleConfig, UNetConfig
from rcdm_fast.training.losses import LossConfig

LearningRates = Literal["cosine", "constant"]
Precision = Literal["fp32", "bf16", "fp16"]
Computed = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Sharding = Literal["none", "fully_shard"]
TimestepSampling = Literal["uniform", "loss_aware"]


class InBatches(Checked):
    """A run over so many images in batches of one size; one batch at least."""

    images: int
    batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < self.batch_size:
            raise ConfigError(f"images ({self.images}) must make at least one batch of {self.batch_size}")

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.images // self.batch_size


@dataclass(frozen=True)
class TrainConfig(InBatches):
    """An RCDM training run.

    Attributes:
        name: name of the model, written into its file.
        unet: network; `representation_dim` 0 is filled in from the encoder.
        schedule: forward process.
        encoder: what conditions the model.
        loss: weighting and L_vlb.
        timesteps: ``uniform``, or ``loss_aware``: steps with larger losses are drawn more often (`timesteps.py`).
        images: images seen in all; batches of `batch_size`, whatever the number of processes.
        micro_batch: images that one process holds in memory at once; 0 means all of its part.
        activation_checkpointing: recompute activations of blocks in the backward pass instead of keeping them.
        learning_rate: peak, after a linear warm-up over `warmup` of the run; then `lr_schedule`: cosine decay to zero,
            or constant.
        ema: decay per step of the averaged weights, reached gradually ((1 + step) / (10 + step) before).
        ema_decays: further decays; their weights are written beside, to choose from afterwards.
        random_flip: mirror images at random, with the mirrored image's own representation.
        augmented_views: further views of every image, moved by random affine maps, each with its own representation and
            told to the network while it is trained (`views.py`): a decoder of few images overfits less.
        representation_dropout: fraction of images whose representation is replaced by zeros, so that sampling can be
            guided (Ho and Salimans 2022).
        masked_parts: widths of the parts that representations are made of, if parts are to be hidden at random: one
            decoder then serves every subset of them (`masks.py`). Needs `standardize` to be false.
        unmasked: fraction of images that are shown whole all the same.
        standardize: train on (h - mean) / std, folded into the weights when they are written.
        precision: of autocast; fp16 scales the loss and needs a GPU. ``auto``: what the run in the folder was begun in;
            for a new one bf16 where the device has instructions for it, else fp32.
        compile: torch.compile, which takes minutes at every start; None: only for weights that are sharded over GPUs.
            Otherwise steps run on fused operators where they can (on a CPU with the native part, on a GPU with Triton),
            and on PyTorch's own where not.
        sharding: ``fully_shard`` spreads weights, gradients and optimizer over processes; ``none``: a copy in each.
        init: name or file of a model to start from ("" for fresh weights); same network and encoder width.
        save_every, sheet_every: in steps; 0 means no sheets.
        weights: how the finished weights are stored.
    """

    name: str
    unet: UNetConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    encoder: EncoderConfig | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    timesteps: TimestepSampling = "uniform"
    images: Count = 200_000
    batch_size: Count = 64
    micro_batch: CountOrNone = 0
    activation_checkpointing: bool = False
    learning_rate: LearningRate = 1e-3
    weight_decay: NotNegative = 0.0
    warmup: Fraction = 0.03
    lr_schedule: LearningRates = "cosine"
    ema: FractionBelowOne = 0.999
    ema_decays: tuple[FractionBelowOne, ...] = ()
    clip_norm: Positive = 1.0
    random_flip: bool = True
    augmented_views: Annotated[int, Range(0, 255)] = 0
    representation_dropout: FractionBelowOne = 0.0
    masked_parts: tuple[Count, ...] = ()
    unmasked: Fraction = 0.0
    standardize: bool = True
    precision: Computed = "auto"
    compile: bool | None = None
    sharding: Sharding = "none"
    seed: Seed = 0
    init: str = ""
    save_every: Count = 500
    sheet_every: CountOrNone = 1000
    weights: Precision = "fp16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({self.ema, *self.ema_decays}) <= len(self.ema_decays):
            raise ConfigError(f"an EMA decay is given twice: {(self.ema, *self.ema_decays)}")
        if self.masked_parts and self.standardize:
            raise ConfigError("masked_parts hide parts as zeros, which standardize would move: set it to false")
