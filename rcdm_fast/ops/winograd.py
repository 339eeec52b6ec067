"""3x3 convolutions in float32 on a CPU, after Winograd: which ones, and how they are called.

Which run so is a rule and not measured anew on every machine: a run that goes on elsewhere computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops import library
from rcdm_fast.ops.schema_winograd import PANEL, PLACES

LEAST_SIDE = 4  # of an image: smaller ones leave most of a tile empty
MOST_BYTES = 2**27  # of a weight at its 36 points, which takes four times the memory of its nine numbers


def serves(weight: Tensor, stride: int, padding: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a convolution by weight [O,I,k,k] runs so, but for images under `LEAST_SIDE`.

    On processors with AVX2 and later: there it takes a third to a half of oneDNN's time, measured with AVX2.
    """
    if device.type != "cpu" or weight.shape[2:] != (3, 3) or (stride, padding) != (1, 1):
        return False
    outputs, inputs = weight.shape[:2]
    if outputs % PANEL or inputs % PANEL or 4 * PLACES * outputs * inputs > MOST_BYTES:
        return False
    return runs_here(dtype)


def runs_here(dtype: torch.dtype) -> bool:
    """Whether any convolution runs so on this machine's CPU."""
    there = library.has_native("cpu") and library.instruction_set() in ("avx2", "avx512", "avx512_bf16")
    return there and dtype == torch.float32


def large_enough(x: Tensor, upsampled: bool = False) -> bool:
    """Whether images [N,C,H,W], or what they are upsampled to, fill tiles."""
    return min(x.shape[2:]) * (2 if upsampled else 1) >= LEAST_SIDE


def packed(weight: Tensor, mirrored: bool = False) -> Tensor:
    """float32 [O,I,3,3] as `convolution` takes it; `mirrored`, for the gradient of the convolution's input."""
    found: Tensor = torch.ops.rcdm_fast.winograd_weight(weight, mirrored)
    return found


def weight_gradient(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of weight [O,I,3,3] and bias [O]: from the result's [N,O,H,W] and the input [N,I,H,W], float32, channels-last."""
    found: tuple[Tensor, Tensor] = torch.ops.rcdm_fast.winograd_weight_gradient(grad, x)
    return found


def convolution(
    x: Tensor,  # float32 [N,I,H,W], channels-last
    weight: Tensor,  # of `packed`
    bias: Tensor | None = None,  # float32 [O]
    add: Tensor | None = None,  # float32 [N,O,H,W], channels-last
    overwrite: bool = False,  # add, with the result
    upsampled: bool = False,
) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) + add, channels-last; with `upsampled` of x upsampled twofold (nearest)."""
    scale = 2 if upsampled else 1
    if add is not None and overwrite:
        out = add
    else:
        shape = (len(x), weight.shape[1] * PANEL, scale * x.shape[2], scale * x.shape[3])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    torch.ops.rcdm_fast.winograd_convolution(out, x, weight, bias, add, upsampled)
    return out
