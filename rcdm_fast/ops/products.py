"""Convolutions of 1x1 in channels-last memory: as matrix products, or as the convolutions that they are.

As a product, what it is added to is read and written by the product itself, and so is a bias: no pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def rows_of(x: Tensor) -> Tensor:
    """[N,C,H,W], channels-last -> [N*H*W,C] of the same memory; `RuntimeError` for other layouts."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N,I,H,W], [O,I,1,1], [O] -> [N,O,H,W], channels-last; one dtype."""
    n, _, height, width = x.shape
    columns = weight.flatten(1).t()
    out = torch.mm(rows_of(x), columns) if bias is None else torch.addmm(bias, rows_of(x), columns)
    return out.view(n, height, width, -1).permute(0, 3, 1, 2)


def add_product(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """out [N,O,H,W] += x [N,I,H,W] times weight [O,I,1,1], in place; channels-last, one dtype."""
    rows_of(out).addmm_(rows_of(x), weight.flatten(1).t())


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias)


def _add_convolution(out: Tensor, x: Tensor, weight: Tensor) -> None:
    out.add_(F.conv2d(x, weight))


CANDIDATES: dict[str, Callable[..., Tensor]] = {"addmm": product, "convolution": _convolution}
ADDING: dict[str, Callable[..., None]] = {"addmm": add_product, "convolution": _add_convolution}
