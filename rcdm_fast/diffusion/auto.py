"""How samples are drawn, with the name of a solver in place of ``auto``: for one model, or for several alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from rcdm_fast.config import ModelConfig
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.diffusion.solvers import SolverOptions

Drawn = TypeVar("Drawn", bound=SamplingConfig)


def settled(config: ModelConfig, drawn: Drawn) -> Drawn:
    """How a model is drawn, with the name of the solver in place of ``auto``, which may mean another one tomorrow.

    Raises:
        ConfigError: as of `registry.choose`.
    """
    options = SolverOptions(drawn.eta, drawn.clip)
    chosen = registry.choose(config, drawn.solver, drawn.steps, options, drawn.guidance != 1)
    return dataclasses.replace(drawn, solver=chosen.name)


def settled_for_all(models: Sequence[ModelConfig], drawn: Drawn) -> Drawn:
    """How several models are drawn for one experiment: alike, so ``auto`` is no solver that was fitted to one of them.

    Of students it stays what it is.

    Raises:
        ConfigError: as of `registry.plain`.
    """
    if drawn.solver != registry.AUTO or any(each.student_steps for each in models):
        return drawn
    return dataclasses.replace(drawn, solver=registry.plain(models[0].schedule, drawn.steps, drawn.eta))
