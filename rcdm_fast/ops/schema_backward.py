"""Schemas and fakes of the operators of the backward pass; see `schema` for what both are for.

They are called by gradients that are registered for other operators, never by people: what they accept is what those
operators accept, and a gradient like their result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops.schema import NAMESPACE, TAGS, is_channels_last

CONVOLUTION_WEIGHT_GRADIENT = "(Tensor grad, Tensor x, int kernel, int stride, int padding) -> (Tensor, Tensor)"


def _convolution_weight_gradient(
    grad: Tensor, x: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    for name, each in (("grad", grad), ("x", x)):
        if each.ndim != 4 or not is_channels_last(each) or each.dtype != x.dtype:
            raise ValueError(f"convolution_weight_gradient: {name} must be channels-last, of one dtype with the other")
    shape = (grad.shape[1], x.shape[1], kernel, kernel)
    weight = torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last)
    return weight, torch.empty(shape[0], dtype=torch.float32, device=x.device)


for _name, _schema, _fake in (
    ("convolution_weight_gradient", CONVOLUTION_WEIGHT_GRADIENT, _convolution_weight_gradient),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
