"""Rival: torch.compile with max-autotune, what PyTorch can do at best on a GPU, after minutes of tuning.

Weights and activations are bf16, memory is channels-last, Inductor tunes every convolution and replays a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.timing import Evaluate
from benchmarks.workload import Inputs, Workload
from rcdm_fast.models.unet import UNet, timestep_embedding


class _Half(nn.Module):
    """The network in bf16 behind the sinusoids of the timestep, which stay fp32 until they are computed."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        network = self.network
        sinusoids = timestep_embedding(t, network.config.num_channels)
        emb = network.time_embed(sinusoids.bfloat16()) + network.condition(h.bfloat16())
        return network.denoise(x.bfloat16(), network.film(emb))


def build(work: Workload) -> Evaluate:
    """Compiles and tunes at the first evaluation. On the CPU, where this is only rehearsed, nothing is generated."""
    half = _Half(workload.copy_network(work.network))
    on_gpu = work.device.type == "cuda"
    settings = {"mode": "max-autotune"} if on_gpu else {"backend": "aot_eager"}
    run = torch.compile(half, dynamic=False, **settings)  # type: ignore[call-overload]

    @torch.inference_mode()
    def evaluate(inputs: Inputs) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        out: Tensor = run(inputs.x.contiguous(memory_format=torch.channels_last), inputs.t, inputs.h)
        return out.float()

    return evaluate
