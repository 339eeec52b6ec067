"""Photographs back to the x_T that DDIM, or the flow, leads from, batch by batch (see `solvers`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError, ScheduleConfig
from rcdm_fast.diffusion import multistep_inversion, registry, solvers
from rcdm_fast.diffusion.conditioning import ConditioningPlan
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.sampling_config import INVERSION_STEPS, InversionKeywords, SamplingConfig, chosen
from rcdm_fast.diffusion.schedule import Schedule


def wanted(config: SamplingConfig | None, settings: Mapping[str, Any]) -> SamplingConfig:
    """How a call says that images are led back (`sampling_config.chosen`); in `INVERSION_STEPS` unless it says so."""
    return chosen(config, settings, SamplingConfig(steps=INVERSION_STEPS), InversionKeywords)


def way_back(config: ScheduleConfig, drawn: SamplingConfig, iterations: int) -> tuple[Schedule, bool]:
    """The steps of an inversion, and whether it goes on from several of them.

    Raises:
        ConfigError: samples that are drawn so cannot be led back, or not in so few steps or so many iterations.
    """
    drawn.check_invertible()
    multistep = drawn.solver not in ("ddim", registry.AUTO)
    if multistep and iterations != 1:
        raise ConfigError(
            f"iterations are a setting of ddim; {drawn.solver} has one evaluation a step, got {iterations}"
        )
    if multistep:
        registry.schedule(config, drawn.solver, drawn.steps)  # refuses fewer than it goes on from
    return Schedule.make(config, drawn.steps, "quadratic" if multistep else "uniform"), multistep


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

    Raises:
        SamplingError: a batch is not finite.
    """
    for start in range(0, len(views), batch_size):
        part = views[start : start + batch_size]
        unconditional = plan.given is None
        rows = torch.zeros(len(part), dtype=torch.int64) if unconditional else torch.arange(start, start + len(part))
        with torch.inference_mode():
            predict = engine.bind(plan, rows).predict
            if multistep:
                x_t = multistep_inversion.inversion(predict, part, schedule, options)
            elif iterations:
                x_t = solvers.implicit_inversion(predict, part, schedule, options, iterations)
            else:
                x_t = solvers.ddim_inversion(predict, part, schedule, options)
        if not bool(x_t.isfinite().all()):
            which = f"{start}..{start + len(part) - 1}"
            raise SamplingError(
                f"the x_T of images {which} are not finite ({engine.precision}, {engine.name}); the representation or "
                "the weights are out of range"
            )
        yield x_t.clone()
