"""What the operators of `schema_moments.py` compute, in plain PyTorch; see `reference.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops import reference, schema_moments
from rcdm_fast.ops.schema import NAMESPACE, NormInputs
from rcdm_fast.ops.schema_moments import CHUNK


def moments(x: Tensor) -> Tensor:
    """Moments of every channel in every chunk of x [N,C,H,W], channels-last: [N,chunks,3,C], see `schema_moments`."""
    result = schema_moments.moments_result(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    whole = x.permute(0, 2, 3, 1).reshape(len(x), -1, CHUNK, x.shape[1]).to(wide)
    pivot = whole[:, :, 0]
    apart = whole - pivot[:, :, None]
    mean = apart.mean(2)
    squares = (apart - mean[:, :, None]).square().sum(2)
    return torch.stack([mean, squares, pivot], dim=2).to(result.dtype)


def add_residual_moments(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> Tensor:
    """`reference.add_residual`, and the moments of what it wrote."""
    reference.add_residual(out, bias, add, resample)
    return moments(out)


def convolution_moments(
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
    """`reference.convolution_residual`, and the moments of what it wrote."""
    out = reference.convolution_residual(x, weight, bias, add, resample, 1, left, left_weight, right, right_weight)
    return out, moments(out)


def film_group_norm_given(given: Tensor, skip_given: Tensor | None, before: Tensor | None, *inputs: Any) -> Tensor:
    """`reference.film_group_norm_before` (without `before`: `film_group_norm`) by moments that are given."""
    x, skip, weight, bias, film, rows, groups, eps, silu, resample, _ = NormInputs(*inputs)
    wide = torch.promote_types(x.dtype, torch.float32)
    h = (x if skip is None else torch.cat([x, skip], dim=1)).to(wide)
    mean, squares, pivot = (given if skip_given is None else torch.cat([given, skip_given], dim=3)).to(wide).unbind(2)
    n, channels = h.shape[:2]
    added = torch.zeros(n, channels, dtype=wide, device=h.device) if before is None else before.to(wide).expand(n, -1)
    picked = None if film is None or rows is None else film[rows].to(wide)
    if picked is not None and picked.shape[1] == channels:
        added = added + picked
    of_group = (n, -1, groups, channels // groups)
    means = ((pivot + added[:, None]) + mean).reshape(of_group)  # of every chunk of a channel
    center = means.mean((1, 3), keepdim=True)
    whole = (squares.reshape(of_group) + CHUNK * (means - center).square()).mean((1, 3), keepdim=True) / CHUNK
    spread = (1 / (whole + eps).sqrt()).expand(n, 1, groups, channels // groups).reshape(n, channels, 1, 1)
    center = center.expand(n, 1, groups, channels // groups).reshape(n, channels, 1, 1)
    y = (h + added[:, :, None, None] - center) * spread * weight.to(wide)[:, None, None] + bias.to(wide)[:, None, None]
    if picked is not None and picked.shape[1] == 2 * channels:
        scale, shift = picked[:, :, None, None].chunk(2, dim=1)
        y = y * (1 + scale) + shift
    y = F.silu(y) if silu else y
    return reference.resampled(y, resample).to(x.dtype).contiguous(memory_format=torch.channels_last)


def film_group_norm_given_out(
    out: Tensor, given: Tensor, skip_given: Tensor | None, before: Tensor | None, *inputs: Any
) -> None:
    """The same, written to `out`."""
    schema_moments.check_given(out, given, skip_given, before, NormInputs(*inputs))
    out.copy_(film_group_norm_given(given, skip_given, before, *inputs))


# There is no C++ for these on a CPU: only tests run them there.
torch.library.impl(f"{NAMESPACE}::moments", "cpu", moments)
torch.library.impl(f"{NAMESPACE}::add_residual_moments", "cpu", add_residual_moments)
torch.library.impl(f"{NAMESPACE}::convolution_moments", "cpu", convolution_moments)
torch.library.impl(f"{NAMESPACE}::film_group_norm_given_out", "cpu", film_group_norm_given_out)
