"""Engines: the ways to evaluate the network, behind one protocol (`diffusion/engine.py`); one file per runtime.

An engine is chosen when a model is made ready. Each runtime says why it cannot be used here
(`reasons_unavailable`), and a request that cannot be met lists every runtime's reasons.

Runtimes other than PyTorch run what `rcdm_fast.export` writes; they keep what they build in a cache.

Knows nothing about solvers or encoders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.engines import compiled, eager, native, onnx_runtime, openvino_runtime, tensorrt_runtime
from rcdm_fast.models.unet import UNet

Precision = Literal["fp32", "bf16", "fp16", "int8"]

ENGINES = ("native", "compiled", "eager", "onnxruntime", "onnxruntime-tensorrt", "openvino", "tensorrt")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
AUTOMATIC = (
    "native",
    "eager",
)  # what ``auto`` tries, fastest first; compiling takes a minute and gains nothing over native

NOT_CHOSEN = {  # why an engine that can run does not, when nobody asked for it
    "native": "available and faster (auto takes it)",
    "compiled": "available, no faster than native, and every batch size takes time to compile",
    "onnxruntime": "available, slower than native; runs the exported ONNX",
    "onnxruntime-tensorrt": "available; builds for minutes at every new batch size",
    "openvino": "available, slower than native; runs the exported network",
    "tensorrt": "available; builds a plan for every new batch bucket",
    "eager": "available, slower; the truth that the others are compared with",
}

_REASONS: dict[str, Callable[[torch.device, str], list[str]]] = {
    "native": native.reasons_unavailable,
    "compiled": compiled.reasons_unavailable,
    "eager": eager.reasons_unavailable,
    "onnxruntime": onnx_runtime.reasons_unavailable,
    "onnxruntime-tensorrt": onnx_runtime.tensorrt_reasons_unavailable,
    "openvino": openvino_runtime.reasons_unavailable,
    "tensorrt": tensorrt_runtime.reasons_unavailable,
}


def reasons_unavailable(name: str, device: torch.device, precision: Precision) -> list[str]:
    """Why an engine cannot be used; empty if it can. `ConfigError` for a name that is no engine."""
    if name not in _REASONS:
        raise ConfigError(f"no engine called {name!r}; known: auto, {', '.join(ENGINES)}")
    if precision == "int8" and name != "openvino":
        return ["int8 runs in OpenVINO only"]
    return _REASONS[name](device, precision)


def compare(device: torch.device, precision: Precision) -> dict[str, str]:
    """What each engine says: "available", or why it is not."""
    found = {name: reasons_unavailable(name, device, precision) for name in ENGINES}
    return {name: "; ".join(reasons) or "available" for name, reasons in found.items()}


def not_chosen(engine: Engine, device: torch.device) -> dict[str, str]:
    """Why each of the other engines does not run in this one's place."""
    precision: Precision = engine.precision  # type: ignore[assignment]
    others = compare(device, precision)
    return {
        name: NOT_CHOSEN.get(name, "") if why == "available" else why
        for name, why in others.items()
        if name != engine.name
    }


def choose(device: torch.device, precision: Precision) -> str:
    """The engine that ``auto`` stands for: the first of `AUTOMATIC` that can run.

    Raises:
        ConfigError: none can, with every engine's reasons.
    """
    for name in AUTOMATIC:
        if not reasons_unavailable(name, device, precision):
            return name
    said = "; ".join(f"{name}: {what}" for name, what in compare(device, precision).items())
    raise ConfigError(f"no engine can run {precision} on {device} ({said})")


def make(
    name: str,
    network: UNet,
    config: ModelConfig,
    device: torch.device,
    precision: str,
    file: str | os.PathLike[str] | None = None,
) -> Engine:
    """Build an engine. ``auto`` is the fastest that can run here (`choose`), and precision ``auto`` is fp32.

    `config` is that of the network's model: an exported network has to know the schedule's timesteps.
    `file` is an export of this model to be used instead of the cache's.

    Raises:
        ConfigError: unknown name or precision, or an engine that cannot run here (with every engine's reasons).
    """
    if precision not in (*PRECISIONS, "auto"):
        raise ConfigError(f"no precision called {precision!r}; known: auto, {', '.join(PRECISIONS)}")
    chosen: Precision = "fp32" if precision == "auto" else precision  # type: ignore[assignment]
    kind = choose(device, chosen) if name == "auto" else name
    reasons = reasons_unavailable(kind, device, chosen)
    if reasons:
        others = "; ".join(f"{other}: {what}" for other, what in compare(device, chosen).items() if other != kind)
        raise ConfigError(f"engine {kind} cannot run here: {'; '.join(reasons)} ({others})")
    engines: dict[str, Callable[[UNet, torch.device, str], Engine]] = {
        "native": native.NativeEngine,
        "compiled": compiled.CompiledEngine,
        "eager": eager.EagerEngine,
    }
    if kind in engines:
        if file is not None:
            raise ConfigError(f"engine {kind} runs the model itself, not a file ({file})")
        return engines[kind](network, device, chosen)
    runtimes: dict[str, Callable[[UNet, ModelConfig, torch.device, str, Path | None], Engine]] = {
        "onnxruntime": onnx_runtime.OnnxRuntimeEngine,
        "onnxruntime-tensorrt": onnx_runtime.OnnxRuntimeTensorRTEngine,
        "openvino": openvino_runtime.OpenVINOEngine,
        "tensorrt": tensorrt_runtime.TensorRTEngine,
    }
    return runtimes[kind](network, config, device, chosen, None if file is None else Path(file))
