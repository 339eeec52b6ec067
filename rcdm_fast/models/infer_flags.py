"""Published flags worked out from the tensor shapes of a bare `state_dict`.

Shapes tell widths, depths, where attention sits, how blocks resample and what conditions the network. They do not tell
the image size, the number and order of attention heads, or the diffusion process: those come from the flags given,
or, when the shapes are those of a published layout, from that layout.

Knows nothing about files; what it returns is a description that `checkpoint.py` then checks tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rcdm_fast.config import DEFAULT_CHANNEL_MULT, ConfigError
from rcdm_fast.models.flags import DEFAULTS, FlagValue, attention_levels, join_numbers, read_flags, split_numbers

Shapes = Mapping[str, Sequence[int]]

# Flags of the model that leave no trace in the shapes, in the order in which they matter to a user.
HIDDEN = (
    "image_size",
    "num_heads",
    "num_head_channels",
    "num_heads_upsample",
    "use_new_attention_order",
    "noise_schedule",
    "diffusion_steps",
    "rescale_timesteps",
    "predict_xstart",
    "sigma_small",
    "dropout",
)


def _layout(text: str) -> dict[str, FlagValue]:
    common = "attention_resolutions 32,16,8 learn_sigma True resblock_updown True use_scale_shift_norm True"
    words = f"{text} {common}".split()
    return read_flags(dict(zip(words[::2], words[1::2], strict=True)))


# The layouts of the RCDM release (128 px) and of the ADM releases whose flags its README points to.
LAYOUTS = {
    "published 128-px layout": _layout(
        "image_size 128 num_channels 256 num_res_blocks 2 num_heads 4 noise_schedule linear"
    ),
    "published 64-px layout": _layout(
        "image_size 64 num_channels 192 num_res_blocks 3 num_head_channels 64 noise_schedule cosine "
        "use_new_attention_order True dropout 0.1"
    ),
    "published 256-px layout": _layout(
        "image_size 256 num_channels 256 num_res_blocks 2 num_head_channels 64 noise_schedule linear"
    ),
    "published 512-px layout": _layout(
        "image_size 512 num_channels 256 num_res_blocks 2 num_head_channels 64 noise_schedule linear"
    ),
}
RELEASE_FLAGS = LAYOUTS["published 128-px layout"]


@dataclass(frozen=True)
class Recognition:
    """Published flags of a checkpoint, and where each came from.

    Attributes:
        flags: a complete set for `configs_from_flags`.
        from_shapes: names read off the tensors.
        given: names taken from the caller.
        assumed: names that neither told; values are those of `layout`, or the published defaults.
        layout: the published layout that the shapes equal, or "".
    """

    flags: Mapping[str, FlagValue]
    from_shapes: tuple[str, ...]
    given: tuple[str, ...]
    assumed: tuple[str, ...]
    layout: str

    def summary(self) -> dict[str, object]:
        """Plain data to be kept in a model's `info`."""
        sources = {"from_shapes": self.from_shapes, "given": self.given, "assumed": self.assumed}
        parts: dict[str, object] = {key: {name: self.flags[name] for name in names} for key, names in sources.items()}
        return parts | {"layout": self.layout}

    def describe(self) -> str:
        """One line for the user."""
        hidden = [name for name in self.given if name in HIDDEN]
        parts = {
            "recognized from the tensors": self.from_shapes,
            "given": hidden,
            f"assumed ({self.layout or 'published defaults'})": self.assumed,
        }
        return "; ".join(f"{origin}: {_listing(self.flags, names)}" for origin, names in parts.items() if names)


@dataclass(frozen=True)
class _Seen:
    """What the shapes say. `resblock_updown` is None when there is only one level."""

    num_channels: int
    channel_mult: str
    num_res_blocks: int
    attention: tuple[int, ...]  # levels, 0 is the finest
    resblock_updown: bool | None
    conv_resample: bool
    use_scale_shift_norm: bool
    learn_sigma: bool
    ssl_dim: int
    num_classes: int

    @property
    def levels(self) -> int:
        return len(split_numbers(self.channel_mult))

    def flags(self) -> dict[str, FlagValue]:
        """The flags that the shapes determine by themselves (attention needs the image size)."""
        flags: dict[str, FlagValue] = {
            "num_channels": self.num_channels,
            "channel_mult": self.channel_mult,
            "num_res_blocks": self.num_res_blocks,
            "use_scale_shift_norm": self.use_scale_shift_norm,
            "learn_sigma": self.learn_sigma,
            "feat_cond": self.ssl_dim > 0,
            "class_cond": self.num_classes > 0,
        }
        if self.resblock_updown is not None:
            flags["resblock_updown"] = self.resblock_updown
        if self.ssl_dim:
            flags["ssl_dim"] = self.ssl_dim
        if self.num_classes:
            flags["num_classes"] = self.num_classes
        if not self.conv_resample:
            flags["conv_resample"] = False
        return flags


