"""The published command-line flags, as configurations and back.

A published checkpoint says nothing about itself: the flags of the command that trained it are its description. Names,
meanings and defaults are those of the guided-diffusion / RCDM release (`model_and_diffusion_defaults`). Three flags are
ours and are written only when a model needs them: `num_classes` (published: 1000, fixed), `conv_resample` (published:
always on) and `sigma_small` (published, but not on the command line).

Knows nothing about tensors or checkpoints (`infer_flags.py` works flags out from a checkpoint's shapes).
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
from collections.abc import Mapping

from rcdm_fast import doors
from rcdm_fast.config import DEFAULT_CHANNEL_MULT, ConfigError, ScheduleConfig, UNetConfig

log = logging.getLogger(__name__)

FlagValue = bool | int | float | str
FlagSource = Mapping[str, object] | str | os.PathLike[str]

PUBLISHED_CLASSES = 1000

# Published defaults; a flag's type is its default's type.
DEFAULTS: dict[str, FlagValue] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
    "feat_cond": False,
    "ssl_dim": 2048,
    "G_shared": False,
    "pretrained": False,
    "sigma_small": False,
    "num_classes": PUBLISHED_CLASSES,
    "conv_resample": True,
}

# Flags of the published sampling scripts, which are kept in the same files.
OF_SAMPLING = frozenset(
    [
        "batch_size",
        "clip_denoised",
        "num_samples",
        "num_images",
        "use_ddim",
        "ddim_eta",
        "eta",
        "seed",
        "model_path",
        "data_dir",
        "out_dir",
        "type_model",
        "use_head",
        "classifier_path",
        "classifier_scale",
        "classifier_use_fp16",
    ]
)

NOT_ON_COMMAND_LINE = ("G_shared", "pretrained", "sigma_small", "num_classes", "conv_resample")
NUMBER_LISTS = ("attention_resolutions", "channel_mult")

_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")


def read_flags(source: FlagSource) -> dict[str, FlagValue]:
    """Flags from a mapping or a JSON file, names checked and values brought to their published types.

    Flags of the published sampling scripts (`OF_SAMPLING`) say nothing about a model: they are left out, and that is
    logged. Values may be typed as on the command line ("16,8", "", "-1", "True") or as plain data (128, [16, 8], true).
    Only the flags that are there are returned; nothing is filled in.

    Raises:
        ConfigError: a file that cannot be read, an unknown flag (names close ones), a value of the wrong type.
    """
    if isinstance(source, Mapping):
        where, data = "flags", source
    else:
        where, data = str(source), _read_json(source)
    of_sampling = sorted(name for name in data if name in OF_SAMPLING)
    unknown = [name for name in data if name not in DEFAULTS and name not in OF_SAMPLING]
    if unknown:
        raise ConfigError(f"{where}: {'; '.join(_unknown(str(name)) for name in unknown)}")
    if of_sampling:
        log.info("%s: not about the model, left out: %s (give them when sampling)", where, ", ".join(of_sampling))
    return {name: _convert(name, value, where) for name, value in data.items() if name not in OF_SAMPLING}


def configs_from_flags(flags: FlagSource) -> tuple[UNetConfig, ScheduleConfig]:
    """The network and the diffusion process that published flags describe; missing flags take their published defaults.

    `ssl_dim` without `feat_cond` means a representation-conditional model, `num_classes` without `class_cond` a
    class-conditional one. Flags about speed, training loss and sampling are accepted and change nothing here.

    Raises:
        ConfigError: as `read_flags`, or flags that describe no model.
    """
    given = read_flags(flags)
    if isinstance(flags, Mapping):
        return _configs(given)
    try:
        return _configs(given)
    except ConfigError as error:
        raise ConfigError(f"{flags}: {error}") from error


def _configs(given: Mapping[str, FlagValue]) -> tuple[UNetConfig, ScheduleConfig]:
    values = {**DEFAULTS, **given}
    _report_unused(values)
    image_size = _int(values, "image_size")
    mult = _channel_mult(str(values["channel_mult"]), image_size)
    feat_cond = bool(given.get("feat_cond", "ssl_dim" in given))
    class_cond = bool(given.get("class_cond", "num_classes" in given))
    for condition, width in ((feat_cond, "ssl_dim"), (class_cond, "num_classes")):
        if condition and _int(values, width) < 1:
            raise ConfigError(f"{width} must be positive, got {values[width]}")
    learn_sigma = bool(values["learn_sigma"])
    unet = UNetConfig(
        image_size=image_size,
        num_channels=_int(values, "num_channels"),
        channel_mult=mult,
        num_res_blocks=_int(values, "num_res_blocks"),
        attention_resolutions=_resolutions(str(values["attention_resolutions"]), image_size, len(mult)),
        num_heads=_int(values, "num_heads"),
        num_head_channels=_int(values, "num_head_channels"),
        num_heads_upsample=_int(values, "num_heads_upsample"),
        use_scale_shift_norm=bool(values["use_scale_shift_norm"]),
        resblock_updown=bool(values["resblock_updown"]),
        use_new_attention_order=bool(values["use_new_attention_order"]),
        conv_resample=bool(values["conv_resample"]),
        learn_sigma=learn_sigma,
        representation_dim=_int(values, "ssl_dim") if feat_cond else 0,
        num_classes=_int(values, "num_classes") if class_cond else 0,
        dropout=float(values["dropout"]),
    )
    fixed = "fixed_small" if values["sigma_small"] else "fixed_large"
    schedule = ScheduleConfig(
        diffusion_steps=_int(values, "diffusion_steps"),
        noise_schedule=str(values["noise_schedule"]),  # type: ignore[arg-type]  # checked by ScheduleConfig
        prediction="x0" if values["predict_xstart"] else "eps",
        variance="learned_range" if learn_sigma else fixed,  # type: ignore[arg-type]
        rescale_timesteps=bool(values["rescale_timesteps"]),
    )
    return unet, schedule


def flags_from_configs(unet: UNetConfig, schedule: ScheduleConfig) -> dict[str, FlagValue]:
    """The published flags of a model, complete; the inverse of `configs_from_flags`.

    Our own flags appear only where the model differs from what the published code can build.

    Raises:
        ConfigError: a network of maps, with hidden layers from h, or one that predicts v, or a variance that is kept in
            its bounds, which no published flag says.
    """
    if schedule.prediction == "v":
        raise ConfigError("the published flags cannot describe a network that predicts v")
    if unet.condition_map:
        raise ConfigError("the published flags cannot describe a network of maps (condition_map)")
    if unet.representation_hidden:
        raise ConfigError("the published flags cannot describe hidden layers from h (representation_hidden)")
    if schedule.clamp_variance:
        raise ConfigError("the published flags cannot describe a variance that is kept in its bounds (clamp_variance)")
    flags = {name: value for name, value in DEFAULTS.items() if name not in NOT_ON_COMMAND_LINE}
    flags |= {
        "image_size": unet.image_size,
        "num_channels": unet.num_channels,
        "num_res_blocks": unet.num_res_blocks,
        "num_heads": unet.num_heads,
        "num_heads_upsample": unet.num_heads_upsample,
        "num_head_channels": unet.num_head_channels,
        "attention_resolutions": join_numbers(unet.attention_resolutions),
        "channel_mult": join_numbers(unet.channel_mult),
        "dropout": unet.dropout,
        "class_cond": unet.num_classes > 0,
        "use_scale_shift_norm": unet.use_scale_shift_norm,
        "resblock_updown": unet.resblock_updown,
        "use_new_attention_order": unet.use_new_attention_order,
        "learn_sigma": unet.learn_sigma,
        "diffusion_steps": schedule.diffusion_steps,
        "noise_schedule": schedule.noise_schedule,
        "predict_xstart": schedule.prediction == "x0",
        "rescale_timesteps": schedule.rescale_timesteps,
        "feat_cond": unet.representation_dim > 0,
    }
    if unet.representation_dim:
        flags["ssl_dim"] = unet.representation_dim
    if "." in str(flags["channel_mult"]) and unet.channel_mult == DEFAULT_CHANNEL_MULT.get(unet.image_size):
        flags["channel_mult"] = ""  # the published flag takes whole numbers only
    if unet.num_classes not in (0, PUBLISHED_CLASSES):
        flags["num_classes"] = unet.num_classes
    if not unet.conv_resample:
        flags["conv_resample"] = False
    if schedule.variance == "fixed_small":
        flags["sigma_small"] = True
    return flags


def split_numbers(text: str) -> tuple[int | float, ...]:
    """The text "1,2,2" -> (1, 2, 2); "0.5,1" -> (0.5, 1); "" -> (). Raises `ValueError`."""
    numbers = [float(part) for part in text.split(",")] if text.strip() else []
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("expected finite numbers")
    return tuple(int(number) if number.is_integer() else number for number in numbers)


def join_numbers(numbers: tuple[int | float, ...]) -> str:
    """The inverse of `split_numbers`."""
    return ",".join(str(int(number)) if float(number).is_integer() else repr(number) for number in numbers)


def attention_levels(resolutions: str, image_size: int, levels: int) -> tuple[int, ...]:
    """Levels (0 is the finest) that attend: their downsampling factor is image_size // resolution, as published."""
    factors = {image_size // int(resolution) for resolution in split_numbers(resolutions)}
    return tuple(level for level in range(levels) if 2**level in factors)


def _read_json(path: str | os.PathLike[str]) -> Mapping[str, object]:
    found = doors.path(path, ConfigError)
    with doors.door(ConfigError, f"{path}: cannot be read as a JSON file of flags"):
        if not found.exists():
            raise ConfigError(f"{path}: no such flags file")
        doors.regular(found)
        data = json.loads(found.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object of flags, got {type(data).__name__}")
    return data


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, DEFAULTS, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(DEFAULTS))}"
    return f"unknown flag {doors.printable(name)!r} ({hint})"


