"""Exponential moving averages of a network's weights.

Works on what this process holds: whole tensors, or its shards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Ema:
    """One average; early on it follows faster, (1 + step) / (10 + step), than its decay says."""

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights after `step` steps."""
        torch._foreach_lerp_(_held(self.tensors.values()), _held(state.values()), self.fraction(step))

    def fraction(self, step: int) -> float:
        """How far the average moves towards the weights after `step` steps."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def pairs(self, state: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The average's tensors of this process, and those of `state` that they follow."""
        return _held(self.tensors.values()), _held(state.values())

    def whole(self) -> dict[str, Tensor]:
        """The average on the CPU; every process has to ask."""
        return {name: whole(value).cpu() for name, value in self.tensors.items()}

    @torch.no_grad()
    def copy_(self, state: Mapping[str, Tensor]) -> None:
        """Take whole tensors over."""
        for name, own in self.tensors.items():
            value = state[name].to(own.device)
            if _is_shard(own):
                from torch.distributed.tensor import distribute_tensor

                own.copy_(distribute_tensor(value, own.device_mesh, own.placements))
            else:
                own.copy_(value)


def whole(value: Tensor) -> Tensor:
    """The tensor that shards belong to; every process has to ask."""
    return value.full_tensor() if _is_shard(value) else value


def _is_shard(value: Tensor) -> TypeGuard[DTensor]:
    """Whether it is one; without importing what makes them, which a process that has none does not need."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def _held(values: Iterable[Tensor]) -> list[Tensor]:
    held = []
    for value in values:
        own = value.detach()
        held.append(own.to_local() if _is_shard(own) else own)
    return held
