"""What the Triton kernels of `film_group_norm_kernels.py` share: reading, FiLM, activation, writing.

PHASES and WIDE are explained there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def places(pixel, width, step, PHASES: tl.constexpr, WIDE: tl.constexpr):
    """Where the channels of pixels begin in one image; `step` is the number of channels."""
    if WIDE:
        pixel = pixel.to(tl.int64)
    if PHASES:  # memory is [H/2+1,W/2+1,2,2,C]; phase (i, j) of (y, x) lies at (y + i, x + j)
        y = pixel // width
        x = pixel - y * width
        place = ((y + 1) // 2) * (width // 2 + 1) + (x + 1) // 2
        return (place * 4 + (y % 2) * 2 + x % 2) * step
    else:
        return pixel * step


@triton.jit
def read(base, pixel, end, width, step, channel, used, PHASES: tl.constexpr, WIDE: tl.constexpr):
    """Pixels before `end` and channels that are used, as float32; zeros for the others."""
    at = base + places(pixel, width, step, PHASES, WIDE)[:, None] + channel[None, :]
    return tl.load(at, mask=(pixel < end)[:, None] & used[None, :], other=0.0).to(tl.float32)


@triton.jit
def activate(v, center, factor, offset, SILU: tl.constexpr):
    """The norm with FiLM, and SiLU."""
    y = (v - center[None, :]) * factor[None, :] + offset[None, :]
    if SILU:
        y = y / (1.0 + tl.exp2(y * -1.4426950408889634))
    return y


@triton.jit
def store(out, y, pixel, width, step, channel, mask, UP: tl.constexpr, WIDE: tl.constexpr):
    """Write y at pixels, or at four times as many; `width` is that of `pixel`."""
    if WIDE:
        pixel = pixel.to(tl.int64)
    y = y.to(out.dtype.element_ty)
    if UP:
        row = pixel // width
        corner = row * 2 * width + pixel * 2  # (2 row) (2 width) + 2 column
        at = out + (corner * step)[:, None] + channel[None, :]
        for quarter in tl.static_range(4):
            tl.store(at + (quarter // 2 * 2 * width + quarter % 2) * step, y, mask=mask)
    else:
        tl.store(out + (pixel * step)[:, None] + channel[None, :], y, mask=mask)


@triton.jit
def film_row(film_ptr, rows_ptr, image, film_rows, film_stride, column, mask):
    """Numbers of the image's row; NaN for a row that is not there."""
    row = tl.load(rows_ptr + image)
    there = (row >= 0) & (row < film_rows)
    return tl.where(there, tl.load(film_ptr + row * film_stride + column, mask=mask & there, other=0.0), float("nan"))


@triton.jit
def affine(
    rstd, channel, mask, weight_ptr, bias_ptr, film_ptr, rows_ptr, image, film_rows, film_stride, channels,
    FILM: tl.constexpr,
):  # fmt: skip
    """Factor and offset of channels, from the norm's parameters and FiLM's scale and shift."""
    weight = tl.load(weight_ptr + channel, mask=mask, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=mask, other=0.0)
    if FILM == 2:
        scale = 1.0 + film_row(film_ptr, rows_ptr, image, film_rows, film_stride, channel, mask)
        shift = film_row(film_ptr, rows_ptr, image, film_rows, film_stride, channel + channels, mask)
        weight = weight * scale
        bias = bias * scale + shift
    return weight * rstd, bias


@triton.jit
def over_groups(value, member, GROUPS: tl.constexpr):
    """For every channel the sum over its group."""
    if GROUPS == 1:
        return tl.zeros_like(value) + tl.sum(value, 0)
    else:
        sums = tl.sum(tl.where(member, value[:, None], 0.0), 0)
        return tl.sum(tl.where(member, sums[None, :], 0.0), 1)
