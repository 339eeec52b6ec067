"""A convolution of training: channels-last both ways, a residual added in place, the faster ways to compute it.

In float32 on a CPU 3x3 convolutions and their gradients are ours (`ops/winograd.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcdm_fast.ops import schema, selection_backward, winograd


def convolution(
    x: Tensor,  # [N,I,H,W]
    weight: Tensor,  # float32 [O,I,k,k], any layout
    bias: Tensor | None,  # float32 [O]
    *,
    stride: int = 1,
    padding: int = 0,
    add: Tensor | None = None,  # [N,O,H',W']
) -> Tensor:
    """F.conv2d(x, weight, bias, stride, padding) + add, channels-last, in autocast's dtype where that is on.

    Gradients of weight and bias are float32, however the products were rounded.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    out: Tensor = _Convolution.apply(x, weight, bias, add, stride, padding)
    return out


def quick(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> bool:
    """Whether a convolution of images [N,I,H,W] is one of `ops/winograd.py`."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return winograd.serves(weight, stride, padding, dtype, x.device) and winograd.large_enough(x)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        used = weight.to(x.dtype, memory_format=torch.channels_last)
        context.save_for_backward(x, used)
        context.geometry = stride, padding, bias is not None
        context.quick = quick(x, used, stride, padding)
        if context.quick:
            last = None if add is None else add.to(x.dtype).contiguous(memory_format=torch.channels_last)
            return winograd.convolution(x, winograd.packed(used), bias, last)
        kernels = None if bias is None else selection_backward.bias_kernels(x.device)
        inside = None if bias is None or kernels is not None else bias.to(x.dtype)
        out = torch.conv2d(x, used, inside, stride, padding)
        if not schema.is_channels_last(out):
            out = out.contiguous(memory_format=torch.channels_last)
        if bias is not None and kernels is not None:
            last = None if add is None else add.contiguous(memory_format=torch.channels_last)
            return kernels.add_(out, bias, last)
        return out if add is None else out.add_(add)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        stride, padding, biased = context.geometry
        of_x_wanted, of_weight_wanted, of_bias_wanted, of_add_wanted, *_ = context.needs_input_grad
        of_add = grad if of_add_wanted else None
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        own = selection_backward.weight_gradient(x, weight) if of_weight_wanted else None
        if of_weight_wanted and context.quick:
            of_weight, of_bias = winograd.weight_gradient(grad, x)
        elif own is not None:
            of_weight, of_bias = own(grad, x, weight.shape[2], stride, padding)
        kernels = selection_backward.bias_kernels(x.device) if of_bias_wanted and of_bias is None else None
        if kernels is not None:
            of_bias = kernels.sums(grad)
        if of_x_wanted and context.quick:
            of_x = winograd.convolution(grad, winograd.packed(weight, mirrored=True))
        rest = [
            of_x_wanted and of_x is None,
            of_weight_wanted and of_weight is None,
            of_bias_wanted and of_bias is None,
        ]
        if any(rest):
            found = torch.ops.aten.convolution_backward(
                grad, x, weight, [weight.shape[0]] if biased else None, [stride] * 2, [padding] * 2, [1, 1], False,
                [0, 0], 1, rest,
            )  # fmt: skip
            of_x = found[0] if rest[0] else of_x
            if rest[1]:
                of_weight = found[1].float()
            if rest[2]:
                of_bias = found[2].float()
        return of_x, of_weight, of_bias if of_bias_wanted else None, of_add, None, None
