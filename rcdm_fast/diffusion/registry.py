"""Solvers by name: what each needs, and where its steps lie by default.

Beside those that serve any model there are three names: ``fitted``, the model's own for so many evaluations
(`fitted.py`), ``student``, DDIM at the timesteps that a distilled model was made for, and ``auto``: ``student`` for
such a model, ``fitted`` where the model has it and nothing is asked for that it was not fitted for, and `plain`
elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from rcdm_fast.checks import ConfigError, described, meant
from rcdm_fast.config import FittedSolver, ModelConfig, ScheduleConfig
from rcdm_fast.diffusion import fitted, multistep, solvers, unipc
from rcdm_fast.diffusion.schedule import PLACEMENTS, Placement, Schedule, is_respacing
from rcdm_fast.diffusion.solvers import Solver, SolverOptions

SolverName = Literal[
    "auto", "fitted", "student", "ddim", "ancestral", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "unipc_2",
    "unipc_3", "unipc_2_bh1", "unipc_3_bh1", "deis", "ipndm", "heun",
]  # fmt: skip
AUTO: SolverName = "auto"
FITTED: SolverName = "fitted"
STUDENT: SolverName = "student"
OF_MODELS = (AUTO, FITTED, STUDENT)  # which depend on the model
USUAL: SolverName = "deis"  # in 10 steps as near to where the flow leads as ddim in 50, or nearer (docs/solvers.md)
PUBLISHED: SolverName = "ddim"  # for what the usual one has no word for


@dataclass(frozen=True)
class Known:
    """A solver.

    Attributes:
        run: the solver itself.
        least: fewest steps that it can be asked for: as many estimates as a step goes on from.
        placement: where its steps lie unless their text says so.
        eta: whether it takes a fraction of fresh noise.
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
    "unipc_2": Known(unipc.unipc_2, 2),
    "unipc_3": Known(unipc.unipc_3, 3),
    "unipc_2_bh1": Known(unipc.unipc_2_bh1, 2),
    "unipc_3_bh1": Known(unipc.unipc_3_bh1, 3),
    "deis": Known(multistep.deis, 3),
    "ipndm": Known(multistep.ipndm, 4),
    "heun": Known(multistep.heun, 1, twice=True),
}
assert {*SOLVERS, *OF_MODELS} == set(get_args(SolverName))


@dataclass(frozen=True)
class Chosen:
    """A solver with its steps, as a model is asked for it.

    Attributes:
        name: what it is called; never ``auto``.
        run, schedule: the solver, and the steps that it is run with.
        evaluations: how often the network is asked for an image.
        fresh: whether it draws fresh noise in every step, whatever eta.
        fitted: its numbers, if it was fitted to the model.
    """

    name: SolverName
    run: Solver
    schedule: Schedule
    evaluations: int
    fresh: bool
    fitted: FittedSolver | None = None

    @property
    def label(self) -> str:
        """Its name, and behind a fitted one's the hash of its numbers."""
        return self.name if self.fitted is None else f"{self.name}:{self.fitted.digest}"


def choose(
    config: ModelConfig, name: str, steps: int | str, options: SolverOptions | None = None, guided: bool = False
) -> Chosen:
    """The solver of that name for a model.

    Args:
        config: the model's.
        name: one of `SOLVERS`, ``fitted``, ``student`` or ``auto``.
        steps: as of `Schedule.make`; of a fitted solver or a student the number of evaluations.
        options: settings; solvers are fitted for the usual ones.
        guided: whether the network's answers are guided, which none is fitted for.

    Raises:
        ConfigError: as of `schedule`; or the model has no solver fitted for so many evaluations, or for such settings;
            or it was distilled for another number of them.
    """
    options = options or SolverOptions()
    usual = options.eta == 0 and options.clip and not guided
    text = str(steps).strip()
    count = int(text) if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else 0
    if name == STUDENT or (name == AUTO and config.student_steps):
        return _student(config, steps, count, usual)
    own = next((each for each in config.fitted if each.nfe == count), None)
    if name == AUTO:
        name = FITTED if own is not None and usual else plain(config.schedule, steps, options.eta)
    if name != FITTED:
        known = find(name)
        made = schedule(config.schedule, name, steps, options.eta)
        found: SolverName = name  # type: ignore[assignment]
        return Chosen(found, known.run, made, known.evaluations(made), known.fresh)
    if not config.fitted:
        raise ConfigError(
            "this model has no fitted solver: make one with `rcdm tune MODEL --out FILE`, or name another"
        )
    if own is None:
        there = ", ".join(str(each.nfe) for each in sorted(config.fitted, key=lambda each: each.nfe))
        raise ConfigError(f"this model has solvers fitted for {there} evaluations, not for {described(steps)}")
    if options.eta:
        raise ConfigError(f"eta is a setting of ddim; a fitted solver has none, so it must be 0, got {options.eta:g}")
    if not usual:
        wanted = "guidance, so it must be 1" if guided else "x0 estimates out of bounds, so clip must be True"
        raise ConfigError(f"solvers are fitted without {wanted}; or name another solver")
    if own.version > fitted.VERSION:
        raise ConfigError(
            f"the solver fitted for {count} evaluations is of version {own.version}, known here are those up to "
            f"{fitted.VERSION}; update rcdm_fast, or fit it again"
        )
    return Chosen(
        FITTED, fitted.solver(config.schedule, own), fitted.schedule(config.schedule, own), own.nfe, False, own
    )


