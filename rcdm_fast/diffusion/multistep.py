"""Solvers of higher order: from x_T to x0, as pure loops with the signature of `solvers.py`.

All but `heun` go on from what the network said at several steps, and ask it once a step.

Their variable is l = log(alpha / sigma), half the logarithm of the signal-to-noise ratio, or sigma / alpha = e^-l.
Between two signals the flow is an integral over what the network says; most put a polynomial through its last
estimates. The last step gives the network's x0 estimate itself. An x0 that was clipped is kept as it was clipped.

Scalars are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import Predict, SolverOptions, StepNoise, eps_factors, step_and_x0

T = TypeVar("T")
# (x, number of the step, kept step, alpha_bar there, alpha_bar after the step) -> x after the step
Step = Callable[[Tensor, int, int, float, float], Tensor]
# (alpha and sigma after a step, its length h, the lengths of those before, newest first) -> weights: of x times the
# ratio of the sigmas, of the estimates (newest first), of fresh noise
Weigh = Callable[[float, float, float, list[float]], tuple[float, list[float], float]]


def _log_snr(alpha_bar: float) -> float:
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


def _steps(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step: Step) -> Tensor:
    """Step after step; the last one gives the x0 estimate itself."""
    for i, k in enumerate(reversed(range(len(schedule)))):
        if k == 0:
            x, _ = step_and_x0(x, predict(x, k), schedule, k, options, (1.0, 0.0), (), ())
        else:
            x = step(x, i, k, float(schedule.alpha_bar[k]), float(schedule.alpha_bar_prev[k]))
        if options.observer is not None:
            options.observer(i, x)
    return x


def _run(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    options: SolverOptions,
    order: int,
    weigh: Weigh,
    step_noise: StepNoise | None = None,
) -> Tensor:
    """Steps from the last `order` x0 estimates."""
    estimates: list[Tensor] = []  # newest first
    gaps: list[float] = []

    def step(x: Tensor, i: int, k: int, signal: float, target: float) -> Tensor:
        h = _log_snr(target) - _log_snr(signal)
        alpha, sigma = math.sqrt(target), math.sqrt(1 - target)
        factor, (newest, *older), deviation = weigh(alpha, sigma, h, gaps)
        next_from = newest, factor * sigma / math.sqrt(1 - signal)
        terms = tuple(estimates[: len(older)])
        if deviation and step_noise is not None:
            terms, older = (*terms, step_noise(i)), [*older, deviation]
        x, estimate = step_and_x0(x, predict(x, k), schedule, k, options, next_from, terms, tuple(older))
        _keep(estimates, estimate, order - 1)
        _keep(gaps, h, order - 1)
        return x

    return _steps(predict, x, schedule, options, step)


def _keep(newest_first: list[T], value: T, count: int) -> None:
    """Put a value before the others, and leave `count` of them."""
    newest_first[:] = [value, *newest_first][:count]


def _moments(h: float, count: int) -> list[float]:
    """Integrals of e^(u - h) u^n over a step, u in 0..h, for n below `count`."""
    found = [-math.expm1(-h)]
    for n in range(1, count):
        found.append(h**n - n * found[-1])
    return found


def _through(gaps: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of values at u = 0, -gaps[0], -gaps[0] - gaps[1]... whose polynomial has these moments."""
    places = -np.cumsum([0.0, *gaps])
    powers = np.vander(places, increasing=True).T  # row n: the places to the power n
    weights: list[float] = np.linalg.solve(powers, np.asarray(moments[: len(places)])).tolist()
    return weights


