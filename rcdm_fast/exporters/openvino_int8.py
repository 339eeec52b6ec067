"""int8 of an OpenVINO network: post-training quantization of its convolutions by NNCF, with a fall-back by layer.

Calibrated on real trajectories. What hurts is the rounding of a few layers' inputs, whose ranges are wide: layers are
ranked by the error that rounding their input alone brings, and the worst ones stay in floating point, as few as bring
the images of representations that nothing was calibrated on close enough to float32.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.benchmarking import psnr_db, relative_l2
from rcdm_fast.config import ConfigError
from rcdm_fast.errors import install
from rcdm_fast.exporters import calibration
from rcdm_fast.exporters.graph import input_names, truth
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import ExportError
from rcdm_fast.exporters.openvino_core import core

PSNR_DB = 43.0  # of the final images against float32, DDIM in 25 steps; below it the rank of the source image suffers
MOST_KEPT = 0.5  # of the convolutions; with more in floating point int8 gains nothing over bf16
HELD_OUT = 4  # every fourth trajectory is kept for the check
RANKED = 24  # network inputs on which layers are compared
MADE_UP = 32  # trajectories of a model that takes no representation


@dataclass(frozen=True)
class Layer:
    """A convolution: its name in OpenVINO and in PyTorch, and the error that rounding its input alone brings.

    `error` is relative L2 of the network's eps.
    """

    node: str
    name: str
    error: float

    def __str__(self) -> str:
        return f"{self.name} ({self.error:.1e})"


@dataclass(frozen=True)
class Quantized:
    """An int8 network, the layers that were kept in floating point (worst first), and how it was judged."""

    model: Any
    kept: tuple[Layer, ...]
    layers: int
    psnr_db: float

    def kept_in_words(self) -> str:
        """For the file and for reports."""
        if not self.kept:
            return f"all {self.layers} inner convolutions in int8"
        worst = ", ".join(layer.name for layer in self.kept)
        return f"{self.layers - len(self.kept)} of {self.layers} inner convolutions in int8, all but {worst}"


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
    _conditions(job)


def quantize(model: Any, graph: Path, job: Job) -> Quantized:
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
    given = _conditions(job)
    count = MADE_UP if given is None else len(given)
    held = torch.arange(count) % HELD_OUT == HELD_OUT - 1
    names = input_names(job.config.unet)
    network = truth(job.network, job.config.schedule)
    job.report(f"drawing {count} trajectories to calibrate with and to check")
    to_use, to_check = ((None, int(part.sum())) if given is None else (given[part], 0) for part in (~held, held))
    _, used = calibration.collect(network, job.config, *to_use)
    want = calibration.draw(network, job.config, *to_check)

    def psnr_of(quantized: Any) -> float:
        return psnr_db(calibration.draw(runner(quantized, names, floating_hint()), job.config, *to_check), want)

    rough = quantize_convolutions(model, used, names)
    layers = _ranked(rough, graph, network, used, names)
    most = int(MOST_KEPT * len(layers))
    few = _fewest(most, lambda kept: psnr_of(_without(rough, layers[:kept])) >= PSNR_DB)
    for kept in range(few, most + 1):
        quantized = quantize_convolutions(model, used, names, layers[:kept]) if kept else rough
        found = Quantized(quantized, tuple(layers[:kept]), len(layers), psnr_of(quantized))
        job.report(f"int8: PSNR {found.psnr_db:.1f} dB with {found.kept_in_words()}")
        if found.psnr_db >= PSNR_DB:
            return found
    worst = ", ".join(str(layer) for layer in layers[: max(1, most)])
    raise ExportError(
        f"int8 changes the images too much (PSNR {found.psnr_db:.1f} dB, needed {PSNR_DB:g}) even with these layers, "
        f"the worst by the relative error that each brings, in floating point: {worst}"
    )


def _conditions(job: Job) -> Tensor | None:
    """Representations or labels that trajectories are drawn for; None for an unconditional network."""
    unet = job.config.unet
    if not unet.representation_dim:
        return torch.arange(MADE_UP) % unet.num_classes if unet.num_classes else None
    if job.representations is None or len(job.representations) < HELD_OUT:
        raise ConfigError(
            "int8 is calibrated on trajectories of real representations: give at least "
            f"{HELD_OUT} images (--data FOLDER, or calibrate=... in Python)"
        )
    return job.representations.cpu().float()


def _fewest(most: int, enough: Callable[[int], bool]) -> int:
    """The smallest number of 0..most that is enough, or `most`; takes it that more never makes it worse."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


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
    model: Any, graph: Path, network: Callable[..., Tensor], used: tuple[Tensor, ...], names: tuple[str, ...]
) -> list[Layer]:
    """All quantized convolutions, the one whose rounding costs most first."""
    some = torch.linspace(0, len(used[0]) - 1, min(RANKED, len(used[0]))).long()
    inputs = tuple(value[some] for value in used)
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
            layers.append(Layer(node, modules.get(node.split("/")[0], node), alone))
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