def plain(config: ScheduleConfig, steps: int | str, eta: float = 0.0) -> SolverName:
    """What ``auto`` is for a model without a solver of its own: `USUAL`, where that can be asked for it.

    Ddim for a fraction of fresh noise, for fewer steps than `USUAL` goes on from, and for steps that are written as the
    published code writes them.

    Raises:
        ConfigError: a text or number of steps that is none, or more than there are.
    """
    published = isinstance(steps, str) and is_respacing(steps)
    known = SOLVERS[USUAL]
    few = not published and len(Schedule.make(config, steps, known.placement)) < known.least
    return PUBLISHED if eta or published or few else USUAL


def describe(config: ModelConfig) -> list[str]:
    """A line for the solvers fitted to a model, and one for the evaluations that it was distilled for, if there are."""
    lines = []
    if config.fitted:
        own = ", ".join(f"{each.nfe} ({each.digest})" for each in config.fitted)
        lines.append(f"solvers  fitted for evaluations: {own}")
    if config.student_steps:
        steps = ", ".join(map(str, reversed(config.student_steps)))
        lines.append(f"student  distilled for {len(config.student_steps)} evaluations, at timesteps {steps}")
    return lines


def _student(config: ModelConfig, steps: int | str, count: int, usual: bool) -> Chosen:
    """DDIM at a student's own timesteps; x_T is its state at the first of them."""
    own = config.student_steps
    if not own:
        raise ConfigError("this model is no student: make one with `rcdm distill MODEL`, or name another solver")
    if count != len(own):
        raise ConfigError(
            f"this model was distilled for {len(own)} evaluations, not for {described(steps)}: ask for steps={len(own)}"
            ", or name a solver"
        )
    if not usual:
        raise ConfigError("a student is used as it was distilled: with clip, and without eta and guidance")
    return Chosen(STUDENT, solvers.ddim, Schedule(config.schedule, own), len(own), False)


def check_weights(chosen: FittedSolver, weights: str) -> None:
    """Raise `ConfigError` if a solver was fitted to another network, schedule or weights than those with this hash."""
    if chosen.weights != weights:
        raise ConfigError(
            f"the solver fitted for {chosen.nfe} evaluations belongs to other weights, or another network or schedule "
            f"({chosen.weights[:12]}, these are {weights[:12]}): fit it again with `rcdm tune`, or name another"
        )


def find(name: str) -> Known:
    """The training-free solver of that name; `ConfigError` lists the known ones."""
    if not isinstance(name, str) or name not in SOLVERS:
        known = (*OF_MODELS, *sorted(SOLVERS))
        if name in OF_MODELS:
            raise ConfigError(
                f"{name} depends on the model; here a solver for any model is named: {', '.join(SOLVERS)}"
            )
        raise ConfigError(f"no solver called {described(name)}; known: {', '.join(known)}{meant(name, known)}")
    return SOLVERS[name]


def schedule(config: ScheduleConfig, name: str, steps: int | str, eta: float = 0.0) -> Schedule:
    """The steps of a solver that asks the network as often as `steps` says.

    Args:
        config: the base schedule.
        name: the solver.
        steps: as of `Schedule.make`.
        eta: the fraction of fresh noise.

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
