"""3x3 convolutions that add something, by PyTorch's convolutions and products and a pass behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops import products


def convolution_then_residual(
    add: Callable[..., Any],  # `reference.add_residual`, or the same with moments
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    resample: int,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> Tensor:
    """`reference.convolution_residual` by PyTorch's convolution and products, and `add` behind them."""
    if bias is None:
        return F.conv2d(x, weight, padding=1)
    return _convolved(add, x, weight, bias, residual, resample, left, left_weight, right, right_weight)[0]


def convolution_then_moments(
    add: Callable[..., Tensor],  # `reference_moments.add_residual_moments`
    take: Callable[[Tensor], Tensor],  # `reference_moments.moments`
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    resample: int = 0,
    *sides: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`reference_moments.convolution_moments` in the same way."""
    if bias is not None:
        return _convolved(add, x, weight, bias, residual, resample, *sides)
    out = F.conv2d(x, weight, padding=1)
    return out, take(out)


def _convolved(
    add: Callable[..., Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    resample: int,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """The sum, and what `add` returned."""
    out = F.conv2d(x, weight, padding=1)
    if left is not None and left_weight is not None:
        if residual is None:
            residual = products.product(left, left_weight, None)
        else:
            products.add_product(out, left, left_weight)
        if right is not None and right_weight is not None:
            products.add_product(out, right, right_weight)
    return out, add(out, bias, torch.zeros_like(out) if residual is None else residual, resample)
