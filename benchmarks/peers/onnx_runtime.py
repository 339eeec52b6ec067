"""Rival: onnxruntime in fp32 on the CPU, from an ONNX file with static shapes."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.errors import install


def reasons_unavailable(workload: Workload) -> list[str]:
    """Missing packages, or a device that this rival is not measured on."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    reasons = [f"not installed: {', '.join(missing)} ({install('bench')})"] if missing else []
    return reasons if workload.device.type == "cpu" else [*reasons, "measured on the CPU only"]


def build(workload: Workload) -> Evaluate:
    """Exports the network, and opens a session with all graph optimizations and torch's number of threads."""
    import onnxruntime

    inputs = workload.timed
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.onnx")
        names = ["x", "t", "h"]
        torch.onnx.export(
            workload.network, (inputs.x, inputs.t, inputs.h), path, input_names=names, dynamo=True, verbose=False
        )
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def evaluate(inputs: Inputs) -> Tensor:
        feeds = {"x": inputs.x.numpy(), "t": inputs.t.numpy(), "h": inputs.h.numpy()}
        return torch.from_numpy(session.run(None, feeds)[0])

    return evaluate
