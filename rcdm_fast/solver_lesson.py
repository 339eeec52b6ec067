"""What a solver is learned from: trajectories of a model, and how their images depend on the solver's numbers.

A solver is here what its numbers say (`fitted.Resolved`): weights of x_T and of x0 estimates, and timesteps. Slopes are
differences of two trajectories that share all steps before the one that is changed, so those steps are computed once;
no gradient goes through the network, and any engine does, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.config import FittedSolver, ScheduleConfig
from rcdm_fast.diffusion import fitted
from rcdm_fast.diffusion.fitted import Resolved
from rcdm_fast.diffusion.schedule import Floats, Schedule
from rcdm_fast.diffusion.solvers import Predict, Solver, SolverOptions, StepNoise
from rcdm_fast.model import Model
from rcdm_fast.solver_fit import HELD_OUT, Asked, distances

OF_WEIGHT = 3e-3  # how far a weight is moved for a slope; states are of order 1, and float32 errors 1e-6 of that
OF_TIME = 0.3  # the same of a timestep
SIZES = (1, 2, 4)  # pixels that are averaged before images are compared
_AT_ONCE_BYTES = 2**28  # slopes of a batch


class Equations(NamedTuple):
    """What a step of learning is computed from (Gauss-Newton).

    Attributes:
        curvature: float64 [P,P]; J^T J over pixels, trajectories weighted so that it belongs to the mean distance.
        slope: float64 [P]; J^T r likewise, the gradient of the mean distance.
        distance: the mean distance itself.
    """

    curvature: Tensor
    slope: Tensor
    distance: float


class Lesson:
    """The trajectories, and how far from the teacher a solver leads.

    Attributes:
        base: the model's schedule.
        learning: places of the trajectories that are learned from; int64.
        choosing, judged: of those that choices are made by, and of those that judge.
    """

    def __init__(self, model: Model, ask: Asked, wanted: Tensor) -> None:
        self.base = model.config.schedule
        self._ask, self._wanted = ask, wanted
        places = torch.arange(len(wanted))
        held = places[places % HELD_OUT == 0]
        self.learning = places[places % HELD_OUT != 0]
        self.choosing, self.judged = held[0::2], held[1::2]

    def errors(self, schedule: Schedule, solver: Solver, places: Tensor) -> Floats:
        """Relative L2 distances of a solver's images to the teacher's, of some trajectories; [n]."""
        return distances(self._ask.images(schedule, solver, places), self._wanted[places])

    def validate(self, nfe: int, numbers: Tensor) -> float:
        """Mean distance where choices are made."""
        return float(distances(self._drawn(nfe, numbers, self.choosing), self._wanted[self.choosing]).mean())

    def distance(self, nfe: int, numbers: Tensor, places: Tensor) -> float:
        """The mean distance of some trajectories at all `SIZES`, which is what learning makes small."""
        images, total = self._drawn(nfe, numbers, places), 0.0
        for size in sizes(images):
            total += float(distances(F.avg_pool2d(images, size), F.avg_pool2d(self._wanted[places], size)).mean())
        return total / len(sizes(images))

    def equations(self, nfe: int, numbers: Tensor, places: Tensor, tell: Callable[[float], None]) -> Equations:
        """How the distance of some trajectories depends on what numbers say; `tell` hears the fraction that is done."""
        way = Slopes(self.base, fitted.resolve(self.base, nfe, numbers))
        curvature = torch.zeros(way.count, way.count, dtype=torch.float64)
        slope, total = torch.zeros(way.count, dtype=torch.float64), 0.0
        most = max(1, _AT_ONCE_BYTES // (4 * way.count * self._wanted[0].numel()))
        for rows, images in self._ask.batches(way.schedule, way.run, places, most):
            wanted, slopes = self._wanted[places[rows]], way.found.cpu()
            scale = 1 / (len(places) * len(sizes(images)))
            for size in sizes(images):
                short, norms = F.avg_pool2d(images - wanted, size).flatten(1), F.avg_pool2d(wanted, size).flatten(1)
                moves = F.avg_pool2d(slopes.flatten(0, 1), size).view(*slopes.shape[:2], -1)  # [P,n,D]
                for n in range(len(short)):
                    apart, whole = float(short[n].norm()), float(norms[n].norm())
                    curvature += (moves[:, n] @ moves[:, n].T).double() * (scale / (max(apart, 1e-12) * whole))
                    slope += (moves[:, n] @ short[n]).double() * (scale / (max(apart, 1e-12) * whole))
                    total += scale * apart / whole
            tell(rows.stop / len(places))
        return Equations(curvature, slope, total)

    def moved(self, nfe: int, numbers: Tensor, by: Tensor) -> Tensor:
        """The numbers of the solver whose weights, times that the network is asked at, and steps are moved; [P]."""
        found = fitted.resolve(self.base, nfe, numbers)
        weights, times, asked = found.weights.clone(), found.times.clone(), found.asked.clone()
        place = 0
        for i in range(nfe):
            weights[i, : i + 2] += by[place : place + i + 2]
            place += i + 2
        last = self.base.diffusion_steps - 1
        asked = (asked + by[place : place + nfe]).clamp(0, last)
        times[1:] += 0 if self.base.prediction == "x0" else by[place + nfe :]
        return fitted.numbers_of(self.base, times, asked, weights)

    def _drawn(self, nfe: int, numbers: Tensor, places: Tensor) -> Tensor:
        own = FittedSolver(nfe, tuple(numbers.tolist()), "")
        return self._ask.images(fitted.schedule(self.base, own), fitted.solver(self.base, own), places)


def sizes(images: Tensor) -> list[int]:
    """Those of `SIZES` that images [...,H,W] can be compared at."""
    return [size for size in SIZES if size < images.shape[-1]]


class Slopes:
    """A solver, and how its images change with each of its weights, with the times that are asked, and with its steps.

    Steps but the first are moved only if x0 estimates depend on them; where the network itself says x0, they do not.

    Attributes:
        schedule: to run it with.
        count: slopes, P: of weights row after row, then of the times that the network is asked at, then of steps.
        found: of the batch that was drawn last; float32 [P,N,3,H,W].
    """

    found: Tensor

    def __init__(self, config: ScheduleConfig, way: Resolved) -> None:
        self._weights: list[list[float]] = [row[: i + 2].tolist() for i, row in enumerate(way.weights)]
        self._nfe = nfe = len(way.times)
        last = config.diffusion_steps - 1
        times, asked = way.times.tolist(), way.asked.tolist()
        self._later = [OF_TIME if time + OF_TIME <= last else -OF_TIME for time in asked]
        steps = 0 if config.prediction == "x0" else nfe - 1
        moved = [time + step for time, step in zip(asked, self._later, strict=True)]
        shifted = [max(time - OF_TIME, 0.0) for time in times[1 : 1 + steps]]
        self._earlier = [new - time for new, time in zip(shifted, times[1:], strict=False)]
        # as they are; asked at another time; steps elsewhere
        self.schedule = Schedule(config, (*times, *times, *shifted), (*asked, *moved, *asked[1 : 1 + steps]))
        self.count = nfe * (nfe + 3) // 2 + nfe + steps

    def run(
        self, predict: Predict, x: Tensor, schedule: Schedule, options: SolverOptions, step_noise: StepNoise
    ) -> Tensor:
        nfe = self._nfe

        def step(known: list[Tensor], x: Tensor, output: Tensor, i: int, k: int) -> Tensor:
            """The state after step i, whose estimate by entry k of the schedule becomes known, too."""
            after, estimate = fitted.step(self._weights[i], known, x, output, schedule, k, options)
            known.append(estimate)
            return after

        def end(known: list[Tensor], x: Tensor, i: int) -> Tensor:
            """Where it leads to from the state before step i on."""
            known = known[: i + 1]
            for later in range(i, nfe):
                x = step(known, x, predict(x, later), later, later)
            return x.clamp(-1, 1)

        known, states, outputs = [x], [x], list[Tensor]()
        for i in range(nfe):
            outputs.append(predict(states[i], i).clone())  # an engine may write over it
            states.append(step(known, states[i], outputs[i], i, i))
        image, slopes = states[nfe].clamp(-1, 1), list[Tensor]()
        for i in range(nfe):
            for each in known[: i + 2]:
                slopes.append((end(known, states[i + 1] + OF_WEIGHT * each, i + 1) - image) / OF_WEIGHT)
        for i, by in enumerate(self._later):
            seen = known[: i + 1]
            after = step(seen, states[i], predict(states[i], nfe + i), i, nfe + i)
            slopes.append((end(seen, after, i + 1) - image) / by)
        for i, by in enumerate(self._earlier, 1):
            seen = known[: i + 1]
            after = step(seen, states[i], outputs[i], i, 2 * nfe + i - 1)
            slopes.append((end(seen, after, i + 1) - image) / by)
        self.found = torch.stack(slopes)
        return image
