"""Solvers of first order, and their ways back: from x_T to x0, as pure loops with one signature.

    solver(predict, x, schedule, options, step_noise) -> x0

`predict(x, k)` is one network evaluation (the raw output at kept step k); those here make exactly one per step. Scalars
are computed in float64. A solver depends on its arguments alone and never looks at what a tensor holds, for an engine
may capture the loop once and replay it (`trajectory.py`).

Others are in `multistep.py`; `registry.py` knows them all by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.checks import Checked, ConfigError, NotNegative
from rcdm_fast.diffusion.schedule import Schedule

Predict = Callable[[Tensor, int], Tensor]  # (x [N,3,H,W], k) -> raw output [N,3 or 6,H,W]
StepNoise = Callable[[int], Tensor]  # i, the number of the step in order of use -> [N,3,H,W]
Observer = Callable[[int, Tensor], None]  # (i, x after the i-th step)


@dataclass(frozen=True)
class SolverOptions(Checked):
    """Settings that every solver understands.

    Attributes:
        eta: DDIM's fraction of fresh noise, 0 (deterministic) to 1 (Song et al. 2020, equation 16).
        clip: clip every x0 estimate to [-1,1], as published.
        observer: sees every intermediate x.
    """

    eta: NotNegative = 0.0
    clip: bool = True
    observer: Observer | None = None


Solver = Callable[[Predict, Tensor, Schedule, SolverOptions, StepNoise], Tensor]


def x0_factors(schedule: Schedule, k: int) -> tuple[float, float]:
    """(a, b) with x0 = a x + b output at kept step k (Ho et al. 2020, equation 15; v: Salimans and Ho 2022, app. D)."""
    if schedule.config.prediction == "x0":
        return 0.0, 1.0
    alpha_bar = float(schedule.alpha_bar[k])
    if schedule.config.prediction == "v":
        return math.sqrt(alpha_bar), -math.sqrt(1 - alpha_bar)
    return math.sqrt(1 / alpha_bar), -math.sqrt(1 / alpha_bar - 1)


def eps_factors(schedule: Schedule, k: int) -> tuple[float, float]:
    """(a, b) with a x + b x0 the eps that leads from x0 to x at step k. After clipping it is not the predicted one."""
    alpha_bar = float(schedule.alpha_bar[k])
    fraction = math.sqrt(1 / alpha_bar - 1)
    return math.sqrt(1 / alpha_bar) / fraction, -1 / fraction


def _step(
    x: Tensor,
    output: Tensor,
    schedule: Schedule,
    k: int,
    options: SolverOptions,
    next_from: tuple[float, float],  # weights of x0 and of x
    terms: tuple[Tensor, ...] = (),
    weights: tuple[float, ...] = (),
) -> Tensor:
    return step_and_x0(x, output, schedule, k, options, next_from, terms, weights)[0]


def step_and_x0(
    x: Tensor,
    output: Tensor,
    schedule: Schedule,
    k: int,
    options: SolverOptions,
    next_from: tuple[float, float],
    terms: tuple[Tensor, ...],
    weights: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """One linear update from a network's output, (next x, x0 estimate as it was clipped); float32 [N,3,H,W] both."""
    x_to_x0, output_to_x0 = x0_factors(schedule, k)
    return ops.solver_step(
        x.contiguous(),
        output,
        x_to_x0=x_to_x0,
        output_to_x0=output_to_x0,
        bound=1.0 if options.clip else math.inf,
        x0_to_next=next_from[0],
        x_to_next=next_from[1],
        terms=[term.contiguous() for term in terms],
        weights=weights,
    )


