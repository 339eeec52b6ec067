"""Rivals: what a user could run the same network with instead; one file each.

All of them get the same weights and evaluate the whole network, (x_t, t, h) -> output. A rival answers why it cannot
be measured here, and how it is made ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers import autocast, compiled, diffusers_unet, eager, onnx_runtime, openvino_runtime
from benchmarks.timing import Evaluate
from benchmarks.workload import Workload


@dataclass(frozen=True)
class Peer:
    """A rival.

    Attributes:
        name, precision: what it is called in rows.
        reasons_unavailable: why it cannot be measured; empty if it can.
        build: makes it ready to evaluate batches of the workload's shape.
        note: what a reader of its row should know.
    """

    name: str
    precision: str
    reasons_unavailable: Callable[[Workload], list[str]]
    build: Callable[[Workload], Evaluate]
    note: str = ""

    @property
    def key(self) -> str:
        """How it is chosen on the command line."""
        return f"{self.name}-{self.precision}"


_ALL = (
    Peer("PyTorch eager", "fp32", eager.reasons_unavailable, eager.build, "the network as written, whole batch"),
    Peer("PyTorch autocast", "bf16", autocast.reasons_unavailable, autocast.build, "channels-last"),
    Peer("torch.compile", "bf16", compiled.reasons_unavailable, compiled.build, "freezing, autocast, channels-last"),
    Peer("diffusers", "fp32", diffusers_unet.reasons_unavailable, diffusers_unet.build_fp32, diffusers_unet.NOTE),
    Peer("diffusers", "bf16", diffusers_unet.reasons_unavailable, diffusers_unet.build_bf16, diffusers_unet.NOTE),
    Peer("onnxruntime", "fp32", onnx_runtime.reasons_unavailable, onnx_runtime.build, "static shapes"),
    Peer("OpenVINO", "fp32", openvino_runtime.reasons_unavailable, openvino_runtime.build_fp32, "static shapes"),
    Peer("OpenVINO", "bf16", openvino_runtime.reasons_unavailable, openvino_runtime.build_bf16, "static shapes"),
    Peer("OpenVINO", "int8", openvino_runtime.reasons_no_int8, openvino_runtime.build_int8, "inner convolutions int8"),
)
PEERS = {peer.key.replace(" ", "-").lower(): peer for peer in _ALL}
EAGER, COMPILED, OPENVINO = "PyTorch eager fp32", "torch.compile bf16", "OpenVINO bf16"  # `Candidate.key` of yardsticks
