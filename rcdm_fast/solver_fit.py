"""Where the steps of a solver should lie for one model: what `rcdm tune` finds.

A teacher, `TEACHER` over many candidate timesteps, draws trajectories. The cost of a step from one candidate to another
is how far DDIM's step lands from the teacher's trajectory, and a placement is the cheapest way along the candidates in
so many steps, by dynamic programming (GITS: Chen et al. 2024, arXiv 2405.11326, section 4). Distances are those of
x / alpha, in which errors of single steps add up. No gradient is computed.

Whether the placement is better than the solver's own is measured on trajectories that had no part in it: by the
relative L2 distance of images to the teacher's, in pairs. Where it is not, the solver's own stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.checks import Checked, ConfigError, Count, Resamples, Seed
from rcdm_fast.diffusion import multistep, registry
from rcdm_fast.diffusion.registry import SOLVERS, SolverName
from rcdm_fast.diffusion.schedule import AT, Floats, Schedule, place
from rcdm_fast.diffusion.solvers import Predict, Solver, SolverOptions, StepNoise, x0_factors
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.model import Model

TEACHER = multistep.dpmpp_2m
HELD_OUT = 4  # every so many-th trajectory
LEAST = HELD_OUT * intervals.LEAST  # trajectories: those that are held out judge, and need an interval

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FitConfig(Checked):
    """How placements are found.

    Attributes:
        nfe: numbers of network evaluations to find one for.
        solver: what will use them.
        candidates: timesteps to choose from, even in the 7th root of sigma / alpha; the teacher visits all of them.
        seed, batch_size, resamples: as elsewhere.
    """

    nfe: tuple[Count, ...] = (5, 6, 8, 10)
    solver: SolverName = "ipndm"
    candidates: Count = 61
    seed: Seed = 0
    batch_size: Count = 32
    resamples: Resamples = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nfe:
            raise ConfigError("nothing to find: no number of network evaluations is given")
        known = registry.find(self.solver)
        if known.fresh or known.twice:
            raise ConfigError(
                f"{self.solver} {'draws fresh noise' if known.fresh else 'evaluates twice'} in every step: "
                "placements are found for solvers that follow the flow, one evaluation a step"
            )
        wrong = [count for count in self.nfe if not known.least <= count < self.candidates]
        if wrong:
            raise ConfigError(
                f"{self.solver} takes {known.least} evaluations or more, and fewer than the {self.candidates} "
                f"candidates are wanted; got {', '.join(map(str, wrong))}"
            )


@dataclass(frozen=True)
class Placed:
    """Where the steps for one number of evaluations lie.

    Attributes:
        nfe: network evaluations.
        steps: what `Model.sample` takes: the placement found, or the solver's own where that is as good.
        found: the placement that was found, whether or not it is better.
        error: relative L2 distance to the teacher with it, of trajectories that had no part in it.
        own_error: with the solver's own placement.
        difference: the first less the second, in pairs.
    """

    nfe: int
    steps: str
    found: str
    error: Interval
    own_error: Interval
    difference: Interval

    @property
    def better(self) -> bool:
        """Whether it is better beyond doubt."""
        return self.difference.high < 0


@host.guarded(gradients=True, random=True)
def fit(
    model: Model,
    config: FitConfig,
    h: Tensor | None = None,
    label: Tensor | None = None,
    trajectories: int = 0,
    progress: Progress | None = None,
) -> list[Placed]:
    """A placement for each number of evaluations.

    Args:
        model: any model.
        config: see `FitConfig`.
        h, label: conditions, a trajectory each, as `Model.sample` takes them.
        trajectories: how many, for a model that takes neither.
        progress: called with (evaluations done, evaluations in all) of an image.

    Raises:
        ConfigError: fewer than 80 trajectories, conditions that the model does not take, or a student.
    """
    check_no_student(model)
    count = next((len(value) for value in (h, label) if value is not None), trajectories)
    if count < LEAST:
        raise ConfigError(
            f"placements are found from at least {LEAST} trajectories, got {count}: one in {HELD_OUT} judges them, and "
            f"of fewer than {intervals.LEAST} nothing is beyond doubt"
        )
    base = Schedule.make(model.config.schedule)
    if config.candidates > len(base):
        raise ConfigError(f"{config.candidates} candidates of {len(base)} timesteps")
    grid = Schedule(base.config, place(base.alpha_bar, config.candidates, "karras"))
    own = {nfe: registry.schedule(base.config, config.solver, nfe) for nfe in config.nfe}
    done, total = 0, config.candidates + 2 * sum(config.nfe)
    solver = SOLVERS[config.solver].run

    def report(evaluations: int) -> None:
        nonlocal done
        done += evaluations
        if progress is not None:
            progress(done, total)

    ask = Asked(model, h, label, count, config.seed, config.batch_size)
    held = torch.arange(count) % HELD_OUT == 0
    wanted, costs = survey(ask, grid, ~held)
    report(config.candidates)
    placed = []
    for nfe in config.nfe:
        chosen = [grid.timesteps[k] for k in cheapest(costs.mean, costs.last, nfe)]
        found = AT + ",".join(map(str, chosen))
        errors = []
        for schedule in (Schedule(base.config, tuple(chosen)), own[nfe]):
            errors.append(distances(ask.images(schedule, solver)[held], wanted[held]))
            report(nfe)
        placed.append(_placed(nfe, found, errors[0], errors[1], config))
    return placed


def check_no_student(model: Model) -> None:
    """Raise `ConfigError` for a distilled model: a teacher would ask it at timesteps that it does not know."""
    if model.config.student_steps:
        raise ConfigError(
            f"{model.config.name or 'the model'} is a student, which has steps of its own and no others: "
            "tune the model that it learned from"
        )


def _placed(nfe: int, found: str, error: np.ndarray, own: np.ndarray, config: FitConfig) -> Placed:
    def interval(values: np.ndarray) -> Interval:
        return bootstrap(values, config.resamples, np.random.default_rng(config.seed))

    difference = interval(error - own)
    steps = found if difference.high < 0 else str(nfe)
    return Placed(nfe, steps, found, interval(error), interval(own), difference)


def cheapest(step: Floats, last: Floats, count: int) -> list[int]:
    """The way along the candidates in so many evaluations whose costs have the least sum; ascending.

    Args:
        step: [C,C], the cost of a step from candidate i to the less noisy j < i; the way begins at the last candidate.
        last: [C], the cost of ending at candidate i, from which the network's x0 is taken.
        count: evaluations, 1..C.
    """
    size = len(last)
    least = np.full((count, size), np.inf)
    before = np.zeros((count, size), dtype=int)
    least[0, size - 1] = 0.0
    for n in range(1, count):
        through = least[n - 1][:, None] + np.where(np.tri(size, k=-1, dtype=bool), step, np.inf)  # [i,j], j < i
        before[n] = through.argmin(axis=0)
        least[n] = through.min(axis=0)
    at = int((least[count - 1] + last).argmin())
    way = [at]
    for n in range(count - 1, 0, -1):
        at = int(before[n, at])
        way.append(at)
    return way


def survey(ask: Asked, grid: Schedule, counted: Tensor) -> tuple[Tensor, Costs]:
    """The teacher's images, float32 [N,3,H,W] on the CPU, and what steps cost those that are counted, bool [N]."""
    costs, drawn = Costs(grid), []
    for rows, states, outputs, images in ask.teacher(grid):
        costs.add(states, outputs, images, counted[rows])
        drawn.append(images)
    return torch.cat(drawn), costs


