"""Engines: the ways to evaluate the network, behind one protocol (`diffusion/engine.py`); one file per runtime.

An engine is chosen when a model is made ready. Each runtime says why it cannot be used here
(`reasons_unavailable`), and a request that cannot be met lists every runtime's reasons.

Runtimes other than PyTorch run what `rcdm_fast.export` writes; they keep what they build in a cache. Precisions of 8
bits need a file that was calibrated on images: an export of the network (int8), or scales beside the model (fp8).

To add an engine: a module, and its line in `SPECS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rcdm_fast.checks import described
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.engines import compiled, eager, native, onnx_runtime, openvino_runtime, tensorrt_runtime
from rcdm_fast.exporters import fp8
from rcdm_fast.models import networks
from rcdm_fast.models.unet import UNet

Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8", "fp8")
CALIBRATED = ("int8", "fp8")  # precisions that need a file
FILES = {"int8": "network.xml", "fp8": fp8.FILE}  # what their exports are called in the folder that they are written to
NEEDS = {
    "int8": openvino_runtime.INT8_NEEDS,
    "fp8": "fp8 needs a calibrated file: rcdm export MODEL --to fp8 --data IMAGES --out DIR, then "
    "precision='fp8=DIR/fp8.safetensors' (in commands --precision fp8=DIR/fp8.safetensors)",
}

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
        calibrated: those of `CALIBRATED` that it has.
        emulated: those of them that it emulates, slower than fp32: never chosen by ``auto``.
    """

    make: Make
    reasons_unavailable: Callable[[torch.device, str], list[str]]
    not_chosen: str
    automatic: bool = False
    exported: bool = False
    calibrated: tuple[str, ...] = ()
    emulated: tuple[str, ...] = ()


def _of_network(make: Callable[[UNet, torch.device, str], Engine]) -> Make:
    """An engine that runs the model itself."""
    return lambda network, _config, device, precision, _file: make(network, device, precision)


def _with_scales(kind: type[eager.EagerEngine] | type[native.NativeEngine]) -> Make:
    """An engine that runs the model itself, in fp8 with the scales of a file."""

    def make(network: UNet, config: ModelConfig, device: torch.device, precision: str, file: Path | None) -> Engine:
        if precision != "fp8":
            return kind(network, device, precision)
        assert file is not None, "`checked` has asked for it"
        return kind(network, device, precision, fp8.read(file, network, config))

    return make


SPECS = {  # what ``auto`` may choose stands in the order of its choice
    "native": EngineSpec(
        _with_scales(native.NativeEngine),
        native.reasons_unavailable,
        "available (auto takes it)",
        automatic=True,
        calibrated=("fp8",),
    ),
    "compiled": EngineSpec(  # not automatic: compiling takes a minute and gains nothing over native
        _of_network(compiled.CompiledEngine),
        compiled.reasons_unavailable,
        "available, no faster than native, and every batch size takes time to compile",
    ),
    "eager": EngineSpec(
        _with_scales(eager.EagerEngine),
        eager.reasons_unavailable,
        "available, slower; the truth that the others are compared with",
        automatic=True,
        calibrated=("fp8",),
        emulated=("fp8",),
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
        calibrated=("int8",),
    ),
    "tensorrt": EngineSpec(
        tensorrt_runtime.TensorRTEngine,
        tensorrt_runtime.reasons_unavailable,
        "available; builds a plan for every new batch bucket",
        exported=True,
    ),
}
ENGINES = tuple(SPECS)
AVAILABLE = "available"


def reasons_unavailable(name: str, device: torch.device, precision: Precision) -> list[str]:
    """Why an engine cannot be used; empty if it can. `ConfigError` for a name that is no engine."""
    if name not in SPECS:
        raise ConfigError(f"no engine called {name!r}; known: {', '.join(ENGINES)}")
    if precision in CALIBRATED and precision not in SPECS[name].calibrated:
        able = ", ".join(other for other, spec in SPECS.items() if precision in spec.calibrated)
        return [f"{precision} runs in {able} only"]
    return SPECS[name].reasons_unavailable(device, precision)


def compare(device: torch.device, precision: Precision) -> dict[str, str]:
    """What each engine says: "available", or why it is not, or why only where it is asked for by name."""
    found = {name: reasons_unavailable(name, device, precision) for name in ENGINES}
    there = {
        name: f"emulates {precision}, slower than fp32, where it is asked for by name"
        if precision in spec.emulated
        else AVAILABLE
        for name, spec in SPECS.items()
    }
    return {name: "; ".join(reasons) or there[name] for name, reasons in found.items()}


def not_chosen(engine: Engine, device: torch.device) -> dict[str, str]:
    """Why each of the other engines does not run in this one's place."""
    precision: Precision = engine.precision  # type: ignore[assignment]
    others = compare(device, precision)
    return {
        name: SPECS[name].not_chosen if why == AVAILABLE else why for name, why in others.items() if name != engine.name
    }


