"""The gradient of film_group_norm in Triton; see `gradients.film_group_norm`.

One program works on whole groups of one image, so that no sum crosses programs: it passes over its pixels four times
(mean, deviations, sums of the gradient, result), the later times out of the cache. How an image is cut depends on its
shape alone, and nothing depends on timing: an image's gradients have the same bits alone and in a batch.

Knows nothing about autograd or how an implementation is chosen. Importing this needs Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.film_group_norm_backward_kernels import gradient_kernel
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.ops import schema, schema_backward
from rcdm_fast.ops.schema import NormInputs

TILE = 4096  # numbers that a program of 128 threads holds at a time: 32 in each
WARPS = 4


def set_groups(channels: int, groups: int, itemsize: int) -> int:
    """As few groups as give 32 bytes per pixel in whole 16-byte vectors, or all."""
    for count in range(1, groups):
        length = count * (channels // groups)
        if groups % count == 0 and length * itemsize >= 32 and length * itemsize % 16 == 0:
            return count
    return groups


@triton_op(
    "rcdm_fast::film_group_norm_triton_backward", mutates_args=(), schema=schema_backward.FILM_GROUP_NORM_BACKWARD
)
def film_group_norm_backward(
    grad: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for x, skip, weight, bias and the picked rows of film; without elements for what is not there."""
    of = NormInputs(x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases)
    shape = schema.check_film_group_norm(of)
    schema.check_out(grad, shape, x)
    n, channels, height, width = shape
    if resample:
        height, width = (height // 2, width // 2) if resample == 1 else (height * 2, width * 2)
    pixels = height * width
    last = torch.channels_last
    of_x = torch.zeros_like(x, memory_format=last) if phases else torch.empty_like(x, memory_format=last)
    nothing = torch.zeros(0, dtype=torch.float32, device=x.device)
    of_skip = nothing if skip is None else torch.empty_like(skip, memory_format=last)
    of_weight, of_bias = (torch.empty((n, channels), dtype=torch.float32, device=x.device) for _ in range(2))
    columns = 0 if film is None else film.shape[1]
    of_rows = torch.empty((n if columns else 0, columns), dtype=torch.float32, device=x.device)
    if grad.numel() == 0:
        return of_x, of_skip, of_weight.sum(0), of_bias.sum(0), of_rows.zero_()
    count = set_groups(channels, groups, x.element_size())
    length, sets = count * (channels // groups), groups // count
    block = next_power(length)
    skip_channels = 0 if skip is None else skip.shape[1]
    x_image, grad_image = x[0].numel(), grad[0].numel()
    table, picked = (weight, weight) if film is None or rows is None else (film, rows)
    with device_of(x):
        wrap_triton(gradient_kernel)[(n * sets,)](
            of_x, of_x if skip is None else of_skip, of_weight, of_bias, of_rows if columns else of_bias, grad, x,
            x if skip is None else skip, weight, bias, table, picked, 0 if film is None else film.shape[0],
            0 if film is None else film.stride(0), pixels, width, channels - skip_channels, skip_channels, x_image,
            grad_image, channels // groups, sets, eps,
            SET_CHANNELS=length, SET_GROUPS=count, ROWS=max(16, min(next_power(pixels), TILE // block)), BLOCK_C=block,
            BLOCK_G=next_power(count), FILM=columns // channels, SILU=silu, RESAMPLE=resample, PHASES=phases,
            SKIP=skip is not None, WIDE=max(x_image, grad_image, pixels * skip_channels) >= WIDE_ELEMENTS,
            num_warps=WARPS,
        )  # fmt: skip
    return of_x, of_skip, of_weight.sum(0), of_bias.sum(0), of_rows
