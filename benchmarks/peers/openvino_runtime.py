"""Rival: OpenVINO on the CPU, in fp32 and bf16, with static shapes and one stream."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload


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


def _build(workload: Workload, precision: str) -> Evaluate:
    import openvino

    inputs = (workload.timed.x, workload.timed.t, workload.timed.h)
    model = openvino.convert_model(torch.export.export(workload.network, inputs))
    # Without this the shapes stay dynamic, which is several times slower.
    model.reshape(
        {port: openvino.PartialShape(list(value.shape)) for port, value in zip(model.inputs, inputs, strict=True)}
    )
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def evaluate(inputs: Inputs) -> Tensor:
        values = [inputs.x.numpy(), inputs.t.numpy(), inputs.h.numpy()]
        result = request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])

    return evaluate
