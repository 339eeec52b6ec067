"""The frozen, versioned description of a model: network, diffusion schedule, encoder convention.

A configuration is plain data. It is stored as JSON inside the weights file, so that a file explains itself,
and it is checked when it is made: a value that no model can have never reaches a network. Limits are generous for real
models (the published 512-px releases are far inside) and there so that a damaged or foreign file cannot ask for all
memory or hours with one number.

This module does not know about tensors, files or devices (`models/checkpoint.py` reads and writes them).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from rcdm_fast import size
from rcdm_fast.checks import Checked, Count, Fraction, FractionBelowOne, Range, described
from rcdm_fast.checks import ConfigError as ConfigError
from rcdm_fast.plain_data import FORMAT_VERSION, LATER
from rcdm_fast.plain_data import from_dict as from_dict
from rcdm_fast.plain_data import from_json as from_json
from rcdm_fast.plain_data import migrated as migrated
from rcdm_fast.plain_data import plain as plain
from rcdm_fast.plain_data import to_json as to_json

NoiseSchedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x0", "v"]  # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0
Variance = Literal["learned_range", "fixed_large", "fixed_small"]
Pooling = Literal["none", "cls", "mean", "max", "flatten", "map", "function"]  # function: given in Python
Resize = Literal["squash", "short_side"]
Interpolation = Literal["bilinear", "bicubic", "area", "box_bicubic"]
Rounding = Literal["nearest", "torchvision", "transformers"]
Border = Literal["none", "black"]
ChannelOrder = Literal["rgb", "bgr"]
Layout = Literal["auto", "nchw", "nhwc"]


# Published channel multipliers by image size (guided-diffusion `create_model`, empty `channel_mult`).
DEFAULT_CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}

GROUPS = 32  # of every GroupNorm in the network

MAX_IMAGE_SIZE = 2048  # pixels a side that a network makes or an encoder sees
MAX_RESIZE = 4096  # pixels that an encoder's images are resized to before they are cropped
MAX_LEVELS = 12  # resolutions of a network
MAX_BLOCKS = 64  # residual blocks of a level
MAX_CHANNELS = 16_384  # of a level
MAX_WIDTH = 2**20  # of a representation, and of the table of class labels
MAX_MAP_SIDE = 128  # positions along a side of a representation that is a map
MAX_DIFFUSION_STEPS = 100_000
MAX_FITTED_NFE = 32  # evaluations that a solver is fitted for; with more of them training-free ones are as good
MAX_PARAMETERS = 20_000_000_000  # 80 GB in float32; the published 512-px networks have 0.6 billion

_Side = Annotated[int, Range(1, MAX_IMAGE_SIZE)]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class UNetConfig(Checked):
    """Shape of the ADM UNet. Names are those of the published flags.

    `attention_resolutions` are image sizes in pixels (32, 16, 8), not downsampling factors.
    `num_head_channels` and `num_heads_upsample` use -1 for "not set", as published.
    `representation_dim` is the published `ssl_dim`; 0 means that no representation conditions the network.
    `condition_map` is (C,h,w) where representations are maps of C channels at h x w positions, and empty where they are
    vectors. A map is C h w = `representation_dim` numbers in that order, and conditions every residual block per pixel
    (`models/condition_map.py`), beside its mean over the positions, which conditions it as a vector does.
    `representation_hidden` is the width of two hidden layers from h, beside the published linear one and added to it
    (`condition_layers` of the network); 0 for the linear one alone, as published.
    `num_classes` 0 means that no class label conditions it.

    Limits: 2048 pixels, 12 levels of 64 blocks, 16,384 channels, representations and labels up to 2^20, and 20 billion
    parameters in all (`parameters`).
    """

    image_size: _Side
    num_channels: Annotated[int, Range(1, MAX_CHANNELS)]
    channel_mult: tuple[Annotated[float, Range(above=0)], ...]
    num_res_blocks: Annotated[int, Range(1, MAX_BLOCKS)] = 2
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    conv_resample: bool = True
    learn_sigma: bool = False
    representation_dim: Annotated[int, Range(0, MAX_WIDTH)] = 0
    num_classes: Annotated[int, Range(0, MAX_WIDTH)] = 0
    dropout: FractionBelowOne = 0.0
    condition_map: tuple[Annotated[int, Range(1)], ...] = ()
    representation_hidden: Annotated[int, Range(0, MAX_CHANNELS)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_map()
        levels = len(self.channel_mult)
        _require(levels > 0, "channel_mult is empty")
        _require(levels <= MAX_LEVELS, f"channel_mult has {levels} levels, more than {MAX_LEVELS}")
        _require(
            self.image_size % 2 ** (levels - 1) == 0,
            f"image_size {self.image_size} cannot be halved {levels - 1} times (channel_mult has {levels} levels)",
        )
        for channels in self.level_channels:
            _require(
                channels > 0 and channels % GROUPS == 0,
                f"num_channels x channel_mult gives {channels} channels, not a multiple of {GROUPS} (GroupNorm)",
            )
            _require(
                channels <= MAX_CHANNELS,
                f"num_channels x channel_mult gives {described(channels)} channels, more than {MAX_CHANNELS}",
            )
        count = len(self.attention_resolutions)
        _require(count <= MAX_LEVELS, f"{count} attention resolutions, more than {MAX_LEVELS} levels can have")
        for resolution in self.attention_resolutions:
            _require(
                resolution > 0 and self.image_size % resolution == 0,
                f"attention resolution {resolution} does not divide image_size {self.image_size}",
            )
        for level, channels in enumerate(self.level_channels):
            if self.attends_at(level) or level == levels - 1:
                for upsampling in (False, True):
                    self.heads(channels, upsampling)
        _require(
            self.parameters <= MAX_PARAMETERS,
            f"this network has {self.parameters / 1e9:.3g} billion parameters, more than {MAX_PARAMETERS // 10**9}",
        )

    def __repr__(self) -> str:
        """As for any configuration, without settings of `LATER` that are not set: hashes are made of it."""
        shown = (item.name for item in dataclasses.fields(self) if item.name not in LATER or getattr(self, item.name))
        return f"UNetConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _check_map(self) -> None:
        if not self.condition_map:
            return
        _require(len(self.condition_map) == 3, f"condition_map is (channels, height, width), got {self.condition_map}")
        channels, height, width = self.condition_map
        _require(
            max(height, width) <= MAX_MAP_SIDE, f"condition_map has more than {MAX_MAP_SIDE} positions along a side"
        )
        _require(
            channels * height * width == self.representation_dim,
            f"a condition_map {self.condition_map} has {described(channels * height * width)} numbers, "
            f"representation_dim is {self.representation_dim}",
        )
        _require(self.use_scale_shift_norm, "a condition_map needs use_scale_shift_norm: it scales and shifts")

    @property
    def summary_dim(self) -> int:
        """Numbers of a representation beside the time embedding: all of a vector, the channels of a map."""
        return self.condition_map[0] if self.condition_map else self.representation_dim

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""
        return tuple(int(mult * self.num_channels) for mult in self.channel_mult)

    @property
    def out_channels(self) -> int:
        """3 (eps), or 6 when the variance is learned: eps first, then the variance value."""
        return 6 if self.learn_sigma else 3

    @cached_property
    def parameters(self) -> int:
        """Numbers in all tensors of the network."""
        return size.parameters(self)

    def attends_at(self, level: int) -> bool:
        """Whether the blocks of this level (0 is the finest) are followed by self-attention."""
        return self.image_size // 2**level in self.attention_resolutions

    def heads(self, channels: int, upsampling: bool) -> int:
        """Number of attention heads at a width, in the encoder half or (`upsampling`) the decoder half."""
        if self.num_head_channels != -1:
            _require(self.num_head_channels > 0, f"heads cannot have {self.num_head_channels} channels")
            heads, rest = divmod(channels, self.num_head_channels)
            _require(
                rest == 0 and heads > 0, f"{channels} channels do not split into heads of {self.num_head_channels}"
            )
            return heads
        heads = self.num_heads
        if upsampling and self.num_heads_upsample != -1:
            heads = self.num_heads_upsample
        _require(heads > 0 and channels % heads == 0, f"{channels} channels do not split into {heads} heads")
        return heads


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """The forward process, and what the network's output means.

    `rescale_timesteps` feeds the network t * 1000 / diffusion_steps, as published. `variance` matters to
    ancestral sampling and to the L_vlb term only. `clamp_variance` keeps a learned variance between its bounds in
    ancestral sampling: a network with few steps of training asks for more than the largest, which the published code
    lets it have, and with few sampling steps that explodes. At most 100,000 steps.
    """

    diffusion_steps: Annotated[int, Range(1, MAX_DIFFUSION_STEPS)] = 1000
    noise_schedule: NoiseSchedule = "linear"
    prediction: Prediction = "eps"
    variance: Variance = "fixed_large"
    rescale_timesteps: bool = False
    clamp_variance: bool = False


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """How an image becomes a representation: which network, which layer, which input convention.

    `source` names the network: ``bundled:NAME``, ``file:PATH`` (native encoder file), ``timm:NAME``,
    ``torchvision:NAME``, ``transformers:NAME``, ``torchhub:REPO:NAME``, ``python:FILE.py:NAME``, ``onnx:PATH``,
    ``published:NAME``, ``oracle:WORLD`` (the truth about images of a world) or
    ``module`` (given in Python, cannot be rebuilt from a file); options that choose its weights may follow, as in
    ``timm:resnet50?pretrained=1``. `layer` is ``backbone``, ``projector`` or the dotted name of a sub-module whose
    output is taken (``NAME#2``: at its second call), and `pooling` what makes one vector of it: ``none`` takes a vector
    that the network gives, ``map`` leaves tokens and positions where they are (a map [C,h,w], as C h w numbers). Images
    in [-1,1] are
    resized (`resize`: both sides, ``squash``, or the short one, ``short_side``) to `resize_to` pixels, cropped at the
    center to `image_size`, mapped to [0,1], and normalized by
    `mean` and `std`. `interpolation` ``box_bicubic`` halves by 2x2 means while the target allows it and finishes
    bicubically (the published code). `rounding` says whose transforms the sizes follow: ``nearest`` rounds the long
    side and takes an image that already has `image_size` as it is; ``torchvision`` (timm, too) and ``transformers``
    cut the long side off to whole pixels and resize every image. They differ in where half a pixel of the crop goes.
    `normalize` divides the representation by its L2 norm. `architecture` holds the keyword arguments of a native
    network. `border` ``black`` lets `resize_to` be smaller than `image_size`: what is missing around the image is
    black. `channel_order` is the one in which the network takes its colors; `mean` and `std` are in that order.
    `layout` is the order of a layer's output, over whose positions or tokens `pooling` ``mean`` and ``max`` go, and
    which ``map`` needs, too;
    ``auto`` takes it from the network, or from trying it, and is an error where neither tells. `image_size` is at most
    2048, `resize_to` 4096, `dim` 2^20.
    """

    source: str
    layer: str = "backbone"
    pooling: Pooling = "none"
    image_size: _Side = 224
    resize: Resize = "short_side"
    resize_to: Annotated[int, Range(0, MAX_RESIZE)] = 0  # 0 means image_size
    interpolation: Interpolation = "bilinear"
    rounding: Rounding = "nearest"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    normalize: bool = False
    dim: Annotated[int, Range(0, MAX_WIDTH)] = (
        0  # width of the representation; 0 means not known before the first image
    )
    architecture: Mapping[str, Any] = field(default_factory=dict)
    border: Border = "none"
    channel_order: ChannelOrder = "rgb"
    layout: Layout = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.resize_to == 0 or self.resize_to >= self.image_size or self.border != "none",
            f"encoder resize_to ({self.resize_to}) is smaller than image_size ({self.image_size})",
        )
        _require(all(value > 0 for value in self.std), f"encoder std must be positive, got {self.std}")


@dataclass(frozen=True)
class FittedSolver(Checked):
    """A solver that was fitted to one model, for one number of network evaluations (`diffusion/fitted.py`).

    `numbers` are what was fitted, in the order of their `version`: for version 1, nfe (nfe + 3) of them. `weights` is
    the `weights_hash` of the network and schedule that they were fitted to; they are of no use to another. `info` is
    for the reader (errors, teacher).
    """

    nfe: Annotated[int, Range(2, MAX_FITTED_NFE)]
    numbers: tuple[float, ...]
    weights: str
    version: Count = 1
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.nfe * (self.nfe + 3)
        _require(
            self.version != 1 or len(self.numbers) == count,
            f"a solver fitted for {self.nfe} evaluations has {count} numbers, got {len(self.numbers)}",
        )

    @cached_property
    def digest(self) -> str:
        """What tells its numbers from others; 12 hex digits."""
        return hashlib.sha256(repr((self.version, self.nfe, *map(float, self.numbers))).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Everything a weights file says about itself. `info` is free text and numbers for the reader (steps, data).

    `representation_dropout` is the fraction of training images whose representation was replaced by zeros; with some,
    sampling can be guided. `fitted` are solvers of this very model, at most one for a number of evaluations.
    `student_steps` are the timesteps, ascending, that a distilled network is asked at, and no others; empty for every
    other network.
    """

    unet: UNetConfig
    schedule: ScheduleConfig
    encoder: EncoderConfig | None = None
    name: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    representation_dropout: Fraction = 0.0
    format_version: Count = FORMAT_VERSION
    fitted: tuple[FittedSolver, ...] = field(default=(), repr=False)  # exports do not depend on them
    student_steps: tuple[Annotated[int, Range(0)], ...] = field(default=(), repr=False)  # nor on these

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = [each.nfe for each in self.fitted]
        _require(len(set(counts)) == len(counts), f"several solvers fitted for one number of evaluations: {counts}")
        ascending = all(a < b for a, b in zip(self.student_steps, self.student_steps[1:], strict=False))
        _require(
            ascending and max(self.student_steps, default=0) < self.schedule.diffusion_steps,
            f"the timesteps of a student ascend in 0..{self.schedule.diffusion_steps - 1}, got {self.student_steps}",
        )
        learned = self.schedule.variance == "learned_range"
        _require(
            learned == self.unet.learn_sigma,
            f"learn_sigma={self.unet.learn_sigma} contradicts variance={self.schedule.variance!r}",
        )
