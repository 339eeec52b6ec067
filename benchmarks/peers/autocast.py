"""Rival: PyTorch's autocast over channels-last memory, what a user gets with two lines."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload


def reasons_unavailable(workload: Workload) -> list[str]:
    """Where PyTorch has no autocast, it cannot run."""
    kind = workload.device.type
    return [] if torch.amp.is_autocast_available(kind) else [f"PyTorch has no autocast on {kind}"]


def build(workload: Workload, dtype: torch.dtype = torch.bfloat16) -> Evaluate:
    """The weights stay fp32 and are cast in every evaluation, as autocast does."""
    network = copy.deepcopy(workload.network).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        with torch.autocast(inputs.x.device.type, dtype):
            out: Tensor = network(inputs.x.contiguous(memory_format=torch.channels_last), inputs.t, inputs.h)
        return out.float()

    return evaluate
