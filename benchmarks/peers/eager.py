"""Rival: plain PyTorch in fp32, the network as it is written and the whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.precision import ieee_fp32


def reasons_unavailable(workload: Workload) -> list[str]:
    """It always runs."""
    return []


def build(workload: Workload) -> Evaluate:
    """On a GPU TF32 is off, so that fp32 means fp32."""
    network = workload.network

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        with ieee_fp32(inputs.x.device):
            out: Tensor = network(inputs.x, inputs.t, inputs.h)
            return out

    return evaluate
