"""Triton kernels compiled ahead of time, as the launches of real host code would specialize them, without a GPU.

`record` collects launches from host code that runs on tensors without data; `compile_launch` compiles one for a compute
capability and reads registers, shared memory, spills and the width of loads from the machine code with the tools that
Triton bundles.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 89, 90, 120)
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}  # bytes that one block may have
OPTIONS = ("num_warps", "num_stages")
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int64: "*i64",
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """One kernel call of host code."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Facts:
    """What the machine code says."""

    name: str
    capability: int
    registers: int
    stack: int  # bytes of local memory; spills lie there
    spills: int  # instructions that use it
    shared: int  # bytes, static and dynamic
    wide_loads: int  # of 16 bytes, from global memory
    narrow_loads: int  # of 1, 2, 4 or 8 bytes
    wide_stores: int
    asynchronous: int  # copies of 16 bytes to shared memory
    matrix: int  # tensor-core instructions
    warpgroup: int  # those of them that a whole warpgroup issues, WGMMA: sm_90a has them
    target: str  # architecture of the machine code, as PTX names it
    of_fp8: int  # those of them that multiply e4m3


def record(monkeypatch: pytest.MonkeyPatch, module: ModuleType, run: Callable[[], object]) -> list[Launch]:
    """The launches of `run`, which calls host code of `module`; nothing is executed."""
    launches = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(0 < size < 2**31 for size in grid)

            def launch(*values: Any, **named: Any) -> None:
                options = {name: named.pop(name) for name in OPTIONS if name in named}
                arguments = {**dict(zip(self.kernel.arg_names, values, strict=False)), **named}
                launches.append(Launch(self.kernel, arguments, options))

            return launch

    monkeypatch.setattr(module, "wrap_triton", Recorder)
    run()
    return launches


def _specialize(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Signature, constants and alignment facts as a launch on a GPU would find them, pointers aligned."""
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    signature, fixed, facts = {}, {}, {}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        aligned = isinstance(value, torch.Tensor)
        if name in constants or (type(value) is int and value == 1):
            signature[name], fixed[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            facts[(index,)] = [["tt.divisibility", 16]]
    return signature, fixed, facts


def _tool(name: str, *arguments: str | Path) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def compile_launch(launch: Launch, capability: int, folder: Path) -> Facts:
    """The machine code of a launch for one compute capability; `folder` takes the file that the tools read."""
    signature, fixed, facts = _specialize(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=fixed, attrs=facts)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = _tool("cuobjdump", "-res-usage", cubin)
    code = _tool("nvdisasm", "-c", cubin)

    def used(what: str) -> int:
        found = re.search(rf"{what}:(\d+)", usage)
        assert found, usage
        return int(found[1])

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    wide = count(r"\bLDG\.E\.\S*128")
    return Facts(
        name=launch.kernel.__name__,
        capability=capability,
        registers=used("REG"),
        stack=used("STACK"),
        spills=count(r"\b(?:LDL|STL)\b"),
        shared=max(compiled.metadata.shared, used("SHARED")),
        wide_loads=wide,
        narrow_loads=count(r"\bLDG\.") - wide,
        wide_stores=count(r"\bSTG\.E\.\S*128"),
        asynchronous=count(r"\bLDGSTS\.E\.\S*128"),
        matrix=count(r"\b[HQ]G?MMA\b"),
        warpgroup=count(r"\b[HQ]GMMA\b"),
        target=re.findall(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)[0],
        of_fp8=count(r"\bQG?MMA\.\S*E4M3\.E4M3\b"),
    )
