"""3x3 convolutions of e4m3 numbers as implicit matrix products, in Triton, and the rounding of their inputs.

The result gets its channel's scale, bias and residual before it is written. Tiles depend on the shape of one image
alone. Rounding is a pass of its own. Not built: a norm that writes e4m3 itself, and sums that are split over several
programs, which small maps of few images need.

Inference only, from sm_89 on. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.fp8_kernels import fp8_convolution_kernel, quantize_kernel
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.ops import schema_fp8

ROWS, COLUMNS = 128, 128  # of a tile; fewer where there are fewer
DEPTH = 128  # numbers of the sum at a time
PROMOTED = 128  # of them that sm_90 adds with 14 bits before float32 takes their sum
GROUP = 8  # rows of tiles that run together
WARPS, STAGES = 8, 3  # half as many warps on smaller tiles
LEAST = 16  # rows and columns that a matrix instruction takes
LEAST_DEPTH = 32  # of 8-bit numbers
ROUNDED = 4096  # numbers that a program rounds


def _write(
    out: Tensor, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, add: Tensor | None, resize: int, resample: int
) -> None:
    n, outer, height, width = out.shape
    inner, pixels = x.shape[1], n * height * width
    if out.numel() == 0:
        return
    rows = max(LEAST, min(ROWS, next_power(height * width)))  # by the size of one image: its bits stay in any batch
    columns = max(LEAST, min(COLUMNS if rows == ROWS else COLUMNS // 2, next_power(outer)))
    depth = max(LEAST_DEPTH, min(DEPTH, next_power(inner)))
    tiles = triton.cdiv(pixels, rows), triton.cdiv(outer, columns)
    wide = max(x.numel(), out.numel(), 0 if add is None else add.numel()) >= WIDE_ELEMENTS
    wrap_triton(fp8_convolution_kernel)[(tiles[0] * tiles[1],)](
        out, x, weight, scale, bias, bias if add is None else add, pixels, height, width, *x.shape[2:], inner, outer,
        *tiles, RESIZE=resize, ADD=add is not None, RESAMPLE=resample, ROWS=rows, COLUMNS=columns, DEPTH=depth,
        PROMOTED=min(PROMOTED, depth), GROUP=GROUP, WIDE=wide,
        num_warps=WARPS if rows * columns == ROWS * COLUMNS else WARPS // 2, num_stages=STAGES,
    )  # fmt: skip


def _round(out: Tensor, x: Tensor, inverse: Tensor) -> None:
    n, channels, height, width = x.shape
    pixels = n * height * width
    if x.numel() == 0:
        return
    block = min(next_power(channels), 128)
    rows = ROUNDED // block
    wrap_triton(quantize_kernel)[(triton.cdiv(pixels, rows), triton.cdiv(channels, block))](
        out, x, inverse, pixels, channels, LARGEST=schema_fp8.LARGEST, ROWS=rows, BLOCK_C=block,
        WIDE=x.numel() >= WIDE_ELEMENTS, num_warps=4,
    )  # fmt: skip


@triton_op("rcdm_fast::fp8_convolution_triton", mutates_args={}, schema=schema_fp8.FP8_CONVOLUTION)
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
    """`reference_fp8.fp8_convolution`."""
    out = schema_fp8.fp8_convolution_result(x, weight, scale, bias, add, resize, resample, dtype)
    with device_of(out):
        _write(out, x, weight, scale, bias, add, resize, resample)
    return out


@triton_op("rcdm_fast::quantize_triton", mutates_args={}, schema=schema_fp8.QUANTIZE)
def quantize(x: Tensor, inverse: Tensor) -> Tensor:
    """`reference_fp8.quantize`."""
    out = schema_fp8.quantize_result(x, inverse)
    with device_of(out):
        _round(out, x, inverse)
    return out
