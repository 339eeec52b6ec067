"""The network as other runtimes get it: (sample, timestep, representation or label) -> eps, in plain PyTorch.

The sinusoids of all base timesteps are a table in the graph, so that a timestep is an exact integer index: a runtime
that computes cosines of numbers up to 1000 in 16 bits would see another timestep. In a reduced precision the weights of
convolutions and products are 16-bit; norms, the table and what enters and leaves stay float32.

Knows nothing about file formats or runtimes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rcdm_fast.config import ScheduleConfig, UNetConfig
from rcdm_fast.diffusion.schedule import network_timestep
from rcdm_fast.models.unet import UNet, timestep_embedding

OUTPUT = "eps"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Float32Norm(nn.Module):
    """GroupNorm in float32 whatever comes in, as the published code does."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.float())
        return out.to(x.dtype)


class NetworkGraph(nn.Module):
    """What is exported.

    Args:
        network: copied, never changed.
        schedule: says how many base timesteps there are, and what the network sees of each.
        precision: "fp32", "fp16" or "bf16".
    """

    def __init__(self, network: UNet, schedule: ScheduleConfig, precision: str = "fp32") -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
        self.dtype = DTYPES[precision]
        times = [network_timestep(schedule, t) for t in range(schedule.diffusion_steps)]
        table = timestep_embedding(torch.tensor(times, dtype=torch.float32), network.config.num_channels)
        self.sinusoids: Tensor
        self.register_buffer("sinusoids", table)
        if self.dtype != torch.float32:
            _reduce(self.network, self.dtype)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        """Float32 [N,3,H,W], int64 [N] in 0..T-1, float32 [N,D] (or int64 [N] labels) -> float32 [N,3 or 6,H,W]."""
        network = self.network
        emb: Tensor = network.time_embed(self.sinusoids[timestep].to(self.dtype))
        if network.config.representation_dim:
            assert condition is not None
            emb = emb + network.ssl_emb(condition.to(self.dtype))
        elif network.config.num_classes:
            emb = emb + network.label_emb(condition)
        return network.denoise(sample.to(self.dtype), network.film(emb)).float()


def truth(network: UNet, schedule: ScheduleConfig) -> Callable[..., Tensor]:
    """The model itself with the graph's inputs and output: what every export is compared with.

    Runs the plain network as `Model.network` does, in float32 on the CPU. Nothing of `NetworkGraph` is in it, so that a
    graph which leaves something out is found, too.

    Args:
        network: copied, never changed.
        schedule: says what the network sees of a base timestep.
    """
    own = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)

    @torch.inference_mode()
    def evaluate(sample: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        given = {"representation" if own.config.representation_dim else "label": condition}
        out: Tensor = own(sample, timestep.float() * network_timestep(schedule, 1), **given)
        return out

    return evaluate


def _reduce(network: nn.Module, dtype: torch.dtype) -> None:
    network.to(dtype)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, Float32Norm(child.float()))


def input_names(config: UNetConfig) -> tuple[str, ...]:
    """The graph's inputs in their order."""
    condition = ("representation",) if config.representation_dim else ("label",) if config.num_classes else ()
    return ("sample", "timestep", *condition)


def example_inputs(
    config: UNetConfig, schedule: ScheduleConfig, batch: int, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Random inputs of the graph; timesteps from the whole range."""
    size = config.image_size
    sample = torch.randn(batch, 3, size, size, generator=generator)
    timestep = torch.randint(0, schedule.diffusion_steps, (batch,), generator=generator)
    if config.representation_dim:
        return sample, timestep, torch.randn(batch, config.representation_dim, generator=generator)
    if config.num_classes:
        return sample, timestep, torch.randint(0, config.num_classes, (batch,), generator=generator)
    return sample, timestep


def weights_hash(network: UNet, schedule: ScheduleConfig) -> str:
    """SHA-256 over the network's structure and weights and its schedule: equal hashes, equal graphs and equal use."""
    digest = hashlib.sha256()
    digest.update(repr((network.config, schedule)).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
