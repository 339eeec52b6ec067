"""Tensors, noise keys and devices as callers give them, checked and brought into the form that the stages work with.

Like `checks.py`: what loses nothing is taken (an array for a tensor, any width of float, any integers for labels),
anything else is refused in a plain sentence. Half precision and float64 become float32, once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import devices, maps
from rcdm_fast.checks import ConfigError, Range, described, meant, real, whole
from rcdm_fast.config import ModelConfig, UNetConfig

Loaded = TypeVar("Loaded")
Numbers = Tensor | np.ndarray  # what counts as an array of numbers
_KEYS = Range(-(2**63), 2**63 - 1)
_DEVICES = ("cpu", "cuda")


def loaded(given: Loaded) -> Loaded:
    """The model that a call was given. Raises `ConfigError` for anything else, such as a name to be loaded."""
    if hasattr(given, "unet"):
        return given
    hint = f"; rcdm_fast.load({str(given)!r}) makes one" if isinstance(given, str | os.PathLike) else ""
    raise ConfigError(f"expected a model, got {described(given)}{hint}")


def device(given: Any) -> torch.device:
    """The device that is meant; None is CUDA if there is one, a number a CUDA device.

    Raises:
        ConfigError: no such kind of device, or none of it here.
    """
    if given is None:
        return devices.placed("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(given, str | torch.device):
        try:
            found = torch.device(given)
        except RuntimeError as error:
            hint = "; did you mean cuda?" if str(given).lower().startswith("gpu") else meant(given, _DEVICES)
            raise ConfigError(
                f"no device is called {described(given)}; there are cpu, cuda (or cuda:0, cuda:1...){hint}"
            ) from error
    else:
        found = torch.device("cuda", whole(given, "device", Range(0, 127)))
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {found}: this PyTorch sees no CUDA device; use device='cpu'")
        if found.index is not None and found.index >= torch.cuda.device_count():
            raise ConfigError(f"device {found}: there are only cuda:0..cuda:{torch.cuda.device_count() - 1}")
    return devices.placed(found)


def floating(given: Any, name: str, shape: str) -> Tensor:
    """A float tensor or array as float32, detached, where it is; `shape` says in a message what is expected."""
    wanted = f"{name} must be a float tensor or array {shape}"
    if isinstance(given, np.ndarray):
        if given.dtype.kind != "f":
            raise ConfigError(f"{wanted}, got {described(given)}")
        with np.errstate(over="ignore"):
            tensor = torch.from_numpy(np.array(given, dtype=np.float32))
    elif isinstance(given, Tensor):
        if given.is_meta or given.layout != torch.strided or not given.is_floating_point():
            odd = "without values, on the meta device" if given.is_meta else str(given.layout).removeprefix("torch.")
            raise ConfigError(f"{wanted}, got {described(given)}, {odd}")
        tensor = given.detach().to(torch.float32)
    elif isinstance(given, list | tuple) and given and isinstance(given[0], Tensor):
        raise ConfigError(f"{wanted}, got a {type(given).__name__} of tensors; torch.stack makes one of them")
    else:
        raise ConfigError(f"{wanted}, got {described(given)}")
    if not bool(tensor.isfinite().all()):
        wide = np.isfinite(given) if isinstance(given, np.ndarray) else given.double().isfinite()
        what = "has numbers beyond float32's range" if bool(wide.all()) else "contains NaN or infinity"
        raise ConfigError(f"{name} {what}")
    return tensor


def representations(h: Any, unet: UNetConfig, device: torch.device, name: str = "h") -> Tensor:
    """float32 [R,D] on a device; maps may be [R,C,h,w], tokens [R,h w,C], or rows of C h w numbers."""
    width, shape = unet.representation_dim, unet.condition_map
    wanted = maps.named(shape, width, "R")
    if isinstance(h, Tensor | np.ndarray) and not shape and (h.ndim != 2 or h.shape[1] != width):
        raise ConfigError(f"{name} must be {wanted}, got {list(h.shape)}")
    found = floating(h, name, wanted)
    if shape:
        try:
            found = maps.as_rows(found, shape)
        except ValueError as error:
            tokens = f"[R,{shape[1] * shape[2]},{shape[0]}]"
            raise ConfigError(f"{name} must be maps {wanted}, or their tokens {tokens}: {error}") from error
    return found.to(device)


def vector(h: Any, name: str, shape: tuple[int, ...] = ()) -> Tensor:
    """One representation, [D] or [1,D], as float32 [D]; a map of a known `shape` as its C h w numbers."""
    found = floating(h, name, "[D]")
    if shape and tuple(found.shape) in (shape, (1, *shape)):
        return found.reshape(-1)
    if not (found.ndim == 1 or (found.ndim == 2 and len(found) == 1)):
        raise ConfigError(f"{name} must be one representation [D], got {list(found.shape)}")
    return found.reshape(-1)


def labels(label: Any, classes: int, device: torch.device) -> Tensor:
    """Class labels, whole numbers [R] in 0..classes-1, as int64 on a device."""
    found = integers(label, "label")
    if len(found) and not (0 <= min(found) and max(found) < classes):
        raise ConfigError(f"label must be in 0..{classes - 1}, got {min(found)}..{max(found)}")
    return torch.tensor(found, dtype=torch.int64, device=device)


def integers(given: Any, name: str) -> list[int]:
    """Whole numbers in a row: a tensor or array of integers [R], or a sequence of ints."""
    if isinstance(given, Tensor | np.ndarray):
        whole_numbers = (
            given.dtype.kind in "iu"
            if isinstance(given, np.ndarray)
            else not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or given.is_meta)
        )
        if given.ndim != 1 or not whole_numbers:
            raise ConfigError(f"{name} must be whole numbers [R], got {given.dtype} {list(given.shape)}")
        return [int(value) for value in given.tolist()]
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping | Set):
        raise ConfigError(f"{name} must be whole numbers in a row, got {described(given)}")
    return [whole(value, f"{name}[{place}]") for place, value in enumerate(given)]


def keys(items: Any, rows: int | None) -> tuple[int, ...]:
    """Noise keys of `rows` representations (any number if None): by default 0, 1, 2..."""
    if items is None:
        return tuple(range(1 if rows is None else rows))
    found = tuple(integers(items, "items"))
    for place, key in enumerate(found):
        whole(key, f"items[{place}]", _KEYS)
    if rows is not None and len(found) != rows:
        raise ConfigError(f"{len(found)} items for {rows} representations")
    return found


def pairs(given: Any, rows: int) -> tuple[tuple[int, int], ...]:
    """(row, sample) of single images."""
    found = []
    for pair in given:
        if not isinstance(pair, Sequence | Tensor | np.ndarray) or isinstance(pair, str) or len(pair) != 2:
            raise ConfigError(f"pairs must be (row, sample), got {described(pair)}")
        row, sample = whole(pair[0], "the row of a pair"), whole(pair[1], "the sample of a pair")
        if not (0 <= row < rows and 0 <= sample < 2**63):
            raise ConfigError(f"pair ({row}, {sample}): there are rows 0..{rows - 1}, and samples count from 0")
        found.append((row, sample))
    return tuple(found)


def noise(given: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """Noise in place of the keyed one, as float32."""
    if isinstance(given, Tensor | np.ndarray) and tuple(given.shape) != shape:
        raise ConfigError(f"{name} must be {list(shape)}, got {list(given.shape)}")
    return floating(given, name, str(list(shape)))


def condition(unet: UNetConfig, h: Any, label: Any, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Representation float32 [R,D] and label int64 [R] as a network needs them; `ConfigError` if they do not fit it."""
    if (h is None) != (unet.representation_dim == 0):
        wanted = maps.named(unet.condition_map, unet.representation_dim, "R")
        needs = f"needs h {wanted}" if unet.representation_dim else "takes no representation"
        raise ConfigError(f"this model {needs}")
    if (label is None) != (unet.num_classes == 0):
        raise ConfigError(
            f"this model needs label= in 0..{unet.num_classes - 1}" if unet.num_classes else "this model takes no label"
        )
    h = None if h is None else representations(h, unet, device)
    label = None if label is None else labels(label, unet.num_classes, device)
    if h is not None and label is not None and len(h) != len(label):
        raise ConfigError(f"{len(label)} labels for {len(h)} representations")
    return h, label


