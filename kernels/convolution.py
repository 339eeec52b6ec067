"""3x3 convolutions as implicit matrix products, in Triton: bias and residual are added before the result is written.

The residual may be read upsampled or as 2x2 averages; or it is a product of up to two other images, which is part of
the same sum. Of large images the moments are taken, too. Small maps have few pixels and many channels: their sums can
be split, so that more of a GPU works on them, and a second kernel joins the parts in a fixed order. Tiles depend on the
shape of one image alone; into how many parts a sum is split is the caller's choice.

Inference only. Importing this needs Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.convolution_kernels import convolution_kernel, join_kernel
from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.ops import schema_folding, schema_moments

ROWS, COLUMNS = 128, 128  # of a tile; fewer where there are fewer
DEPTH_BYTES = 128  # of the sum at a time: 64 numbers of 16 bits
GROUP = 8  # rows of tiles that run together
WARPS, STAGES = 8, 3  # half as many warps on smaller tiles
LEAST = 16  # what a matrix instruction takes
JOINED = 1024  # numbers that a program of 128 threads joins at a time


class Added(NamedTuple):
    """What is added to a convolution before it is written; None where it is not there."""

    bias: Tensor | None = None
    residual: Tensor | None = None
    resample: int = 0  # how the residual is read
    left: Tensor | None = None  # an image whose 1x1 convolution is part of the sum
    left_weight: Tensor | None = None
    right: Tensor | None = None
    right_weight: Tensor | None = None


def _write(out: Tensor, x: Tensor, weight: Tensor, added: Added, splits: int, moments: Tensor | None) -> None:
    n, outer, height, width = out.shape
    inner, pixels = x.shape[1], n * height * width
    if out.numel() == 0:
        return
    rows = max(LEAST, min(ROWS, next_power(height * width)))  # by the size of one image: its bits stay in any batch
    columns = max(LEAST, min(COLUMNS if rows == ROWS else COLUMNS // 2, next_power(outer)))
    depth = max(LEAST, min(DEPTH_BYTES // x.element_size(), next_power(inner)))
    tiles = triton.cdiv(pixels, rows), triton.cdiv(outer, columns)
    assert moments is None or (rows == schema_moments.CHUNK and splits == 1)
    # What is not there is replaced by a tensor that is, so that kernels have one signature; they never read it.
    bias, add, left, left_weight, right, right_weight = (
        out if each is None else each for each in (*added[:2], *added[3:])
    )
    sides = (added.left is not None) + (added.right is not None)
    wide = max(each.numel() for each in (x, add, out, left, right)) >= WIDE_ELEMENTS
    parts = out.new_empty((splits, pixels, outer), dtype=torch.float32) if splits > 1 else bias
    wrap_triton(convolution_kernel)[(tiles[0] * tiles[1], splits)](
        out, parts, parts if moments is None else moments, x, weight, bias, add, left, left_weight, right, right_weight,
        pixels, height, width, inner, outer, left.shape[1], right.shape[1], *tiles, BIAS=added.bias is not None,
        ADD=added.residual is not None, SIDES=sides, MOMENTS=moments is not None, RESAMPLE=added.resample,
        SPLITS=splits, ROWS=rows, COLUMNS=columns, DEPTH=depth, GROUP=GROUP, WIDE=wide,
        num_warps=WARPS if rows * columns == ROWS * COLUMNS else WARPS // 2, num_stages=STAGES,
    )  # fmt: skip
    if splits > 1:
        block = min(next_power(outer), 64)
        height_of = JOINED // block
        wrap_triton(join_kernel)[(triton.cdiv(pixels, height_of), triton.cdiv(outer, block))](
            out, parts, bias, add, pixels, width, outer, BIAS=added.bias is not None, ADD=added.residual is not None,
            RESAMPLE=added.resample, SPLITS=splits, ROWS=height_of, BLOCK_C=block, WIDE=wide, num_warps=4,
        )  # fmt: skip


@triton_op("rcdm_fast::convolution_residual_triton", mutates_args={}, schema=schema_folding.CONVOLUTION_RESIDUAL)
def convolution_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    resample: int,
    splits: int,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> Tensor:
    """`reference.convolution_residual`."""
    sides = (left, left_weight, right, right_weight)
    out = schema_folding.convolution_residual_result(x, weight, bias, add, resample, splits, *sides)
    with device_of(out):
        _write(out, x, weight, Added(bias, add, resample, *sides), splits, None)
    return out


@triton_op("rcdm_fast::convolution_moments_triton", mutates_args={}, schema=schema_moments.CONVOLUTION_MOMENTS)
def convolution_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    resample: int = 0,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference_moments.convolution_moments`."""
    added = Added(bias, add, resample, left, left_weight, right, right_weight)
    out, moments = schema_moments.convolution_moments_result(x, weight, *added)
    with device_of(out):
        _write(out, x, weight, added, 1, moments)
    return out, moments