def dpmpp_2m(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order from the x0 of two steps."""

    def weigh(alpha: float, sigma: float, h: float, gaps: list[float]) -> tuple[float, list[float], float]:
        gain = -alpha * math.expm1(-h)
        if not gaps:
            return 1.0, [gain], 0.0
        half = h / gaps[0] / 2
        return 1.0, [gain * (1 + half), -gain * half], 0.0

    return _run(predict, x, schedule, options, 2, weigh)


def dpmpp_3m(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """DPM-Solver++ of third order from the x0 of three steps (Lu et al. 2022, equation 9, integrated exactly).

    x0 is a parabola in l through the last three estimates; the first two steps have orders 1 and 2.
    """

    def weigh(alpha: float, sigma: float, h: float, gaps: list[float]) -> tuple[float, list[float], float]:
        weights = _through(gaps, _moments(h, len(gaps) + 1))
        return 1.0, [alpha * weight for weight in weights], 0.0

    return _run(predict, x, schedule, options, 3, weigh)


def dpmpp_2m_sde(
    predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 4.3): `dpmpp_2m` along the reverse SDE, with fresh noise."""

    def weigh(alpha: float, sigma: float, h: float, gaps: list[float]) -> tuple[float, list[float], float]:
        gain = -alpha * math.expm1(-2 * h)
        factor, deviation = math.exp(-h), sigma * math.sqrt(-math.expm1(-2 * h))
        if not gaps:
            return factor, [gain], deviation
        half = h / gaps[0] / 2
        return factor, [gain * (1 + half), -gain * half], deviation

    return _run(predict, x, schedule, options, 2, weigh, step_noise)


def _run_eps(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    options: SolverOptions,
    order: int,
    weigh: Callable[[float, float, float, list[float]], list[float]],
) -> Tensor:
    """Steps from the last `order` eps, that of an x0 as it was clipped; x / alpha moves by their weighted sum."""
    known: list[Tensor] = []  # newest first
    gaps: list[float] = []

    def step(x: Tensor, i: int, k: int, signal: float, target: float) -> Tensor:
        h = _log_snr(target) - _log_snr(signal)
        newest, *older = weigh(math.sqrt(target), math.sqrt(1 - target), h, gaps)
        of_x, of_x0 = eps_factors(schedule, k)
        next_from = newest * of_x0, math.sqrt(target / signal) + newest * of_x
        terms = tuple(known[: len(older)])
        following, x0 = step_and_x0(x, predict(x, k), schedule, k, options, next_from, terms, tuple(older))
        _keep(known, x * of_x + x0 * of_x0, order - 1)
        _keep(gaps, h, order - 1)
        return following

    return _steps(predict, x, schedule, options, step)


def deis(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """DEIS of third order (Zhang and Chen 2022, arXiv 2204.13902, equation 14), in log(sigma / alpha) = -l.

    x / alpha moves by the integral of eps over sigma / alpha; eps is a parabola in l through the last three.
    """

    def weigh(alpha: float, sigma: float, h: float, gaps: list[float]) -> list[float]:
        # Over v = l_next - l from 0 to h, the integral of e^v v^n; the places are h, h + gaps[0]...
        moments = [math.expm1(h)]
        for n in range(1, len(gaps) + 1):
            moments.append(math.exp(h) * h**n - n * moments[-1])
        places = h + np.cumsum([0.0, *gaps])
        weights = np.linalg.solve(np.vander(places, increasing=True).T, np.asarray(moments))
        return [-sigma * float(weight) for weight in weights]

    return _run_eps(predict, x, schedule, options, 3, weigh)


_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """iPNDM (Zhang and Chen 2022, appendix; after Liu et al. 2022): DDIM with sums of the last four eps.

    The sums are those of Adams and Bashforth, of fourth order where steps are even in sigma / alpha.
    """

    def weigh(alpha: float, sigma: float, h: float, gaps: list[float]) -> list[float]:
        whole = -sigma * math.expm1(h)  # sigma_next - alpha_next / alpha sigma: what DDIM gives eps
        return [whole * factor for factor in _ADAMS_BASHFORTH[len(gaps)]]

    return _run_eps(predict, x, schedule, options, 4, weigh)


def heun(predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise) -> Tensor:
    """Heun's method on x / alpha over sigma / alpha (Karras et al. 2022, algorithm 1): second order from one step.

    Two evaluations a step, the second where DDIM leads; one in the last.
    """

    def step(x: Tensor, i: int, k: int, signal: float, target: float) -> Tensor:
        ratio = math.sqrt(target / signal)
        whole = math.sqrt(1 - target) - ratio * math.sqrt(1 - signal)  # what DDIM gives eps
        of_x, of_x0 = eps_factors(schedule, k)
        after = eps_factors(schedule, k - 1)
        next_from = whole * of_x0, ratio + whole * of_x
        there, x0 = step_and_x0(x, predict(x, k), schedule, k, options, next_from, (), ())
        _, again = step_and_x0(there, predict(there, k - 1), schedule, k - 1, options, (1.0, 0.0), (), ())
        eps = (x * of_x + x0 * of_x0 + there * after[0] + again * after[1]) / 2
        return x * ratio + eps * whole

    return _steps(predict, x, schedule, options, step)
