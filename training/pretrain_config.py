"""The configuration of a pre-training run: one section for every method that has settings of its own."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch

from rcdm_fast.checks import Checked, Count, CountOrNone, Fraction, LearningRate, NotNegative, Positive, Range, Seed
from rcdm_fast.config import MAX_IMAGE_SIZE, MAX_LEVELS, ConfigError, EncoderConfig
from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.training import ssl_heads
from rcdm_fast.training.augment import AugmentConfig
from rcdm_fast.training.config import InBatches

MethodName = Literal["simclr", "supervised", "vicreg", "barlow", "byol", "dino"]
Side = Annotated[int, Range(1, MAX_IMAGE_SIZE)]
Width = Annotated[int, Range(1, 65_536)]
Blocks = Annotated[int, Range(1, 64)]
METHODS: tuple[str, ...] = typing.get_args(MethodName)


@dataclass(frozen=True)
class VICRegConfig(Checked):
    """VICReg (Bardes, Ponce, LeCun 2022, equation 6); the weights are those of section 4.2.

    Attributes:
        invariance, variance, covariance: weights of the three terms (lambda, mu, nu).
        solarize: probability of solarization, in both views (the paper's views are symmetric).
    """

    invariance: NotNegative = 25.0
    variance: NotNegative = 25.0
    covariance: NotNegative = 1.0
    solarize: Fraction = 0.1


@dataclass(frozen=True)
class BarlowConfig(Checked):
    """Barlow Twins (Zbontar et al. 2021, equation 1); the weight is that of section 2.2.

    Attributes:
        redundancy: weight of the off-diagonal terms (lambda).
        solarize: probability of solarization, in the second view only.
    """

    redundancy: NotNegative = 0.005
    solarize: Fraction = 0.2


@dataclass(frozen=True)
class BYOLConfig(Checked):
    """BYOL (Grill et al. 2020).

    Attributes:
        predictor: hidden width of the predictor (the paper's is that of its projector).
        momentum: of the target network at the first step; rises to 1 by a cosine. The paper has 0.996 for 1000
            epochs (section 3.2) and 0.99 for 300; a run of a few thousand steps wants the lower one.
        solarize: probability of solarization, in the second view only (appendix B).
    """

    predictor: Width = 512
    momentum: Fraction = 0.99
    solarize: Fraction = 0.2


@dataclass(frozen=True)
class DINOConfig(Checked):
    """DINO (Caron et al. 2021); temperatures and center momentum are those of section 3.1 and appendix D.

    Attributes:
        outputs: width K of the output that is compared (65,536 in the paper, for 1.28 M images).
        local_crops: small crops of each image that only the student sees, beside the two global ones. May be 0.
        local_size: pixels of a local crop (96 beside 224 in the paper).
        local_min_scale, local_max_scale: fraction of the image's area that a local crop keeps; the smallest fraction of
            a global crop is `augment.min_scale` (0.4 in the paper).
        momentum: of the teacher at the first step; rises to 1 by a cosine (0.996 in the paper).
        student_temperature: constant.
        teacher_temperature_start, teacher_temperature: first value, and value after the warm-up; linear between.
        temperature_warmup: fraction of the run that the warm-up of the teacher's temperature takes.
        center_momentum: of the moving mean of the teacher's outputs.
        freeze: fraction of the run during which the last layer is not trained (the first epoch in the paper).
        solarize: probability of solarization, in the second global view only.
    """

    outputs: Width = 2048
    local_crops: CountOrNone = 4
    local_size: Side = 16
    local_min_scale: float = 0.1
    local_max_scale: float = 0.4
    momentum: Fraction = 0.99
    student_temperature: Positive = 0.1
    teacher_temperature_start: Positive = 0.04
    teacher_temperature: Positive = 0.07
    temperature_warmup: Fraction = 0.3
    center_momentum: Fraction = 0.9
    freeze: Fraction = 0.05
    solarize: Fraction = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.local_min_scale <= self.local_max_scale <= 1:
            raise ConfigError(f"dino: local crops from {self.local_min_scale} to {self.local_max_scale} of the area")


_SECTIONS: dict[str, type] = {"vicreg": VICRegConfig, "barlow": BarlowConfig, "byol": BYOLConfig, "dino": DINOConfig}


@dataclass(frozen=True)
class PretrainConfig(InBatches):
    """A pre-training run; `images` counts distinct images shown (SimCLR shows two views of each).

    `method` names the section that is used; it is filled with defaults when not given, the others stay None.

    Raises:
        ConfigError: a section of another method.
    """

    name: str
    method: MethodName = "simclr"
    image_size: Side = 32
    stem: Width = 24
    widths: tuple[Width, ...] = (48, 96, 192)
    blocks: tuple[Blocks, ...] = (1, 1, 1)
    projector: tuple[Width, ...] = (192, 128)
    images: Count = 1_000_000
    batch_size: Count = 256
    learning_rate: LearningRate = 1e-3
    weight_decay: NotNegative = 1e-4
    warmup: Fraction = 0.05  # fraction of the run
    temperature: Positive = 0.2  # SimCLR's
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    bf16: bool | None = None  # autocast; None: as the run was begun, at first where the device has instructions for it
    compile: bool = True
    seed: Seed = 0
    save_every: Count = 500  # steps
    vicreg: VICRegConfig | None = None
    barlow: BarlowConfig | None = None
    byol: BYOLConfig | None = None
    dino: DINOConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        foreign = [name for name in _SECTIONS if name != self.method and getattr(self, name) is not None]
        if not 1 <= len(self.widths) == len(self.blocks) <= MAX_LEVELS:
            raise ConfigError(
                f"{self.name}: widths and blocks must have a value for each of 1..{MAX_LEVELS} levels, "
                f"got {len(self.widths)} and {len(self.blocks)}"
            )
        if not self.projector:
            raise ConfigError(f"{self.name}: projector must have at least one width, that of its output")
        if foreign:
            raise ConfigError(f"{self.name}: settings for {', '.join(foreign)}, but the method is {self.method}")
        if self.method in _SECTIONS and getattr(self, self.method) is None:
            object.__setattr__(self, self.method, _SECTIONS[self.method]())

    def network(self) -> SmallResNet:
        """A fresh network with this run's seed. Raises as `ssl_heads.projector`, and `ConfigError` for its limits."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                network = SmallResNet(self.stem, self.widths, self.blocks, self.projector)
            except ValueError as error:
                raise ConfigError(f"{self.name}: {error}") from error
            if self.method in _SECTIONS:
                network.projector = ssl_heads.projector(self.method, self.widths[-1], self.projector)
        return network

    def encoder(self) -> EncoderConfig:
        """The convention that the trained encoder expects."""
        architecture: dict[str, object] = {
            "stem": self.stem,
            "widths": list(self.widths),
            "blocks": list(self.blocks),
            "projector": list(self.projector),
        }
        if self.method == "dino":
            architecture["activation"] = "gelu"
        return EncoderConfig(source="module", image_size=self.image_size, architecture=architecture)