def guidance(config: ModelConfig, strength: Any, guide: ModelConfig | None = None) -> float:
    """A strength that the model can be guided with, by itself or by a guide; `ConfigError` if it cannot."""
    found = real(strength, "guidance", Range(0))
    if guide is not None:
        if found == 1:
            raise ConfigError("a guide does nothing at guidance 1; give guidance=1.5, say")
        _check_guide(config, guide)
        return found
    if found != 1 and not config.representation_dropout:
        raise ConfigError(
            "guidance needs a model that was trained with representation dropout; this one was not "
            "(Model.sample, rcdm sample and evaluate also take a guide)"
        )
    if found != 1 and not config.unet.representation_dim:
        raise ConfigError("guidance needs a model that takes representations")
    return found


def _check_guide(config: ModelConfig, guide: ModelConfig) -> None:
    """Raise `ConfigError` unless both networks can be asked the same and answer the same."""

    def asked(of: ModelConfig) -> dict[str, Any]:
        unet, schedule = of.unet, of.schedule
        return {
            "image size": unet.image_size,
            "width of representations": unet.representation_dim,
            "map": unet.condition_map,
            "classes": unet.num_classes,
            "diffusion steps": schedule.diffusion_steps,
            "noise schedule": schedule.noise_schedule,
            "prediction": schedule.prediction,
            "encoder": _encoder(of),
        }

    ours, theirs = asked(config), asked(guide)
    if None in (ours["encoder"], theirs["encoder"]):  # of a file of one's own nobody knows what it is
        ours["encoder"] = theirs["encoder"] = None
    wrong = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise ConfigError(f"the guide is a model of another kind: {', '.join(wrong)}")


def _encoder(config: ModelConfig) -> str | None:
    """What made the representations of a model's training, where its name says it."""
    encoder = config.encoder
    if encoder is None or encoder.source.startswith(("file:", "onnx:", "module", "function")):
        return None
    return f"{encoder.source.partition('?')[0]} ({encoder.layer})"


def rows_for(count: int, **given: Tensor | None) -> None:
    """Raise `ConfigError` unless whatever is given has a row for each of `count` images."""
    for name, value in given.items():
        if value is not None and len(value) != count:
            raise ConfigError(f"{name} has {len(value)} rows for {count} images")


def batch_size(asked: Any, device: torch.device) -> int:
    """Images per network evaluation; by default 64 on a GPU and 32 elsewhere."""
    if asked is None:
        return 64 if device.type == "cuda" else 32
    return whole(asked, "batch_size", Range(1))
