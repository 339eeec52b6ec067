"""Rival: torch.compile of the whole network with frozen weights, bf16 autocast and channels-last memory, on the CPU.

The rival on a GPU (max-autotune, with CUDA graphs) is in benchmarks/gpu/tune.py, because it takes minutes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload


def reasons_unavailable(workload: Workload) -> list[str]:
    """Measured on the CPU only."""
    if workload.device.type != "cpu":
        return ["measured on the CPU; make bench-gpu PART=tune measures torch.compile on a GPU"]
    return []


def build(workload: Workload) -> Evaluate:
    """Compiles for the workload's shapes. Freezing folds the weights, cast and packed, into the graph."""
    network = copy.deepcopy(workload.network).to(memory_format=torch.channels_last)
    run = torch.compile(network, dynamic=False, options={"freezing": True})

    def evaluate(inputs: Inputs) -> Tensor:
        # no_grad: Inductor freezes nothing in inference mode.
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out: Tensor = run(inputs.x.contiguous(memory_format=torch.channels_last), inputs.t, inputs.h)
        return out.float()

    return evaluate
