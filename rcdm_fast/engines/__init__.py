"""Engines: the ways to evaluate the network, behind one protocol (`diffusion/engine.py`); one file per runtime.

An engine is chosen when a model is made ready. Each runtime says why it cannot be used here
(`reasons_unavailable`), and a request that cannot be met lists every runtime's reasons.

Runtimes other than PyTorch run what `rcdm_fast.export` writes; they keep what they build in a cache.

To add an engine: a module, and its line in `SPECS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.engines import compiled, eager, native, onnx_runtime, openvino_runtime, tensorrt_runtime
from rcdm_fast.models.unet import UNet

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")

Make = Callable[[UNet, ModelConfig, torch.device, str, Path | None], Engine]


@dataclass(frozen=True)
class EngineSpec:
    """All that is said of an engine outside its own module.

    Attributes:
        make: builds it for a network, its model's configuration, a device, a precision, and an export or None.
        reasons_unavailable: why it cannot run on a device in a precision; empty if it can.
        not_chosen: why it does not run though it can, when nobody asked for it.
        automatic: ``auto`` may choose it.
        exported: it runs an export of the model, which may be given as a file; its threads are not PyTorch's.
        int8: it has this precision.
    """

    make: Make
    reasons_unavailable: Callable[[torch.device, str], list[str]]
    not_chosen: str
    automatic: bool = False
    exported: bool = False
    int8: bool = False


def _of_network(make: Callable[[UNet, torch.device, str], Engine]) -> Make:
    """An engine that runs the model itself."""
    return lambda network, _config, device, precision, _file: make(network, device, precision)


SPECS = {  # what ``auto`` may choose stands in the order of its choice
    "native": EngineSpec(
        _of_network(native.NativeEngine),
        native.reasons_unavailable,
        "available (auto takes it)",
        automatic=True,
    ),
    "compiled": EngineSpec(  # not automatic: compiling takes a minute and gains nothing over native
        _of_network(compiled.CompiledEngine),
        compiled.reasons_unavailable,
        "available, no faster than native, and every batch size takes time to compile",
    ),
    "eager": EngineSpec(
        _of_network(eager.EagerEngine),
        eager.reasons_unavailable,
        "available, slower; the truth that the others are compared with",
        automatic=True,
    ),
    "onnxruntime": EngineSpec(
        onnx_runtime.OnnxRuntimeEngine,
        onnx_runtime.reasons_unavailable,
        "available; runs the exported ONNX",
        exported=True,
    ),
    "onnxruntime-tensorrt": EngineSpec(
        onnx_runtime.OnnxRuntimeTensorRTEngine,
        onnx_runtime.tensorrt_reasons_unavailable,
        "available; builds for minutes at every new batch size",
        exported=True,
    ),
    "openvino": EngineSpec(
        openvino_runtime.OpenVINOEngine,
        openvino_runtime.reasons_unavailable,
        "available; runs the exported network",
        exported=True,
        int8=True,
    ),
    "tensorrt": EngineSpec(
        tensorrt_runtime.TensorRTEngine,
        tensorrt_runtime.reasons_unavailable,
        "available; builds a plan for every new batch bucket",
        exported=True,
    ),
}
ENGINES = tuple(SPECS)


def reasons_unavailable(name: str, device: torch.device, precision: Precision) -> list[str]:
    """Why an engine cannot be used; empty if it can. `ConfigError` for a name that is no engine."""
    if name not in SPECS:
        raise ConfigError(f"no engine called {name!r}; known: auto, {', '.join(ENGINES)}")
    if precision == "int8" and not SPECS[name].int8:
        return [f"int8 runs in {', '.join(other for other, spec in SPECS.items() if spec.int8)} only"]
    return SPECS[name].reasons_unavailable(device, precision)


def compare(device: torch.device, precision: Precision) -> dict[str, str]:
    """What each engine says: "available", or why it is not."""
    found = {name: reasons_unavailable(name, device, precision) for name in ENGINES}
    return {name: "; ".join(reasons) or "available" for name, reasons in found.items()}


def not_chosen(engine: Engine, device: torch.device) -> dict[str, str]:
    """Why each of the other engines does not run in this one's place."""
    precision: Precision = engine.precision  # type: ignore[assignment]
    others = compare(device, precision)
    return {
        name: SPECS[name].not_chosen if why == "available" else why
        for name, why in others.items()
        if name != engine.name
    }


def choose(device: torch.device, precision: Precision) -> str:
    """The engine that ``auto`` stands for: the first of `SPECS` that it may choose and that can run.

    Raises:
        ConfigError: none can, with every engine's reasons.
    """
    for name, spec in SPECS.items():
        if spec.automatic and not reasons_unavailable(name, device, precision):
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
    if file is not None and not SPECS[kind].exported:
        raise ConfigError(f"engine {kind} runs the model itself, not a file ({file})")
    return SPECS[kind].make(network, config, device, chosen, None if file is None else Path(file))