def choose(device: torch.device, precision: Precision) -> str:
    """The engine that ``auto`` stands for: the first of `SPECS` that it may choose and that can run.

    Raises:
        ConfigError: none can, with every engine's reasons, and what emulates the precision here.
    """
    for name, spec in SPECS.items():
        emulates = precision in spec.emulated
        if spec.automatic and not emulates and not reasons_unavailable(name, device, precision):
            return name
    cure = "".join(
        f"; engine={name!r} (in commands --engine {name}) emulates it"
        for name, spec in SPECS.items()
        if precision in spec.emulated and not reasons_unavailable(name, device, precision)
    )
    raise ConfigError(f"no engine can run {precision} on {device} ({_together(compare(device, precision))}){cure}")


def _together(said: Mapping[str, str]) -> str:
    """What engines say, in a line; those that say the same together."""
    names: dict[str, list[str]] = {}
    for name, what in said.items():
        names.setdefault(what, []).append(name)
    return "; ".join(f"{', '.join(those)}: {what}" for what, those in names.items())


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
    `file` is an export of this model to be used instead of the cache's, or its scales for fp8; `precision` may name it,
    too (`parse`).

    Raises:
        ConfigError: unknown name or precision, or an engine that cannot run here (with every engine's reasons).
    """
    kind, chosen, file = checked(name, device, precision, file)
    made = SPECS[kind].make(network, config, device, chosen, None if file is None else Path(file))
    if kind != "eager" or chosen in CALIBRATED:  # which runs the network itself
        made.watch = networks.Watch(network)
    return made


def checked(
    name: str, device: torch.device, precision: str, file: str | os.PathLike[str] | None = None
) -> tuple[str, Precision, str | os.PathLike[str] | None]:
    """The engine, the precision and the file that these mean, so far as can be said before there is a network.

    Raises:
        ConfigError: as `make`, unless the file itself is wrong.
    """
    if name != "auto" and name not in SPECS:
        raise ConfigError(f"no engine called {name!r}; known: auto, {', '.join(ENGINES)}")
    wanted, file = parse(precision, file)
    chosen: Precision = "fp32" if wanted == "auto" else wanted
    kind = choose(device, chosen) if name == "auto" else name
    reasons = reasons_unavailable(kind, device, chosen)
    if reasons:
        others = _together({other: what for other, what in compare(device, chosen).items() if other != kind})
        raise ConfigError(f"engine {kind} cannot run here: {'; '.join(reasons)} ({others})")
    if chosen in CALIBRATED and file is None:
        raise ConfigError(NEEDS[chosen])
    if file is not None and not SPECS[kind].exported and chosen not in SPECS[kind].calibrated:
        raise ConfigError(f"engine {kind} runs the model itself, not a file ({file})")
    return kind, chosen, file


def parse(
    text: object, file: str | os.PathLike[str] | None = None
) -> tuple[Precision | Literal["auto"], str | os.PathLike[str] | None]:
    """A precision, and the file that it may name: "bf16", or "fp8=exported/fp8.safetensors".

    Args:
        text: PRECISION or PRECISION=FILE.
        file: what is given beside it.

    Raises:
        ConfigError: no such precision, two files, or a folder in place of a calibrated file.
    """
    if not isinstance(text, str):
        got = text if isinstance(text, torch.dtype) else described(text)
        raise ConfigError(f"precision must be a text, one of auto, {', '.join(PRECISIONS)}; got {got}")
    precision, _, named = text.partition("=")
    if precision not in (*PRECISIONS, "auto"):
        raise ConfigError(f"no precision called {precision!r}; known: auto, {', '.join(PRECISIONS)}")
    if named and file is not None and os.path.realpath(named) != os.path.realpath(file):
        raise ConfigError(f"two files are given for one engine: {named} and {os.fspath(file)}")
    file = named or file
    if precision in CALIBRATED and file is not None and os.path.isdir(file):
        raise ConfigError(f"{file} is a folder; name the file in it: {Path(file) / FILES[precision]}")
    return precision, file  # type: ignore[return-value]


def parse_with_file(text: str) -> tuple[Precision | Literal["auto"], str | os.PathLike[str] | None]:
    """The same, where no other place names the file. Raises `ConfigError`, also where one is needed and not named."""
    precision, file = parse(text)
    if precision in CALIBRATED and file is None:
        raise ConfigError(NEEDS[precision])
    return precision, file


def absolute(text: str) -> str:
    """A precision with the file that it names by an absolute path. Raises `ConfigError` as `parse`."""
    precision, file = parse(text)
    return precision if file is None else f"{precision}={os.path.abspath(file)}"
