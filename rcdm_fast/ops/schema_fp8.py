"""Schemas of the operators that compute 3x3 convolutions in fp8 (e4m3); `models/fp8.py` says what fp8 means here.

Declared like those of `schema.py`. There is no gradient: programs only evaluate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops.schema import NAMESPACE, TAGS, check_float_dtype, dtype_name, is_channels_last
from rcdm_fast.ops.schema_folding import check_add_residual

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3

QUANTIZE = "(Tensor x, Tensor inverse) -> Tensor"
FP8_CONVOLUTION = (
    "(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? add, int resize, int resample, ScalarType dtype) "
    "-> Tensor"
)


def quantize_result(x: Tensor, inverse: Tensor) -> Tensor:
    """What `reference_fp8.quantize` writes to, not written yet; an error for what it does not accept.

    Raises:
        TypeError: x is no float of 16 or 32 bits.
        ValueError: any other misfit.
    """
    check_float_dtype("quantize's x", x)
    if x.ndim != 4 or not is_channels_last(x):
        raise ValueError("quantize: x must be [N,C,H,W] in channels-last memory without gaps")
    _check_vector("quantize: inverse", inverse, x.shape[1], x.device)
    return torch.empty(x.shape, dtype=E4M3, device=x.device, memory_format=torch.channels_last)


def fp8_convolution_result(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    add: Tensor | None,
    resize: int,
    resample: int,
    dtype: torch.dtype,
) -> Tensor:
    """What `reference_fp8.fp8_convolution` writes to, not written yet; an error for what it does not accept.

    Raises:
        TypeError: operands that are not e4m3, or a result that is no float.
        ValueError: any other misfit.
    """
    if x.dtype != E4M3 or weight.dtype != E4M3:
        found = f"{dtype_name(x.dtype)}, {dtype_name(weight.dtype)}"
        raise TypeError(f"fp8_convolution: x and weight must be float8_e4m3fn; got {found}")
    n, inner, height, width = x.shape
    outer = weight.shape[0]
    if tuple(weight.shape) != (outer, inner, 3, 3):
        raise ValueError(f"fp8_convolution: weight {list(weight.shape)} does not fit x {list(x.shape)}")
    if weight.device != x.device or not is_channels_last(x) or not is_channels_last(weight):
        raise ValueError("fp8_convolution: x and weight must lie on one device, in channels-last memory without gaps")
    if resize not in (-1, 0, 1):
        raise ValueError(f"fp8_convolution: resize must be -1 (stride 2), 0 or 1 (upsampled before); got {resize}")
    height, width = {-1: ((height + 1) // 2, (width + 1) // 2), 0: (height, width), 1: (2 * height, 2 * width)}[resize]
    out = torch.empty((n, outer, height, width), dtype=dtype, device=x.device, memory_format=torch.channels_last)
    check_float_dtype("fp8_convolution's result", out)
    for name, vector in (("scale", scale), ("bias", bias)):
        _check_vector(f"fp8_convolution: {name}", vector, outer, x.device)
    if add is not None:
        check_add_residual(out, bias, add, resample)
    elif resample:
        raise ValueError("fp8_convolution: resample says how a residual is read, and there is none")
    return out


def _check_vector(what: str, vector: Tensor, length: int, device: torch.device) -> None:
    fits = vector.shape == (length,) and vector.dtype == torch.float32 and vector.is_contiguous()
    if not fits or vector.device != device:
        raise ValueError(f"{what} must be float32 [{length}], contiguous, on {device}; got {list(vector.shape)}")


for _name, _schema, _fake in (
    ("quantize", QUANTIZE, quantize_result),
    ("fp8_convolution", FP8_CONVOLUTION, fp8_convolution_result),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
