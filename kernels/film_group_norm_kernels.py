"""The Triton kernels behind `film_group_norm.py`: what one program does with its part of the images.

Names: a place is where the channels of a pixel begin in one image, a tile is the channels of one program, BLOCK_ and
ROWS are sizes padded to powers of two. FILM is 0 (none), 1 (added before the norm) or 2 (scale and shift); BEFORE says
whether every channel has a number of its own that is added before the norm too; RESAMPLE is -1 (2x2 averages), 0 or 1
(nearest neighbor); SKIP says whether there is a second input behind the first one's channels; WIDE asks for 64-bit
places inside an image. Images are always counted in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rcdm_fast.kernels.film_group_norm_parts import activate, affine, film_row, over_groups, read, store


@triton.jit
def slab_kernel(
    out_ptr, x_ptr, skip_ptr, weight_ptr, bias_ptr, before_ptr, film_ptr, rows_ptr, film_rows, film_stride, pixels,
    width, x_channels, skip_channels, x_image, out_image, per_group, sets, eps,
    SET_CHANNELS: tl.constexpr, SET_GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr, FILM: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr, PHASES: tl.constexpr,
    SKIP: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """All pixels of SET_GROUPS whole groups of one image."""
    program = tl.program_id(0)
    image = (program // sets).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    channel = (program % sets) * SET_CHANNELS + k
    channels = x_channels + skip_channels
    pixel = tl.arange(0, ROWS)
    used = k < SET_CHANNELS
    mask = (pixel < pixels)[:, None] & used[None, :]
    x = x_ptr + image * x_image
    in_x = used & (channel < x_channels)
    in_skip = used & (channel >= x_channels)
    v = read(x, pixel, pixels, width, x_channels, channel, in_x, PHASES, False)
    if SKIP:
        skip = skip_ptr + image * pixels * skip_channels - x_channels
        v += read(skip, pixel, pixels, width, skip_channels, channel, in_skip, False, False)

    mean = tl.sum(v, 0) / pixels
    deviation = tl.where(mask, v - mean[None, :], 0.0)
    squares = tl.sum(deviation * deviation, 0)
    rest = tl.sum(deviation, 0) / pixels  # what rounding left out of the mean
    added = tl.zeros((BLOCK_C,), tl.float32)
    if FILM == 1:
        added = film_row(film_ptr, rows_ptr, image, film_rows, film_stride, channel, used)
    if BEFORE:
        added += tl.load(before_ptr + channel, mask=used, other=0.0)
    member = (k // per_group)[:, None] == tl.arange(0, BLOCK_G)[None, :]
    center = over_groups(tl.where(used, mean + added, 0.0), member, SET_GROUPS) / per_group - added
    apart = tl.where(used, mean - center + rest, 0.0)
    rest = over_groups(apart, member, SET_GROUPS) / per_group
    squares = over_groups(squares + apart * apart * pixels, member, SET_GROUPS)
    rstd = 1.0 / tl.sqrt_rn(squares / (pixels * 1.0 * per_group) + eps)
    factor, offset = affine(
        rstd, channel, used, weight_ptr, bias_ptr, film_ptr, rows_ptr, image, film_rows, film_stride, channels, FILM
    )
    offset -= rest * factor
    out = out_ptr + image * out_image
    if RESAMPLE == -1:  # the four pixels of an average lie in other threads: read them again, from the cache
        half = width // 2
        pooled = tl.arange(0, ROWS // 4)
        corner = (pooled // half) * 2 * width + (pooled % half) * 2
        mask = (pooled < pixels // 4)[:, None] & used[None, :]
        y = tl.zeros((ROWS // 4, BLOCK_C), tl.float32)
        for quarter in tl.static_range(4):
            near = corner + (quarter // 2) * width + quarter % 2
            v = read(x, near, pixels, width, x_channels, channel, in_x, False, False)
            if SKIP:
                v += read(skip, near, pixels, width, skip_channels, channel, in_skip, False, False)
            y += activate(v, center, factor, offset, SILU)
        store(out, y * 0.25, pooled, half, channels, channel, mask, False, False)
    else:
        y = activate(v, center, factor, offset, SILU)
        store(out, y, pixel, width, channels, channel, mask, RESAMPLE == 1, False)


@triton.jit
def _source(
    x_ptr, skip_ptr, image, x_image, pixels, x_channels, skip_channels, tile, x_tiles,
    BLOCK_C: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """Where a tile of channels lies: (image's base, channels per pixel there, first channel there, and in all)."""
    x = x_ptr + image * x_image
    if SKIP:
        in_x = tile < x_tiles
        base = tl.where(in_x, x, skip_ptr + image * pixels * skip_channels)
        first = tl.where(in_x, tile, tile - x_tiles) * BLOCK_C
        return base, tl.where(in_x, x_channels, skip_channels), first, first + tl.where(in_x, 0, x_channels)
    else:
        return x, x_channels, tile * BLOCK_C, tile * BLOCK_C


@triton.jit
def _from_pivot(
    base, pixel, end, width, step, channel, used, pivot, PHASES: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """What `read` gives, less the pivot; 0 for pixels that are not there."""
    v = read(base, pixel, end, width, step, channel, used, PHASES, WIDE)
    return tl.where((pixel < end)[:, None], v - pivot[None, :], 0.0)


@triton.jit
def moments_kernel(
    partial_ptr, x_ptr, skip_ptr, pixels, width, x_channels, skip_channels, x_image, tiles, x_tiles, chunk_pixels,
    chunks, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, PHASES: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Moments of one chunk of pixels, for a tile of channels; partial [N,chunks,3,C].

    They are the mean's distance from a pivot, the sum of squared deviations, and the pivot: the chunk's first pixel. A
    mean far from 0 would lose in float32 the digits that matter beside a small deviation.
    """
    program = tl.program_id(0)
    chunk = program // tiles % chunks
    image = (program // tiles // chunks).to(tl.int64)
    base, step, first, out_first = _source(
        x_ptr, skip_ptr, image, x_image, pixels, x_channels, skip_channels, program % tiles, x_tiles, BLOCK_C, SKIP
    )
    channel = first + tl.arange(0, BLOCK_C)
    used = channel < step
    row = tl.arange(0, ROWS)
    end = tl.minimum(chunk * chunk_pixels + chunk_pixels, pixels)
    first_pixel = chunk * chunk_pixels + tl.arange(0, 1)
    pivot = tl.sum(read(base, first_pixel, end, width, step, channel, used, PHASES, WIDE), 0)
    # Every place of the tile keeps the moments of its own pixels, so that the loop needs no exchange between threads.
    # Four loads are under way at a time; their moments are taken in two passes and joined to the rest (Chan et al.).
    mean = tl.zeros((ROWS, BLOCK_C), tl.float32)
    squares = tl.zeros((ROWS, BLOCK_C), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    for start in range(chunk * chunk_pixels, end, 4 * ROWS):
        p0 = start + row
        p1, p2, p3 = p0 + ROWS, p0 + 2 * ROWS, p0 + 3 * ROWS
        v0 = _from_pivot(base, p0, end, width, step, channel, used, pivot, PHASES, WIDE)
        v1 = _from_pivot(base, p1, end, width, step, channel, used, pivot, PHASES, WIDE)
        v2 = _from_pivot(base, p2, end, width, step, channel, used, pivot, PHASES, WIDE)
        v3 = _from_pivot(base, p3, end, width, step, channel, used, pivot, PHASES, WIDE)
        new = tl.minimum(tl.maximum(end - p0 + ROWS - 1, 0) // ROWS, 4).to(tl.float32)
        near = ((v0 + v1) + (v2 + v3)) * (1.0 / tl.maximum(new, 1.0))[:, None]
        d0 = v0 - near * (p0 < end).to(tl.float32)[:, None]  # 0 where there is no pixel
        d1 = v1 - near * (p1 < end).to(tl.float32)[:, None]
        d2 = v2 - near * (p2 < end).to(tl.float32)[:, None]
        d3 = v3 - near * (p3 < end).to(tl.float32)[:, None]
        fraction = new / tl.maximum(count + new, 1.0)
        apart = near - mean
        mean += apart * fraction[:, None]
        squares += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3) + apart * apart * (count * fraction)[:, None]
        count += new
    whole = tl.sum(mean * count[:, None], 0) / tl.sum(count, 0)
    apart = mean - whole[None, :]
    squares = tl.sum(squares + apart * apart * count[:, None], 0)
    channels = x_channels + skip_channels
    partial = partial_ptr + (image * chunks + chunk) * 3 * channels + out_first + tl.arange(0, BLOCK_C)
    tl.store(partial, whole, mask=used)
    tl.store(partial + channels, squares, mask=used)
    tl.store(partial + 2 * channels, pivot, mask=used)


@triton.jit
def _chunks(
    partial, second, start, chunks, chunk_pixels, pixels, x_channels, skip_channels, channel, used,
    BLOCK_S: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Of some chunks: means from the pivot, pivots, numbers of pixels (0 for what is not there), squared deviations.

    The moments are those of x, or of x and skip side by side; APART: the skip's lie elsewhere, at `second`.
    """
    chunk = start + tl.arange(0, BLOCK_S)
    mask = (chunk < chunks)[:, None] & used[None, :]
    here = mask & (channel < x_channels)[None, :]
    at = partial + chunk[:, None] * 3 * x_channels + channel[None, :]
    mean = tl.load(at, mask=here, other=0.0)
    squares = tl.load(at + x_channels, mask=here, other=0.0)
    pivot = tl.load(at + 2 * x_channels, mask=here, other=0.0)
    if APART:
        there = mask & (channel >= x_channels)[None, :]
        at = second + chunk[:, None] * 3 * skip_channels + (channel - x_channels)[None, :]
        mean += tl.load(at, mask=there, other=0.0)
        squares += tl.load(at + skip_channels, mask=there, other=0.0)
        pivot += tl.load(at + 2 * skip_channels, mask=there, other=0.0)
    count = tl.where(mask, tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels)[:, None], 0)
    return mean, pivot, count, squares


@triton.jit
def coefficients_kernel(
    coefficient_ptr, partial_ptr, second_ptr, weight_ptr, bias_ptr, before_ptr, film_ptr, rows_ptr, film_rows,
    film_stride, pixels, chunk_pixels, chunks, x_channels, skip_channels, groups, per_group, eps,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, FILM: tl.constexpr, BEFORE: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Center, factor and offset of the channels of one group of one image; coefficient [N,3,C]. See `_chunks`."""
    program = tl.program_id(0)
    image = (program // groups).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    used = k < per_group
    channel = program % groups * per_group + k
    added = tl.zeros((BLOCK_C,), tl.float32)
    if FILM == 1:
        added = film_row(film_ptr, rows_ptr, image, film_rows, film_stride, channel, used)
    if BEFORE:
        added += tl.load(before_ptr + channel, mask=used, other=0.0)
    channels = x_channels + skip_channels
    partial = partial_ptr + image * chunks * 3 * x_channels
    second = second_ptr + image * chunks * 3 * skip_channels
    total = pixels * 1.0 * per_group
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, chunks, BLOCK_S):
        mean, pivot, count, _ = _chunks(
            partial, second, start, chunks, chunk_pixels, pixels, x_channels, skip_channels, channel, used, BLOCK_S,
            APART,
        )  # fmt: skip
        sums += tl.sum(((pivot + added[None, :]) + mean) * count, 0)
    center = tl.sum(sums, 0) / total - added
    sums = tl.zeros((BLOCK_C,), tl.float32)
    rests = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, chunks, BLOCK_S):
        mean, pivot, count, squares = _chunks(
            partial, second, start, chunks, chunk_pixels, pixels, x_channels, skip_channels, channel, used, BLOCK_S,
            APART,
        )  # fmt: skip
        apart = (pivot - center[None, :]) + mean
        sums += tl.sum(squares + apart * apart * count, 0)
        rests += tl.sum(apart * count, 0)
    rest = tl.sum(rests, 0) / total  # what rounding left out of the center
    rstd = 1.0 / tl.sqrt_rn(tl.sum(sums, 0) / total + eps)
    factor, offset = affine(
        rstd, channel, used, weight_ptr, bias_ptr, film_ptr, rows_ptr, image, film_rows, film_stride, channels, FILM
    )
    offset -= rest * factor
    coefficient = coefficient_ptr + image * 3 * channels + channel
    tl.store(coefficient, center, mask=used)
    tl.store(coefficient + channels, factor, mask=used)
    tl.store(coefficient + 2 * channels, offset, mask=used)


@triton.jit
def apply_kernel(
    out_ptr, x_ptr, skip_ptr, coefficient_ptr, pixels, width, x_channels, skip_channels, x_image, out_image, tiles,
    x_tiles, blocks, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr,
    PHASES: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The output for one block of pixels (of the output where it is smaller) and a tile of channels."""
    # Backwards: what the moments read last may still be in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block = program // tiles % blocks
    image = (program // tiles // blocks).to(tl.int64)
    base, step, first, out_first = _source(
        x_ptr, skip_ptr, image, x_image, pixels, x_channels, skip_channels, program % tiles, x_tiles, BLOCK_C, SKIP
    )
    channels = x_channels + skip_channels
    channel = first + tl.arange(0, BLOCK_C)
    out_channel = out_first + tl.arange(0, BLOCK_C)
    used = channel < step
    coefficient = coefficient_ptr + image * 3 * channels + out_channel
    center = tl.load(coefficient, mask=used, other=0.0)
    factor = tl.load(coefficient + channels, mask=used, other=0.0)
    offset = tl.load(coefficient + 2 * channels, mask=used, other=0.0)
    out = out_ptr + image * out_image
    pixel = block * ROWS + tl.arange(0, ROWS)
    if RESAMPLE == -1:
        half = width // 2
        mask = (pixel < pixels // 4)[:, None] & used[None, :]
        corner = (pixel // half) * 2 * width + (pixel % half) * 2
        y = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for quarter in tl.static_range(4):
            near = corner + (quarter // 2) * width + quarter % 2
            v = read(base, near, pixels, width, step, channel, used, False, WIDE)
            y += activate(v, center, factor, offset, SILU)
        store(out, y * 0.25, pixel, half, channels, out_channel, mask, False, WIDE)
    else:
        mask = (pixel < pixels)[:, None] & used[None, :]
        v = read(base, pixel, pixels, width, step, channel, used, PHASES, WIDE)
        y = activate(v, center, factor, offset, SILU)
        store(out, y, pixel, width, channels, out_channel, mask, RESAMPLE == 1, WIDE)
