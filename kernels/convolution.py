"""3x3 convolutions as implicit matrix products, in Triton: bias and residual are added before the result is written.

The residual may be read upsampled or as 2x2 averages. Small maps have few pixels and many channels: their sums can be
split, so that more of a GPU works on them, and a second kernel joins the parts in a fixed order. Tiles depend on the
shape of one image alone; into how many parts a sum is split is the caller's choice.

Inference only. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.convolution_kernels import convolution_kernel, join_kernel
from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.ops import schema_folding

ROWS, COLUMNS = 128, 128  # of a tile; fewer where there are fewer
DEPTH_BYTES = 128  # of the sum at a time: 64 numbers of 16 bits
GROUP = 8  # rows of tiles that run together
WARPS, STAGES = 8, 3  # half as many warps on smaller tiles
LEAST = 16  # what a matrix instruction takes
JOINED = 1024  # numbers that a program of 128 threads joins at a time


def _write(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor, resample: int, splits: int) -> None:
    n, outer, height, width = out.shape
    inner, pixels = x.shape[1], n * height * width
    if out.numel() == 0:
        return
    rows = max(LEAST, min(ROWS, next_power(height * width)))  # by the size of one image: its bits stay in any batch
    columns = max(LEAST, min(COLUMNS if rows == ROWS else COLUMNS // 2, next_power(outer)))
    depth = max(LEAST, min(DEPTH_BYTES // x.element_size(), next_power(inner)))
    tiles = triton.cdiv(pixels, rows), triton.cdiv(outer, columns)
    wide = max(x.numel(), add.numel(), out.numel()) >= WIDE_ELEMENTS
    parts = out.new_empty((splits, pixels, outer), dtype=torch.float32) if splits > 1 else bias
    wrap_triton(convolution_kernel)[(tiles[0] * tiles[1], splits)](
        out, parts, x, weight, bias, add, pixels, height, width, inner, outer, *tiles, RESAMPLE=resample,
        SPLITS=splits, ROWS=rows, COLUMNS=columns, DEPTH=depth, GROUP=GROUP, WIDE=wide,
        num_warps=WARPS if rows * columns == ROWS * COLUMNS else WARPS // 2, num_stages=STAGES,
    )  # fmt: skip
    if splits > 1:
        block = min(next_power(outer), 64)
        height_of = JOINED // block
        wrap_triton(join_kernel)[(triton.cdiv(pixels, height_of), triton.cdiv(outer, block))](
            out, parts, bias, add, pixels, width, outer, RESAMPLE=resample, SPLITS=splits, ROWS=height_of,
            BLOCK_C=block, WIDE=wide, num_warps=4,
        )  # fmt: skip


@triton_op("rcdm_fast::convolution_residual_triton", mutates_args={}, schema=schema_folding.CONVOLUTION_RESIDUAL)
def convolution_residual(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor, resample: int, splits: int) -> Tensor:
    """`reference.convolution_residual`."""
    out = schema_folding.convolution_residual_result(x, weight, bias, add, resample, splits)
    with device_of(out):
        _write(out, x, weight, bias, add, resample, splits)
    return out