def recognize(shapes: Shapes, given: Mapping[str, FlagValue] | None = None) -> Recognition:
    """Work out the published flags of a `state_dict`.

    Args:
        shapes: shape of every tensor by name.
        given: flags known to the caller, as `read_flags` returns them; flags left out of a non-empty mapping take what
            the shapes say, else a published layout's values, else the published defaults.

    Raises:
        ConfigError: the tensors are not those of an ADM UNet; a given flag contradicts them; or the image size cannot
            be known, in which case the message lists the flags to give.
    """
    seen = _read_shapes(shapes)
    given = dict(given or {})
    if given.get("channel_mult") == "":
        del given["channel_mult"]  # "the default by image size": the shapes say which that must be
    from_shapes = seen.flags()
    layout = _match_layout(seen)
    if layout and given.get("image_size", LAYOUTS[layout]["image_size"]) != LAYOUTS[layout]["image_size"]:
        layout = ""
    hidden = LAYOUTS.get(layout, {})

    image_size = int(given.get("image_size", 0) or _size_from_attention(seen, given) or hidden.get("image_size", 0))
    if not image_size:
        raise ConfigError(_ask(from_shapes, given, seen))
    if "image_size" not in given and "attention_resolutions" in given:
        from_shapes["image_size"] = image_size
    from_shapes["attention_resolutions"] = join_numbers(tuple(image_size // 2**level for level in seen.attention))
    _check_given(given, from_shapes, seen, image_size)

    flags = DEFAULTS | {name: hidden[name] for name in HIDDEN if name in hidden} | from_shapes | given
    flags["image_size"] = image_size
    assumed = tuple(
        name for name in HIDDEN if name not in given and name not in from_shapes and not _without_effect(name, flags)
    )
    known = tuple(name for name in from_shapes if name not in given)
    return Recognition(flags, known, tuple(given), assumed, layout)


def _listing(flags: Mapping[str, FlagValue], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {flags[name]}" if flags[name] != "" else f"no {name}" for name in names)


def _without_effect(name: str, flags: Mapping[str, FlagValue]) -> bool:
    """Hidden flags that change nothing here and would only lengthen what the user is told."""
    if name == "num_heads":
        return flags["num_head_channels"] != -1
    if name in ("num_head_channels", "num_heads_upsample"):
        return flags[name] == -1
    if name == "sigma_small":
        return bool(flags["learn_sigma"]) or not flags[name]
    return name == "dropout"


def _ask(from_shapes: Mapping[str, FlagValue], given: Mapping[str, FlagValue], seen: _Seen) -> str:
    factors = ", ".join(str(2**level) for level in seen.attention) or "no level"
    known = _listing(from_shapes, tuple(from_shapes))
    others = [name for name in HIDDEN[1:] if name not in given and name != "dropout"]
    return (
        f"the tensors tell {known}, attention at downsampling {factors}; they cannot tell image_size, which must be "
        f"given in flags=, and with it each of these that is not the published default: {_listing(DEFAULTS, others)}"
    )


def _match_layout(seen: _Seen) -> str:
    for name, flags in LAYOUTS.items():
        size = int(flags["image_size"])
        mult = DEFAULT_CHANNEL_MULT[size]
        same = (
            seen.num_channels == flags["num_channels"]
            and seen.num_res_blocks == flags["num_res_blocks"]
            and split_numbers(seen.channel_mult) == mult
            and seen.attention == attention_levels(str(flags["attention_resolutions"]), size, len(mult))
            and seen.resblock_updown
            and seen.use_scale_shift_norm
            and seen.learn_sigma
        )
        if same:
            return name
    return ""


def _size_from_attention(seen: _Seen, given: Mapping[str, FlagValue]) -> int:
    """The only image size at which the given attention resolutions fall where the tensors have attention, or 0."""
    text = str(given.get("attention_resolutions", ""))
    resolutions = [int(number) for number in split_numbers(text)]
    sizes = {resolution * 2**level for resolution in resolutions for level in seen.attention}
    fitting = [size for size in sizes if attention_levels(text, size, seen.levels) == seen.attention]
    return fitting[0] if len(fitting) == 1 else 0


def _check_given(
    given: Mapping[str, FlagValue], from_shapes: Mapping[str, FlagValue], seen: _Seen, image_size: int
) -> None:
    wrong = []
    for name, value in given.items():
        seen_as = from_shapes.get(name)
        if name == "attention_resolutions":
            if attention_levels(str(value), image_size, seen.levels) == seen.attention:
                continue
        elif name == "ssl_dim" and not seen.ssl_dim:
            if not given.get("feat_cond", True):
                continue
            seen_as = "no representation"
        elif name == "num_classes" and not seen.num_classes:
            if not given.get("class_cond", True):
                continue
            seen_as = "no classes"
        elif name == "conv_resample":
            seen_as = seen.conv_resample if seen.resblock_updown is False else value
        if seen_as is not None and seen_as != value:
            wrong.append(f"{name} is given as {value or repr(value)}, the tensors say {seen_as or repr(seen_as)}")
    if wrong:
        raise ConfigError(f"wrong flags: {'; '.join(wrong)}")


def _read_shapes(shapes: Shapes) -> _Seen:
    emb_channels, num_channels = _shape(shapes, "time_embed.0.weight", 2)
    stem = _shape(shapes, "input_blocks.0.0.weight", 4)
    if stem[1] != 3:
        raise ConfigError(f"the network takes images of {stem[1]} channels (an upsampler?); only 3 are supported")
    out_channels = _shape(shapes, "out.2.weight", 4)[0]
    if not num_channels or emb_channels != 4 * num_channels or out_channels not in (3, 6):
        raise ConfigError("not the tensors of an ADM UNet: widths of time_embed.0 and out.2 do not fit together")

    stages = [_layers(shapes, "output_blocks", index) for index in range(_count(shapes, "output_blocks"))]
    doubled = sum(stage.count("res") == 2 for stage in stages)
    convolved = sum("up" in stage for stage in stages)
    blocks = _count(shapes, "input_blocks")
    pooled = sum(not _layers(shapes, "input_blocks", index) for index in range(1, blocks))
    levels = 1 + max(doubled, convolved, pooled)
    per_level, rest = divmod(blocks, levels)
    if rest or per_level < 2 or (doubled > 0) + (convolved > 0) + (pooled > 0) > 1:
        raise ConfigError(f"not the tensors of an ADM UNet: {blocks} input blocks do not make {levels} levels")

    first = [1 + level * per_level for level in range(levels)]
    widths = [_shape(shapes, f"input_blocks.{index}.0.in_layers.2.weight", 4)[0] for index in first]
    film = _shape(shapes, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    return _Seen(
        num_channels=num_channels,
        channel_mult=join_numbers(tuple(width / num_channels for width in widths)),
        num_res_blocks=per_level - 1,
        attention=tuple(
            level for level in range(levels) if "attention" in _layers(shapes, "input_blocks", first[level])
        ),
        resblock_updown=None if levels == 1 else doubled > 0,
        conv_resample=pooled == 0,
        use_scale_shift_norm=film == 2 * widths[0],
        learn_sigma=out_channels == 6,
        ssl_dim=_shape(shapes, "ssl_emb.weight", 2)[1] if "ssl_emb.weight" in shapes else 0,
        num_classes=_shape(shapes, "label_emb.weight", 2)[0] if "label_emb.weight" in shapes else 0,
    )


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        found = ", ".join(list(shapes)[:3])
        raise ConfigError(f"not the tensors of an ADM UNet: no {name} (found {found or 'nothing'}, ...)")
    shape = tuple(shapes[name])
    if len(shape) != dimensions:
        raise ConfigError(f"not the tensors of an ADM UNet: {name} has shape {list(shape)}")
    return shape


def _count(shapes: Shapes, part: str) -> int:
    """One more than the highest index among the blocks of a part."""
    indices = [name.split(".")[1] for name in shapes if name.startswith(f"{part}.")]
    return 1 + max((int(index) for index in indices if index.isdecimal() and len(index) < 4), default=-1)


def _layers(shapes: Shapes, part: str, index: int) -> list[str]:
    """Kinds of the layers of one block, in order; empty for a block without parameters."""
    kinds = {"in_layers.2.weight": "res", "qkv.weight": "attention", "op.weight": "down", "conv.weight": "up"}
    found = []
    for layer in range(3):
        found += [kind for ending, kind in kinds.items() if f"{part}.{index}.{layer}.{ending}" in shapes]
    return found
