"""The native libraries: which parts this install has, and loading them.

A part is one shared library beside the package. Whether it was built, and why not, is written by setup.py into
`rcdm_fast/_build_info.py`. A missing or unusable part is a fact to report, never an error at import.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

log = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=Callable[..., Any])

PACKAGE = Path(__file__).resolve().parent.parent
FILES = {"cpu": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}  # part, named after the device type it serves -> file
OPERATORS = {  # what csrc/binding.cpp and csrc/binding_cuda.cpp tie: a library from before has fewer
    "cpu": (
        "attention",
        "attention_backward",
        "convolution_weight_gradient",
        "film_group_norm",
        "film_group_norm_backward",
        "film_group_norm_out",
        "map_film",
        "solver_step",
        "winograd_convolution",
        "winograd_weight",
        "winograd_weight_gradient",
    ),
    "cuda": (
        "film_group_norm",
        "film_group_norm_out",
        "film_group_norm_before_out",
        "film_group_norm_given_out",
        "add_residual",
        "add_residual_moments",
        "moments",
        "map_film",
        "solver_step",
    ),
}


@dataclass(frozen=True)
class Part:
    """One native library: whether it is loaded, from where, and if not, why."""

    name: str
    loaded: bool
    path: Path
    reason: str = ""  # empty when loaded


_parts: dict[str, Part] = {}


def load() -> None:
    """Load every native part that is not loaded yet; `describe()` tells what became of each."""
    for name in FILES:
        _part(name)


def describe() -> tuple[Part, ...]:
    """The native parts of this install; loads them if that has not happened yet.

    The CUDA part can be loaded on a machine without a GPU: what is loaded says nothing about devices.
    """
    return tuple(_part(name) for name in FILES)


def settled(function: Answer) -> Answer:
    """`torch.compiler.assume_constant_result` without importing the compiler, and Triton with it, for this alone.

    Of a question whose answer stays the same, and which cannot be traced.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@settled
def has_native(device_type: str) -> bool:
    """Whether native implementations for this kind of device are loaded; loads them at the first call."""
    return device_type in FILES and _part(device_type).loaded


def instruction_set() -> str:
    """The instruction set that native CPU code runs with, or why there is none."""
    return _instruction_set(str(_part("cpu").path)) if has_native("cpu") else "no native CPU code"


@functools.cache
def _instruction_set(path: str) -> str:
    function = ctypes.CDLL(path).rcdm_fast_cpu_instruction_set
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def build_facts() -> dict[str, str]:
    """What setup.py recorded: torch and the compilers of the build; empty when the package was never built."""
    try:
        import rcdm_fast._build_info as module
    except ImportError:
        return {}
    names = {"torch": "TORCH", "compiler": "COMPILER", "nvcc": "NVCC"}
    return {key: str(getattr(module, name, "")) for key, name in names.items()}


def _part(name: str) -> Part:
    part = _parts.get(name)
    if part is None:
        part = _parts[name] = _load(name, PACKAGE / FILES[name])
        log.debug("native part %s: %s", name, part.path if part.loaded else part.reason)
    return part


def _load(name: str, path: Path) -> Part:
    if not path.exists():
        return Part(name, False, path, _reason_left_out(name))
    try:
        torch.ops.load_library(path)
    except OSError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return Part(name, False, path, f"{path.name} cannot be loaded: {error}{cause}")
    lacking = [operator for operator in OPERATORS[name] if not _is_tied(operator, name)]
    if lacking:
        what = f"{path.name} was built from older sources: it has no {', '.join(lacking)}; install the package again"
        return Part(name, False, path, what)
    return Part(name, True, path)


def _is_tied(operator: str, device_type: str) -> bool:
    """Whether there is an implementation for this kind of device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"rcdm_fast::{operator}", device_type.upper())


def _reason_left_out(name: str) -> str:
    try:
        import rcdm_fast._build_info as module
    except ImportError:
        return "the package was not built: it runs from source files without an install"
    reasons: dict[str, str] = module.PARTS
    return reasons.get(name) or f"{FILES[name]} was built but is not there any more; install the package again"
