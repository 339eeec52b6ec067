"""GroupNorm with FiLM, SiLU and resampling over channels-last memory, in Triton; see `reference.film_group_norm`.

An image whose groups fit into registers takes one kernel that reads it once (`slab_kernel`). Others take three: the
mean and the sum of squared deviations of every channel in every chunk of pixels (`moments_kernel`); from these, for
every channel, the numbers of y = (x - center) * factor + offset (`coefficients_kernel`); then y, SiLU and the
resampling (`apply_kernel`). Whoever wrote the image may have taken the moments, which leaves two kernels and one read
(`film_group_norm_given_out`). FiLM is part of those numbers, also where it is added before the norm: that moves the
mean and leaves the deviations. How an image is cut depends on its shape alone, never on the batch, and nothing depends
on timing: an image gets the same bits alone and in a batch.

Knows nothing about models or how an implementation is chosen. Inference only. Importing this needs Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.film_group_norm_kernels import apply_kernel, coefficients_kernel, moments_kernel, slab_kernel
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.ops import schema, schema_folding, schema_moments
from rcdm_fast.ops.schema import NormInputs

SLAB_BYTES = 65536  # of one slab, with its padding: no more than 64 registers in each of 512 threads
PROGRAMS_PER_IMAGE = 512  # about four on every multiprocessor of a large GPU, for a batch of one
THREADS = 128  # of a program that works on a tile
WIDE_ELEMENTS = 2**31  # an image with as many needs 64-bit offsets inside


@dataclass(frozen=True)
class Slab:
    """Whole groups of one image for one program."""

    groups: int
    rows: int
    block: int

    def warps(self, resample: int) -> int:
        """Numbers per thread: 32, or up to 64 where 32 make ptxas spill to fit two programs on a multiprocessor."""
        numbers = self.rows * self.block
        most = 8 if resample == -1 and numbers <= 16384 else 16
        return min(most, max(1, numbers // 1024))


@dataclass(frozen=True)
class Tiles:
    """How an image that does not fit is cut: tiles of channels, chunks of pixels."""

    block: int  # channels in a tile
    rows: int  # pixels that one load of 16 bytes per thread covers
    from_x: int
    from_skip: int
    chunk: int  # pixels

    @property
    def number(self) -> int:
        return self.from_x + self.from_skip


def plan_slab(pixels: int, channels: int, groups: int, itemsize: int) -> Slab | None:
    """As few groups as give 32 bytes per pixel in whole 16-byte vectors; None if they do not fit."""
    for count in (count for count in range(1, groups + 1) if groups % count == 0):
        length = count * (channels // groups)
        if count == groups or (length * itemsize >= 32 and length * itemsize % 16 == 0):
            slab = Slab(count, max(16, next_power(pixels)), next_power(length))
            return slab if slab.rows * slab.block * itemsize <= SLAB_BYTES else None
    raise AssertionError("groups is positive")


def plan_tiles(pixels: int, x_channels: int, skip_channels: int, itemsize: int) -> Tiles:
    """128 or 64 bytes of every pixel, whichever leaves no tile half empty."""
    full = 128 // itemsize
    fitting = [size for size in (full, full // 2) if x_channels % size == 0 and skip_channels % size == 0]
    block = fitting[0] if fitting else min(full, next_power(max(x_channels, skip_channels)))
    rows = THREADS * 16 // itemsize // block
    from_x, from_skip = -(-x_channels // block), -(-skip_channels // block)
    least = 4 * rows  # what the kernel loads at a time
    fraction = -(-pixels * (from_x + from_skip) // PROGRAMS_PER_IMAGE)
    return Tiles(block, rows, from_x, from_skip, max(1, -(-fraction // least)) * least)


def _write(
    out: Tensor, inputs: NormInputs, before: Tensor | None = None, given: tuple[Tensor, Tensor | None] | None = None
) -> None:
    """`given` are the moments of x and of skip."""
    x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases = inputs
    n, channels, height, width = out.shape
    if resample:
        height, width = (height // 2, width // 2) if resample == 1 else (height * 2, width * 2)
    pixels = height * width
    if n == 0 or pixels == 0:
        return
    skip_channels = 0 if skip is None else skip.shape[1]
    x_channels = channels - skip_channels
    x_image, out_image = x.shape[1] * x.shape[2] * x.shape[3], channels * out.shape[2] * out.shape[3]
    # What is not there is replaced by a tensor that is, so that kernels have one signature; they never read it.
    second = x if skip is None else skip
    added_or_scaled = 0 if film is None else 1 if film.shape[1] == channels else 2
    table, picked = (weight, weight) if film is None or rows is None else (film, rows)
    table_rows, table_stride = (0, 0) if film is None else (film.shape[0], film.stride(0))
    per_group = channels // groups
    flags = {"PHASES": phases, "SKIP": skip is not None}
    constant = weight if before is None else before
    form = {"SILU": silu, "RESAMPLE": resample}

    slab = plan_slab(pixels, channels, groups, x.element_size())
    if slab is not None and given is None:
        sets = groups // slab.groups
        wrap_triton(slab_kernel)[(n * sets,)](
            out, x, second, weight, bias, constant, table, picked, table_rows, table_stride, pixels, width, x_channels,
            skip_channels, x_image, out_image, per_group, sets, eps, BEFORE=before is not None,
            SET_CHANNELS=slab.groups * per_group, SET_GROUPS=slab.groups, ROWS=slab.rows, BLOCK_C=slab.block,
            BLOCK_G=next_power(slab.groups), FILM=added_or_scaled, **flags, **form, num_warps=slab.warps(resample),
        )  # fmt: skip
        return

    tiles = plan_tiles(pixels, x_channels, skip_channels, x.element_size())
    coefficients = torch.empty((n, 3, channels), dtype=torch.float32, device=x.device)
    wide = max(x_image, out_image, pixels * skip_channels) >= WIDE_ELEMENTS
    warps = THREADS // 32
    chunk = tiles.chunk if given is None else schema_moments.CHUNK
    chunks = -(-pixels // chunk)
    if given is None:
        partial = beside = torch.empty((n, chunks, 3, channels), dtype=torch.float32, device=x.device)
        parts = channels, 0
        wrap_triton(moments_kernel)[(n * chunks * tiles.number,)](
            partial, x, second, pixels, width, x_channels, skip_channels, x_image, tiles.number, tiles.from_x,
            chunk, chunks, ROWS=tiles.rows, BLOCK_C=tiles.block, **flags, WIDE=wide, num_warps=warps,
        )  # fmt: skip
    else:
        partial, beside = given[0], given[0] if given[1] is None else given[1]
        parts = x_channels, skip_channels
    block = next_power(per_group)
    wrap_triton(coefficients_kernel)[(n * groups,)](
        coefficients, partial, beside, weight, bias, constant, table, picked, table_rows, table_stride, pixels, chunk,
        chunks, *parts, groups, per_group, eps, BLOCK_S=min(next_power(chunks), max(1, 4096 // block)), BLOCK_C=block,
        FILM=added_or_scaled, BEFORE=before is not None, APART=parts[1] > 0, num_warps=4,
    )  # fmt: skip
    block_rows, written = (tiles.rows, pixels // 4) if resample == -1 else (4 * tiles.rows, pixels)
    blocks = -(-written // block_rows)
    wrap_triton(apply_kernel)[(n * blocks * tiles.number,)](
        out, x, second, coefficients, pixels, width, x_channels, skip_channels, x_image, out_image, tiles.number,
        tiles.from_x, blocks, ROWS=block_rows, BLOCK_C=tiles.block, **flags, **form, WIDE=wide, num_warps=warps,
    )  # fmt: skip


# Typed out, for PyTorch 2.11 reads the signature beside the schema.
@triton_op("rcdm_fast::film_group_norm_triton_out", mutates_args={"out"}, schema=schema.FILM_GROUP_NORM_OUT)
def film_group_norm_out(
    out: Tensor,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    rows: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    resample: int,
    phases: bool,
) -> None:
    """`reference.film_group_norm` into `out`; a row of `film` that is not there gives NaN for its image."""
    inputs = NormInputs(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases)
    schema.check_out(out, schema.check_film_group_norm(inputs), x)
    with device_of(x):
        _write(out, inputs)


@triton_op(
    "rcdm_fast::film_group_norm_before_triton_out",
    mutates_args={"out"},
    schema=schema_folding.FILM_GROUP_NORM_BEFORE_OUT,
)
def film_group_norm_before_out(
    out: Tensor,
    before: Tensor,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    rows: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    resample: int,
    phases: bool,
) -> None:
    """`reference.film_group_norm_before` into `out`; otherwise as `film_group_norm_out`."""
    inputs = NormInputs(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases)
    schema_folding.check_before(out, before, inputs)
    with device_of(x):
        _write(out, inputs, before)


@triton_op(
    "rcdm_fast::film_group_norm_given_triton_out",
    mutates_args={"out"},
    schema=schema_moments.FILM_GROUP_NORM_GIVEN_OUT,
)
def film_group_norm_given_out(
    out: Tensor,
    moments: Tensor,
    skip_moments: Tensor | None,
    before: Tensor | None,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    rows: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    resample: int,
    phases: bool,
) -> None:
    """`reference_moments.film_group_norm_given_out`; otherwise as `film_group_norm_out`."""
    inputs = NormInputs(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases)
    schema_moments.check_given(out, moments, skip_moments, before, inputs)
    with device_of(x):
        _write(out, inputs, before, (moments, skip_moments))


@triton_op("rcdm_fast::film_group_norm_triton", mutates_args=(), schema=schema.FILM_GROUP_NORM)
def film_group_norm(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    rows: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    resample: int,
    phases: bool,
) -> Tensor:
    """`reference.film_group_norm` as a new tensor; otherwise as `film_group_norm_out`."""
    inputs = NormInputs(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases)
    schema.check_film_group_norm(inputs)
    out = schema.film_group_norm_result(inputs)
    with device_of(x):
        _write(out, inputs)
    return out
