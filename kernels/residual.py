"""What ends a residual block, in Triton: bias and residual added to a convolution's result in one pass.

The residual may be read upsampled or as 2x2 averages. How the memory is cut depends on its shape alone.

Inference only. Importing this needs Triton.
"""

from __future__ import annotations

import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.kernels.residual_kernels import residual_kernel
from rcdm_fast.ops import schema_folding

TILE = 4096  # numbers that a program of 128 threads holds at a time: 32 in each
WARPS = 4


def _write(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> None:
    n, channels, height, width = out.shape
    if out.numel() == 0:
        return
    pixels = n * height * width
    block = min(next_power(channels), 128 // out.element_size() * 2)
    rows = TILE // block
    wide = max(out.numel(), add.numel()) >= WIDE_ELEMENTS
    wrap_triton(residual_kernel)[(triton.cdiv(pixels, rows), triton.cdiv(channels, block))](
        out, bias, add, pixels, width, channels, RESAMPLE=resample, ROWS=rows, BLOCK_C=block, WIDE=wide, num_warps=WARPS
    )


@triton_op("rcdm_fast::add_residual_triton", mutates_args={"out"}, schema=schema_folding.ADD_RESIDUAL)
def add_residual(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> None:
    """`reference.add_residual`."""
    schema_folding.check_add_residual(out, bias, add, resample)
    with device_of(out):
        _write(out, bias, add, resample)
