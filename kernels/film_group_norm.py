"""GroupNorm with FiLM, SiLU and resampling over channels-last memory, in Triton; see `reference.film_group_norm`.

A picture whose groups fit into registers takes one kernel that reads it once (`_slab_kernel`). Others take three: the
mean and the sum of squared deviations of every channel in every chunk of pixels (`_moments_kernel`); from these, for
every channel, the numbers of y = (x - centre) * factor + offset (`_coefficients_kernel`); then y, SiLU and the
resampling (`_apply_kernel`). FiLM is part of those numbers, also where it is added before the norm: that moves the mean
and leaves the deviations. How a picture is cut depends on its shape alone, never on the batch, and nothing depends on
timing: a picture gets the same bits alone and in a batch.

Knows nothing about models or how an implementation is chosen. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.ops import schema

SLAB_ELEMENTS = 32768  # of one slab, padded to powers of two: 64 registers in each of 512 threads
PROGRAMS_PER_PICTURE = 512  # about four on every multiprocessor of a large GPU, for a batch of one
INT32_ELEMENTS = 2**31  # a picture with more needs 64-bit offsets inside


@triton.jit
def _places(pixel, width, step, PHASES: tl.constexpr, WIDE: tl.constexpr):
    """Where the channels of pixels begin in one picture; `step` is the number of channels."""
    if WIDE:
        pixel = pixel.to(tl.int64)
    if PHASES:  # memory is [H/2+1,W/2+1,2,2,C]; phase (i, j) of (y, x) lies at (y + i, x + j)
        y = pixel // width
        x = pixel - y * width
        place = ((y + 1) // 2) * (width // 2 + 1) + (x + 1) // 2
        return (place * 4 + (y % 2) * 2 + x % 2) * step
    return pixel * step


@triton.jit
def _load(base, place, channel, mask):
    return tl.load(base + place[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _activate(v, centre, factor, offset, SILU: tl.constexpr):
    y = (v - centre[None, :]) * factor[None, :] + offset[None, :]
    if SILU:
        y = y / (1.0 + tl.exp2(y * -1.4426950408889634))
    return y


@triton.jit
def _store(out, y, pixel, width, step, channel, mask, UP: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        pixel = pixel.to(tl.int64)
    y = y.to(out.dtype.element_ty)
    if UP:
        row = pixel // width
        corner = row * 2 * width + pixel * 2  # (2 row) (2 width) + 2 column
        at = out + (corner * step)[:, None] + channel[None, :]
        tl.store(at, y, mask=mask)
        tl.store(at + step, y, mask=mask)
        tl.store(at + 2 * width * step, y, mask=mask)
        tl.store(at + (2 * width + 1) * step, y, mask=mask)
    else:
        tl.store(out + (pixel * step)[:, None] + channel[None, :], y, mask=mask)


@triton.jit
def _film(film_ptr, rows_ptr, picture, film_rows, film_stride, column, mask):
    """Numbers of the picture's row; NaN for a row that is not there."""
    row = tl.load(rows_ptr + picture)
    there = (row >= 0) & (row < film_rows)
    return tl.load(film_ptr + row * film_stride + column, mask=mask & there, other=float("nan"))


@triton.jit
def _affine(
    rstd, channel, mask, weight_ptr, bias_ptr, film_ptr, rows_ptr, picture, film_rows, film_stride, channels, SCALE: tl.constexpr
):
    """Factor and offset of channels, from the norm's parameters and FiLM's scale and shift."""
    weight = tl.load(weight_ptr + channel, mask=mask, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=mask, other=0.0)
    if SCALE:
        scale = 1.0 + _film(film_ptr, rows_ptr, picture, film_rows, film_stride, channel, mask)
        shift = _film(film_ptr, rows_ptr, picture, film_rows, film_stride, channel + channels, mask)
        weight = weight * scale
        bias = bias * scale + shift
    return weight * rstd, bias


