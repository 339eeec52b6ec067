"""The Triton kernels behind `bias.py`: a bias added, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_kernel(
    out_ptr, bias_ptr, add_ptr, pixels, channels, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """out [pixels,channels] += bias, and add of the same shape where ADD."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if WIDE:
        row = row.to(tl.int64)
    at = (row * channels)[:, None] + channel[None, :]
    there = (row < pixels)[:, None] & (channel < channels)[None, :]
    bias = tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)
    v = tl.load(out_ptr + at, mask=there, other=0.0).to(tl.float32) + bias[None, :]
    if ADD:
        v += tl.load(add_ptr + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def sums_kernel(
    partial_ptr, grad_ptr, pixels, channels, chunk, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr
):
    """partial [chunks,channels]: sums of grad [pixels,channels] over `chunk` pixels each, a multiple of ROWS."""
    start = tl.program_id(0) * chunk
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for step in range(0, chunk, ROWS):
        row = start + step + tl.arange(0, ROWS)
        if WIDE:
            row = row.to(tl.int64)
        there = (row < pixels)[:, None] & (channel < channels)[None, :]
        total += tl.load(grad_ptr + (row * channels)[:, None] + channel[None, :], mask=there, other=0.0).to(tl.float32)
    at = tl.program_id(0) * channels + channel
    tl.store(partial_ptr + at, tl.sum(total, 0), mask=channel < channels)
