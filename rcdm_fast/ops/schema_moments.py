"""Schemas of the operators by which a norm knows its moments before it begins (`engines/summed.py`).

What writes an image takes the moments of what it writes: of every channel in every chunk of `CHUNK` pixels, float32
[N,chunks,3,C]: the mean's distance from a pivot, the sum of squared deviations, and the pivot, one of the chunk's
pixels. (A mean far from 0 would lose in float32 the digits that matter beside a small deviation.) A norm that is given
them reads its image once.

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
from rcdm_fast.ops.schema_folding import SIDES, check_add_residual, check_vector, convolution_residual_result

CHUNK = 128  # pixels, one behind another; of a tile of matrix products, too
ONCE = 1024  # pixels of an image that a norm reads once anyway, for they stay on the chip

MOMENTS = "(Tensor x) -> Tensor"
ADD_RESIDUAL_MOMENTS = "(Tensor(a!) out, Tensor bias, Tensor add, int resample) -> Tensor"
CONVOLUTION_MOMENTS = (
    f"(Tensor x, Tensor weight, Tensor? bias=None, Tensor? add=None, int resample=0, {SIDES}) -> (Tensor, Tensor)"
)
FILM_GROUP_NORM_GIVEN_OUT = (
    f"(Tensor(a!) out, Tensor moments, Tensor? skip_moments, Tensor? before, {NORM_INPUTS}) -> ()"
)


def chunks_of(height: int, width: int) -> int:
    """How many chunks an image has; 0 where it is small enough to be read once anyway, or they do not fit."""
    pixels = height * width
    return 0 if pixels <= ONCE or pixels % CHUNK else pixels // CHUNK


def moments_result(x: Tensor) -> Tensor:
    """What `reference_moments.moments` returns of an image [N,C,H,W], not written yet; `ValueError` if it has none."""
    if x.ndim != 4 or not is_channels_last(x):
        raise ValueError(f"moments: x must be [N,C,H,W] in channels-last memory without gaps; got {list(x.shape)}")
    n, channels, height, width = x.shape
    chunks = chunks_of(height, width)
    if not chunks:
        raise ValueError(f"moments: images of {height} x {width} are not cut into chunks of {CHUNK} pixels")
    return x.new_empty((n, chunks, 3, channels), dtype=torch.float32)


def add_residual_moments_result(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> Tensor:
    """The moments that `reference_moments.add_residual_moments` returns, not written yet."""
    check_add_residual(out, bias, add, resample)
    return moments_result(out)


def convolution_moments_result(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    resample: int = 0,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `reference_moments.convolution_moments` returns, not written yet; `ValueError` for what it does not take."""
    sides = (left, left_weight, right, right_weight)
    out = convolution_residual_result(x, weight, bias, add, resample, 1, *sides)
    return out, moments_result(out)


def check_given(
    out: Tensor, moments: Tensor, skip_moments: Tensor | None, before: Tensor | None, inputs: NormInputs
) -> None:
    """`TypeError` or `ValueError` for what `reference_moments.film_group_norm_given_out` does not accept."""
    check_out(out, check_film_group_norm(inputs), inputs.x)
    if inputs.phases:
        raise ValueError("film_group_norm_given: nobody takes moments of phases")
    if (skip_moments is None) != (inputs.skip is None):
        raise ValueError("film_group_norm_given: skip and its moments go together")
    for what, image, given in (("moments", inputs.x, moments), ("skip_moments", inputs.skip, skip_moments)):
        if image is None or given is None:
            continue
        like = moments_result(image)
        if given.shape != like.shape or given.dtype != like.dtype or not given.is_contiguous():
            raise ValueError(f"film_group_norm_given: {what} must be float32 {list(like.shape)}, got {given.shape}")
        if given.device != image.device:
            raise ValueError("film_group_norm_given: all tensors must be on one device")
    if before is not None:
        channels = inputs.x.shape[1] + (0 if inputs.skip is None else inputs.skip.shape[1])
        check_vector("film_group_norm_given: before", before, channels, out.device)


def _given_out(out: Tensor, moments: Tensor, skip_moments: Tensor | None, before: Tensor | None, *inputs: Any) -> None:
    check_given(out, moments, skip_moments, before, NormInputs(*inputs))


for _name, _schema, _fake in (
    ("moments", MOMENTS, moments_result),
    ("add_residual_moments", ADD_RESIDUAL_MOMENTS, add_residual_moments_result),
    ("convolution_moments", CONVOLUTION_MOMENTS, convolution_moments_result),
    ("film_group_norm_given_out", FILM_GROUP_NORM_GIVEN_OUT, _given_out),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
