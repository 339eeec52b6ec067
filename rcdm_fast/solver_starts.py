"""Where learning a solver begins: training-free solvers in as few evaluations, and the numbers that say the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.checks import ConfigError
from rcdm_fast.config import FittedSolver
from rcdm_fast.diffusion import fitted, registry
from rcdm_fast.diffusion.registry import SOLVERS
from rcdm_fast.diffusion.schedule import PLACEMENTS, Schedule, place
from rcdm_fast.solver_fit import cheapest
from rcdm_fast.solver_lesson import Lesson

MOST = 3  # beginnings that learning takes a first step from
NEAR = 2.0  # times the least distance: others are not worth a step
POWERS = (1.5, 1.75)  # of t, in whose root some beginnings have even steps: between `uniform` and `quadratic`


def rivals(lesson: Lesson, nfe: int) -> dict[tuple[str, str], float]:
    """Training-free solvers that there are in so many evaluations, and their mean distance where choices are made."""
    found = {}
    for name, known in SOLVERS.items():
        for placement in () if known.fresh else dict.fromkeys((known.placement, "quadratic")):
            steps = f"{placement}{nfe}"
            try:
                made = registry.schedule(lesson.base, name, steps)
            except ConfigError:  # too few for its order, or an even number
                continue
            found[name, steps] = float(lesson.errors(made, known.run, lesson.choosing).mean())
    return found


def starts(
    lesson: Lesson,
    nfe: int,
    data: dict[str, Any],
    others: dict[tuple[str, str], float],
    before: Sequence[FittedSolver],
) -> list[tuple[float, Tensor]]:
    """Where learning may begin, with its distance where choices are made, the nearest to the teacher first; float64.

    With the numbers of the best training-free solver that asks the network once in a step, also with steps even in
    other roots of t (`POWERS`), or of DPM-Solver++(3M) with steps by `solver_fit`, or with steps that end before the
    first timestep, or with those that there are already.
    """
    bar = Schedule.make(lesson.base).alpha_bar
    times = [place(bar, nfe + 1, each)[1:] for each in PLACEMENTS]
    times.append(tuple(data["times"][k] for k in cheapest(data["step"].numpy(), data["last"].numpy(), nfe)))
    found = [torch.from_numpy(fitted.initial(lesson.base, each)) for each in times]
    once = {each: others[each] for each in others if not SOLVERS[each[0]].twice}
    if once:
        solver, steps = min(once, key=lambda each: once[each])
        schedules = [registry.schedule(lesson.base, solver, steps)]
        for power in POWERS:
            even = tuple((len(bar) - 1) * (i / (nfe - 1)) ** power for i in range(nfe))
            schedules.append(Schedule(lesson.base, even, even))
        found += [torch.from_numpy(fitted.like(each, SOLVERS[solver].run)) for each in schedules]
    found += [torch.tensor(each.numbers, dtype=torch.float64) for each in before]
    known = sorted(((lesson.validate(nfe, numbers), numbers) for numbers in found), key=lambda each: each[0])
    return [each for each in known[:MOST] if each[0] <= NEAR * known[0][0]]
