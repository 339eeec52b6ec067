"""The native libraries: which parts this install has, and loading them.

A part is one shared library beside the package. Whether it was built, and why not, is written by setup.py into
`rcdm_fast/_build_info.py`. A missing or unusable part is a fact to report, never an error at import.

Knows nothing about single operators.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent
FILES = {"cpu": "_C.abi3.so"}  # part, named after the device type it serves -> file


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
        if name not in _parts:
            part = _load(name, PACKAGE / FILES[name])
            log.debug("native part %s: %s", name, part.path if part.loaded else part.reason)
            _parts[name] = part


def describe() -> tuple[Part, ...]:
    """The native parts of this install; loads them if that has not happened yet."""
    load()
    return tuple(_parts.values())


def has_native(device_type: str) -> bool:
    """Whether native implementations for this kind of device are loaded; loads them at the first call."""
    if device_type not in FILES:
        return False
    if device_type not in _parts:
        load()
    return _parts[device_type].loaded


def instruction_set() -> str:
    """The instruction set that native CPU code runs with, or why there is none."""
    if not has_native("cpu"):
        return "no native CPU code"
    function = ctypes.CDLL(str(_parts["cpu"].path)).rcdm_fast_cpu_instruction_set
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def build_facts() -> dict[str, str]:
    """What setup.py recorded: torch and compiler of the build; empty when the package was never built."""
    try:
        module = importlib.import_module("rcdm_fast._build_info")
    except ModuleNotFoundError:
        return {}
    return {"torch": str(module.TORCH), "compiler": str(module.COMPILER)}


def _load(name: str, path: Path) -> Part:
    if not path.exists():
        return Part(name, False, path, _reason_left_out(name))
    try:
        torch.ops.load_library(path)
    except OSError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return Part(name, False, path, f"{path.name} cannot be loaded: {error}{cause}")
    return Part(name, True, path)


def _reason_left_out(name: str) -> str:
    try:
        module = importlib.import_module("rcdm_fast._build_info")
    except ModuleNotFoundError:
        return "the package was not built: it runs from source files without an install"
    reasons: dict[str, str] = module.PARTS
    return reasons.get(name) or f"{FILES[name]} was built but is not there any more; install the package again"
