"""Photographs back to the x_T that DDIM, or the flow, leads from, batch by batch (see `solvers`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rcdm_fast.diffusion import multistep_inversion, solvers
from rcdm_fast.diffusion.conditioning import ConditioningPlan
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.diffusion.schedule import Schedule


def batches(
    engine: Engine,
    plan: ConditioningPlan,
    views: Tensor,  # [N,3,H,W]
    schedule: Schedule,
    options: solvers.SolverOptions,
    iterations: int,
    batch_size: int,
    multistep: bool = False,
) -> Iterator[Tensor]:
    """x_T of the images in order, float32 [n,3,H,W] at a time.

    Args:
        engine, plan, schedule, options: of the network, with a row of the plan for each image, or none at all.
        views: images of the network's size.
        iterations: network evaluations of a step; 0 is the explicit way, as published.
        batch_size: images per network evaluation.
        multistep: by `multistep_inversion`, one evaluation a step.
    """
    for start in range(0, len(views), batch_size):
        part = views[start : start + batch_size]
        unconditional = plan.given is None
        rows = torch.zeros(len(part), dtype=torch.int64) if unconditional else torch.arange(start, start + len(part))
        with torch.inference_mode():
            engine.prepare(plan.with_rows(rows), len(part))
            if multistep:
                x_t = multistep_inversion.inversion(engine.predict, part, schedule, options)
            elif iterations:
                x_t = solvers.implicit_inversion(engine.predict, part, schedule, options, iterations)
            else:
                x_t = solvers.ddim_inversion(engine.predict, part, schedule, options)
        yield x_t.clone()
