"""Solvers: from x_T to x0, as pure loops with one signature.

    solver(predict, x, schedule, options, step_noise) -> x0

`predict(x, k)` is one network evaluation (the raw output at kept step k); every solver makes exactly one per step, so
NFE is the length of the schedule. Scalars are computed in float64.

Knows nothing about networks, representations, batches or where noise comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.schedule import Schedule

Predict = Callable[[Tensor, int], Tensor]  # (x [N,3,H,W], k) -> raw output [N,3 or 6,H,W]
StepNoise = Callable[[int], Tensor]  # i, the number of the step in order of use -> [N,3,H,W]
Observer = Callable[[int, Tensor], None]  # (i, x after the i-th step)


@dataclass(frozen=True)
class SolverOptions:
    """Settings that every solver understands.

    Attributes:
        eta: DDIM's share of fresh noise, 0 (deterministic) to 1 (Song et al. 2020, equation 16).
        clip: clip every x0 estimate to [-1,1], as published.
        observer: sees every intermediate x.
    """

    eta: float = 0.0
    clip: bool = True
    observer: Observer | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ConfigError(f"eta must be a number >= 0, got {self.eta}")


Solver = Callable[[Predict, Tensor, Schedule, SolverOptions, StepNoise], Tensor]


def estimate_x0(output: Tensor, x: Tensor, schedule: Schedule, k: int, clip: bool) -> Tensor:
    """The x0 that a raw network output stands for; [N,3,H,W] (Ho et al. 2020, equation 15)."""
    prediction = output[:, : x.shape[1]].float()
    if schedule.config.prediction == "x0":
        x0 = prediction
    else:
        alpha_bar = float(schedule.alpha_bar[k])
        x0 = math.sqrt(1 / alpha_bar) * x - math.sqrt(1 / alpha_bar - 1) * prediction
    return x0.clamp(-1, 1) if clip else x0


def implied_eps(x0: Tensor, x: Tensor, schedule: Schedule, k: int) -> Tensor:
    """The eps that leads from x0 to x at step k; [N,3,H,W]. After clipping it differs from the predicted one."""
    alpha_bar = float(schedule.alpha_bar[k])
    return (math.sqrt(1 / alpha_bar) * x - x0) / math.sqrt(1 / alpha_bar - 1)


def ddim(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """DDIM (Song et al. 2020, equation 12); noise is drawn only if eta > 0, and none is added in the last step."""
    for i, k in enumerate(reversed(range(len(schedule)))):
        x0 = estimate_x0(predict(x, k), x, schedule, k, options.clip)
        eps = implied_eps(x0, x, schedule, k)
        alpha_bar, target = float(schedule.alpha_bar[k]), float(schedule.alpha_bar_prev[k])
        variance = options.eta**2 * (1 - target) / (1 - alpha_bar) * (1 - alpha_bar / target)
        direction = 1 - target - variance
        if direction < 0:
            raise ConfigError(f"eta {options.eta} is too large for this schedule: at step {k} no variance is left")
        x = math.sqrt(target) * x0 + math.sqrt(direction) * eps
        if variance > 0 and k > 0:
            x = x + math.sqrt(variance) * step_noise(i)
        if options.observer is not None:
            options.observer(i, x)
    return x


def ancestral(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """Ancestral (DDPM) sampling with the schedule's variance, learned or fixed (Ho et al. 2020, algorithm 2)."""
    channels = x.shape[1]
    of_x0, of_x = schedule.posterior_mean_coefficients
    low, high = schedule.log_variance_bounds
    for i, k in enumerate(reversed(range(len(schedule)))):
        output = predict(x, k)
        x0 = estimate_x0(output, x, schedule, k, options.clip)
        x = float(of_x0[k]) * x0 + float(of_x[k]) * x
        if k > 0:
            if schedule.config.variance == "learned_range":
                share = (output[:, channels:].float() + 1) / 2
                deviation = torch.exp(0.5 * (share * float(high[k]) + (1 - share) * float(low[k])))
                x = x + deviation * step_noise(i)
            else:
                x = x + math.exp(0.5 * schedule.fixed_log_variance(k)) * step_noise(i)
        if options.observer is not None:
            options.observer(i, x)
    return x


def ddim_inversion(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions) -> Tensor:
    """DDIM from a picture towards noise; the last step goes to alpha_bar = 0, as published (so not quite undone)."""
    for i, k in enumerate(range(len(schedule))):
        x0 = estimate_x0(predict(x, k), x, schedule, k, options.clip)
        eps = implied_eps(x0, x, schedule, k)
        target = float(schedule.alpha_bar_next[k])
        x = math.sqrt(target) * x0 + math.sqrt(1 - target) * eps
        if options.observer is not None:
            options.observer(i, x)
    return x


SOLVERS: dict[str, Solver] = {"ddim": ddim, "ancestral": ancestral}


def find(name: str) -> Solver:
    """The solver of that name; `ConfigError` lists the known ones."""
    if name not in SOLVERS:
        raise ConfigError(f"no solver called {name!r}; known: {', '.join(sorted(SOLVERS))}")
    return SOLVERS[name]
