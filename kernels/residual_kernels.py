"""The Triton kernel behind `residual.py`, and how a residual is read, here and by convolutions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def residual_read(
    add_ptr, row, channel, width, channels, there, RESAMPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """What is added at pixels `row` of all images, which are `width` wide; float32 [ROWS,BLOCK_C].

    As it lies there, read upsampled (RESAMPLE 1), or as 2x2 averages (-1).
    """
    # Lines of all images are counted on: an upsampled image has an even number of them.
    line = row // width
    column = row - line * width
    if RESAMPLE == 1:
        source = line // 2 * (width // 2) + column // 2
        read = tl.load(add_ptr + (source * channels)[:, None] + channel[None, :], mask=there, other=0.0).to(tl.float32)
    elif RESAMPLE == -1:
        corner = line * 4 * width + column * 2  # (2 line) (2 width) + 2 column
        read = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for quarter in tl.static_range(4):
            source = corner + quarter // 2 * 2 * width + quarter % 2
            near = add_ptr + (source * channels)[:, None] + channel[None, :]
            read += tl.load(near, mask=there, other=0.0).to(tl.float32)
        read *= 0.25
    else:
        at = (row * channels)[:, None] + channel[None, :]
        read = tl.load(add_ptr + at, mask=there, other=0.0).to(tl.float32)
    return read


@triton.jit
def residual_kernel(
    out_ptr, bias_ptr, add_ptr, pixels, width, channels, RESAMPLE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out [pixels,channels] += bias + add; `pixels` are those of all images, `width` that of one of out."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        row = row.to(tl.int64)
    there = (row < pixels)[:, None] & (channel < channels)[None, :]
    at = (row * channels)[:, None] + channel[None, :]
    v = tl.load(out_ptr + at, mask=there, other=0.0).to(tl.float32)
    v += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)[None, :]
    v += residual_read(add_ptr, row, channel, width, channels, there, RESAMPLE, ROWS, BLOCK_C)
    tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=there)
