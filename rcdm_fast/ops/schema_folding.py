"""Schemas of the operators that only a program with folded biases runs (`engines/folded.py`).

Declared like those of `schema.py`. There is no gradient: programs only evaluate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcdm_fast.ops.schema import (
    NAMESPACE,
    NORM_INPUTS,
    TAGS,
    NormInputs,
    check_film_group_norm,
    check_out,
    is_channels_last,
)

FILM_GROUP_NORM_BEFORE_OUT = f"(Tensor(a!) out, Tensor before, {NORM_INPUTS}) -> ()"
SIDES = "Tensor? left=None, Tensor? left_weight=None, Tensor? right=None, Tensor? right_weight=None"
CONVOLUTION_RESIDUAL = (
    f"(Tensor x, Tensor weight, Tensor? bias, Tensor? add, int resample, int splits, {SIDES}) -> Tensor"
)
ADD_RESIDUAL = "(Tensor(a!) out, Tensor bias, Tensor add, int resample) -> ()"


def check_before(out: Tensor, before: Tensor, inputs: NormInputs) -> None:
    """`TypeError` or `ValueError` for what `reference.film_group_norm_before_out` does not accept."""
    check_out(out, check_film_group_norm(inputs), inputs.x)
    check_vector("film_group_norm_before: before", before, out.shape[1], out.device)


def check_add_residual(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> None:
    """`ValueError` for inputs that `reference.add_residual` does not accept."""
    if resample not in (-1, 0, 1):
        raise ValueError(f"add_residual: resample must be -1 (pool), 0 or 1 (upsample); got {resample}")
    n, channels, height, width = out.shape
    if resample == 1 and (height % 2 or width % 2):
        raise ValueError(f"add_residual: {height} x {width} is no upsampled size")
    sizes = {0: (height, width), 1: (height // 2, width // 2), -1: (2 * height, 2 * width)}
    if tuple(add.shape) != (n, channels, *sizes[resample]):
        raise ValueError(f"add_residual: add {list(add.shape)} does not fit out {list(out.shape)}, resample {resample}")
    if add.dtype != out.dtype or add.device != out.device:
        raise ValueError("add_residual: out and add must have one dtype and lie on one device")
    if not is_channels_last(out) or not is_channels_last(add):
        raise ValueError("add_residual: out and add must lie in channels-last memory without gaps")
    check_vector("add_residual: bias", bias, out.shape[1], out.device)


def convolution_residual_result(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    resample: int,
    splits: int,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> Tensor:
    """What `reference.convolution_residual` writes to, not written yet; `ValueError` for what it does not accept."""
    if splits < 1:
        raise ValueError(f"convolution_residual: splits must be at least 1, got {splits}")
    out = check_convolution("convolution_residual", x, weight)
    if (add is None and resample != 0) or (left is None and right is not None):
        raise ValueError("convolution_residual: resample is a residual's, and right comes after left")
    if bias is not None:
        check_add_residual(out, bias, out if add is None else add, resample)
    elif any(each is not None for each in (add, left, left_weight, right, right_weight)):
        raise ValueError("convolution_residual: what adds a residual or products adds a bias, too")
    _check_side("left", out, left, left_weight)
    _check_side("right", out, right, right_weight)
    return out


def _check_side(what: str, out: Tensor, image: Tensor | None, weight: Tensor | None) -> None:
    if image is None or weight is None:
        if image is not weight:
            raise ValueError(f"convolution_residual: {what} and its weight go together")
        return
    n, outer, height, width = out.shape
    inner = weight.shape[1]
    if tuple(weight.shape) != (outer, inner, 1, 1) or tuple(image.shape) != (n, inner, height, width):
        raise ValueError(f"convolution_residual: {what} {list(image.shape)}, {list(weight.shape)} does not fit")
    if any(each.dtype != out.dtype or each.device != out.device for each in (image, weight)):
        raise ValueError(f"convolution_residual: {what} must have x's dtype and lie on its device")
    if not is_channels_last(image) or not is_channels_last(weight):
        raise ValueError(f"convolution_residual: {what} must lie in channels-last memory without gaps")


def check_convolution(operator: str, x: Tensor, weight: Tensor) -> Tensor:
    """What a 3x3 convolution padded by zeros gives, not written yet; `ValueError` for what it does not accept."""
    n, inner, height, width = x.shape
    outer = weight.shape[0]
    if tuple(weight.shape) != (outer, inner, 3, 3):
        raise ValueError(f"{operator}: weight {list(weight.shape)} does not fit x {list(x.shape)}")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"{operator}: x and weight must have one dtype and lie on one device")
    if not is_channels_last(x) or not is_channels_last(weight):
        raise ValueError(f"{operator}: x and weight must lie in channels-last memory without gaps")
    return torch.empty((n, outer, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def check_vector(what: str, vector: Tensor, channels: int, device: torch.device) -> None:
    """`ValueError` unless it is a float32 number for each channel, on that device."""
    fits = vector.shape == (channels,) and vector.dtype == torch.float32 and vector.is_contiguous()
    if not fits or vector.device != device:
        raise ValueError(f"{what} must be float32 [{channels}], contiguous, on {device}; got {vector.shape}")


def _before_out(out: Tensor, before: Tensor, *inputs: Any) -> None:
    check_before(out, before, NormInputs(*inputs))


for _name, _schema, _fake in (
    ("film_group_norm_before_out", FILM_GROUP_NORM_BEFORE_OUT, _before_out),
    ("add_residual", ADD_RESIDUAL, check_add_residual),
    ("convolution_residual", CONVOLUTION_RESIDUAL, convolution_residual_result),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
