"""Solvers by name: what each needs, and where its steps lie by default.

Knows nothing about how they work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rcdm_fast.checks import ConfigError, described, meant
from rcdm_fast.diffusion import multistep, solvers
from rcdm_fast.diffusion.schedule import Placement
from rcdm_fast.diffusion.solvers import Solver

SolverName = Literal[
    "ddim", "ancestral", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc_2", "unipc_3", "deis", "ipndm"
]  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A solver.

    Attributes:
        run: the solver itself.
        least: fewest steps that it can be asked for, its order.
        placement: where its steps lie unless their text says so.
        eta: whether it takes a share of fresh noise.
    """

    run: Solver
    least: int = 1
    placement: Placement = "logsnr"
    eta: bool = False


SOLVERS: dict[str, Known] = {
    "ddim": Known(solvers.ddim, 1, "uniform", eta=True),
    "ancestral": Known(solvers.ancestral, 1, "uniform"),
    "dpmpp_2m": Known(multistep.dpmpp_2m, 2),
    "dpmpp_3m": Known(multistep.dpmpp_3m, 3),
    "dpmpp_2m_sde": Known(multistep.dpmpp_2m_sde, 2),
    "unipc_2": Known(multistep.unipc_2, 2),
    "unipc_3": Known(multistep.unipc_3, 3),
    "deis": Known(multistep.deis, 3),
    "ipndm": Known(multistep.ipndm, 4),
}
assert set(SOLVERS) == set(get_args(SolverName))


def find(name: str) -> Known:
    """The solver of that name; `ConfigError` lists the known ones."""
    if not isinstance(name, str) or name not in SOLVERS:
        listed = ", ".join(sorted(SOLVERS))
        raise ConfigError(f"no solver called {described(name)}; known: {listed}{meant(name, SOLVERS)}")
    return SOLVERS[name]


def check(name: str, steps: int, eta: float) -> None:
    """Whether a solver can be run in so many steps, with that share of fresh noise.

    Raises:
        ConfigError: no such solver; fewer steps than its order; an eta for one that has none.
    """
    known = find(name)
    if steps < known.least:
        raise ConfigError(
            f"{name} goes on from {known.least} steps, so it needs at least {known.least}, got {steps}; or use ddim"
        )
    if eta and not known.eta:
        raise ConfigError(f"eta is a setting of ddim; {name} has none, so it must be 0, got {eta:g}")
