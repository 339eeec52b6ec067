"""The Triton kernels behind `convolution.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from rcdm_fast.kernels.residual_kernels import residual_read, write_moments


@triton.jit
def _add_side(total, x_ptr, weight_ptr, row, here, channel, inner, outer, first, last, DEPTH: tl.constexpr):
    """total, and blocks first to last - 1 (as far as there are such) of x [pixels,inner] times weight [outer,inner]."""
    depth = tl.arange(0, DEPTH)
    for block in range(tl.maximum(first, 0), tl.minimum(last, tl.cdiv(inner, DEPTH))):
        k = block * DEPTH + depth
        mask = here[:, None] & (k < inner)[None, :]
        a = tl.load(x_ptr + (row * inner)[:, None] + k[None, :], mask=mask, other=0.0)
        near = weight_ptr + (channel * inner)[None, :] + k[:, None]
        b = tl.load(near, mask=(channel < outer)[None, :] & (k < inner)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def convolution_kernel(
    out_ptr, parts_ptr, moments_ptr, x_ptr, weight_ptr, bias_ptr, add_ptr, left_ptr, left_weight_ptr, right_ptr,
    right_weight_ptr, pixels, height, width, inner, outer, left_inner, right_inner, tiles_m, tiles_n,
    BIAS: tl.constexpr, ADD: tl.constexpr, SIDES: tl.constexpr, MOMENTS: tl.constexpr, RESAMPLE: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of the 3x3 convolution of x [pixels,inner] with weight [outer,9,inner]; `pixels` are those of all images.

    The sum is over (tap, inner), and goes on over the channels of up to two other images (SIDES). With one split `out`
    is written, bias and residual added before (BIAS, ADD), and the moments of a tile, which is a chunk then (MOMENTS).
    With several splits, each writes its part of the sum to `parts` [SPLITS,pixels,outer], float32.
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
    steps = 9 * blocks
    if SIDES > 0:
        steps += tl.cdiv(left_inner, DEPTH)
    if SIDES > 1:
        steps += tl.cdiv(right_inner, DEPTH)
    steps = tl.cdiv(steps, SPLITS)
    split = tl.program_id(1)
    begin = split * steps
    end = begin + steps
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(tl.minimum(begin, 9 * blocks), tl.minimum(end, 9 * blocks)):
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
    if SIDES > 0:
        begin -= 9 * blocks
        end -= 9 * blocks
        total = _add_side(total, left_ptr, left_weight_ptr, row, here, channel, left_inner, outer, begin, end, DEPTH)
    if SIDES > 1:
        begin -= tl.cdiv(left_inner, DEPTH)
        end -= tl.cdiv(left_inner, DEPTH)
        total = _add_side(total, right_ptr, right_weight_ptr, row, here, channel, right_inner, outer, begin, end, DEPTH)
    mask = here[:, None] & (channel < outer)[None, :]
    at = (row * outer)[:, None] + channel[None, :]
    if SPLITS == 1:
        if BIAS:
            total += tl.load(bias_ptr + channel, mask=channel < outer, other=0.0)[None, :]
        if ADD:
            total += residual_read(add_ptr, row, channel, width, outer, mask, RESAMPLE, ROWS, COLUMNS)
        rounded = total.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, rounded, mask=mask)
        if MOMENTS:
            write_moments(moments_ptr, rounded.to(tl.float32), tile_m, channel, outer, ROWS)
    else:
        tl.store(parts_ptr + at + tl.cast(pixels, tl.int64) * split * outer, total, mask=mask)


@triton.jit
def join_kernel(
    out_ptr, parts_ptr, bias_ptr, add_ptr, pixels, width, outer, BIAS: tl.constexpr, ADD: tl.constexpr,
    RESAMPLE: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out [pixels,outer] = the parts, one after another, + bias and residual (BIAS, ADD)."""
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
    if BIAS:
        total += tl.load(bias_ptr + channel, mask=channel < outer, other=0.0)[None, :]
    if ADD:
        total += residual_read(add_ptr, row, channel, width, outer, mask, RESAMPLE, ROWS, BLOCK_C)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
