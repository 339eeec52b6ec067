"""`make bench-gpu PART=tune`: torch.compile with max-autotune on the published 128-px size, the rival on GPUs.

Weights and activations are bf16, memory is channels-last, Inductor tunes every convolution and replays a CUDA graph.
Only batches 1 and 64, each in a process of its own with a time limit, beside our engines in the same process.

Knows nothing about other rivals.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.gpu import child
from benchmarks.gpu.machine import Deadline
from benchmarks.rows import Row, RowFile
from benchmarks.timing import Candidate, Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast import engines
from rcdm_fast.unet import UNet, timestep_embedding

BATCHES = (1, 64)


def run(device: torch.device, file: RowFile, shared: Row, deadline: Deadline) -> int:
    """Both batches; the number of wrong candidates."""
    ours = [name for name in engines.ENGINES if name == "native"] or list(engines.ENGINES)
    red = 0
    for number, batch in enumerate(BATCHES):
        limit_s = deadline.left_s / (len(BATCHES) - number)
        arguments = ["--config", "release128", "--batch", str(batch), "--tuned", "--engines", *ours]
        red += child.run(arguments, limit_s, file, shared)
    return red


def candidate(work: Workload) -> Candidate:
    """The rival for a workload."""
    return Candidate("torch.compile max-autotune", "bf16", False, lambda: build(work), "bf16 weights, channels-last")


class _Half(nn.Module):
    """The network in bf16 behind the sinusoids of the timestep, which stay fp32 until they are computed."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        network = self.network
        sinusoids = timestep_embedding(t, network.config.num_channels)
        emb = network.time_embed(sinusoids.bfloat16()) + network.ssl_emb(h.bfloat16())
        return network.denoise(x.bfloat16(), network.film(emb))


def build(work: Workload, mode: str = "max-autotune") -> Evaluate:
    """Compiles and tunes at the first evaluation."""
    run = torch.compile(_Half(workload.copy_network(work.network)), mode=mode, dynamic=False)

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        out: Tensor = run(inputs.x.contiguous(memory_format=torch.channels_last), inputs.t, inputs.h)
        return out.float()

    return evaluate
