"""The Triton kernels behind `fp8_convolution.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from rcdm_fast.kernels.residual_kernels import residual_read


@triton.jit
def quantize_kernel(
    out_ptr, x_ptr, inverse_ptr, pixels, channels, LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """out [pixels,channels] = x times the channel's `inverse`, in e4m3."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        row = row.to(tl.int64)
    there = (row < pixels)[:, None] & (channel < channels)[None, :]
    at = (row * channels)[:, None] + channel[None, :]
    v = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    v *= tl.load(inverse_ptr + channel, mask=channel < channels, other=0.0)[None, :]
    v = tl.clamp(v, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    # Rounded as `models/fp8.py` does it, so that converting is exact: the interpreter does not convert as a GPU does.
    exponent = tl.maximum(v.to(tl.int32, bitcast=True) & 0x7F800000, 121 << 23)
    c = (exponent + (20 << 23)).to(tl.float32, bitcast=True) * 1.5
    v = (v + c) - c
    tl.store(out_ptr + at, v.to(tl.float8e4nv), mask=there)


@triton.jit
def fp8_convolution_kernel(
    out_ptr, x_ptr, weight_ptr, scale_ptr, bias_ptr, add_ptr, pixels, height, width, x_height, x_width, inner, outer,
    tiles_m, tiles_n, RESIZE: tl.constexpr, ADD: tl.constexpr, RESAMPLE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROMOTED: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of the 3x3 convolution of x [.,inner] with weight [outer,9,inner], all e4m3, in `out` [pixels,outer].

    `pixels` are those of all images of out, `height` and `width` of one of them. RESIZE 1 reads x upsampled, -1 at
    every second pixel. Of each sum over DEPTH numbers of a tap, PROMOTED at a time are added by the matrix unit alone,
    whose sums have fewer digits than float32 on sm_90; all else is added in float32.
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
    image = line // height
    line = line - image * height
    if WIDE:
        row, image = row.to(tl.int64), image.to(tl.int64)
    blocks = tl.cdiv(inner, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(9 * blocks):
        tap = step // blocks
        k = (step - tap * blocks) * DEPTH + depth
        if RESIZE == -1:
            down, across = 2 * line + tap // 3 - 1, 2 * column + tap % 3 - 1
            inside = here & (down >= 0) & (down < x_height) & (across >= 0) & (across < x_width)
        else:
            down, across = line + tap // 3 - 1, column + tap % 3 - 1
            inside = here & (down >= 0) & (down < height) & (across >= 0) & (across < width)
            if RESIZE == 1:
                down, across = down // 2, across // 2
        there = ((image * x_height + down) * x_width + across) * inner
        a = tl.load(x_ptr + there[:, None] + k[None, :], mask=inside[:, None] & (k < inner)[None, :], other=0.0)
        near = weight_ptr + (channel * 9 + tap)[None, :] * inner + k[:, None]
        b = tl.load(near, mask=(channel < outer)[None, :] & (k < inner)[:, None], other=0.0)
        total = tl.dot(a, b, total, max_num_imprecise_acc=PROMOTED)
    mask = here[:, None] & (channel < outer)[None, :]
    at = (row * outer)[:, None] + channel[None, :]
    total *= tl.load(scale_ptr + channel, mask=channel < outer, other=0.0)[None, :]
    total += tl.load(bias_ptr + channel, mask=channel < outer, other=0.0)[None, :]
    if ADD:
        total += residual_read(add_ptr, row, channel, width, outer, mask, RESAMPLE, ROWS, COLUMNS)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
