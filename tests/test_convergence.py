"""Orders of convergence where the flow is known, and means and variances that are exact, of every solver there is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion import multistep_inversion, registry, solvers
from rcdm_fast.diffusion.schedule import Floats, Schedule
from rcdm_fast.diffusion.solvers import Predict, SolverOptions
from tests.mixture import FREE, Ladder, flow, posterior_mean, refuse

BEGIN, MIDDLE, END = -6.0, -1.0, 1.5  # log(alpha / sigma): nearly all noise, some, little
MEAN, DEVIATION = 0.3, 0.4  # of a Gaussian
STEPS = (120, 240)


class Case(NamedTuple):
    """A solver, the order that its paper gives, and where its steps are even."""

    name: str
    order: int
    even_in_rho: bool = False  # sigma / alpha; else log(alpha / sigma)
    startup: int = 0  # states after the first that are given exactly


CASES = (
    Case("ddim", 1),
    Case("dpmpp_2m", 2, startup=1),
    Case("dpmpp_3m", 3, startup=2),
    Case("deis", 3, startup=2),
    Case("unipc_2", 3, startup=1),
    Case("unipc_2_bh1", 3, startup=1),
    Case("unipc_3", 4, startup=2),
    Case("unipc_3_bh1", 4, startup=2),
    Case("heun", 2, even_in_rho=True),
    Case("ipndm", 4, even_in_rho=True, startup=3),
)
INVERSIONS: dict[str, tuple[int, int, Callable[..., Tensor]]] = {  # order, states that are given, the inversion
    "explicit": (1, 0, solvers.ddim_inversion),
    "implicit": (1, 1, solvers.implicit_inversion),
    "implicit, 3 iterations": (1, 1, functools.partial(solvers.implicit_inversion, iterations=3)),
    "multistep": (2, 2, multistep_inversion.inversion),
}


@pytest.fixture(scope="module")
def exact() -> dict[float, Tensor]:
    """One trajectory of the flow, at three signals."""
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    middle = flow(x, BEGIN, MIDDLE, 1000)
    return {BEGIN: x, MIDDLE: middle, END: flow(middle, MIDDLE, END, 500)}


def given_exactly(x: Tensor, way: Floats, count: int, seen: list[Tensor]) -> Callable[[int, Tensor], None]:
    """An observer that puts the flow's own states in place of the first `count`, and keeps all of them.

    Args:
        x: where the flow begins, at way[0]; the i-th state is at way[i + 1].
        way, count, seen: log(alpha / sigma) of all states; see above.
    """

    def observe(i: int, state: Tensor) -> None:
        nonlocal x
        if i < count:
            x = flow(x, float(way[i]), float(way[i + 1]), 40)
            state.copy_(x)
        seen.append(state.clone())

    return observe


def in_tune(errors: list[float], order: int) -> None:
    """Of twice as many steps the error is as much smaller as the order says."""
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2, errors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_order_of_convergence(case: Case, exact: dict[float, Tensor]) -> None:
    """Between two finite signals, with exact start-up values, in steps that are even in the solver's own variable."""
    begin = MIDDLE if case.even_in_rho else BEGIN
    errors = []
    for steps in STEPS:
        if case.even_in_rho:
            way = -np.log(np.linspace(math.exp(-begin), math.exp(-END), steps + 1))
        else:
            way = np.linspace(begin, END, steps + 1)
        schedule: Any = Ladder(way[::-1])
        seen: list[Tensor] = []
        options = SolverOptions(clip=False, observer=given_exactly(exact[begin], way, case.startup, seen))

        def predict(x: Tensor, k: int, schedule: Any = schedule) -> Tensor:
            return posterior_mean(x, float(schedule.alpha_bar[k]))

        registry.find(case.name).run(predict, exact[begin], schedule, options, refuse)
        errors.append(float((seen[steps - 1] - exact[END]).norm() / exact[END].norm()))
    in_tune(errors, case.order)


def test_no_solver_is_left_out() -> None:
    assert {case.name for case in CASES} == {name for name, known in registry.SOLVERS.items() if not known.fresh}


@pytest.mark.parametrize("name", INVERSIONS)
def test_order_of_inversions(name: str, exact: dict[float, Tensor]) -> None:
    """The same way back, in steps that are even in log(alpha / sigma)."""
    order, startup, run = INVERSIONS[name]
    errors = []
    for steps in STEPS:
        way = np.linspace(END, BEGIN, steps + 1)
        schedule: Any = Ladder(way)
        seen: list[Tensor] = []
        # The explicit one has its image at the first step; the others come there in their first, which is left out.
        told = way if startup == 0 else np.append(END, way)
        options = SolverOptions(clip=False, observer=given_exactly(exact[END], told, startup, seen))

        def predict(x: Tensor, k: int, schedule: Any = schedule) -> Tensor:
            return posterior_mean(x, float(schedule.alpha_bar[k]))

        run(predict, exact[END], schedule, options)
        errors.append(float((seen[steps - (startup == 0)] - exact[BEGIN]).norm() / exact[BEGIN].norm()))
    in_tune(errors, order)


