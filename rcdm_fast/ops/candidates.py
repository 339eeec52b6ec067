"""The implementations of an operator that can run on a device: native, Triton, the library's, the reference.

Each function names them in the order of preference that holds where nothing is measured; `selection` chooses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.ops import convolutions, library, reference, reference_moments

WriteNorm = Callable[..., None]  # (out, *NormInputs), as the operator
Attend = Callable[[Tensor, int, bool], Tensor]

FEW = 1024  # pixels of all images, up to which convolutions' sums may be split: more fill a GPU by themselves
SPLITS = (1, 4, 8)  # into how many parts


# The compiler of torch 2.11 refuses `find_spec` inside what it traces.
@library.settled
def triton_reason(device: torch.device) -> str:
    """Why Triton kernels cannot run on a device; empty if they can."""
    if device.type != "cuda":
        return f"Triton kernels do not run on {device.type}"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def _native_on_cuda(device: torch.device) -> bool:
    """Whether there are C++ operators that no program for CPUs has."""
    return device.type == "cuda" and library.has_native("cuda")


def film_group_norm_candidates(device: torch.device) -> dict[str, WriteNorm]:
    """Implementations that can run on a device, preferred first; the last one always works."""
    found: dict[str, WriteNorm] = {}
    if library.has_native(device.type):
        found["native"] = torch.ops.rcdm_fast.film_group_norm_out
    if not triton_reason(device):
        from rcdm_fast.kernels import film_group_norm as kernel  # needs triton

        found["triton"] = kernel.film_group_norm_out
    found["reference"] = _reference_norm
    return found


def attention_candidates(device: torch.device) -> dict[str, Attend]:
    """The same for attention; "sdpa" is PyTorch's own."""
    found: dict[str, Attend] = {}
    if device.type == "cpu" and library.has_native("cpu"):
        found["native"] = torch.ops.rcdm_fast.attention
    found["sdpa"] = sdpa
    if not triton_reason(device):
        from rcdm_fast.kernels import attention as kernel  # needs triton

        found["triton"] = kernel.attention
    return found


def film_group_norm_before_candidates(device: torch.device) -> dict[str, Callable[..., None]]:
    """The same for a norm with a bias that nobody has added yet; takes (out, before, *NormInputs)."""
    found: dict[str, Callable[..., None]] = {}
    if _native_on_cuda(device):
        found["native"] = torch.ops.rcdm_fast.film_group_norm_before_out
    if not triton_reason(device):
        from rcdm_fast.kernels import film_group_norm as kernel  # needs triton

        found["triton"] = kernel.film_group_norm_before_out
    return {**found, "reference": reference.film_group_norm_before_out}


def add_residual_candidates(device: torch.device) -> dict[str, Callable[..., None]]:
    """The same for `reference.add_residual`."""
    found: dict[str, Callable[..., None]] = {}
    if _native_on_cuda(device):
        found["native"] = torch.ops.rcdm_fast.add_residual
    if not triton_reason(device):
        from rcdm_fast.kernels import residual as kernel  # needs triton

        found["triton"] = kernel.add_residual
    return {**found, "reference": reference.add_residual}


def convolution_residual_candidates(
    device: torch.device, dtype: torch.dtype, split: bool
) -> dict[str, Callable[..., Tensor]]:
    """The same for `reference.convolution_residual`, with split sums or without; ours are for 16 bits."""
    add = next(iter(add_residual_candidates(device).values()))
    found: dict[str, Callable[..., Tensor]] = {"library": partial(convolutions.convolution_then_residual, add)}
    if dtype in (torch.float16, torch.bfloat16) and not triton_reason(device):
        from rcdm_fast.kernels import convolution as kernel  # needs triton

        splits = SPLITS if split else SPLITS[:1]
        found |= {f"triton{n}": partial(_split, kernel.convolution_residual, n) for n in splits}
    return found


def convolution_moments_candidates(
    device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """The same for `reference_moments.convolution_moments`; ours are for 16 bits."""
    behind: tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]
    if _native_on_cuda(device):
        behind = torch.ops.rcdm_fast.add_residual_moments, torch.ops.rcdm_fast.moments
    elif not triton_reason(device):
        from rcdm_fast.kernels import residual  # needs triton

        behind = residual.add_residual_moments, residual.moments
    else:
        behind = reference_moments.add_residual_moments, reference_moments.moments
    found: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "library": partial(convolutions.convolution_then_moments, *behind)
    }
    if dtype in (torch.float16, torch.bfloat16) and not triton_reason(device):
        from rcdm_fast.kernels import convolution as kernel  # needs triton

        found["triton"] = kernel.convolution_moments
    return found


def film_group_norm_given_candidates(device: torch.device) -> dict[str, Callable[..., None]]:
    """The same for a norm whose moments are given; takes (out, moments, skip_moments, before, *NormInputs)."""
    found: dict[str, Callable[..., None]] = {}
    if _native_on_cuda(device):
        found["native"] = torch.ops.rcdm_fast.film_group_norm_given_out
    if not triton_reason(device):
        from rcdm_fast.kernels import film_group_norm as kernel  # needs triton

        found["triton"] = kernel.film_group_norm_given_out
    return {**found, "reference": reference_moments.film_group_norm_given_out}


def map_film_candidates(device: torch.device) -> dict[str, Callable[..., None]]:
    """The same for `reference.map_film`."""
    found: dict[str, Callable[..., None]] = {}
    if library.has_native(device.type):
        found["native"] = torch.ops.rcdm_fast.map_film
    if not triton_reason(device):
        from rcdm_fast.kernels import map_film as kernel  # needs triton

        found["triton"] = kernel.map_film
    return {**found, "reference": reference.map_film}


def _split(run: Callable[..., Tensor], splits: int, *arguments: Any) -> Tensor:
    """An operator whose number of parts stands behind its fifth argument, before what else is summed."""
    return run(*arguments[:5], splits, *arguments[5:])


def _reference_norm(out: Tensor, *inputs: Any) -> None:
    out.copy_(reference.film_group_norm_checked(*inputs))


def sdpa(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """`reference.attention` by PyTorch's `scaled_dot_product_attention`."""
    q, k, v = reference.split_heads(qkv, heads, new_order)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