def ddim(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """DDIM (Song et al. 2020, equation 12); noise is drawn only if eta > 0, and none is added in the last step."""
    for i, k in enumerate(reversed(range(len(schedule)))):
        alpha_bar, target = float(schedule.alpha_bar[k]), float(schedule.alpha_bar_prev[k])
        variance = options.eta**2 * (1 - target) / (1 - alpha_bar) * (1 - alpha_bar / target)
        direction = 1 - target - variance
        if direction < 0:
            raise ConfigError(f"eta {options.eta} is too large for this schedule: at step {k} no variance is left")
        noisy = variance > 0 and k > 0
        terms, weights = ((step_noise(i),), (math.sqrt(variance),)) if noisy else ((), ())
        next_from = _towards(schedule, k, math.sqrt(target), math.sqrt(direction))
        x = _step(x, predict(x, k), schedule, k, options, next_from, terms, weights)
        if options.observer is not None:
            options.observer(i, x)
    return x


def _towards(schedule: Schedule, k: int, of_x0: float, of_eps: float) -> tuple[float, float]:
    """Weights of x0 and x in of_x0 x0 + of_eps eps."""
    x_to_eps, x0_to_eps = eps_factors(schedule, k)
    return of_x0 + of_eps * x0_to_eps, of_eps * x_to_eps


def ancestral(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """Ancestral (DDPM) sampling with the schedule's variance, learned or fixed (Ho et al. 2020, algorithm 2)."""
    channels = x.shape[1]
    of_x0, of_x = schedule.posterior_mean_coefficients
    low, high = schedule.log_variance_bounds
    for i, k in enumerate(reversed(range(len(schedule)))):
        output = predict(x, k)
        next_from = float(of_x0[k]), float(of_x[k])
        if k == 0:
            x = _step(x, output, schedule, k, options, next_from)
        elif schedule.config.variance == "learned_range":
            fraction = (output[:, channels:].float() + 1) / 2
            if schedule.config.clamp_variance:
                fraction = fraction.clamp(0, 1)
            deviation = torch.exp(0.5 * (fraction * float(high[k]) + (1 - fraction) * float(low[k])))
            x = _step(x, output, schedule, k, options, next_from, (deviation * step_noise(i),), (1.0,))
        else:
            deviation_k = math.exp(0.5 * schedule.fixed_log_variance(k))
            x = _step(x, output, schedule, k, options, next_from, (step_noise(i),), (deviation_k,))
        if options.observer is not None:
            options.observer(i, x)
    return x


def ddim_inversion(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions) -> Tensor:
    """DDIM from an image towards noise as published: each step is explicit, the last one goes to alpha_bar = 0.

    The image counts as the state at the first kept step, so `ddim` with the same schedule does not quite undo it.
    """
    for i, k in enumerate(range(len(schedule))):
        target = float(schedule.alpha_bar_next[k])
        next_from = _towards(schedule, k, math.sqrt(target), math.sqrt(1 - target))
        x = _step(x, predict(x, k), schedule, k, options, next_from)
        if options.observer is not None:
            options.observer(i, x)
    return x


def implicit_inversion(
    predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, iterations: int = 1
) -> Tensor:
    """The x_T that `ddim` (eta 0, same schedule and clip) leads from to x: every step of it is solved backwards.

    A step gives y = sqrt(alpha_bar_prev / alpha_bar) (x - c eps(x)). Its x is a fixed point of
    sqrt(alpha_bar / alpha_bar_prev) y + c eps(x), sought from x = y on (Pan et al. 2023). With one iteration that is
    DDIM inversion as it is common today; more bring the round trip nearer, but may lead x_T away from a normal one.

    The first step has one iteration always: near the image eps is steepest, and a trained network's fixed point there
    is no better than its first guess.
    """
    for i, k in enumerate(range(len(schedule))):
        signal, before = float(schedule.alpha_bar[k]), float(schedule.alpha_bar_prev[k])
        scale = math.sqrt(signal / before)
        fraction = math.sqrt(1 - signal) - scale * math.sqrt(1 - before)
        y = x
        for _ in range(iterations if k > 0 else 1):
            x = _step(x, predict(x, k), schedule, k, options, _towards(schedule, k, 0.0, fraction), (y,), (scale,))
        if options.observer is not None:
            options.observer(i, x)
    return x