def _convert(name: str, value: object, where: str) -> FlagValue:
    default = DEFAULTS[name]
    try:
        if name in NUMBER_LISTS:
            return _number_list(name, value)
        if isinstance(default, bool):
            text = str(value).strip().lower()
            if text not in _TRUE + _FALSE:
                raise ValueError("expected True or False")
            return text in _TRUE
        if isinstance(value, bool):
            raise ValueError("expected a number" if isinstance(default, int | float) else "expected text")
        if isinstance(default, int):
            number = float(value) if isinstance(value, str | int | float) else float("nan")
            if not number.is_integer():
                raise ValueError("expected a whole number")
            return int(number)
        if isinstance(default, float):
            if not isinstance(value, str | int | float):
                raise ValueError("expected a number")
            return float(value)
        if not isinstance(value, str | int):
            raise ValueError("expected text")
        return str(value).strip()
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: flag {name}={doors.printable(repr(value))}: {doors.said(error)}") from error


def _number_list(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(str(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("expected numbers separated by commas")
    numbers = split_numbers(str(value))
    if any(number <= 0 for number in numbers):
        raise ValueError("the numbers must be positive")
    if name == "attention_resolutions" and not all(isinstance(number, int) for number in numbers):
        raise ValueError("expected whole numbers of pixels")
    return join_numbers(numbers)


def _channel_mult(text: str, image_size: int) -> tuple[float, ...]:
    if text:
        return split_numbers(text)
    if image_size not in DEFAULT_CHANNEL_MULT:
        sizes = ", ".join(str(size) for size in sorted(DEFAULT_CHANNEL_MULT))
        raise ConfigError(f"channel_mult must be given for image_size {image_size} (there is a default for {sizes})")
    return DEFAULT_CHANNEL_MULT[image_size]


def _resolutions(text: str, image_size: int, levels: int) -> tuple[int, ...]:
    """Resolutions in pixels that exist in the network, coarsest last; others are named in the log."""
    attending = attention_levels(text, image_size, levels)
    kept = tuple(image_size // 2**level for level in attending)
    without_effect = [
        str(number) for number in split_numbers(text) if image_size // int(number) not in {2**n for n in attending}
    ]
    if without_effect:
        log.info(
            "attention_resolutions %s: no level of the network has that size, no attention there",
            ", ".join(without_effect),
        )
    return kept


def _report_unused(values: Mapping[str, FlagValue]) -> None:
    if values["timestep_respacing"]:
        log.info(
            "flag timestep_respacing=%s is not part of the model: give it as steps= when sampling",
            values["timestep_respacing"],
        )
    if values["use_fp16"]:
        log.info("flag use_fp16 is not part of the model: choose precision= when loading")


def _int(values: Mapping[str, FlagValue], name: str) -> int:
    return int(values[name])
