"""The Triton kernels behind `convolution.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from rcdm_fast.kernels.residual_kernels import residual_read


@triton.jit
def convolution_kernel(
    out_ptr, parts_ptr, x_ptr, weight_ptr, bias_ptr, add_ptr, pixels, height, width, inner, outer,
    tiles_m, tiles_n, RESAMPLE: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of the 3x3 convolution of x [pixels,inner] with weight [outer,9,inner]; `pixels` are those of all images.

    With one split bias and residual are added and `out` is written; with several, each writes its part of the sum over
    (tap, inner) to `parts` [SPLITS,pixels,outer], float32.
    """
    # Tiles in groups of `GROUP` rows of them, so that those that run together read the same images.
    pid = tl.program_id(0)
    first = pid // (GROUP * tiles_n) * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    tile_m = first + pid % (GROUP * tiles_n) % high
    tile_n = pid % (GROUP * tiles_n) // high
    row = tile_m * ROWS + tl.arange(0, ROWS)
    channel = tile_n * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    here = row < pixels
    line = row // width
    column = row - line * width
    line = line % height
    if WIDE:
        row = row.to(tl.int64)
    blocks = tl.cdiv(inner, DEPTH)
    steps = tl.cdiv(9 * blocks, SPLITS)
    split = tl.program_id(1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(split * steps, tl.minimum(split * steps + steps, 9 * blocks)):
        tap = step // blocks
        k = (step - tap * blocks) * DEPTH + depth
        down = tap // 3 - 1
        across = tap % 3 - 1
        inside = here & (line + down >= 0) & (line + down < height) & (column + across >= 0) & (column + across < width)
        there = (row + down * width + across) * inner
        a = tl.load(x_ptr + there[:, None] + k[None, :], mask=inside[:, None] & (k < inner)[None, :], other=0.0)
        near = weight_ptr + (channel * 9 + tap)[None, :] * inner + k[:, None]
        b = tl.load(near, mask=(channel < outer)[None, :] & (k < inner)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")  # of float32; 16 bits are multiplied exactly
    mask = here[:, None] & (channel < outer)[None, :]
    at = (row * outer)[:, None] + channel[None, :]
    if SPLITS == 1:
        total += tl.load(bias_ptr + channel, mask=channel < outer, other=0.0)[None, :]
        total += residual_read(add_ptr, row, channel, width, outer, mask, RESAMPLE, ROWS, COLUMNS)
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(parts_ptr + at + tl.cast(pixels, tl.int64) * split * outer, total, mask=mask)


@triton.jit
def join_kernel(
    out_ptr, parts_ptr, bias_ptr, add_ptr, pixels, width, outer, RESAMPLE: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out [pixels,outer] = the parts, one after another, + bias + residual."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        row = row.to(tl.int64)
    mask = (row < pixels)[:, None] & (channel < outer)[None, :]
    at = (row * outer)[:, None] + channel[None, :]
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for split in tl.static_range(SPLITS):
        before = tl.cast(pixels, tl.int64) * split * outer
        total += tl.load(parts_ptr + at + before, mask=mask, other=0.0)
    total += tl.load(bias_ptr + channel, mask=channel < outer, other=0.0)[None, :]
    total += residual_read(add_ptr, row, channel, width, outer, mask, RESAMPLE, ROWS, BLOCK_C)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
