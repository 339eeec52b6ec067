"""A trajectory: a solver with all that its loop depends on beside the network, x_T and noise.

Knows nothing about what evaluates the network. An engine may run a whole trajectory by itself (`engine.py`), and what
it once made ready for one it may use for another that is equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import Predict, Solver, SolverOptions, StepNoise


@dataclass(frozen=True)
class Trajectory:
    """A solver's loop. It runs from its fields alone: two that are equal launch the same work, number for number.

    Attributes:
        name: what the solver is called, for people; not compared.
        solver: the solver; a fitted one is equal to another with the same weights (`fitted.py`).
        schedule: its kept steps.
        options: its settings.
        evaluations: how often it asks the network for an image.
        fresh: whether it may ask for the noise of a step.
        guidance: None, or the strength with which an image is pushed away from what the null representation says. The
            network is then asked for twice as many images: [x, x], those with the null representation last.
    """

    name: str = field(compare=False)
    solver: Solver
    schedule: Schedule
    options: SolverOptions
    evaluations: int
    fresh: bool
    guidance: float | None = None

    def __call__(self, evaluate: Predict, x: Tensor, step_noise: StepNoise) -> Tensor:
        """x0 from x_T, float32 [N,3,H,W] both; `evaluate` is asked for N images, or for 2N with guidance."""
        guidance = self.guidance
        if guidance is None:
            return self.solver(evaluate, x, self.schedule, self.options, step_noise)

        def predict(x: Tensor, k: int) -> Tensor:
            conditional, null = evaluate(torch.cat([x, x]), k).chunk(2)
            return away(conditional, null, guidance)

        return self.solver(predict, x, self.schedule, self.options, step_noise)


def away(output: Tensor, weaker: Tensor, strength: float) -> Tensor:
    """What the network says, pushed away from what the null representation or a guide says; its variance stays."""
    mean = torch.lerp(weaker[:, :3], output[:, :3], strength)
    return torch.cat([mean, output[:, 3:]], dim=1)
