"""The Triton kernel behind `film_group_norm_backward.py`: all gradients of whole groups of one image.

Names are those of `film_group_norm_kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rcdm_fast.kernels.film_group_norm_parts import affine, film_row, over_groups, places, read


@triton.jit
def _both(
    x, skip, pixel, pixels, width, x_channels, skip_channels, channel, in_x, in_skip,
    PHASES: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pixels of x beside skip; zeros for what is not there."""
    v = read(x, pixel, pixels, width, x_channels, channel, in_x, PHASES, WIDE)
    if SKIP:
        v += read(skip, pixel, pixels, width, skip_channels, channel, in_skip, False, WIDE)
    return v


@triton.jit
def _before_activation(
    grad, d, factor, offset, pixel, pixels, width, channels, channel, used,
    SILU: tl.constexpr, RESAMPLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of d * factor + offset, for d [pixels,channels]; zeros for pixels that are not there."""
    row = pixel // width
    column = pixel - row * width
    if RESAMPLE == 1:
        corner = row * 4 * width + column * 2
        g = tl.zeros_like(d)
        for quarter in tl.static_range(4):
            near = corner + (quarter // 2) * 2 * width + quarter % 2
            g += read(grad, near, 4 * pixels, width, channels, channel, used, False, WIDE)
    elif RESAMPLE == -1:
        near = (row // 2) * (width // 2) + column // 2
        g = 0.25 * read(grad, near, pixels // 4, width, channels, channel, used, False, WIDE)
    else:
        g = read(grad, pixel, pixels, width, channels, channel, used, False, WIDE)
    if SILU:
        y = d * factor[None, :] + offset[None, :]
        fraction = 1.0 / (1.0 + tl.exp2(y * -1.4426950408889634))
        # Far below zero y is so large that 1 - share times it matters, where share itself is 0.
        g *= fraction * (1.0 + y * (1.0 - fraction))
    return tl.where((pixel < pixels)[:, None], g, 0.0)


@triton.jit
def gradient_kernel(
    of_x_ptr, of_skip_ptr, of_weight_ptr, of_bias_ptr, of_rows_ptr, grad_ptr, x_ptr, skip_ptr, weight_ptr, bias_ptr,
    film_ptr, rows_ptr, film_rows, film_stride, pixels, width, x_channels, skip_channels, x_image, grad_image,
    per_group, sets, eps,
    SET_CHANNELS: tl.constexpr, SET_GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr, FILM: tl.constexpr, SILU: tl.constexpr, RESAMPLE: tl.constexpr, PHASES: tl.constexpr,
    SKIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All gradients for SET_GROUPS whole groups of one image; of_weight, of_bias [N,C], of_rows [N,C or 2C]."""
    program = tl.program_id(0)
    image = (program // sets).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    used = k < SET_CHANNELS
    channel = (program % sets) * SET_CHANNELS + k
    channels = x_channels + skip_channels
    in_x = used & (channel < x_channels)
    in_skip = used & (channel >= x_channels)
    x = x_ptr + image * x_image
    skip = skip_ptr + image * pixels * skip_channels - x_channels
    grad = grad_ptr + image * grad_image
    row = tl.arange(0, ROWS)

    first = tl.arange(0, 1)
    pivot = tl.sum(
        _both(x, skip, first, pixels, width, x_channels, skip_channels, channel, in_x, in_skip, PHASES, SKIP, WIDE), 0
    )
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, pixels, ROWS):
        p = start + row
        v = _both(x, skip, p, pixels, width, x_channels, skip_channels, channel, in_x, in_skip, PHASES, SKIP, WIDE)
        total += tl.sum(tl.where((p < pixels)[:, None], v - pivot[None, :], 0.0), 0)
    mean = pivot + total / pixels
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, pixels, ROWS):
        p = start + row
        v = _both(x, skip, p, pixels, width, x_channels, skip_channels, channel, in_x, in_skip, PHASES, SKIP, WIDE)
        apart = tl.where((p < pixels)[:, None], v - mean[None, :], 0.0)
        squares += tl.sum(apart * apart, 0)
    member = (k // per_group)[:, None] == tl.arange(0, BLOCK_G)[None, :]
    size = pixels * 1.0 * per_group
    added = tl.zeros((BLOCK_C,), tl.float32)
    if FILM == 1:
        added = film_row(film_ptr, rows_ptr, image, film_rows, film_stride, channel, used)
    center = over_groups(tl.where(used, mean + added, 0.0), member, SET_GROUPS) / per_group - added
    apart = tl.where(used, mean - center, 0.0)
    squares = over_groups(squares + apart * apart * pixels, member, SET_GROUPS)
    rstd = 1.0 / tl.sqrt_rn(squares / size + eps)
    factor, offset = affine(
        rstd, channel, used, weight_ptr, bias_ptr, film_ptr, rows_ptr, image, film_rows, film_stride, channels, FILM
    )

    sums = tl.zeros((BLOCK_C,), tl.float32)
    products = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, pixels, ROWS):
        p = start + row
        v = _both(x, skip, p, pixels, width, x_channels, skip_channels, channel, in_x, in_skip, PHASES, SKIP, WIDE)
        d = v - center[None, :]
        g = _before_activation(grad, d, factor, offset, p, pixels, width, channels, channel, used, SILU, RESAMPLE, WIDE)
        sums += tl.sum(g, 0)
        products += tl.sum(g * d, 0)
    slope = -rstd * rstd * over_groups(tl.where(used, factor * products, 0.0), member, SET_GROUPS) / size
    constant = -over_groups(tl.where(used, factor * sums, 0.0), member, SET_GROUPS) / size
    gain = tl.zeros((BLOCK_C,), tl.float32) + 1.0
    if FILM == 2:
        gain += film_row(film_ptr, rows_ptr, image, film_rows, film_stride, channel, used)
        weight = tl.load(weight_ptr + channel, mask=used, other=0.0)
        bias = tl.load(bias_ptr + channel, mask=used, other=0.0)
        of_rows = of_rows_ptr + image * 2 * channels + channel
        tl.store(of_rows, weight * rstd * products + bias * sums, mask=used)
        tl.store(of_rows + channels, sums, mask=used)
    if FILM == 1:
        of_added = factor * sums + pixels * (slope * apart + constant)
        tl.store(of_rows_ptr + image * channels + channel, of_added, mask=used)
    tl.store(of_weight_ptr + image * channels + channel, gain * rstd * products, mask=used)
    tl.store(of_bias_ptr + image * channels + channel, gain * sums, mask=used)

    for start in range(0, pixels, ROWS):
        p = start + row
        v = _both(x, skip, p, pixels, width, x_channels, skip_channels, channel, in_x, in_skip, PHASES, SKIP, WIDE)
        d = v - center[None, :]
        g = _before_activation(grad, d, factor, offset, p, pixels, width, channels, channel, used, SILU, RESAMPLE, WIDE)
        found = g * factor[None, :] + (d * slope[None, :] + constant[None, :])
        there = (p < pixels)[:, None]
        at = places(p, width, x_channels, PHASES, WIDE)[:, None] + channel[None, :]
        of_x = of_x_ptr + image * x_image + at
        tl.store(of_x, found.to(of_x_ptr.dtype.element_ty), mask=there & in_x[None, :])
        if SKIP:
            at = places(p, width, skip_channels, False, WIDE)[:, None] + (channel - x_channels)[None, :]
            of_skip = of_skip_ptr + image * pixels * skip_channels + at
            tl.store(of_skip, found.to(of_skip_ptr.dtype.element_ty), mask=there & in_skip[None, :])
