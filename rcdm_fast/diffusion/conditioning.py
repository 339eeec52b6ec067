"""What is constant along a trajectory: the FiLM rows of all residual blocks, for all steps and representations.

film = Linear(SiLU(time_mlp(t_k) + W h_r)) of every block, side by side, [F] numbers for step k and representation r.
All blocks' rows come from one product. Images that share a representation share its row and pick it by index.

Of maps there is more: what they say per position is the same for all steps, [F,h,w] numbers for a representation, made
once for every batch that has it. A step's row is added to it, so that rows are [F,h,w], too.

The products run in float64 and are rounded once: a matrix product's float32 rounding depends on the number of its
rows, and early steps of a trajectory magnify it, so that images would depend on the batch they were drawn in.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.models.condition_map import MapFilm
from rcdm_fast.models.unet import UNet, summed, timestep_embedding

TABLE_LIMIT_BYTES = 64 * 2**20  # larger tables are computed step by step


@dataclass(frozen=True)
class ConditioningPlan:
    """FiLM rows of a job, for all of its steps and conditions.

    Attributes:
        time: time_mlp(t_k), float64 [K,E].
        condition: W h_r (or the label's embedding), float64 [R,E]; one row of zeros for an unconditional network.
        weight, bias: of all blocks' linear layers, float64 [F,E] and [F].
        table: the whole result, float32 [K,R,F], where it is small; None where rows are computed step by step.
        timesteps: the base timestep that the network is asked at in every kept step, K numbers; they may lie between
            two whole ones.
        given: what the conditions were made of: representations float32 [R,D], labels int64 [R], or None.
        map_film: the network's own, float64, if representations are maps.
    """

    time: Tensor
    condition: Tensor
    weight: Tensor
    bias: Tensor
    table: Tensor | None
    timesteps: tuple[float, ...]
    given: Tensor | None
    map_film: MapFilm | None = None

    def batch(self, rows: Tensor) -> Batch:
        """Images with these rows of `condition`, int64 [N]; on the CPU they are looked through there, once."""
        distinct, inverse = rows.unique(return_inverse=True)
        device = self.condition.device
        return Batch(self, rows.to(device), distinct.to(device), inverse.to(device))

    def _product(self, emb: Tensor) -> Tensor:
        return F.linear(F.silu(emb), self.weight, self.bias).float()


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that go through the network together, by the conditions they have.

    Attributes:
        plan: where the conditions are.
        rows: row of the plan's `condition` for every image, int64 [N].
        distinct: the rows that occur, int64 [R'], ascending.
        inverse: index of every image's row in `distinct`, int64 [N].
    """

    plan: ConditioningPlan
    rows: Tensor
    distinct: Tensor
    inverse: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def given(self) -> Tensor | None:
        """Every image's representation float32 [N,D] or label int64 [N], or None."""
        return None if self.plan.given is None else self.plan.given[self.rows]

    @cached_property
    def maps(self) -> Tensor | None:
        """What maps say per position, of the distinct rows; float32 [R',F,h,w], channels-last, or None."""
        made, given = self.plan.map_film, self.plan.given
        if made is None:
            return None
        assert given is not None
        with torch.inference_mode():  # one by one: in float64 all of a batch would take much memory at once
            found = [made(given.index_select(0, row).double()).float() for row in self.distinct.split(1)]
            return torch.cat(found)

    def film(self, k: int) -> Tensor:
        """Every image's FiLM row at kept step k; float32 [N,F], of maps [N,F,h,w]."""
        rows, index = self.film_rows(k)
        return rows[index]

    def film_rows(self, k: int) -> tuple[Tensor, Tensor]:
        """FiLM rows at kept step k, float32 [R',F], and the index of every image's row among them, int64 [N].

        R' is the whole table's R, or the number of distinct rows where there is no table. Of maps they are [R',F,h,w].
        """
        if self.plan.table is not None and self.plan.map_film is None:
            return self.plan.table[k], self.rows
        return self.film_of_distinct(k), self.inverse

    def film_of_distinct(self, k: int, out: Tensor | None = None) -> Tensor:
        """FiLM rows at kept step k of the rows that occur; float32 [R',F] or [R',F,h,w], in the order of `distinct`."""
        maps = self.maps
        if maps is not None:
            whole = self._film_of_vectors(k)[:, :, None, None]
            return torch.add(whole, maps) if out is None else torch.add(whole, maps, out=out)
        return self._film_of_vectors(k, out)

    def films(self, out: Tensor) -> None:
        """Write `film_of_distinct` of all K kept steps into `out`, float32 [K,R',F] or [K,R',F,h,w] of any strides."""
        plan = self.plan
        if plan.table is not None and plan.map_film is None:
            torch.index_select(plan.table, 1, self.distinct, out=out)
            return
        for k, rows in enumerate(out):
            self.film_of_distinct(k, out=rows)

    def _film_of_vectors(self, k: int, out: Tensor | None = None) -> Tensor:
        plan = self.plan
        if plan.table is not None:
            return torch.index_select(plan.table[k], 0, self.distinct, out=out)
        found = plan._product(plan.time[k] + plan.condition.index_select(0, self.distinct))
        return found if out is None else out.copy_(found)


@torch.inference_mode()
def make_plan(
    network: UNet,
    schedule: Schedule,
    representation: Tensor | None,  # float32 [R,D]
    label: Tensor | None,  # int64 [R]
) -> ConditioningPlan:
    """The plan for a schedule and R conditions."""
    device = next(network.parameters()).device
    timesteps = torch.tensor(schedule.network_timesteps, dtype=torch.float32, device=device)
    sinusoids = timestep_embedding(timesteps, network.config.num_channels)
    time = copy.deepcopy(network.time_embed).double()(sinusoids.double())
    if representation is not None:
        h = network.summary(representation.double())
        condition = summed([copy.deepcopy(layer).double() for layer in network.condition_layers()], h)
    elif label is not None:
        condition = network.label_emb(label).double()
    else:
        condition = torch.zeros(1, time.shape[1], dtype=torch.float64, device=device)
    layers = [block.film_layer for block in network.residual_blocks()]
    weight = torch.cat([layer.weight for layer in layers]).double()
    bias = torch.cat([layer.bias for layer in layers]).double()
    given = representation if representation is not None else label
    asked = schedule.asked or schedule.timesteps
    map_film = copy.deepcopy(network.map_film).double() if network.config.condition_map else None
    plan = ConditioningPlan(time, condition, weight, bias, None, asked, given, map_film)
    if len(time) * len(condition) * len(bias) * 4 > TABLE_LIMIT_BYTES:
        return plan
    table = torch.stack([plan._product(step + condition) for step in time])
    return dataclasses.replace(plan, table=table)
