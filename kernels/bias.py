"""The bias of a convolution in Triton: added with a residual in one pass, and its gradient, the sums of channels.

cuDNN adds a bias in a pass of its own, and PyTorch sums 16-bit numbers of channels-last memory slowly. How the memory
is cut depends on its shape alone, and there are no atomics: the same input gives the same bits.

Knows nothing about autograd. Importing this needs Triton.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

from rcdm_fast.kernels.bias_kernels import add_kernel, sums_kernel
from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.ops import schema

TILE = 4096  # numbers that a program of 128 threads holds at a time: 32 in each
WARPS = 4
MOST_CHUNKS = 1024  # of the pixels, each summed by a program


def _blocks(value: Tensor) -> tuple[int, int, int, int]:
    """Pixels and channels of a channels-last tensor, and the rows and columns of a tile."""
    n, channels, height, width = value.shape
    block = min(next_power(channels), 128 // value.element_size() * 2)
    return n * height * width, channels, TILE // block, block


def _check(*tensors: Tensor) -> None:
    if any(not schema.is_channels_last(tensor) or tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError("bias: tensors must be channels-last, and of one shape")


def add_(out: Tensor, bias: Tensor, add: Tensor | None) -> Tensor:
    """out += bias (+ add), in place, rounded once.

    Args:
        out: [N,C,H,W], channels-last.
        bias: float32 [C].
        add: [N,C,H,W] of any floating dtype, channels-last; None for nothing.
    """
    _check(out, *([] if add is None else [add]))
    pixels, channels, rows, block = _blocks(out)
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(pixels, rows), triton.cdiv(channels, block))
    with device_of(out):
        wrap_triton(add_kernel)[grid](
            out, bias, out if add is None else add, pixels, channels, ADD=add is not None, ROWS=rows, BLOCK_C=block,
            WIDE=out.numel() >= WIDE_ELEMENTS, num_warps=2 * WARPS,  # with WARPS ptxas spills on sm_89
        )  # fmt: skip
    return out


def sums(grad: Tensor) -> Tensor:
    """Sums over pixels; [N,C,H,W], channels-last -> float32 [C]."""
    _check(grad)
    pixels, channels, rows, block = _blocks(grad)
    if grad.numel() == 0:
        return torch.zeros(channels, dtype=torch.float32, device=grad.device)
    tiles = triton.cdiv(pixels, rows)
    chunk = triton.cdiv(tiles, min(tiles, MOST_CHUNKS)) * rows
    chunks = triton.cdiv(pixels, chunk)
    partial = torch.empty((chunks, channels), dtype=torch.float32, device=grad.device)
    with device_of(grad):
        wrap_triton(sums_kernel)[(chunks, triton.cdiv(channels, block))](
            partial, grad, pixels, channels, chunk, ROWS=rows, BLOCK_C=block, WIDE=grad.numel() >= WIDE_ELEMENTS,
            num_warps=WARPS,
        )  # fmt: skip
    return partial.sum(0)
