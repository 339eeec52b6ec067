"""What host code of every Triton kernel needs; knows nothing about single operators."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def next_power(number: int) -> int:
    """The smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, which is where Triton launches.

    A fake CUDA tensor may come from a machine without a driver; only real ones need the context.
    """
    return torch.cuda.device_of(tensor) if torch.cuda.is_initialized() else nullcontext()


def is_hopper(tensor: Tensor) -> bool:
    """Whether the tensor lies on a GPU of compute capability 9."""
    real = tensor.is_cuda and torch.cuda.is_initialized()
    return real and torch.cuda.get_device_capability(tensor.device)[0] == 9