@triton.jit
def _over_groups(value, member, GROUPS: tl.constexpr):
    """For every channel the sum over its group."""
    if GROUPS == 1:
        return tl.zeros_like(value) + tl.sum(value, 0)
    sums = tl.sum(tl.where(member, value[:, None], 0.0), 0)
    return tl.sum(tl.where(member, sums[None, :], 0.0), 1)


@triton.jit
def _slab_kernel(
    out_ptr, x_ptr, skip_ptr, weight_ptr, bias_ptr, film_ptr, rows_ptr, film_rows, film_stride, pixels, width,
    x_channels, skip_channels, x_picture, out_picture, per_group, sets, eps,
    SET_CHANNELS: tl.constexpr, SET_GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr, FILM: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr, PHASES: tl.constexpr,
    SKIP: tl.constexpr,
):  # fmt: skip
    """All pixels of SET_GROUPS whole groups of one picture."""
    program = tl.program_id(0)
    picture = (program // sets).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    channel = (program % sets) * SET_CHANNELS + k
    channels = x_channels + skip_channels
    pixel = tl.arange(0, ROWS)
    used = k < SET_CHANNELS
    mask = (pixel < pixels)[:, None] & used[None, :]
    x = x_ptr + picture * x_picture
    v = _load(x, _places(pixel, width, x_channels, PHASES, False), channel, mask & (channel < x_channels)[None, :])
    if SKIP:
        skip = skip_ptr + picture * pixels * skip_channels - x_channels
        v += _load(skip, pixel * skip_channels, channel, mask & (channel >= x_channels)[None, :])

    mean = tl.sum(v, 0) / pixels
    deviation = tl.where(mask, v - mean[None, :], 0.0)
    squares = tl.sum(deviation * deviation, 0)
    added = tl.zeros_like(mean)
    if FILM == 1:
        added = _film(film_ptr, rows_ptr, picture, film_rows, film_stride, channel, used)
        mean += added
    member = (k // per_group)[:, None] == tl.arange(0, BLOCK_G)[None, :]
    mean = tl.where(used, mean, 0.0)
    centre = _over_groups(mean, member, SET_GROUPS) / per_group
    between = tl.where(used, mean - centre, 0.0)
    squares = _over_groups(squares + between * between * pixels, member, SET_GROUPS)
    rstd = 1.0 / tl.sqrt_rn(squares / (pixels * 1.0 * per_group) + eps)
    factor, offset = _affine(
        rstd, channel, used, weight_ptr, bias_ptr, film_ptr, rows_ptr, picture, film_rows, film_stride, channels, FILM == 2
    )
    centre -= added
    out = out_ptr + picture * out_picture
    if RESAMPLE == -1:  # the four pixels of an average lie in other threads: read them again, from the cache
        half = width // 2
        pooled = tl.arange(0, ROWS // 4)
        corner = (pooled // half) * 2 * width + (pooled % half) * 2
        mask = (pooled < pixels // 4)[:, None] & used[None, :]
        y = tl.zeros((ROWS // 4, BLOCK_C), tl.float32)
        for quarter in tl.static_range(4):
            near = corner + (quarter // 2) * width + quarter % 2
            v = _load(x, near * x_channels, channel, mask & (channel < x_channels)[None, :])
            if SKIP:
                v += _load(skip, near * skip_channels, channel, mask & (channel >= x_channels)[None, :])
            y += _activate(v, centre, factor, offset, SILU)
        _store(out, y * 0.25, pooled, half, channels, channel, mask, False, False)
    else:
        y = _activate(v, centre, factor, offset, SILU)
        _store(out, y, pixel, width, channels, channel, mask, RESAMPLE == 1, False)


@triton.jit
def _source(x_ptr, skip_ptr, picture, x_picture, pixels, x_channels, skip_channels, tile, x_tiles, BLOCK_C: tl.constexpr, SKIP: tl.constexpr):
    """Where a tile of channels lies: (picture's base, channels per pixel there, first channel there, and in all)."""
    x = x_ptr + picture * x_picture
    if SKIP:
        in_x = tile < x_tiles
        base = tl.where(in_x, x, skip_ptr + picture * pixels * skip_channels)
        first = tl.where(in_x, tile, tile - x_tiles) * BLOCK_C
        return base, tl.where(in_x, x_channels, skip_channels), first, first + tl.where(in_x, 0, x_channels)
    return x, x_channels, tile * BLOCK_C, tile * BLOCK_C


@triton.jit
def _moments_kernel(
    partial_ptr, x_ptr, skip_ptr, pixels, width, x_channels, skip_channels, x_picture, tiles, x_tiles, chunk_pixels,
    chunks, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, PHASES: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of one chunk of pixels, for a tile of channels; partial [N,chunks,2,C]."""
    program = tl.program_id(0)
    chunk = program // tiles % chunks
    picture = (program // tiles // chunks).to(tl.int64)
    base, step, first, out_first = _source(
        x_ptr, skip_ptr, picture, x_picture, pixels, x_channels, skip_channels, program % tiles, x_tiles, BLOCK_C, SKIP
    )
    channel = first + tl.arange(0, BLOCK_C)
    used = channel < step
    row = tl.arange(0, ROWS)
    end = tl.minimum(chunk * chunk_pixels + chunk_pixels, pixels)
    # Every place of the tile keeps the moments of its own pixels, so that the loop needs no exchange between threads.
    # Four loads are under way at a time; their moments are taken in two passes and joined to the rest (Chan et al.).
    mean = tl.zeros((ROWS, BLOCK_C), tl.float32)
    squares = tl.zeros((ROWS, BLOCK_C), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    for start in range(chunk * chunk_pixels, end, 4 * ROWS):
        p0 = start + row
        p1, p2, p3 = p0 + ROWS, p0 + 2 * ROWS, p0 + 3 * ROWS
        v0 = _load(base, _places(p0, width, step, PHASES, WIDE), channel, (p0 < end)[:, None] & used[None, :])
        v1 = _load(base, _places(p1, width, step, PHASES, WIDE), channel, (p1 < end)[:, None] & used[None, :])
        v2 = _load(base, _places(p2, width, step, PHASES, WIDE), channel, (p2 < end)[:, None] & used[None, :])
        v3 = _load(base, _places(p3, width, step, PHASES, WIDE), channel, (p3 < end)[:, None] & used[None, :])
        new = tl.minimum(tl.maximum((end - p0 + ROWS - 1) // ROWS, 0), 4).to(tl.float32)
        near = ((v0 + v1) + (v2 + v3)) * (1.0 / tl.maximum(new, 1.0))[:, None]
        d0 = tl.where((p0 < end)[:, None], v0 - near, 0.0)
        d1 = tl.where((p1 < end)[:, None], v1 - near, 0.0)
        d2 = tl.where((p2 < end)[:, None], v2 - near, 0.0)
        d3 = tl.where((p3 < end)[:, None], v3 - near, 0.0)
        share = new / tl.maximum(count + new, 1.0)
        apart = near - mean
        mean += apart * share[:, None]
        squares += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3) + apart * apart * (count * share)[:, None]
        count += new
    whole = tl.sum(mean * count[:, None], 0) / tl.sum(count, 0)
    apart = mean - whole[None, :]
    squares = tl.sum(squares + apart * apart * count[:, None], 0)
    channels = x_channels + skip_channels
    partial = partial_ptr + (picture * chunks + chunk) * 2 * channels + out_first + tl.arange(0, BLOCK_C)
    tl.store(partial, whole, mask=used)
    tl.store(partial + channels, squares, mask=used)


@triton.jit
def _coefficients_kernel(
    coefficient_ptr, partial_ptr, weight_ptr, bias_ptr, film_ptr, rows_ptr, film_rows, film_stride, pixels,
    chunk_pixels, chunks, channels, groups, per_group, eps,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, FILM: tl.constexpr,
):  # fmt: skip
    """Centre, factor and offset of the channels of one group of one picture; coefficient [N,3,C]."""
    program = tl.program_id(0)
    picture = (program // groups).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    used = k < per_group
    channel = program % groups * per_group + k
    added = tl.zeros((BLOCK_C,), tl.float32)
    if FILM == 1:
        added = _film(film_ptr, rows_ptr, picture, film_rows, film_stride, channel, used)
    partial = partial_ptr + picture * chunks * 2 * channels + channel[None, :]
    total = pixels * 1.0 * per_group
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, chunks, BLOCK_S):
        chunk = start + tl.arange(0, BLOCK_S)
        mask = (chunk < chunks)[:, None] & used[None, :]
        count = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)[:, None]
        mean = tl.load(partial + chunk[:, None] * 2 * channels, mask=mask, other=0.0) + added[None, :]
        sums += tl.sum(tl.where(mask, mean * count, 0.0), 0)
    centre = tl.sum(sums, 0) / total
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, chunks, BLOCK_S):
        chunk = start + tl.arange(0, BLOCK_S)
        mask = (chunk < chunks)[:, None] & used[None, :]
        count = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)[:, None]
        mean = tl.load(partial + chunk[:, None] * 2 * channels, mask=mask, other=0.0) + added[None, :]
        squares = tl.load(partial + chunk[:, None] * 2 * channels + channels, mask=mask, other=0.0)
        apart = mean - centre
        sums += tl.sum(tl.where(mask, squares + apart * apart * count, 0.0), 0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(sums, 0) / total + eps)
    factor, offset = _affine(
        rstd, channel, used, weight_ptr, bias_ptr, film_ptr, rows_ptr, picture, film_rows, film_stride, channels, FILM == 2
    )
    coefficient = coefficient_ptr + picture * 3 * channels + channel
    tl.store(coefficient, centre - added, mask=used)
    tl.store(coefficient + channels, factor, mask=used)
    tl.store(coefficient + 2 * channels, offset, mask=used)


@triton.jit
def _apply_kernel(
    out_ptr, x_ptr, skip_ptr, coefficient_ptr, pixels, width, x_channels, skip_channels, x_picture, out_picture, tiles,
    x_tiles, blocks, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr,
    PHASES: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The output for one block of pixels (of the output where it is smaller) and a tile of channels."""
    # Backwards: what the moments read last may still be in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block = program // tiles % blocks
    picture = (program // tiles // blocks).to(tl.int64)
    base, step, first, out_first = _source(
        x_ptr, skip_ptr, picture, x_picture, pixels, x_channels, skip_channels, program % tiles, x_tiles, BLOCK_C, SKIP
    )
    channels = x_channels + skip_channels
    channel = first + tl.arange(0, BLOCK_C)
    out_channel = out_first + tl.arange(0, BLOCK_C)
    used = channel < step
    coefficient = coefficient_ptr + picture * 3 * channels + out_channel
    centre = tl.load(coefficient, mask=used, other=0.0)
    factor = tl.load(coefficient + channels, mask=used, other=0.0)
    offset = tl.load(coefficient + 2 * channels, mask=used, other=0.0)
    out = out_ptr + picture * out_picture
    pixel = block * ROWS + tl.arange(0, ROWS)
    if RESAMPLE == -1:
        half = width // 2
        mask = (pixel < pixels // 4)[:, None] & used[None, :]
        corner = (pixel // half) * 2 * width + (pixel % half) * 2
        y = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for quarter in tl.static_range(4):
            near = _places(corner + (quarter // 2) * width + quarter % 2, width, step, False, WIDE)
            y += _activate(_load(base, near, channel, mask), centre, factor, offset, SILU)
        _store(out, y * 0.25, pixel, half, channels, out_channel, mask, False, WIDE)
    else:
        mask = (pixel < pixels)[:, None] & used[None, :]
        v = _load(base, _places(pixel, width, step, PHASES, WIDE), channel, mask)
        y = _activate(v, centre, factor, offset, SILU)
        _store(out, y, pixel, width, channels, out_channel, mask, RESAMPLE == 1, WIDE)
