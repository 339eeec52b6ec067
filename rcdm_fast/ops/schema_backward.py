"""Schemas and fakes of the operators of the backward pass; see `schema` for what both are for.

They are called by gradients that are registered for other operators, never by people: what they accept is what those
operators accept, and a gradient like their result.
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
    check_attention,
    check_film_group_norm,
    check_out,
    is_channels_last,
)

FILM_GROUP_NORM_BACKWARD = f"(Tensor grad, {NORM_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
ATTENTION_BACKWARD = "(Tensor grad, Tensor qkv, int heads, bool new_order) -> Tensor"
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


def _film_group_norm_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    x, skip, weight, bias, film, *_ = of = NormInputs(*inputs)
    check_out(grad, check_film_group_norm(of), x)
    of_skip = weight.new_empty(0) if skip is None else torch.empty_like(skip)
    of_rows = weight.new_empty((0, 0) if film is None else (x.shape[0], film.shape[1]))
    return torch.empty_like(x), of_skip, torch.empty_like(weight), torch.empty_like(bias), of_rows


def _attention_backward(grad: Tensor, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    channels = check_attention(qkv, heads)
    if grad.shape != (*qkv.shape[:2], channels) or grad.dtype != qkv.dtype or not grad.is_contiguous():
        raise ValueError("attention: grad does not fit the result")
    return torch.empty_like(qkv)


for _name, _schema, _fake in (
    ("attention_backward", ATTENTION_BACKWARD, _attention_backward),
    ("convolution_weight_gradient", CONVOLUTION_WEIGHT_GRADIENT, _convolution_weight_gradient),
    ("film_group_norm_backward", FILM_GROUP_NORM_BACKWARD, _film_group_norm_backward),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