def distances(images: Tensor, wanted: Tensor) -> Floats:
    """Relative L2 distance of each image to the one that is wanted, [N,3,H,W] both; [N]."""
    apart: Floats = ((images - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).double().numpy()
    return apart


class Asked:
    """Draws the same trajectories with any solver and schedule; conditions as in `fit`."""

    def __init__(
        self, model: Model, h: Tensor | None, label: Tensor | None, count: int, seed: int, batch_size: int
    ) -> None:
        self._model, self._batch_size = model, batch_size
        self._request = model.request(h, label=label, items=range(count), per=1, steps=1, solver="ddim", seed=seed)

    def images(self, schedule: Schedule, solver: Solver, places: Tensor | None = None) -> Tensor:
        """float32 [N,3,H,W] on the CPU; of some of them only, if places are given, int64 [n]."""
        return torch.cat([images for _, images in self.batches(schedule, solver, places)])

    def batches(
        self, schedule: Schedule, solver: Solver, places: Tensor | None = None, most: int = 2**31
    ) -> Iterator[tuple[slice, Tensor]]:
        """The same, of at most so many at once: which of those that are asked for, and images on the CPU."""
        request = dataclasses.replace(self._request, schedule=schedule, solver=solver, evaluations=len(schedule))
        if places is not None:
            request = dataclasses.replace(request, pairs=tuple((row, 0) for row in places.tolist()))
        for rows, images in self._model.batches(request, min(most, self._batch_size)):
            yield rows, images.cpu()

    def teacher(self, grid: Schedule) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Of every batch: which trajectories, states and network outputs [C,n,3,H,W] in the order of the steps, images.

        What was seen of a batch is forgotten when the next one begins.
        """
        states: list[Tensor] = []
        outputs: list[Tensor] = []

        def solver(
            predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
        ) -> Tensor:
            states.clear()
            outputs.clear()

            def noted(x: Tensor, k: int) -> Tensor:
                out = predict(x, k)
                states.append(x.cpu().clone())
                outputs.append(out[:, :3].cpu().clone())
                return out

            return TEACHER(noted, x, schedule, options, step_noise)

        request = dataclasses.replace(self._request, schedule=grid, solver=solver, evaluations=len(grid))
        for rows, images in self._model.batches(request, self._batch_size):
            yield rows, torch.stack(states), torch.stack(outputs), images.cpu()


class Costs:
    """Means over trajectories of what steps between candidates cost.

    Attributes:
        mean: [C,C]; see `cheapest`.
        last: [C].
    """

    def __init__(self, grid: Schedule) -> None:
        self._grid = grid
        size = len(grid)
        self._step, self._last, self._count = np.zeros((size, size)), np.zeros(size), 0

    def add(self, states: Tensor, outputs: Tensor, images: Tensor, kept: Tensor) -> None:
        """Take in those trajectories of a batch that are kept, bool [n]; [C,n,3,H,W] in the order of the steps."""
        size = len(self._grid)
        x = [state[kept].double().flatten(1) for state in states.flip(0)]  # by candidate, ascending
        end = images[kept].double().flatten(1)
        self._count += int(kept.sum())
        for i in range(size):
            of_x, of_output = x0_factors(self._grid, i)
            x0 = (of_x * x[i] + of_output * outputs[size - 1 - i][kept].double().flatten(1)).clamp(-1, 1)
            self._last[i] += float((x0 - end).norm(dim=1).sum())
            alpha, sigma = _parts(self._grid, i)
            eps = (x[i] - alpha * x0) / sigma
            for j in range(i):
                other, noise = _parts(self._grid, j)
                reached = other * x0 + noise * eps
                self._step[i, j] += float(((reached - x[j]) / other).norm(dim=1).sum())

    @property
    def mean(self) -> Floats:
        return self._step / self._count

    @property
    def last(self) -> Floats:
        return self._last / self._count


def _parts(grid: Schedule, k: int) -> tuple[float, float]:
    """alpha and sigma at candidate k."""
    alpha_bar = float(grid.alpha_bar[k])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
