"""What the operators of fp8 compute, in plain PyTorch: the truth that kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops import schema_fp8
from rcdm_fast.ops.schema import NAMESPACE


def quantize(x: Tensor, inverse: Tensor) -> Tensor:
    """X [N,C,H,W] times what belongs to its channel, rounded to e4m3, at most 448 in size; NaN stays NaN.

    Args:
        x: float32, bfloat16 or float16, channels-last.
        inverse: 1 / scale, float32 [C]; powers of two, so that the product is exact.

    Returns:
        float8_e4m3fn [N,C,H,W], channels-last.
    """
    out = schema_fp8.quantize_result(x, inverse)
    return out.copy_((x.float() * inverse[:, None, None]).clamp(-schema_fp8.LARGEST, schema_fp8.LARGEST))


def fp8_convolution(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    add: Tensor | None,
    resize: int,
    resample: int,
    dtype: torch.dtype,
) -> Tensor:
    """The 3x3 convolution of x, padded by zeros: sums in float32, times scale, plus bias and residual; rounded once.

    Args:
        x: float8_e4m3fn [N,I,H,W], channels-last.
        weight: float8_e4m3fn [O,I,3,3], channels-last.
        scale, bias: float32 [O].
        add: as of `reference.add_residual`, of the result's dtype; None for no residual.
        resize: 1 (x is upsampled before, nearest neighbor), -1 (stride 2) or 0.
        resample: how `add` is read: 1 (upsampled), -1 (2x2 averages) or 0.
        dtype: of the result.

    Returns:
        [N,O,H',W'], channels-last.
    """
    out = schema_fp8.fp8_convolution_result(x, weight, scale, bias, add, resize, resample, dtype)
    image = F.interpolate(x.float(), scale_factor=2.0, mode="nearest") if resize == 1 else x.float()
    sums = F.conv2d(image, weight.float(), stride=2 if resize == -1 else 1, padding=1)
    whole = sums * scale[:, None, None] + bias[:, None, None]
    if add is not None:
        read = add.float()
        if resample:
            read = F.interpolate(read, scale_factor=2.0) if resample == 1 else F.avg_pool2d(read, 2)
        whole = whole + read
    return out.copy_(whole)


# There is no C++ for these: on a CPU only tests run them.
torch.library.impl(f"{NAMESPACE}::quantize", "cpu", quantize)
torch.library.impl(f"{NAMESPACE}::fp8_convolution", "cpu", fp8_convolution)
