"""The Triton kernel behind `residual.py`, and how residuals are read and moments written, here and by convolutions."""

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
def write_moments(moments_ptr, v, chunk, channel, channels, ROWS: tl.constexpr):
    """The moments of a chunk [ROWS,channels] of pixels; moments [chunks of all images,3,channels]."""
    pivot = tl.sum(tl.where((tl.arange(0, ROWS) == 0)[:, None], v, 0.0), 0)
    apart = v - pivot[None, :]
    mean = tl.sum(apart, 0) * (1.0 / ROWS)
    apart -= mean[None, :]
    at = moments_ptr + tl.cast(chunk, tl.int64) * 3 * channels + channel
    here = channel < channels
    tl.store(at, mean, mask=here)
    tl.store(at + channels, tl.sum(apart * apart, 0), mask=here)
    tl.store(at + 2 * channels, pivot, mask=here)


@triton.jit
def residual_kernel(
    out_ptr, moments_ptr, bias_ptr, add_ptr, pixels, width, channels, ADD: tl.constexpr, MOMENTS: tl.constexpr,
    RESAMPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out [pixels,channels] += bias + add (ADD), and its moments (MOMENTS: ROWS are a chunk).

    `pixels` are those of all images, `width` that of one of out.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        row = row.to(tl.int64)
    there = (row < pixels)[:, None] & (channel < channels)[None, :]
    at = (row * channels)[:, None] + channel[None, :]
    v = tl.load(out_ptr + at, mask=there, other=0.0).to(tl.float32)
    if ADD:
        v += tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)[None, :]
        v += residual_read(add_ptr, row, channel, width, channels, there, RESAMPLE, ROWS, BLOCK_C)
        rounded = v.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, rounded, mask=there)
        v = rounded.to(tl.float32)
    if MOMENTS:
        write_moments(moments_ptr, v, tl.program_id(0), channel, channels, ROWS)
