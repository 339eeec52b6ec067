"""The processes that train one network together, as `accelerate launch` or `torchrun` started them.

Every process draws the random numbers of the whole batch and works on its part, so that the number of processes
changes nothing but the order of sums. Without such a launcher there is one process and nothing is distributed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from rcdm_fast.config import ConfigError
from rcdm_fast.errors import install
from rcdm_fast.models.unet import AttentionBlock, ResBlock

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Processes:
    """This process among those that train.

    Args:
        device: "cpu", or "cuda" (the launcher says which one), or a device for a single process.
        sharding: as in `TrainConfig`.
        size: 1 for this process alone, whatever started it; None: as many as were started together.

    Raises:
        ConfigError: several processes and no accelerate, or sharding with a single process.
    """

    def __init__(self, device: str = "cpu", sharding: str = "none", size: int | None = None) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1")) if size is None else size
        self.rank = 0
        self.device = torch.device(device)
        self.sharding = sharding
        self._accelerator: Any = None
        if self.size == 1:
            if sharding != "none":
                raise ConfigError("sharding spreads weights over several processes; start them with torchrun")
            return
        if importlib.util.find_spec("accelerate") is None:
            raise ConfigError(f"training in several processes needs accelerate ({install('train')})")
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=self.device.type == "cpu")
        self.rank = self._accelerator.process_index
        self.size = self._accelerator.num_processes
        self.device = self._accelerator.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def fraction(self, count: int) -> slice:
        """This process's part of a batch.

        Raises:
            ConfigError: the batch cannot be split evenly.
        """
        each, rest = divmod(count, self.size)
        if rest:
            raise ConfigError(f"a batch of {count} cannot be split evenly over {self.size} processes")
        return slice(self.rank * each, (self.rank + 1) * each)

    def spread(self, network: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network as the team trains it, and its optimizer."""
        if self.size == 1:
            return network, make_optimizer(network)
        if self.sharding == "fully_shard":
            from torch.distributed.fsdp import fully_shard

            network.to(memory_format=torch.contiguous_format)  # it refuses other layouts of parameters
            mesh = torch.distributed.device_mesh.init_device_mesh(self.device.type, (self.size,))
            for block in blocks(network):
                if isinstance(block, ResBlock):
                    fully_shard(block.emb_layers, mesh=mesh)  # used before the block itself is
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
            return network, make_optimizer(network)
        wrapped, optimizer = self._accelerator.prepare(network, make_optimizer(network))
        return wrapped, optimizer

    @contextlib.contextmanager
    def without_exchange(self, network: nn.Module, apply: bool) -> Iterator[None]:
        """Backward passes inside leave gradients in this process; for all but the last part of a batch."""
        if not apply or self.size == 1:
            yield
        elif hasattr(network, "set_requires_gradient_sync"):
            exchange: Any = network
            exchange.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                exchange.set_requires_gradient_sync(True)
        else:
            with cast(nn.parallel.DistributedDataParallel, network).no_sync():
                yield

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def gather(self, value: Tensor) -> Tensor:
        """The fractions of all processes one after the other; [N,...] each."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        torch.distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self._accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """The process that writes files goes first; the others find what it wrote."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


def bare(network: nn.Module) -> nn.Module:
    """The network inside the wrapper of several processes."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is sharded, and recomputed, as a unit."""
    return [module for module in network.modules() if isinstance(module, ResBlock | AttentionBlock)]


def recompute_blocks(network: nn.Module) -> None:
    """Let every block compute its activations again in the backward pass instead of keeping them."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
