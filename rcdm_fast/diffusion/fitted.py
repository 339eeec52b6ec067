"""A solver whose numbers were fitted to one model: the Generalized Solver (Oganov et al. 2025, arXiv 2510.17699).

DPM-Solver++(3M) gives every state of a trajectory as a sum of the state before it and of x0 estimates. Here it is a sum
of all states and all estimates before it, with what was fitted added to the weights of that solver; where the steps lie
is fitted, and so are the times that the network is asked at, which may be others than those of the formula. The first
evaluation lies at the last base timestep, where x_T is; after the last one comes x0 itself.

For n evaluations there are n (n + 3) numbers, in this order: n logits of the gaps between steps, the last of them to
the end; n offsets of what the network is asked at, in base timesteps; the weights of states, then those of estimates,
n (n + 1) / 2 each: row after row of a lower triangle, oldest first.

All of it is float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.config import FittedSolver, ScheduleConfig
from rcdm_fast.diffusion.schedule import Floats, Schedule, betas_of
from rcdm_fast.diffusion.solvers import Predict, Solver, SolverOptions, StepNoise, step_and_x0

VERSION = 1
LEAST_GAP = 1e-4  # between steps, as a fraction of all base timesteps
_ORDER = 3
_MOST_TERMS = 8  # that `ops.solver_step` adds up at once


class Resolved(NamedTuple):
    """What the numbers say, step after step from noise on.

    Attributes:
        times: base timesteps of the formula, float64 [n], falling from T-1.
        asked: base timesteps that the network is asked at, float64 [n], in 0..T-1.
        alpha_bar: at `times`, float64 [n].
        weights: float64 [n,n+1]; the state after step i is the sum of weights[i,0] x_T and of weights[i,1+j] times the
            x0 estimate of step j, for j up to i.
    """

    times: Tensor
    asked: Tensor
    alpha_bar: Tensor
    weights: Tensor


def initial(config: ScheduleConfig, times: tuple[float, ...]) -> Floats:
    """The numbers with which the solver is DPM-Solver++(3M) with these steps.

    Args:
        config: the base schedule.
        times: base timesteps, ascending, the last one T-1; steps that are nearer to each other, or to the end, than
            `LEAST_GAP` move apart.
    """
    last, count = config.diffusion_steps - 1, len(times)
    gaps = np.maximum(np.diff([0.0, *times])[::-1] / last, 2 * LEAST_GAP)
    fractions = (gaps / gaps.sum() - LEAST_GAP) / (1 - count * LEAST_GAP)
    return np.concatenate([np.log(fractions), np.zeros(count * (count + 2))])


def like(schedule: Schedule, solver: Solver) -> Floats:
    """The numbers with which the solver is another one with these steps, that asks the network once in each of them.

    What it makes of x_T and of x0 estimates is read off by giving it unit vectors for them. Steps as in `initial`.
    """
    count = len(schedule)
    plain = Schedule(dataclasses.replace(schedule.config, prediction="x0"), schedule.timesteps)
    units = torch.eye(count + 1, dtype=torch.float64)[:, None, :, None, None]
    states: list[Tensor] = []

    def predict(x: Tensor, k: int) -> Tensor:
        states.append(x.flatten())
        return units[count - k]

    states.append(solver(predict, units[0], plain, SolverOptions(clip=False), lambda i: units[0]).flatten())
    times = torch.tensor(schedule.timesteps[::-1], dtype=torch.float64)
    return numbers_of(schedule.config, times, times, torch.stack(states[1:])).numpy()


def numbers_of(config: ScheduleConfig, times: Tensor, asked: Tensor, weights: Tensor) -> Tensor:
    """The numbers that say this; the other way round than `resolve`.

    Args:
        config: the base schedule.
        times, asked, weights: as of `Resolved`; steps that are too near to each other move apart as in `initial`.

    Returns:
        float64 [n(n+3)].
    """
    count = len(times)
    numbers = torch.from_numpy(initial(config, tuple(times.flip(0).tolist())))
    numbers[count : 2 * count] = asked - resolve(config, count, numbers).times
    of_states, of_estimates = numbers[2 * count :].chunk(2)
    place = 0
    for i in range(count):  # the states before are those that are wanted by then
        short = (weights - resolve(config, count, numbers).weights)[i]
        of_states[place], of_estimates[place : place + i + 1] = short[0], short[1 : i + 2]
        place += i + 1
    return numbers


def resolve(config: ScheduleConfig, nfe: int, numbers: Tensor) -> Resolved:
    """What n (n + 3) numbers, float64, say for n evaluations."""
    last, triangle = config.diffusion_steps - 1, nfe * (nfe + 1) // 2
    logits, offsets, of_states, of_estimates = numbers.double().split([nfe, nfe, triangle, triangle])
    gaps = torch.softmax(logits, dim=0) * (1 - nfe * LEAST_GAP) + LEAST_GAP
    times = last * gaps.flip(0).cumsum(0).flip(0)
    logs = _log_alpha_bar(config, times)
    snr = (logs - torch.log(-torch.expm1(logs))) / 2  # log(alpha / sigma)
    alpha, sigma = torch.exp(logs / 2), torch.sqrt(-torch.expm1(logs))
    steps = snr.diff()
    states = torch.eye(nfe + 1, dtype=torch.float64)[:1]  # [i+1,n+1], the sums that they are
    parts = torch.eye(nfe + 1, dtype=torch.float64)[1:]
    place = 0
    for i in range(nfe):
        add_states, add_estimates = of_states[place : place + i + 1], of_estimates[place : place + i + 1]
        place += i + 1
        if i == nfe - 1:
            after = parts[i]
        else:
            order = min(i + 1, _ORDER)
            own = alpha[i + 1] * _through(steps[i], steps[i - order + 1 : i].flip(0))
            after = sigma[i + 1] / sigma[i] * states[i] + own.flip(0) @ parts[i - order + 1 : i + 1]
        after = after + add_states @ states + add_estimates @ parts[: i + 1]
        states = torch.cat([states, after[None]])
    return Resolved(times, (times + offsets).clamp(0, last), torch.exp(logs), states[1:])


def schedule(config: ScheduleConfig, fitted: FittedSolver) -> Schedule:
    """Its steps."""
    found = _of(config, fitted)
    return Schedule(config, _ascending(found.times), _ascending(found.asked))


def solver(config: ScheduleConfig, fitted: FittedSolver) -> Solver:
    """The solver itself; it is run with `schedule`. An image is clipped where its x0 estimates are."""
    return _Run(tuple(map(tuple, _of(config, fitted).weights.tolist())))


@dataclass(frozen=True)
class _Run:
    """The solver with these weights (of `Resolved`); equal to another that has the same."""

    weights: tuple[tuple[float, ...], ...]

    def __call__(
        self, predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
    ) -> Tensor:
        known = [x]
        for i, k in enumerate(reversed(range(len(schedule)))):
            x, estimate = step(self.weights[i], known, x, predict(x, k), schedule, k, options)
            known.append(estimate)
            if k == 0 and options.clip:
                x = x.clamp(-1, 1)
            if options.observer is not None:
                options.observer(i, x)
        return x


def step(
    weights: Sequence[float],
    known: Sequence[Tensor],
    x: Tensor,
    output: Tensor,
    schedule: Schedule,
    k: int,
    options: SolverOptions,
) -> tuple[Tensor, Tensor]:
    """One step from x, of which the network says `output`: (next x, x0 estimate as it was clipped).

    `weights` are a row of those of `Resolved`, `known` x_T and the estimates of the steps before. Their weights come
    first, then that of this step's own.
    """
    *older, newest = weights[: len(known) + 1]
    terms, factors = _few(known, older)
    return step_and_x0(x, output, schedule, k, options, (newest, 0.0), terms, factors)


def _few(terms: Sequence[Tensor], weights: Sequence[float]) -> tuple[tuple[Tensor, ...], tuple[float, ...]]:
    """The same sum of no more terms than the operator takes: the first ones are added up before."""
    many = len(terms) - _MOST_TERMS
    if many <= 0:
        return tuple(terms), tuple(weights)
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1 : many + 1], weights[1 : many + 1], strict=True):
        total = total + term * weight
    return (total, *terms[many + 1 :]), (1.0, *weights[many + 1 :])


def _of(config: ScheduleConfig, fitted: FittedSolver) -> Resolved:
    return resolve(config, fitted.nfe, torch.tensor(fitted.numbers, dtype=torch.float64))


def _ascending(values: Tensor) -> tuple[float, ...]:
    found: list[float] = values.flip(0).tolist()
    return tuple(found)


def _log_alpha_bar(config: ScheduleConfig, times: Tensor) -> Tensor:
    """log alpha_bar, linear between base timesteps."""
    base = torch.from_numpy(np.cumsum(np.log1p(-betas_of(config.noise_schedule, config.diffusion_steps))))
    whole = times.detach().floor().long().clamp(0, max(0, len(base) - 2))
    between = times - whole
    return base[whole] * (1 - between) + base[(whole + 1).clamp(max=len(base) - 1)] * between


def _through(h: Tensor, gaps: Tensor) -> Tensor:
    """Weights of x0 estimates, newest first, of a step of length h: the integral of e^(u - h) x0(u) for u in 0..h.

    x0 is the polynomial through them (Lu et al. 2022, equation 9), which lie at 0, -gaps[0], -gaps[0] - gaps[1]...
    """
    moments = [-torch.expm1(-h)]
    for n in range(1, len(gaps) + 1):
        moments.append(h**n - n * moments[-1])
    places = -torch.cat([torch.zeros(1, dtype=torch.float64), gaps.cumsum(0)])
    powers = torch.stack([places**n for n in range(len(places))])
    found: Tensor = torch.linalg.solve(powers, torch.stack(moments))
    return found
