"""The frozen, versioned description of a model: network, diffusion schedule, encoder convention.

A configuration is plain data. It is stored as JSON inside the weights file, so that a file explains itself,
and it is checked when it is made: a value that no model can have never reaches a network.

This module does not know about tensors, files or devices (`checkpoint.py` reads and writes them).
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

FORMAT_VERSION = 1

NoiseSchedule = Literal["linear", "cosine"]
Prediction = Literal["eps", "x0", "v"]  # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0
Variance = Literal["learned_range", "fixed_large", "fixed_small"]
Pooling = Literal["none", "cls", "mean"]
Resize = Literal["squash", "short_side"]
Interpolation = Literal["bilinear", "bicubic", "area", "box_bicubic"]
Rounding = Literal["nearest", "torchvision", "transformers"]


class ConfigError(ValueError):
    """A configuration, a flag or a combination of flags that describes no model."""


# Published channel multipliers by image size (guided-diffusion `create_model`, empty `channel_mult`).
DEFAULT_CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}

GROUPS = 32  # of every GroupNorm in the network


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the ADM UNet. Names are those of the published flags.

    `attention_resolutions` are picture sizes in pixels (32, 16, 8), not downsampling factors.
    `num_head_channels` and `num_heads_upsample` use -1 for "not set", as published.
    `representation_dim` is the published `ssl_dim`; 0 means that no representation conditions the network.
    `num_classes` 0 means that no class label conditions it.
    """

    image_size: int
    num_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    conv_resample: bool = True
    learn_sigma: bool = False
    representation_dim: int = 0
    num_classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        _require(levels > 0, "channel_mult is empty")
        _require(self.image_size > 0, f"image_size must be positive, got {self.image_size}")
        _require(
            self.image_size % 2 ** (levels - 1) == 0,
            f"image_size {self.image_size} cannot be halved {levels - 1} times (channel_mult has {levels} levels)",
        )
        _require(self.num_res_blocks > 0, f"num_res_blocks must be positive, got {self.num_res_blocks}")
        _require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), got {self.dropout}")
        _require(self.representation_dim >= 0, "representation_dim (ssl_dim) cannot be negative")
        _require(self.num_classes >= 0, "num_classes cannot be negative")
        for channels in self.level_channels:
            _require(
                channels > 0 and channels % GROUPS == 0,
                f"num_channels x channel_mult gives {channels} channels, not a multiple of {GROUPS} (GroupNorm)",
            )
        for resolution in self.attention_resolutions:
            _require(
                resolution > 0 and self.image_size % resolution == 0,
                f"attention resolution {resolution} does not divide image_size {self.image_size}",
            )
        for level, channels in enumerate(self.level_channels):
            if self.attends_at(level) or level == levels - 1:
                for upsampling in (False, True):
                    self.heads(channels, upsampling)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of every level, finest first."""
        return tuple(int(mult * self.num_channels) for mult in self.channel_mult)

    @property
    def out_channels(self) -> int:
        """3 (eps), or 6 when the variance is learned: eps first, then the variance value."""
        return 6 if self.learn_sigma else 3

    def attends_at(self, level: int) -> bool:
        """Whether the blocks of this level (0 is the finest) are followed by self-attention."""
        return self.image_size // 2**level in self.attention_resolutions

    def heads(self, channels: int, upsampling: bool) -> int:
        """Number of attention heads at a width, in the encoder half or (`upsampling`) the decoder half."""
        if self.num_head_channels != -1:
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
class ScheduleConfig:
    """The forward process, and what the network's output means.

    `rescale_timesteps` feeds the network t * 1000 / diffusion_steps, as published. `variance` matters to
    ancestral sampling and to the L_vlb term only. `clamp_variance` keeps a learned variance between its bounds in
    ancestral sampling: a network with few steps of training asks for more than the largest, which the published code
    lets it have, and with few sampling steps that explodes.
    """

    diffusion_steps: int = 1000
    noise_schedule: NoiseSchedule = "linear"
    prediction: Prediction = "eps"
    variance: Variance = "fixed_large"
    rescale_timesteps: bool = False
    clamp_variance: bool = False

    def __post_init__(self) -> None:
        _require(self.diffusion_steps > 0, f"diffusion_steps must be positive, got {self.diffusion_steps}")
        _require_choices(self)


@dataclass(frozen=True)
class EncoderConfig:
    """How a picture becomes a representation: which network, which layer, which input convention.

    `source` names the network: ``bundled:NAME``, ``file:PATH`` (native encoder file), ``timm:NAME``,
    ``torchvision:NAME``, ``transformers:NAME``, ``torchhub:REPO:NAME``, ``onnx:PATH``, ``published:NAME`` or
    ``module`` (given in Python, cannot be rebuilt from a file); options that choose its weights may follow, as in
    ``timm:resnet50?pretrained=1``. `layer` is ``backbone``, ``projector`` or the dotted name of a sub-module whose
    output is taken. Pictures in [-1,1] are resized (`resize`: both sides, ``squash``, or the short one,
    ``short_side``) to `resize_to` pixels, cropped at the centre to `image_size`, mapped to [0,1], and normalised by
    `mean` and `std`. `interpolation` ``box_bicubic`` halves by 2x2 means while the target allows it and finishes
    bicubically (the published code). `rounding` says whose transforms the sizes follow: ``nearest`` rounds the long
    side and takes a picture that already has `image_size` as it is; ``torchvision`` (timm, too) and ``transformers``
    cut the long side off to whole pixels and resize every picture. They differ in where half a pixel of the crop goes.
    `normalize` divides the representation by its L2 norm. `architecture` holds the keyword arguments of a native
    network.
    """

    source: str
    layer: str = "backbone"
    pooling: Pooling = "none"
    image_size: int = 224
    resize: Resize = "short_side"
    resize_to: int = 0  # 0 means image_size
    interpolation: Interpolation = "bilinear"
    rounding: Rounding = "nearest"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    normalize: bool = False
    dim: int = 0  # width of the representation; 0 means not known before the first picture
    architecture: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.image_size > 0, f"encoder image_size must be positive, got {self.image_size}")
        _require(
            self.resize_to == 0 or self.resize_to >= self.image_size,
            f"encoder resize_to ({self.resize_to}) is smaller than image_size ({self.image_size})",
        )
        _require(all(value > 0 for value in self.std), f"encoder std must be positive, got {self.std}")
        _require_choices(self)


@dataclass(frozen=True)
class ModelConfig:
    """Everything a weights file says about itself. `info` is free text and numbers for the reader (steps, data).

    `representation_dropout` is the share of training pictures whose representation was replaced by zeros; with some,
    sampling can be guided.
    """

    unet: UNetConfig
    schedule: ScheduleConfig
    encoder: EncoderConfig | None = None
    name: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    representation_dropout: float = 0.0
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        learned = self.schedule.variance == "learned_range"
        _require(
            learned == self.unet.learn_sigma,
            f"learn_sigma={self.unet.learn_sigma} contradicts variance={self.schedule.variance!r}",
        )


def _require_choices(config: Any) -> None:
    """Check every field of `config` whose type is a Literal."""
    hints = typing.get_type_hints(type(config))
    for name, hint in hints.items():
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            value = getattr(config, name)
            _require(value in choices, f"{name} must be one of {', '.join(choices)}; got {value!r}")


def to_json(config: Any) -> str:
    """A configuration dataclass as JSON text."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """Build a configuration dataclass from plain data; an unknown or missing key is an error that names it.

    Lists become tuples and nested mappings nested configurations, as the type hints say.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    _require(not unknown, f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(fields))}")
    missing = sorted(
        name
        for name, item in fields.items()
        if name not in data and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    )
    _require(not missing, f"{where}: missing key {', '.join(missing)}")
    values = {name: _coerce(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    return cls(**values)


def from_json(cls: type[T], text: str, where: str = "config") -> T:
    """`from_dict` over JSON text."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not valid JSON ({error})") from error
    if isinstance(data, dict) and data.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise ConfigError(
            f"{where}: written in format {data['format_version']}, this version reads up to {FORMAT_VERSION}; "
            "update rcdm_fast"
        )
    return from_dict(cls, data, where)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """One JSON value as the type that a field asks for."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        if value is None:
            return None
        (hint,) = (item for item in arguments if item is not type(None))
        arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin is tuple:
        _require(isinstance(value, list | tuple), f"{where}: expected a list, got {value!r}")
        item_hint = arguments[0]
        return tuple(_coerce(item_hint, item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return value  # 1 and 1.0 mean the same; the JSON keeps what was written
    if hint in (int, float, bool, str):
        _require(
            isinstance(value, hint) and not (hint is int and isinstance(value, bool)),
            f"{where}: expected {hint.__name__}, got {value!r}",
        )
    return value
