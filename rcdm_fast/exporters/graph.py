"""The network as other runtimes get it: sample, timestep, representation or label -> eps, in plain PyTorch.

A timestep comes in two parts: 412.7 is timestep 412 and fraction 0.7. The sinusoids of whole timesteps are a table in
the graph, into which the first part is an exact integer index; the second turns the row by the angle that is left
(cos(a + b) = cos a cos b - sin a sin b, so that this is exact, too). In a runtime that computes all of it in bf16 the
largest error of a sinusoid is 0.009 so; were the timestep one float, it would be another number there and the error
between 1.7 and 2, by cosines or by a table. In float32 it is 1.3e-7; cosines of a float, as the network has them, give
3e-5, and interpolation between rows 0.12 (measured at 20,000 timesteps of 0..999, 64 sinusoids).

In a reduced precision the weights of convolutions and products are 16-bit; norms, the table and what enters and leaves
stay float32.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rcdm_fast.config import ScheduleConfig, UNetConfig
from rcdm_fast.diffusion.schedule import network_timestep
from rcdm_fast.models.unet import UNet, timestep_embedding, timestep_frequencies

OUTPUT = "eps"
GRAPH = 2  # version of the graph's inputs; the first had whole timesteps only, and no fraction
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
        self.frequencies: Tensor
        frequencies = timestep_frequencies(network.config.num_channels) * network_timestep(schedule, 1)
        self.register_buffer("frequencies", frequencies)
        if self.dtype != torch.float32:
            _reduce(self.network, self.dtype)

    def sinusoids_at(self, timestep: Tensor, fraction: Tensor) -> Tensor:
        """Int64 [N] in 0..T-1, float32 [N] in [0,1] -> the sinusoids of their sum, float32 [N,channels]."""
        angle = fraction[:, None] * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        row, half = self.sinusoids[timestep], len(self.frequencies)
        cosines, sines, rest = row[:, :half], row[:, half : 2 * half], row[:, 2 * half :]
        parts = [cosines * cos - sines * sin, sines * cos + cosines * sin]
        return torch.cat([*parts, rest] if rest.shape[1] else parts, dim=1)

    def forward(
        self,
        sample: Tensor,  # float32 [N,3,H,W]
        timestep: Tensor,  # int64 [N] in 0..T-1
        fraction: Tensor,  # float32 [N] in [0,1], what the timestep has beyond that
        condition: Tensor | None = None,  # float32 [N,D], or int64 [N] labels
    ) -> Tensor:
        """What the network says; float32 [N,3 or 6,H,W]."""
        network = self.network
        emb: Tensor = network.time_embed(self.sinusoids_at(timestep, fraction).to(self.dtype))
        if network.config.representation_dim:
            assert condition is not None
            condition = condition.to(self.dtype)
            emb = emb + network.condition(condition)
        elif network.config.num_classes:
            emb = emb + network.label_emb(condition)
        return network.denoise(sample.to(self.dtype), network.film(emb, condition)).float()


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
    def evaluate(sample: Tensor, timestep: Tensor, fraction: Tensor, condition: Tensor | None = None) -> Tensor:
        given = {"representation" if own.config.representation_dim else "label": condition}
        out: Tensor = own(sample, (timestep + fraction) * network_timestep(schedule, 1), **given)
        return out

    return evaluate


def _reduce(network: nn.Module, dtype: torch.dtype) -> None:
    network.to(dtype)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, Float32Norm(child.float()))


def input_names(config: UNetConfig, graph: int = GRAPH) -> tuple[str, ...]:
    """The inputs, in their order, of a graph of some version."""
    condition = ("representation",) if config.representation_dim else ("label",) if config.num_classes else ()
    return ("sample", "timestep", *(("fraction",) if graph > 1 else ()), *condition)


def timestep_inputs(t: float, count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """A base timestep as the graph takes it, for so many images: int64 [count], and float32 [count] in [0,1]."""
    whole = math.floor(t)
    return (
        torch.full((count,), whole, dtype=torch.int64, device=device),
        torch.full((count,), t - whole, dtype=torch.float32, device=device),
    )


def example_inputs(
    config: UNetConfig, schedule: ScheduleConfig, batch: int, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Random inputs of the graph; timesteps from the whole range, the first of them the last whole one."""
    size = config.image_size
    sample = torch.randn(batch, 3, size, size, generator=generator)
    last = schedule.diffusion_steps - 1
    timestep = torch.randint(0, max(1, last), (batch,), generator=generator)
    fraction = torch.rand(batch, generator=generator)
    timestep[:1], fraction[:1] = last, 0
    if config.representation_dim:
        return sample, timestep, fraction, torch.randn(batch, config.representation_dim, generator=generator)
    if config.num_classes:
        return sample, timestep, fraction, torch.randint(0, config.num_classes, (batch,), generator=generator)
    return sample, timestep, fraction


def weights_hash(network: UNet, schedule: ScheduleConfig) -> str:
    """The one hash of a model: of the network's structure and weights, as float32, and its schedule; 64 hex digits.

    Equal hashes, equal graphs and equal use. Exports, manifests, adapted models and cards name a model by it.
    """
    return hash_of(network.config, network.state_dict(), schedule)


def hash_of(config: UNetConfig, weights: Mapping[str, Tensor], schedule: ScheduleConfig) -> str:
    """`weights_hash` of a network that need not be built."""
    digest = hashlib.sha256()
    digest.update(repr((config, schedule)).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
