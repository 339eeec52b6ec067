"""int8 of an OpenVINO network: post-training quantization of its convolutions by NNCF, with a fall-back by layer.

Calibrated on real trajectories. What hurts is the rounding of a few layers' inputs, whose ranges are wide: layers are
ranked by the error that rounding their input alone brings, and the worst ones stay in floating point (`fallback.py`).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.benchmarking import relative_l2
from rcdm_fast.config import ConfigError
from rcdm_fast.errors import install
from rcdm_fast.exporters import fallback
from rcdm_fast.exporters.fallback import Layer, Quantized, Trajectories
from rcdm_fast.exporters.graph import input_names, truth
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.openvino_core import core

WHAT = ("int8", "inner convolutions")


def runner(model: Any, names: tuple[str, ...], hint: str = "f32") -> Callable[..., Tensor]:
    """A function that evaluates a network on the CPU: tensors as `names` says -> its output."""
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(compiled(feeds)[0].copy())

    return run


def floating_hint() -> str:
    """What is not quantized is computed in: bf16 where the processor has it."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def check(job: Job) -> None:
    """Whether a job has what int8 needs, before anything is exported.

    Raises:
        ConfigError: NNCF is not installed, or too few representations.
    """
    if importlib.util.find_spec("nncf") is None:
        raise ConfigError(f"int8 needs nncf, which is not installed ({install('openvino')})")
    fallback.conditions(job)


def quantize(model: Any, graph: Path, job: Job) -> Quantized[Any]:
    """Quantize all convolutions but the first, the last and those that cost too much.

    `check` must have passed.

    Args:
        model: OpenVINO's, of the whole network in float32.
        graph: the ONNX file it was read from.
        job: network, representations to calibrate with, and who is told.

    Raises:
        ConfigError: too few representations.
        ExportError: too far from float32 with half of the convolutions in floating point; names the worst layers.
    """
    names = input_names(job.config.unet)
    network = truth(job.network, job.config.schedule)
    drawn = fallback.trajectories(network, job)
    rough = quantize_convolutions(model, drawn.used, names)
    layers = _ranked(rough, graph, network, drawn, names)
    return fallback.fall_back(
        layers,
        lambda kept: quantize_convolutions(model, drawn.used, names, layers[:kept]) if kept else rough,
        lambda quantized: drawn.psnr_of(runner(quantized, names, floating_hint())),
        WHAT,
        job.report,
        rough=lambda kept: _without(rough, layers[:kept]),
    )


def _convolutions(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]


def _exact_input(convolution: Any) -> bool:
    """Give a convolution its input without rounding; whether it was rounded before."""
    source = convolution.input_value(0).get_node()
    rounded: bool = source.get_type_name() == "FakeQuantize"
    if rounded:
        convolution.input(0).replace_source_output(source.input_value(0))
    return rounded


def _without(model: Any, layers: list[Layer]) -> Any:
    """A copy in which these layers get their input without rounding; their weights stay int8."""
    copy = model.clone()
    chosen = {layer.node for layer in layers}
    for convolution in _convolutions(copy):
        if convolution.get_friendly_name() in chosen:
            _exact_input(convolution)
    return copy


def _ranked(
    model: Any, graph: Path, network: Callable[..., Tensor], drawn: Trajectories, names: tuple[str, ...]
) -> list[Layer]:
    """All quantized convolutions, the one whose rounding costs most first."""
    inputs = drawn.some()
    modules = _module_names(graph)

    def error_with(rounded: str | None) -> float:
        copy = model.clone()
        for convolution in _convolutions(copy):
            if convolution.get_friendly_name() != rounded:
                _exact_input(convolution)
        return relative_l2(runner(copy, names)(*inputs)[:, :3], want)

    want = network(*inputs)[:, :3]
    of_weights = error_with(None)
    layers = []
    for convolution in _convolutions(model.clone()):
        node = convolution.get_friendly_name()
        if _exact_input(convolution):
            alone = max(0.0, error_with(node) ** 2 - of_weights**2) ** 0.5
            layers.append(Layer(modules.get(node.split("/")[0], node), alone, node))
    return sorted(layers, key=lambda layer: -layer.error)


def _module_names(graph: Path) -> dict[str, str]:
    """PyTorch's name of every convolution of an ONNX file, by the name of its node."""
    import onnx

    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    return {
        node.name: node.input[1].removeprefix("network.").removesuffix(".weight")
        for node in nodes
        if node.op_type == "Conv"
    }


def quantize_convolutions(
    model: Any, used: tuple[Tensor, ...], names: tuple[str, ...], kept: Sequence[Layer] = (), batch: int = 1
) -> Any:
    """A copy with all convolutions in int8 but the first, the last and the layers to be kept.

    Args:
        model: OpenVINO's.
        used: what it is given, one tensor per input, [M,...] each.
        names: of the inputs.
        kept: stay in floating point.
        batch: how many of the M are given at once.
    """
    import nncf

    convolutions = _convolutions(model)
    ends = {convolutions[0].get_friendly_name(), convolutions[-1].get_friendly_name()}
    others = {node.get_type_name() for node in model.get_ordered_ops()}
    others -= {"Convolution", "Constant", "Parameter", "Result"}
    ignored = nncf.IgnoredScope(
        types=sorted(others), names=sorted(ends | {layer.node for layer in kept}), validate=False
    )
    items = [
        {name: value[first : first + batch].numpy() for name, value in zip(names, used, strict=True)}
        for first in range(0, len(used[0]), batch)
    ]
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(items),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(items),
            ignored_scope=ignored,
        )
    finally:
        log.setLevel(level)