def gaussian(alpha_bar: float, deviation: float) -> tuple[float, float, float]:
    """Variance of x, the slope of E[x0 | x] and the variance of x0 given x, for values N(MEAN, deviation^2)."""
    total = alpha_bar * deviation**2 + 1 - alpha_bar
    return total, math.sqrt(alpha_bar) * deviation**2 / total, deviation**2 * (1 - alpha_bar) / total


def moments(name: str, schedule: Any, predict: Predict, deviation: float) -> list[tuple[float, float, float]]:
    """Of every state: mean, variance, and the part of the variance that comes from x_T.

    All is linear: one image shows the mean, each of the others what one unit of x_T or of a step's noise becomes.
    """
    steps, last = len(schedule), float(schedule.alpha_bar[-1])
    x = torch.full((steps + 2, 3, 1, 1), math.sqrt(last) * MEAN, dtype=torch.float64)
    x[1] += math.sqrt(gaussian(last, deviation)[0])
    found = []

    def noise(i: int) -> Tensor:
        drawn = torch.zeros_like(x)
        drawn[2 + i] = 1
        return drawn

    def observe(i: int, state: Tensor) -> None:
        apart = (state[:, 0, 0, 0] - state[0, 0, 0, 0]).square()
        found.append((float(state[0, 0, 0, 0]), float(apart.sum()), float(apart[1])))

    registry.find(name).run(predict, x, schedule, SolverOptions(clip=False, observer=observe), noise)
    return found


@pytest.mark.parametrize(("deviation", "steps"), [(DEVIATION, 7), (DEVIATION, 50), (0.0, 20)])
def test_ancestral_sampling_has_the_exact_mean_and_variance(deviation: float, steps: int) -> None:
    """In any number of steps, with the variance that is right: then every reverse step of a Gaussian is exact.

    Without a deviation that is the posterior's; with one the network says it (Bao et al. 2022, theorem 1).
    """
    variance: Any = "learned_range" if deviation else "fixed_small"
    schedule = Schedule.make(ScheduleConfig(prediction="x0", variance=variance), steps)
    low, high = schedule.log_variance_bounds
    of_x0, _ = schedule.posterior_mean_coefficients

    def predict(x: Tensor, k: int) -> Tensor:
        alpha_bar = float(schedule.alpha_bar[k])
        _, slope, left = gaussian(alpha_bar, deviation)
        x0 = MEAN + slope * (x - math.sqrt(alpha_bar) * MEAN)
        if not deviation or k == 0:
            return torch.cat([x0, torch.zeros_like(x)], dim=1) if deviation else x0
        right = math.log(schedule.posterior_variance[k] + of_x0[k] ** 2 * left)
        return torch.cat([x0, torch.full_like(x, 2 * (right - low[k]) / (high[k] - low[k]) - 1)], dim=1)

    found = moments("ancestral", schedule, predict, deviation)
    for i, (mean, variance_there, _) in enumerate(found[:-1]):
        alpha_bar = float(schedule.alpha_bar[steps - 2 - i])
        assert mean == pytest.approx(math.sqrt(alpha_bar) * MEAN, rel=1e-9)
        assert variance_there == pytest.approx(gaussian(alpha_bar, deviation)[0], rel=1e-5)  # the deviation is float32
    assert found[-1][0] == pytest.approx(MEAN, rel=1e-9)
    left = gaussian(float(schedule.alpha_bar[0]), deviation)[2]  # what the last step, without noise, cannot know
    assert found[-1][1] == pytest.approx(deviation**2 - left, rel=1e-5, abs=1e-12)


def test_the_sde_solver_has_the_exact_mean_and_the_variance_in_second_order() -> None:
    """Of a Gaussian, at a finite signal; x_T is forgotten there, as it is not without fresh noise."""
    errors = []
    for steps in STEPS:
        schedule: Any = Ladder(np.linspace(END, BEGIN, steps + 1))

        def predict(x: Tensor, k: int, schedule: Any = schedule) -> Tensor:
            alpha_bar = float(schedule.alpha_bar[k])
            return MEAN + gaussian(alpha_bar, DEVIATION)[1] * (x - math.sqrt(alpha_bar) * MEAN)

        mean, variance, remembered = moments("dpmpp_2m_sde", schedule, predict, DEVIATION)[steps - 1]
        alpha_bar = float(schedule.alpha_bar[0])
        assert mean == pytest.approx(math.sqrt(alpha_bar) * MEAN, rel=1e-9)
        errors.append(abs(variance / gaussian(alpha_bar, DEVIATION)[0] - 1))
        assert remembered < 0.01 * variance
    in_tune(errors, 2)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    kept = registry.find("dpmpp_2m").run(predict, x, schedule, FREE, refuse) - MEAN
    assert float(torch.corrcoef(torch.stack([kept.flatten(), x.flatten()]))[0, 1]) > 0.999
