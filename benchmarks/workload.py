"""What is measured: a network of a given size with made-up weights, and one batch of inputs for it.

Weights are drawn from a seed at the scale of trained ones; no layer is left at zero, so that every layer matters to
the result. The images of a batch all have representations of their own.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rcdm_fast import config
from rcdm_fast.config import ModelConfig
from rcdm_fast.diffusion.conditioning import ConditioningPlan, make_plan
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.models.unet import AttentionBlock, ResBlock, UNet

CONFIGS = Path(__file__).parent / "configs"
STEPS = 50  # of the schedule that a plan is made for
TIMED_STEP, OTHER_STEP = 25, 7  # kept steps: the one that is timed, and a second one that must be right too
SEED = 20211216


@dataclass(frozen=True)
class Inputs:
    """Inputs of one network evaluation.

    Attributes:
        k: kept step of the schedule.
        x: float32 [N,3,H,W].
        t: what the network sees of step k, float32 [N].
        h: representations, float32 [N,D].
    """

    k: int
    x: Tensor
    t: Tensor
    h: Tensor


@dataclass(frozen=True)
class Workload:
    """A network and the batches it is to evaluate; `other` has the same shapes as `timed` and different numbers."""

    name: str
    network: UNet
    schedule: Schedule
    timed: Inputs
    other: Inputs

    @property
    def batch(self) -> int:
        """Images of a batch."""
        return len(self.timed.x)

    @property
    def device(self) -> torch.device:
        """Where network and inputs lie."""
        return self.timed.x.device

    @property
    def config(self) -> ModelConfig:
        """Network and schedule."""
        return ModelConfig(self.network.config, self.schedule.config)

    def plan(self, inputs: Inputs) -> ConditioningPlan:
        """The conditioning plan of the whole schedule for the representations of a batch."""
        return make_plan(self.network, self.schedule, inputs.h, None)

    @functools.cached_property
    def flops(self) -> int:
        """Operations of one evaluation of a batch; a multiplication and an addition count as two."""
        return count_flops(self.network.config, self.batch)


def read_config(name: str) -> ModelConfig:
    """benchmarks/configs/NAME.json; `info` names the batch that belongs to it. `ConfigError` if there is none."""
    path = CONFIGS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.json")))
        raise config.ConfigError(f"no configuration {name!r}; known: {known}")
    return config.from_json(ModelConfig, path.read_text(encoding="utf-8"), str(path))


def make(
    model: ModelConfig, batch: int = 0, device: torch.device | str = "cpu", network: UNet | None = None
) -> Workload:
    """The workload of a configuration; for another batch than its own, or with a network at hand, if given."""
    network = make_network(model.unet).to(device) if network is None else network
    schedule = Schedule.make(model.schedule, STEPS)
    batch = batch or int(model.info["batch"])
    timed, other = (make_inputs(model.unet, schedule, batch, k, device) for k in (TIMED_STEP, OTHER_STEP))
    return Workload(model.name, network, schedule, timed, other)


def make_inputs(unet: config.UNetConfig, schedule: Schedule, batch: int, k: int, device: torch.device | str) -> Inputs:
    """Inputs at kept step k, drawn from a seed that depends on k."""
    generator = torch.Generator().manual_seed(SEED + k)
    x = torch.randn(batch, 3, unet.image_size, unet.image_size, generator=generator)
    h = torch.randn(batch, unet.representation_dim, generator=generator)
    t = torch.full((batch,), schedule.network_timesteps[k])
    return Inputs(k, x.to(device), t.to(device), h.to(device))


def make_network(unet: config.UNetConfig) -> UNet:
    """A network with made-up weights, ready for evaluation, on the CPU."""
    with torch.device("meta"):
        network = UNet(unet)
    network.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(SEED)
    for name, tensor in sorted(network.state_dict().items()):
        tensor.normal_(generator=generator)
        if tensor.ndim > 1:
            tensor.div_(math.sqrt(math.prod(tensor.shape[1:])))  # keeps a variance of 1
        elif name.endswith("weight"):
            tensor.mul_(0.1).add_(1)  # of a norm
        else:
            tensor.mul_(0.05)
    for block in network.modules():
        # What is added to the residual stream is small, as in trained networks, so that 35 blocks do not make it grow.
        if isinstance(block, ResBlock):
            last = block.out_layers[3]
            assert isinstance(last, nn.Conv2d)
            last.weight.mul_(0.5)
        elif isinstance(block, AttentionBlock):
            block.proj_out.weight.mul_(0.5)
    return network


def copy_network(network: UNet) -> UNet:
    """The same network with weights of its own, in the default layout."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def count_flops(unet: config.UNetConfig, batch: int) -> int:
    """Operations of one evaluation of the whole network, counted without doing any of them."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = UNet(unet).eval()
        size = unet.image_size
        network(torch.empty(batch, 3, size, size), torch.empty(batch), torch.empty(batch, unet.representation_dim))
    return int(counter.get_total_flops())


def count_bytes(unet: config.UNetConfig, batch: int, element_bytes: int) -> int:
    """Bytes that an evaluation moves if every convolution, linear layer and attention reads and writes once.

    Norms, activations, additions and resampling are taken to be fused with their neighbors and to move nothing.
    """
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += sum(weight.numel() for weight in module.parameters(recurse=False))
        moved += inputs[0].numel() + output.numel()

    def count_attention(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += 4 * output.numel()  # q, k and v are read, the result is written

    with torch.device("meta"), torch.no_grad():
        network = UNet(unet).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
            elif isinstance(module, AttentionBlock):
                module.register_forward_hook(count_attention)
        size = unet.image_size
        network(torch.empty(batch, 3, size, size), torch.empty(batch), torch.empty(batch, unet.representation_dim))
    return moved * element_bytes
