"""Solvers by name: what each needs, and where its steps lie by default.

Knows nothing about how they work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rcdm_fast.checks import ConfigError, described, meant
from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion import multistep, solvers
from rcdm_fast.diffusion.schedule import PLACEMENTS, Placement, Schedule
from rcdm_fast.diffusion.solvers import Solver

SolverName = Literal[
    "ddim", "ancestral", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc_2", "unipc_3", "deis", "ipndm", "heun"
]  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A solver.

    Attributes:
        run: the solver itself.
        least: fewest steps that it can be asked for: as many estimates as a step goes on from.
        placement: where its steps lie unless their text says so.
        eta: whether it takes a share of fresh noise.
        fresh: whether it draws fresh noise in every step, whatever eta.
        twice: whether it asks the network twice in every step but the last.
    """

    run: Solver
    least: int = 1
    placement: Placement = "logsnr"
    eta: bool = False
    fresh: bool = False
    twice: bool = False

    def evaluations(self, schedule: Schedule) -> int:
        """How often the network is asked for an image."""
        return 2 * len(schedule) - 1 if self.twice else len(schedule)


SOLVERS: dict[str, Known] = {
    "ddim": Known(solvers.ddim, 1, "uniform", eta=True),
    "ancestral": Known(solvers.ancestral, 1, "uniform", fresh=True),
    "dpmpp_2m": Known(multistep.dpmpp_2m, 2),
    "dpmpp_3m": Known(multistep.dpmpp_3m, 3),
    "dpmpp_2m_sde": Known(multistep.dpmpp_2m_sde, 2, fresh=True),
    "unipc_2": Known(multistep.unipc_2, 2),
    "unipc_3": Known(multistep.unipc_3, 3),
    "deis": Known(multistep.deis, 3),
    "ipndm": Known(multistep.ipndm, 4),
    "heun": Known(multistep.heun, 1, twice=True),
}
assert set(SOLVERS) == set(get_args(SolverName))


def find(name: str) -> Known:
    """The solver of that name; `ConfigError` lists the known ones."""
    if not isinstance(name, str) or name not in SOLVERS:
        listed = ", ".join(sorted(SOLVERS))
        raise ConfigError(f"no solver called {described(name)}; known: {listed}{meant(name, SOLVERS)}")
    return SOLVERS[name]


def schedule(config: ScheduleConfig, name: str, steps: int | str, eta: float = 0.0) -> Schedule:
    """The steps of a solver that asks the network as often as `steps` says.

    Args:
        config: the base schedule.
        name: the solver.
        steps: as of `Schedule.make`.
        eta: the share of fresh noise.

    Raises:
        ConfigError: no such solver; a text or number that is none, or more than there are; fewer evaluations than the
            solver's order, or a number that it cannot make; an eta for one that has none.
    """
    known = find(name)
    made = Schedule.make(config, steps, known.placement)
    count = len(made)
    if count < known.least:
        raise ConfigError(
            f"{name} goes on from {known.least} steps, so it needs at least {known.least}, got {count}; or use ddim"
        )
    if eta and not known.eta:
        raise ConfigError(f"eta is a setting of ddim; {name} has none, so it must be 0, got {eta:g}")
    if not known.twice:
        return made
    text = str(steps).strip()
    placement = text.rstrip("0123456789") or known.placement
    if placement not in PLACEMENTS:
        raise ConfigError(f"{name} takes a number of evaluations, such as {count | 1}, got {text!r}")
    if count % 2 == 0:
        raise ConfigError(
            f"{name} asks the network twice in every step but the last, so an odd number of times: "
            f"{count - 1} or {count + 1}, not {count}"
        )
    return Schedule.make(config, f"{placement}{(count + 1) // 2}")
