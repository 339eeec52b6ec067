"""UniPC: a predictor and a corrector of one order, with one evaluation a step (see `multistep.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from rcdm_fast.diffusion.multistep import _keep, _log_snr, _steps
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import Predict, SolverOptions, StepNoise, step_and_x0


def unipc_2(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, arXiv 2302.04867): see `_unipc`."""
    return _unipc(predict, x, schedule, options, 2, math.expm1)


def unipc_3(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """UniPC-3 with B(h) = e^h - 1 (Zhao et al. 2023, arXiv 2302.04867): see `_unipc`."""
    return _unipc(predict, x, schedule, options, 3, math.expm1)


def unipc_2_bh1(
    predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
) -> Tensor:
    """UniPC-2 with B(h) = h (Zhao et al. 2023, arXiv 2302.04867): see `_unipc`."""
    return _unipc(predict, x, schedule, options, 2, float)


def unipc_3_bh1(
    predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
) -> Tensor:
    """UniPC-3 with B(h) = h (Zhao et al. 2023, arXiv 2302.04867): see `_unipc`."""
    return _unipc(predict, x, schedule, options, 3, float)


def _unipc(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    options: SolverOptions,
    order: int,
    growth: Callable[[float], float],
) -> Tensor:
    """Predictor and corrector of one order on x0 (Zhao et al. 2023, algorithms 5 and 6).

    The evaluation that a step begins with also corrects the state that it begins from, so there is one each step.
    `growth` is the paper's B, h or e^h - 1, taken at -h as x0 is what is estimated. It makes a difference only where
    the paper puts a weight of 1/2 in place of a solution: in every prediction of order 2, so in the second step alone
    for order 3, and in the first correction.
    """
    estimates: list[Tensor] = []  # newest first
    gaps: list[float] = []
    begun = x  # where the step before began

    def step(x: Tensor, i: int, k: int, signal: float, target: float) -> Tensor:
        nonlocal begun
        _, estimate = step_and_x0(x, predict(x, k), schedule, k, options, (1.0, 0.0), (), ())
        if estimates:
            before = float(schedule.alpha_bar[k + 1])
            weights = _unipc_weights(gaps[0], gaps[1:], math.sqrt(signal), growth, corrects=True)
            scale = math.sqrt((1 - signal) / (1 - before))
            x = _sum(scale, begun, weights, [estimate, *estimates])
        begun = x
        _keep(estimates, estimate, order)
        h = _log_snr(target) - _log_snr(signal)
        weights = _unipc_weights(h, gaps[: order - 1], math.sqrt(target), growth, corrects=False)
        _keep(gaps, h, order)
        return _sum(math.sqrt((1 - target) / (1 - signal)), begun, weights, estimates)

    return _steps(predict, x, schedule, options, step)


def _sum(scale: float, x: Tensor, weights: Sequence[float], estimates: Sequence[Tensor]) -> Tensor:
    total = x * scale
    for weight, estimate in zip(weights, estimates, strict=True):
        total = total + estimate * weight
    return total


def _unipc_weights(
    h: float, gaps: Sequence[float], alpha: float, growth: Callable[[float], float], corrects: bool
) -> list[float]:
    """Weights of the x0 estimates, newest first; of a corrector the newest is that at the step's end.

    With m0 the estimate where the step begins, places r in units of h and B = growth(-h), the sum is alpha times
    (1 - e^-h) m0 - B times the sum of a_j (m_j - m0) / r_j, where the sum of a_j r_j^(n-1) is phi_n / B for n = 1,
    2...
    """
    places = [*(-np.cumsum(gaps) / h), *([1.0] if corrects else [])]
    back = -h
    phi, factorial, wanted = math.expm1(back) / back - 1, 1.0, []
    bracket = growth(back)
    for n in range(1, len(places) + 1):
        wanted.append(phi * factorial / bracket)
        factorial *= n + 1
        phi = phi / back - 1 / factorial
    if len(places) == 1:
        fractions = [0.5]  # as published, for both of them
    else:
        fractions = np.linalg.solve(np.vander(places, increasing=True).T, np.asarray(wanted)).tolist()
    others = [-alpha * bracket * fraction / place for fraction, place in zip(fractions, places, strict=True)]
    begin = -alpha * math.expm1(back) - sum(others)
    return [others[-1], begin, *others[:-1]] if corrects else [begin, *others]
