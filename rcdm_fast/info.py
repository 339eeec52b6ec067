"""What this install can do on this machine: `python -m rcdm_fast.info`, and the same as data from `report()`.

Versions, devices, native parts and instruction sets, optional packages; for everything that is missing, why. A report
never fails and imports nothing heavy but torch: optional packages are looked up, not imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast.errors import install

CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16")


@dataclass(frozen=True)
class Runtime:
    """An optional package: the module's name, its distributions, the extra that installs it, what it needs."""

    module: str
    distributions: tuple[str, ...]
    extra: str
    cuda: bool = False  # useless without a CUDA device


RUNTIMES = (
    Runtime("triton", ("triton",), "triton", cuda=True),
    Runtime("onnx", ("onnx",), "onnx"),
    Runtime("onnxscript", ("onnxscript",), "onnx"),
    Runtime("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "onnx"),
    Runtime("openvino", ("openvino",), "openvino"),
    Runtime("nncf", ("nncf",), "openvino"),
    Runtime("tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt", cuda=True),
    Runtime("tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx"), "tensorrt-rtx"),
    Runtime("timm", ("timm",), "encoders"),
    Runtime("torchvision", ("torchvision",), "encoders"),
    Runtime("transformers", ("transformers",), "encoders"),
    Runtime("huggingface_hub", ("huggingface_hub",), "hub"),
    Runtime("lightly", ("lightly",), "train"),
    Runtime("skimage", ("scikit-image",), "demo"),
)


def report() -> dict[str, Any]:
    """Everything `main` prints, as plain data that JSON can hold.

    Returns:
        `versions`, `machine`, `devices`, `native` (part -> loaded, path, reason), `instruction_set`, `build` and
        `runtimes` (name -> available, version, reason). A reason is empty where there is nothing to explain.
    """
    devices = _devices()
    has_cuda = any(device["type"] == "cuda" for device in devices["available"])
    return {
        "versions": {
            "rcdm_fast": _version(("rcdm_fast",)) or "not installed",
            "python": platform.python_version(),
            "torch": _version(("torch",)) or "not installed",
            "numpy": _version(("numpy",)) or "not installed",
        },
        "machine": _machine(),
        "devices": devices,
        **_native(),
        "runtimes": {runtime.module: _runtime(runtime, has_cuda) for runtime in RUNTIMES},
    }


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _machine() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return {
        "system": platform.platform(),
        "cpu": model,
        "cpu_features": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _devices() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"available": [], "reason": f"torch cannot be imported: {error}"}
    available: list[dict[str, Any]] = [{"type": "cpu", "name": "cpu", "threads": torch.get_num_threads()}]
    reason = ""
    try:
        if torch.version.cuda is None:
            reason = "no CUDA: this torch was built without it"
        elif not torch.cuda.is_available():
            reason = f"no CUDA: torch was built for CUDA {torch.version.cuda}, but no usable device was found"
        else:
            for index in range(torch.cuda.device_count()):
                facts = torch.cuda.get_device_properties(index)
                capability = f"{facts.major}.{facts.minor}"
                memory = int(facts.total_memory)
                available.append({"type": "cuda", "name": facts.name, "capability": capability, "memory_bytes": memory})
    except (RuntimeError, AssertionError) as error:
        reason = f"no CUDA: {error}"
    if torch.backends.mps.is_available():
        available.append({"type": "mps", "name": "mps"})
    return {"available": available, "reason": reason}


def _native() -> dict[str, Any]:
    try:
        from rcdm_fast.ops import library
    except (ImportError, OSError, RuntimeError) as error:
        return {"native": {}, "instruction_set": f"unknown: {error}", "build": {}}
    parts = {
        part.name: {"loaded": part.loaded, "path": str(part.path), "reason": part.reason} for part in library.describe()
    }
    return {"native": parts, "instruction_set": library.instruction_set(), "build": library.build_facts()}


def _runtime(runtime: Runtime, has_cuda: bool) -> dict[str, Any]:
    try:
        found = importlib.util.find_spec(runtime.module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        return {"available": False, "version": "", "reason": f"not installed: {install(runtime.extra)}"}
    version = _version(runtime.distributions)
    if runtime.cuda and not has_cuda:
        return {"available": False, "version": version, "reason": "installed, but there is no CUDA device"}
    return {"available": True, "version": version, "reason": ""}


def lines(facts: dict[str, Any]) -> list[str]:
    """A report as lines of text."""
    machine, devices = facts["machine"], facts["devices"]
    text = [f"{name:<16} {version}" for name, version in facts["versions"].items()]
    text += [f"{'system':<16} {machine['system']}", f"{'cpu':<16} {machine['cpu']}, {machine['cores']} cores"]
    text.append(f"{'cpu features':<16} {' '.join(machine['cpu_features']) or 'unknown'}")
    text += ["", "devices"]
    text += [f"  {device['type']:<14} {_details(device)}" for device in devices["available"]]
    text += [f"  {devices['reason']}"] if devices["reason"] else []
    text += ["", "native parts"]
    for name, part in facts["native"].items():
        text.append(f"  {name:<14} {part['path'] if part['loaded'] else 'missing: ' + part['reason']}")
    text.append(f"  {'instructions':<14} {facts['instruction_set']}")
    text += [f"  {'built with':<14} {name} {value}" for name, value in facts["build"].items() if value]
    text += ["", "optional packages"]
    for name, runtime in facts["runtimes"].items():
        state = runtime["version"] or "available"
        note = state if runtime["available"] else " ".join(filter(None, (runtime["version"], runtime["reason"])))
        text.append(f"  {'+' if runtime['available'] else '-'} {name:<16} {note}")
    return text


def _details(device: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in device.items() if key != "type")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; with --json FILE write it there too."""
    parser = argparse.ArgumentParser(
        prog="python -m rcdm_fast.info", description="What this install can do here, and why not more."
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report to FILE as JSON")
    options = parser.parse_args(arguments)
    facts = report()
    print("\n".join(lines(facts)))
    if options.json:
        try:
            options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"{options.json}: cannot be written ({error.strerror})", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
