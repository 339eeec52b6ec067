"""Which implementation computes the gradients that `schema_backward` declares, and those of a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rcdm_fast.ops import library
from rcdm_fast.ops.candidates import triton_reason


def film_group_norm_backward(device: torch.device) -> Callable[..., tuple[Tensor, ...]] | None:
    """What `schema_backward` declares, where something computes it; None: `gradients` does, in plain PyTorch."""
    if device.type == "cpu" and library.has_native("cpu"):
        native: Callable[..., tuple[Tensor, ...]] = torch.ops.rcdm_fast.film_group_norm_backward
        return native
    if not triton_reason(device):
        from rcdm_fast.kernels import film_group_norm_backward as kernel  # triton is imported late

        found: Callable[..., tuple[Tensor, ...]] = kernel.film_group_norm_backward
        return found
    return None


def attention_backward(device: torch.device) -> Callable[..., Tensor] | None:
    """The same for attention."""
    if device.type == "cpu" and library.has_native("cpu"):
        native: Callable[..., Tensor] = torch.ops.rcdm_fast.attention_backward
        return native
    return None


class BiasKernels(Protocol):
    """What adds a convolution's bias to [N,C,H,W], and the gradient of that; see `kernels.bias`."""

    def add_(self, out: Tensor, bias: Tensor, add: Tensor | None) -> Tensor: ...

    def sums(self, grad: Tensor) -> Tensor: ...


def bias_kernels(device: torch.device) -> BiasKernels | None:
    """Those of a GPU with Triton, else None. Chosen by what PyTorch's took on an H100; not measured themselves yet."""
    if device.type != "cuda" or triton_reason(device):
        return None
    from rcdm_fast.kernels import bias  # triton is imported late

    return bias


def weight_gradient(x: Tensor, weight: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The native gradients of a convolution's weight and bias where they are faster than PyTorch's, else None.

    That is so on processors whose best is AVX2 (1.6 times, measured), but for images of a few channels, which would
    fill a part of a vector. With AVX-512, oneDNN has kernels of its own, and nothing was measured.
    """
    if x.device.type != "cpu" or not library.has_native("cpu") or library.instruction_set() != "avx2":
        return None
    if weight.shape[1] < 8 or weight.shape[2] != weight.shape[3]:
        return None
    native: Callable[..., tuple[Tensor, Tensor]] = torch.ops.rcdm_fast.convolution_weight_gradient
    return native
