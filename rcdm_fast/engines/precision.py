"""fp32 that is IEEE fp32: no TF32 and no bf16 inside of float32 convolutions and matrix products, for one call.

PyTorch lets cuDNN's convolutions use TF32 unless told otherwise (10 bits of mantissa: a relative error of 1e-3), and
`torch.set_float32_matmul_precision` does the same to matrix products, on the CPU too. Its switches belong to the
process, so they are set for the duration of a call and put back.

Knows nothing about engines. What is captured in a CUDA graph keeps the precision it was captured with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

_Value = TypeVar("_Value")

_SWITCHES = [(backend, operator) for backend in ("cuda", "mkldnn") for operator in ("conv", "rnn", "matmul")]

_lock = threading.Lock()
_inside = 0  # calls under way, in all threads; the first one changes the switches and the last one puts them back
_before: _Saved | None = None


class _Saved:
    """PyTorch's switches as they are now. There are two generations of them, which have to agree."""

    def __init__(self) -> None:
        self._cudnn_tf32 = _legacy(torch._C._get_cudnn_allow_tf32)
        self._matmul = _legacy(torch._C._get_float32_matmul_precision)
        self._switches = {switch: torch._C._get_fp32_precision_getter(*switch) for switch in _SWITCHES}

    def set_ieee(self) -> None:
        if self._cudnn_tf32 is not None:
            torch._C._set_cudnn_allow_tf32(False)
        if self._matmul is not None:
            torch._C._set_float32_matmul_precision("highest")
        for switch in _SWITCHES:
            torch._C._set_fp32_precision_setter(*switch, "none")
            if self._switches[switch] == torch._C._get_fp32_precision_getter(*switch):
                self._switches[switch] = (
                    "none"  # it only repeats what is set for all operators: it shall go on doing so
                )
            torch._C._set_fp32_precision_setter(*switch, "ieee")

    def put_back(self) -> None:
        if self._cudnn_tf32 is not None:
            torch._C._set_cudnn_allow_tf32(self._cudnn_tf32)
        if self._matmul is not None:
            torch._C._set_float32_matmul_precision(self._matmul)
        for switch, precision in self._switches.items():
            torch._C._set_fp32_precision_setter(*switch, precision)


def _legacy(read: Callable[[], _Value]) -> _Value | None:
    """A switch of the older generation, or None where the host has set the newer one to something else."""
    try:
        return read()
    except RuntimeError:
        return None


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """float32 arithmetic is IEEE float32 in here, on every device; afterwards PyTorch's switches are as they were.

    Other threads compute in IEEE float32 too while a call is under way. cuDNN stays on.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = _Saved()
            _before.set_ieee()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _before is not None:
                _before.put_back()
                _before = None
