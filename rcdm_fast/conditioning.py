"""What is constant along a trajectory: the conditioning vectors of all steps and all distinct representations.

emb = time_mlp(t_k) + W h_r is a sum, so its two halves are computed once, [K,E] and [R,E]; a picture of the batch
picks its representation by a row index, and pictures that share a representation share the row.

Knows nothing about solvers, noise or how an engine runs the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.schedule import Schedule
from rcdm_fast.unet import UNet


@dataclass(frozen=True)
class ConditioningPlan:
    """Conditioning vectors of a job, and the rows that the current batch uses.

    Attributes:
        time: time_mlp(t_k), float32 [K,E].
        condition: W h_r (or the label's embedding), float32 [R,E]; zeros for an unconditional network.
        rows: row of `condition` for every picture of the batch, int64 [N].
    """

    time: Tensor
    condition: Tensor
    rows: Tensor

    def with_rows(self, rows: Tensor) -> ConditioningPlan:
        """The same plan for another batch."""
        return dataclasses.replace(self, rows=rows.to(self.condition.device))

    def embedding(self, k: int) -> Tensor:
        """emb at kept step k for the batch; float32 [N,E]."""
        return self.time[k] + self.condition[self.rows]


@torch.inference_mode()
def make_plan(
    network: UNet,
    schedule: Schedule,
    representation: Tensor | None,  # float32 [R,D]
    label: Tensor | None,  # int64 [R]
) -> ConditioningPlan:
    """Compute both halves for a schedule and R conditions (one row of zeros if there is none)."""
    device = network.time_embed[0].weight.device
    timesteps = torch.tensor(schedule.network_timesteps, dtype=torch.float32, device=device)
    time = network.embed(timesteps)
    if representation is not None:
        condition = network.ssl_emb(representation)
    elif label is not None:
        condition = network.label_emb(label)
    else:
        condition = torch.zeros(1, time.shape[1], device=device)
    return ConditioningPlan(time, condition, torch.zeros(0, dtype=torch.int64, device=device))
