"""Rival: OpenVINO on the CPU, in fp32, bf16 and int8, with static shapes and one stream.

It is given the sinusoids of the timestep, which plain PyTorch computes in fp32: left to itself it computes them in bf16
too, where the angle 510 is off by up to 1, and its error is five times as large. With fp32 its compiler of fused
subgraphs ("snippets") crashes on this network (2026.4.1), so that is switched off there.

int8 quantizes all convolutions but the first and the last, calibrated on the batches themselves, and computes the rest
in bf16: how fast int8 can be, not how good. What it does to images is measured on trained models (`rcdm compare`).
It starts from the exported ONNX file, because calibrating the directly converted network crashes (2026.4.1).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.errors import install
from rcdm_fast.exporters.graph import input_names, timestep_inputs
from rcdm_fast.exporters.onnx import export_network
from rcdm_fast.exporters.openvino_core import core
from rcdm_fast.exporters.openvino_int8 import quantize_convolutions
from rcdm_fast.models.unet import UNet, timestep_embedding


def reasons_unavailable(workload: Workload) -> list[str]:
    """A missing package, or a device that this rival is not measured on."""
    missing = importlib.util.find_spec("openvino") is None
    reasons = [f"not installed: openvino ({install('bench')})"] if missing else []
    return reasons if workload.device.type == "cpu" else [*reasons, "measured on the CPU only"]


def build_fp32(workload: Workload) -> Evaluate:
    """In fp32."""
    return _build(workload, "f32")


def build_bf16(workload: Workload) -> Evaluate:
    """In bf16, where the CPU has it."""
    return _build(workload, "bf16")


def reasons_no_int8(workload: Workload) -> list[str]:
    """Also without NNCF."""
    missing = importlib.util.find_spec("nncf") is None
    return reasons_unavailable(workload) + ([f"not installed: nncf ({install('bench')})"] if missing else [])


def build_int8(workload: Workload) -> Evaluate:
    """Convolutions in int8, the rest in bf16."""

    def arguments(inputs: Inputs) -> tuple[Tensor, ...]:
        return inputs.x, *timestep_inputs(workload.schedule.timesteps[inputs.k], workload.batch), inputs.h

    example = arguments(workload.timed)
    with tempfile.TemporaryDirectory() as folder:
        file = export_network(Path(folder) / "network.onnx", workload.network, workload.config, check=False)
        model = core().read_model(file)
    used = tuple(torch.cat(pair) for pair in zip(example, arguments(workload.other), strict=True))
    model = quantize_convolutions(model, used, input_names(workload.config.unet), batch=workload.batch)
    return _evaluator(_compiled(model, example, "bf16"), arguments)


class _FromSinusoids(nn.Module):
    """The network behind the sinusoids of the timestep."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sinusoids: Tensor, h: Tensor) -> Tensor:
        network = self.network
        emb = network.time_embed(sinusoids) + network.condition(h)
        return network.denoise(x, network.film(emb))


def _build(workload: Workload, precision: str) -> Evaluate:
    import openvino

    width = workload.network.config.num_channels

    def arguments(inputs: Inputs) -> tuple[Tensor, ...]:
        return inputs.x, timestep_embedding(inputs.t, width), inputs.h

    example = arguments(workload.timed)
    model = openvino.convert_model(torch.export.export(_FromSinusoids(workload.network), example))
    return _evaluator(_compiled(model, example, precision), arguments)


def _compiled(model: Any, example: tuple[Tensor, ...], precision: str) -> Any:
    import openvino

    # Without this the shapes stay dynamic, which is several times slower.
    model.reshape(
        {port: openvino.PartialShape(list(value.shape)) for port, value in zip(model.inputs, example, strict=True)}
    )
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision == "f32":
        settings["SNIPPETS_MODE"] = "DISABLE"
    return core().compile_model(model, "CPU", settings).create_infer_request()


def _evaluator(request: Any, arguments: Callable[[Inputs], tuple[Tensor, ...]]) -> Evaluate:
    def evaluate(inputs: Inputs) -> Tensor:
        values = [value.numpy() for value in arguments(inputs)]
        result = request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])

    return evaluate
