"""What ends a residual block, in Triton: bias and residual added to a convolution's result in one pass.

The residual may be read upsampled or as 2x2 averages. The same pass can take the moments of what it writes, or of what
is there. How the memory is cut depends on its shape alone.

Inference only. Importing this needs Triton.
"""

from __future__ import annotations

import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.kernels.residual_kernels import residual_kernel
from rcdm_fast.ops import schema_folding, schema_moments

HELD = 32  # numbers in every thread of a program
THREADS = 128  # of a program; twice as many for moments, which need a whole chunk of pixels


def _write(out: Tensor, added: tuple[Tensor, Tensor, int] | None, moments: Tensor | None) -> None:
    """`added` is (bias, residual, how that is read)."""
    n, channels, height, width = out.shape
    if out.numel() == 0:
        return
    pixels = n * height * width
    threads = THREADS if moments is None else 2 * THREADS
    block = min(next_power(channels), 128 // out.element_size() * (2 if moments is None else 1))
    rows = HELD * threads // block if moments is None else schema_moments.CHUNK
    bias, add, resample = added or (out, out, 0)  # what is not there is never read
    wide = max(out.numel(), add.numel()) >= WIDE_ELEMENTS
    wrap_triton(residual_kernel)[(triton.cdiv(pixels, rows), triton.cdiv(channels, block))](
        out, out if moments is None else moments, bias, add, pixels, width, channels, ADD=added is not None,
        MOMENTS=moments is not None, RESAMPLE=resample, ROWS=rows, BLOCK_C=block, WIDE=wide, num_warps=threads // 32,
    )  # fmt: skip


@triton_op("rcdm_fast::add_residual_triton", mutates_args={"out"}, schema=schema_folding.ADD_RESIDUAL)
def add_residual(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> None:
    """`reference.add_residual`."""
    schema_folding.check_add_residual(out, bias, add, resample)
    with device_of(out):
        _write(out, (bias, add, resample), None)


@triton_op("rcdm_fast::add_residual_moments_triton", mutates_args={"out"}, schema=schema_moments.ADD_RESIDUAL_MOMENTS)
def add_residual_moments(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> Tensor:
    """`reference_moments.add_residual_moments`."""
    result = schema_moments.add_residual_moments_result(out, bias, add, resample)
    with device_of(out):
        _write(out, (bias, add, resample), result)
    return result


@triton_op("rcdm_fast::moments_triton", mutates_args={}, schema=schema_moments.MOMENTS)
def moments(x: Tensor) -> Tensor:
    """`reference_moments.moments`."""
    result = schema_moments.moments_result(x)
    with device_of(x):
        _write(x, None, result)
    return result
