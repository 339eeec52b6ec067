"""Rival: OpenVINO on the CPU, in fp32 and bf16, with static shapes and one stream.

It is given the sinusoids of the timestep, which plain PyTorch computes in fp32: left to itself it computes them in bf16
too, where the angle 510 is off by up to 1, and its error is five times as large. With fp32 its compiler of fused
subgraphs ("snippets") crashes on this network (2026.4.1), so that is switched off there.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.unet import UNet, timestep_embedding


def reasons_unavailable(workload: Workload) -> list[str]:
    """A missing package, or a device that this rival is not measured on."""
    missing = importlib.util.find_spec("openvino") is None
    reasons = ["not installed: openvino (pip install 'rcdm_fast[bench]')"] if missing else []
    return reasons if workload.device.type == "cpu" else [*reasons, "measured on the CPU only"]


def build_fp32(workload: Workload) -> Evaluate:
    """In fp32."""
    return _build(workload, "f32")


def build_bf16(workload: Workload) -> Evaluate:
    """In bf16, where the CPU has it."""
    return _build(workload, "bf16")


class _FromSinusoids(nn.Module):
    """The network behind the sinusoids of the timestep."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sinusoids: Tensor, h: Tensor) -> Tensor:
        network = self.network
        emb = network.time_embed(sinusoids) + network.ssl_emb(h)
        return network.denoise(x, network.film(emb))


def _build(workload: Workload, precision: str) -> Evaluate:
    import openvino

    width = workload.network.config.num_channels

    def arguments(inputs: Inputs) -> tuple[Tensor, ...]:
        return inputs.x, timestep_embedding(inputs.t, width), inputs.h

    example = arguments(workload.timed)
    model = openvino.convert_model(torch.export.export(_FromSinusoids(workload.network), example))
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
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def evaluate(inputs: Inputs) -> Tensor:
        values = [value.numpy() for value in arguments(inputs)]
        result = request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])

    return evaluate
