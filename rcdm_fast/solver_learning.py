"""A solver learned for one model: what `rcdm tune --out` finds, and `solver="fitted"` uses.

A teacher (`solver_fit.TEACHER` over many timesteps) draws images, and the numbers of a solver in few evaluations
(`diffusion/fitted.py`) are fitted until its images are as near to the teacher's from the same noise as they can be:
relative L2 at full, half and quarter size, no network in it. The solver is that of Oganov et al. (2025,
arXiv 2510.17699), who descend a gradient through the network, with an adversary. Here are a few dozen numbers and a
distance that is nearly a sum of squares, so a step solves for all numbers at once (Gauss-Newton, damped as by
Levenberg and Marquardt; the mean of distances by weights that are set anew in every step), from differences of
trajectories (`solver_lesson.py`): some ten steps do what thousands of a gradient's do not.

A quarter of the trajectories, other sources and other noise, has no part in that: half of it decides which numbers are
kept, and which training-free solver is the best; the other half decides whether the first are better than the second.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host, sealed
from rcdm_fast.checks import Checked, ConfigError, Count, CountOrNone, Positive, Range, Resamples, Seed
from rcdm_fast.config import MAX_FITTED_NFE, FittedSolver
from rcdm_fast.diffusion import fitted, registry
from rcdm_fast.diffusion.registry import SOLVERS
from rcdm_fast.diffusion.schedule import Floats, Schedule, place
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.solver_fit import HELD_OUT, Asked, check_no_student, survey
from rcdm_fast.solver_lesson import Equations, Lesson
from rcdm_fast.solver_starts import rivals, starts
from rcdm_fast.storage import StorageError

log = logging.getLogger(__name__)

LEAST = 2 * HELD_OUT * intervals.LEAST  # trajectories: half of those that are held out judge, and need an interval
DAMPING = 1e-2  # at first, of the curvature's diagonal; less after a step that helps, more until one does
LITTLE = 0.02  # of the distance; after a step that gains less, the next ones are computed from twice as many
ENOUGH = 1e-3  # of it; when three steps gain less than that, it was enough
TRIES = 4  # of a step, each more damped than the one before
_STATE_VERSION = 2

Progress = Callable[[int, float, float], None]  # (NFE, fraction of its budget in [0,1], least distance so far)


@dataclass(frozen=True)
class LearnConfig(Checked):
    """How solvers are learned.

    Attributes:
        nfe: numbers of network evaluations to learn one for.
        minutes: of learning for each of them, at most; the teacher's images come before, once for all. A step that was
            begun is finished.
        steps: most steps for each; 0: as many as the time allows and gain something.
        candidates: evaluations of the teacher.
        batch_size: trajectories that the first steps are computed from, other ones every time (`LITTLE`); all of them
            say whether a step helps.
        evaluation_batch: trajectories that the network is asked about in one evaluation, at most.
        seed, resamples: as elsewhere.
    """

    nfe: tuple[Annotated[int, Range(2, MAX_FITTED_NFE)], ...] = (4, 5, 6, 8, 10)
    minutes: Positive = 20.0
    steps: CountOrNone = 0
    candidates: Count = 61
    batch_size: Count = 32
    evaluation_batch: Count = 32
    seed: Seed = 0
    resamples: Resamples = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nfe or len(set(self.nfe)) < len(self.nfe):
            raise ConfigError("give each number of network evaluations that a solver is wanted for, once")
        if max(self.nfe) >= self.candidates:
            raise ConfigError(f"the teacher has {self.candidates} evaluations; the learned solver needs fewer")


@dataclass(frozen=True)
class Learned:
    """What was found for one number of evaluations.

    Attributes:
        nfe: network evaluations.
        solver: the solver; None where it is not better beyond doubt than the best training-free one.
        error: its relative L2 distance to the teacher, of trajectories that had no part in any choice.
        other: the best training-free solver and its steps, as `Model.sample` takes them.
        other_error: the distance of that.
        difference: the first less the second, in pairs.
        steps: of learning.
    """

    nfe: int
    solver: FittedSolver | None
    error: Interval
    other: tuple[str, str]
    other_error: Interval
    difference: Interval
    steps: int


@host.guarded(gradients=True, random=True)
def learn(
    model: Model,
    config: LearnConfig,
    weights: str,
    h: Tensor | None = None,
    label: Tensor | None = None,
    trajectories: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
    begin: Sequence[FittedSolver] = (),
) -> list[Learned]:
    """A solver for each number of evaluations.

    Args:
        model: any model.
        config: see `LearnConfig`.
        weights: the model's `weights_hash`, which the solvers are bound to.
        h, label: conditions, a trajectory each, as `Model.sample` takes them.
        trajectories: how many, for a model that takes neither.
        state: a file in which learning is kept, from where it goes on after an interruption; one that is damaged, or of
            another run, gives way.
        progress: see `Progress`.
        begin: solvers of another model of the same schedule, which learning may begin with where they are better than
            what it would begin with otherwise.

    Raises:
        ConfigError: fewer than 160 trajectories, conditions that the model does not take, or a student.
        StorageError: the state cannot be written.
    """
    check_no_student(model)
    count = next((len(value) for value in (h, label) if value is not None), trajectories)
    if count < LEAST:
        raise ConfigError(
            f"a solver is learned from at least {LEAST} trajectories, got {count}: one in {2 * HELD_OUT} judges it, "
            f"and of fewer than {intervals.LEAST} nothing is beyond doubt"
        )
    if model.engine.precision != "fp32":
        raise ConfigError(f"solvers are learned from differences of images, in fp32, not in {model.engine.precision}")
    base = model.config.schedule
    if config.candidates > base.diffusion_steps:
        raise ConfigError(f"{config.candidates} candidates of {base.diffusion_steps} timesteps")
    ask = Asked(model, h, label, count, config.seed, config.evaluation_batch)
    _try(model, ask, min(config.nfe))
    kept = _Kept(state, _key(config, weights, h, label, count))
    if not kept.data:
        grid = Schedule(base, place(Schedule.make(base).alpha_bar, config.candidates, "karras"))
        wanted, costs = survey(ask, grid, torch.arange(count) % HELD_OUT != 0)
        step, last = torch.from_numpy(costs.mean), torch.from_numpy(costs.last)
        kept.data = {"wanted": wanted, "times": list(grid.timesteps), "step": step, "last": last, "runs": {}}
        kept.save()
    lesson = Lesson(model, ask, kept.data["wanted"])
    own = [each for each in model.config.fitted if each.weights == weights]
    before = [each for each in (*own, *begin) if each.version == fitted.VERSION]
    return [
        _one(lesson, nfe, config, weights, kept, [each for each in before if each.nfe == nfe], progress)
        for nfe in config.nfe
    ]


def beginnings(model: Model, name: str, nfe: Sequence[int]) -> tuple[FittedSolver, ...]:
    """The solvers of another model, by its name or file, that learning this one's may begin with.

    Raises:
        ConfigError: it has none for any of these numbers of evaluations, or is of another schedule.
        CheckpointError: it cannot be loaded.
    """
    other, _ = checkpoint.load_model(name)
    found = tuple(each for each in other.fitted if each.nfe in nfe and each.version == fitted.VERSION)
    if not found:
        has = ", ".join(str(each.nfe) for each in other.fitted) or "none"
        raise ConfigError(f"{name} has no learned solver for {_listed(nfe)} evaluations to begin with (it has {has})")
    ours, theirs = model.config.schedule, other.schedule
    if (ours.noise_schedule, ours.diffusion_steps) != (theirs.noise_schedule, theirs.diffusion_steps):
        raise ConfigError(
            f"solvers of {name} are for {theirs.diffusion_steps} {theirs.noise_schedule} steps, "
            f"not for {ours.diffusion_steps} {ours.noise_schedule} ones"
        )
    if without := [count for count in nfe if count not in {each.nfe for each in found}]:
        log.warning("%s has no learned solver for %s evaluations; these begin without one", name, _listed(without))
    return found


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _try(model: Model, ask: Asked, nfe: int) -> None:
    """Draw one image, between base timesteps: an engine that cannot says so before anything is computed for long."""
    base = model.config.schedule
    times = place(Schedule.make(base).alpha_bar, nfe, "logsnr")
    numbers = fitted.initial(base, times)
    numbers[nfe : 2 * nfe] = -0.5
    one = FittedSolver(nfe, tuple(numbers.tolist()), "")
    ask.images(fitted.schedule(base, one), fitted.solver(base, one), torch.zeros(1, dtype=torch.int64))


def save(path: str | os.PathLike[str], model: Model, learned: Sequence[Learned]) -> Path:
    """Write the model with what was learned, and with the solvers that it has for other numbers of evaluations.

    Tensors are written in 16 bits where that loses nothing.

    Raises:
        CheckpointError, StorageError: as of `checkpoint.save_model`.
    """
    own = {each.nfe: each for each in model.config.fitted}
    own |= {each.nfe: each.solver for each in learned if each.solver is not None}
    config = dataclasses.replace(model.config, fitted=tuple(own[nfe] for nfe in sorted(own)))
    tensors = model.unet.state_dict()
    whole = all(bool((value.float().half().float() == value).all()) for value in tensors.values())
    return checkpoint.save_model(path, config, tensors, torch.float16 if whole else torch.float32)


def _one(
    lesson: Lesson,
    nfe: int,
    config: LearnConfig,
    weights: str,
    kept: _Kept,
    before: Sequence[FittedSolver],
    progress: Progress | None,
) -> Learned:
    run, begun = kept.data["runs"].setdefault(nfe, {}), [each.digest for each in before]
    if run and run.get("begun", []) != begun:
        log.info("%d evaluations: learning begins anew, with other numbers than before", nfe)
        run.clear()
    if not run:
        others = rivals(lesson, nfe)
        rival = min(others, key=lambda each: others[each])
        run |= _scouted(lesson, nfe, config, starts(lesson, nfe, kept.data, others, before), progress)
        run |= {"rival": rival, "begun": begun}
    try:
        _descend(lesson, nfe, config, run, progress, kept.save)
    finally:  # an interruption loses nothing
        kept.save()
    found = FittedSolver(nfe, tuple(run["best"].tolist()), weights, fitted.VERSION)
    solver, steps = run["rival"]
    own = fitted.schedule(lesson.base, found), fitted.solver(lesson.base, found)
    ours = lesson.errors(*own, lesson.judged)
    theirs = lesson.errors(registry.schedule(lesson.base, solver, steps), SOLVERS[solver].run, lesson.judged)

    def interval(values: Floats) -> Interval:
        return bootstrap(values, config.resamples, np.random.default_rng(config.seed))

    difference, error, other = interval(ours - theirs), interval(ours), interval(theirs)
    info = {"error": error.value, "training_free": f"{solver} {steps}", "training_free_error": other.value}
    info |= {"learning_steps": run["step"], "teacher_evaluations": config.candidates, "seed": config.seed}
    better = dataclasses.replace(found, info=info) if difference.high < 0 else None
    return Learned(nfe, better, error, (solver, steps), other, difference, run["step"])


def _scouted(
    lesson: Lesson,
    nfe: int,
    config: LearnConfig,
    beginnings: Sequence[tuple[float, Tensor]],
    progress: Progress | None,
) -> dict[str, Any]:
    """A run that has begun where a first step leads nearest to the teacher, of several beginnings.

    What is near before learning need not be near after it: where steps lie hardly changes, all else does.
    """
    since, runs = time.monotonic(), list[dict[str, Any]]()
    for least, numbers in beginnings:
        run = {"best": numbers, "least": least, "step": 0, "numbers": numbers}
        run |= {"damping": DAMPING, "gains": [], "distance": lesson.distance(nfe, numbers, lesson.learning)}
        if progress is not None:
            progress(nfe, 0.0, min(each["least"] for each in (*runs, run)))
        if len(beginnings) > 1:
            run |= _learned(lesson, nfe, config, run, lambda _: None)
        runs.append(run)
    best = min(runs, key=lambda each: each["distance"])
    return {**best, "seconds": time.monotonic() - since}


def _learned(
    lesson: Lesson, nfe: int, config: LearnConfig, run: dict[str, Any], tell: Callable[[float], None]
) -> dict[str, Any]:
    """What a step of learning changes of a run."""
    found = lesson.equations(nfe, run["numbers"], _drawn(lesson, nfe, config, run["gains"]), tell)
    made = _stepped(lesson, nfe, run, found)
    numbers = made.get("numbers", run["numbers"])
    error = lesson.validate(nfe, numbers)
    return {**made, **({"least": error, "best": numbers} if error < run["least"] else {})}


def _descend(
    lesson: Lesson,
    nfe: int,
    config: LearnConfig,
    run: dict[str, Any],
    progress: Progress | None,
    save: Callable[[], None],
) -> None:
    """Learn until the budget is spent, or nothing is gained; `run` holds all of it between two steps."""
    begun = time.monotonic() - run["seconds"]

    def fraction(within: float = 0.0) -> float:
        of_steps = (run["step"] + within) / config.steps if config.steps else 0.0
        return float(min(1.0, max(of_steps, (time.monotonic() - begun) / (60 * config.minutes))))

    def tell(within: float) -> None:
        if progress is not None:
            progress(nfe, fraction(within), run["least"])

    while fraction() < 1 and (len(run["gains"]) < 3 or max(run["gains"][-3:]) > ENOUGH):
        run |= _learned(lesson, nfe, config, run, tell)
        run["seconds"] = time.monotonic() - begun
        save()
    if progress is not None:
        progress(nfe, 1.0, run["least"])


def _drawn(lesson: Lesson, nfe: int, config: LearnConfig, gains: Sequence[float]) -> Tensor:
    """Places of the trajectories that a step is computed from, after steps that gained so much, as the seed has it."""
    digest = hashlib.sha256(repr((config.seed, nfe, len(gains))).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    count = config.batch_size * 2 ** sum(gain < LITTLE for gain in gains)
    return lesson.learning[torch.randperm(len(lesson.learning), generator=generator)[:count]]


def _stepped(lesson: Lesson, nfe: int, run: dict[str, Any], found: Equations) -> dict[str, Any]:
    """What a run has become by a step that brings its distance down, or by the knowledge that there is none."""
    if not bool(found.curvature.isfinite().all()):
        raise ConfigError("slopes are not finite; the representations or the weights are out of range")
    diagonal, damping = found.curvature.diagonal(), run["damping"]
    floor = 1e-9 * diagonal.max()
    for _ in range(TRIES):
        by = -torch.linalg.solve(found.curvature + torch.diag(damping * (diagonal + floor) + floor), found.slope)
        numbers = lesson.moved(nfe, run["numbers"], by)
        distance = lesson.distance(nfe, numbers, lesson.learning)
        if distance < run["distance"]:
            gains, damping = [*run["gains"], 1 - distance / run["distance"]], max(damping / 5, 1e-7)
            made = {"numbers": numbers, "distance": distance, "damping": damping, "gains": gains}
            return {"step": run["step"] + 1, **made}
        damping *= 5
    return {"step": run["step"] + 1, "damping": damping, "gains": [*run["gains"], 0.0]}


class _Kept:
    """What is kept between runs: nothing, if there is no file for it."""

    def __init__(self, file: Path | None, key: str) -> None:
        self._file, self._key = file, key
        self.data: dict[str, Any] = {}
        if file is None or not file.exists():
            return
        try:
            found = sealed.load(file)
        except StorageError as error:
            log.warning("%s; learning begins anew", error)
            return
        if not isinstance(found, dict) or found.get("key") != key:
            log.warning("%s: of another run; learning begins anew", file)
            return
        self.data = found["data"]

    def save(self) -> None:
        if self._file is not None:
            sealed.save(self._file, {"key": self._key, "data": self.data})


def _key(config: LearnConfig, weights: str, h: Tensor | None, label: Tensor | None, count: int) -> str:
    """What a state belongs to: the teacher's images. Another budget, or other numbers of evaluations, go on from it."""
    digest = hashlib.sha256(repr((_STATE_VERSION, config.seed, config.candidates, weights, count)).encode())
    for value in (h, label):
        if value is not None:
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
