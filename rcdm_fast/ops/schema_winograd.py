"""Schemas and fakes of 3x3 convolutions after Winograd, for engines and training on CPUs in float32.

A weight is brought once to the points that products are taken at (`winograd_weight`); a convolution by it is float32's
own up to about its rounding (`csrc/cpu/winograd_loops.h`). There is no gradient: `training/convolution.py` has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops.schema import NAMESPACE, TAGS, is_channels_last
from rcdm_fast.ops.schema_folding import check_vector

WINOGRAD_WEIGHT = "(Tensor weight, bool mirrored) -> Tensor"
WINOGRAD_CONVOLUTION = "(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? add, bool upsampled) -> ()"
WINOGRAD_WEIGHT_GRADIENT = "(Tensor grad, Tensor x) -> (Tensor, Tensor)"
PLACES = 36  # products of a tile of 4x4 pixels
PANEL = 16  # channels that are computed at once: their numbers are multiples of it


def winograd_weight_result(weight: Tensor, mirrored: bool) -> Tensor:
    """What `winograd_weight` returns, not written yet; `ValueError` for what it does not take."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or weight.dtype != torch.float32:
        raise ValueError(f"winograd_weight: weight must be float32 [O,I,3,3]; got {list(weight.shape)}, {weight.dtype}")
    outputs, inputs = (weight.shape[1], weight.shape[0]) if mirrored else (weight.shape[0], weight.shape[1])
    if outputs % PANEL or inputs % PANEL:
        raise ValueError(
            f"winograd_weight: channels must be multiples of {PANEL}, got {weight.shape[0]} and {weight.shape[1]}"
        )
    return weight.new_empty((PLACES, outputs // PANEL, inputs, PANEL))


def check_winograd_convolution(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, upsampled: bool
) -> None:
    """`ValueError` for what `winograd_convolution` does not take."""
    for name, each in (("out", out), ("x", x), *([] if add is None else [("add", add)])):
        if each.ndim != 4 or not is_channels_last(each) or each.dtype != torch.float32:
            raise ValueError(f"winograd_convolution: {name} must be float32 [N,C,H,W] in channels-last memory")
    expected = (PLACES, out.shape[1] // PANEL, x.shape[1], PANEL)
    fits = tuple(weight.shape) == expected and weight.dtype == torch.float32 and weight.is_contiguous()
    if not fits or out.shape[1] % PANEL:
        raise ValueError(f"winograd_convolution: weight must be float32 {list(expected)}, as winograd_weight gives it")
    scale = 2 if upsampled else 1
    if out.shape[0] != x.shape[0] or out.shape[2:] != (scale * x.shape[2], scale * x.shape[3]):
        raise ValueError(f"winograd_convolution: out {list(out.shape)} does not fit x {list(x.shape)}")
    if not x.shape[1]:
        raise ValueError("winograd_convolution: x has no channels")
    if bias is not None:
        check_vector("winograd_convolution: bias", bias, out.shape[1], out.device)
    if add is not None and add.shape != out.shape:
        raise ValueError(f"winograd_convolution: add {list(add.shape)} is not like out {list(out.shape)}")


def winograd_weight_gradient_result(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """What `winograd_weight_gradient` returns, not written yet; `ValueError` for what it does not take."""
    for name, each in (("grad", grad), ("x", x)):
        if each.ndim != 4 or not is_channels_last(each) or each.dtype != torch.float32:
            raise ValueError(f"winograd_weight_gradient: {name} must be float32 [N,C,H,W] in channels-last memory")
    if grad.shape[0] != x.shape[0] or grad.shape[2:] != x.shape[2:]:
        raise ValueError(f"winograd_weight_gradient: grad {list(grad.shape)} does not fit x {list(x.shape)}")
    outputs, inputs = grad.shape[1], x.shape[1]
    if outputs % PANEL or inputs % PANEL:
        raise ValueError(f"winograd_weight_gradient: channels must be multiples of {PANEL}, got {outputs} and {inputs}")
    shape, last = (outputs, inputs, 3, 3), torch.channels_last
    return torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=last), x.new_empty(outputs)


for _name, _schema, _fake in (
    ("winograd_convolution", WINOGRAD_CONVOLUTION, check_winograd_convolution),
    ("winograd_weight", WINOGRAD_WEIGHT, winograd_weight_result),
    ("winograd_weight_gradient", WINOGRAD_WEIGHT_GRADIENT, winograd_weight_gradient_result),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
