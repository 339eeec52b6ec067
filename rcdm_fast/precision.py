"""float32 that is float32: PyTorch may multiply float32 numbers in TF32 or bfloat16, and by default does so in cuDNN.

TF32 has 10 bits of mantissa, as float16 has: an evaluation of the network is then off by 1e-3, not by 1e-6. What a host
program allows itself is its own business, so it is withdrawn for the length of a call and given back after it.

Knows nothing about engines. Settings are those of `torch.backends.*.fp32_precision` (PyTorch 2.9 and later); PyTorch
refuses to answer some questions of its older interface (`allow_tf32`) after they were set, so that is left alone, but
for `set_float32_matmul_precision`, which the compiler asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

IEEE = "ieee"
_EXACT = (IEEE, "none")  # "none": nobody has allowed anything
_backends: Any = torch.backends  # modules that were replaced by objects


def _of_cpu() -> tuple[Any, ...]:
    return _backends.mkldnn, _backends.mkldnn.conv, _backends.mkldnn.matmul


def _of_cuda() -> tuple[Any, ...]:
    cudnn = _backends.cudnn
    return cudnn, cudnn.conv, cudnn.rnn, _backends.cuda.matmul


_SETTINGS = {"cpu": _of_cpu, "cuda": _of_cuda}  # the general one first, then those that count


@contextmanager
def ieee_fp32(device: torch.device | str) -> Iterator[None]:
    """Convolutions and products of float32 on a device are computed in float32 inside, whatever the host allows.

    The settings belong to the process: other threads are held to float32 too for as long. Calls may be nested and may
    overlap in several threads; the last one to end restores what the first one found. Cheap where nothing is to be
    changed. Does nothing for devices other than CPU and CUDA.
    """
    kind = torch.device(device).type
    if kind not in _SETTINGS:
        yield
        return
    _calls.enter(kind)
    try:
        yield
    finally:
        _calls.leave()


def exact(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """`ieee_fp32` for what runs in "fp32"; nothing for other precisions."""
    return ieee_fp32(device) if precision == "fp32" else nullcontext()


def without_bf16(device: torch.device | str) -> str:
    """Why bf16 is slower than fp32 on a device, or not there; empty where it is fast."""
    device = torch.device(device)
    if device.type == "cpu":
        return "" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "oneDNN has no bf16 on this processor"
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):
            there = torch.cuda.is_bf16_supported(including_emulation=False)
        return "" if there else "this GPU has no bf16 instructions"
    return ""


class _Calls:
    """How many calls are held to float32, on what kinds of devices, and what the last one has to restore."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._kinds: set[str] = set()
        self._undo: list[Callable[[], None]] = []

    def enter(self, kind: str) -> None:
        with self._lock:
            self._number += 1
            if kind not in self._kinds:
                self._kinds.add(kind)
                self._undo += _withdraw(*_SETTINGS[kind]())

    def leave(self) -> None:
        with self._lock:
            self._number -= 1
            if self._number == 0:
                self._kinds.clear()
                while self._undo:
                    self._undo.pop()()


_calls = _Calls()


def _withdraw(general: Any, *leaves: Any) -> list[Callable[[], None]]:
    """Make what counts exact; returns what undoes it, to be called from the last one on.

    A setting that nobody touched follows the more general one above it, and there is no way to put it back once it
    was touched. So the more general ones are set first, and others only if they did not follow.
    """
    before = [leaf.fp32_precision for leaf in leaves]
    legacy = _legacy_matmul()
    if all(value in _EXACT for value in before) and legacy == "highest":
        return []
    undo: list[Callable[[], None]] = [lambda: _put_back(leaves, before)]
    if legacy != "highest":
        products = (_backends.cuda.matmul, _backends.mkldnn.matmul)
        theirs = [product.fp32_precision for product in products]
        undo.append(lambda: _put_back(products, theirs))
        undo.append(lambda: torch.set_float32_matmul_precision(legacy))
        torch.set_float32_matmul_precision("highest")
    for setting in (_backends, general, *leaves):
        value = setting.fp32_precision
        if value != IEEE:
            undo.append(lambda setting=setting, value=value: _set(setting, value))  # type: ignore[misc]
            _set(setting, IEEE)
    return undo


def _legacy_matmul() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # "highest" together with a new setting that contradicts it
        return "highest"


def _set(setting: Any, value: str) -> None:
    setting.fp32_precision = value


def _put_back(settings: tuple[Any, ...], values: list[str]) -> None:
    for setting, value in zip(settings, values, strict=True):
        if setting.fp32_precision != value:
            _set(setting, value)
