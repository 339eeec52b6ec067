"""The way through a run: begun or resumed, step by step, with a log and states to go on from.

Training, adapting, distilling, pre-training and the reader of factors differ in what a step does, which a `Run` knows;
the rest is here. Knows nothing about networks.
"""

from __future__ import annotations

import logging
import math
import numbers
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch

from rcdm_fast.checks import ConfigError, described
from rcdm_fast.errors import RunError
from rcdm_fast.training import resume
from rcdm_fast.training.state import Paused, RunFolder

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss
LOGGED = 50  # steps between lines of the log


class Plan(Protocol):
    """The settings that a loop needs."""

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""

    @property
    def batch_size(self) -> int:
        """What a step sees."""

    @property
    def save_every(self) -> int:
        """Steps between states."""


class Deadline:
    """When a call has to stop: `minutes` after this was made, however they were spent; None: never.

    Raises:
        ConfigError: less than none, or no number.
    """

    def __init__(self, minutes: float | None) -> None:
        given: Any = minutes  # whatever a caller passes
        if given is not None and not (isinstance(given, numbers.Real) and float(given) >= 0):
            raise ConfigError(f"minutes are a number from 0 on, got {described(minutes)}")
        self.minutes = minutes
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() > self._end


class Run(Protocol):
    """The moving parts of a run. All random numbers of a step depend on (seed, step) alone."""

    step: int

    def advance(self) -> dict[str, float]:
        """One step; its loss, and what else belongs into the log."""

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""


def begin(
    folder: RunFolder,
    settings: Mapping[str, Any],
    free: Collection[str],
    leads: bool = True,
    added: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Begin or resume: the state to go on from, or None; raises as `RunFolder.open`.

    Args:
        folder: of the run.
        settings: what the run is.
        free: those of them that a run may be resumed with other values of; the folder then holds the new ones.
        leads: whether this process changes files.
        added: settings that runs of earlier versions did not know, with what those were run with.
    """
    known = resume.as_before(folder.path, settings, free)
    state = folder.open(known, leads, added)
    if leads and known != settings:
        resume.keep(folder.path, settings)
    return state


def restored(run: Run, state: Mapping[str, Any] | None, plan: Plan) -> bool:
    """Whether there is a state; then the run goes on from it."""
    if state is None:
        return False
    run.restore(state)
    log.info("resumed at step %d of %d", run.step, plan.steps)
    return True


def walk(
    run: Run,
    folder: RunFolder,
    plan: Plan,
    progress: Progress | None = None,
    *,
    logged: int = LOGGED,
    leads: bool = True,
    deadline: Deadline | None = None,
    agreed: Callable[[bool], bool] = bool,
    after: Callable[[bool], None] = lambda finished: None,
) -> None:
    """Go on to the end.

    Args:
        run, folder, plan: what steps, where, and how far.
        progress: called after every step.
        logged: steps between lines of the log.
        leads: whether this process writes.
        deadline: when to stop before the end, after a step at least, with a state to go on from.
        agreed: whether all processes stop, from whether the deadline of this one is over.
        after: called after every step, once its state is kept, with whether it was the last.

    Raises:
        Paused: the deadline is over.
        RunError: as the run, or a loss that is not finite; it names the folder of the last good state.
        StorageError: a file cannot be written; the last state that was stays.
    """
    deadline = deadline or Deadline(None)
    since, seconds = run.step, 0.0
    while run.step < plan.steps:
        begun = time.monotonic()
        try:
            terms = run.advance()
            check_finite(terms["loss"], run.step)
        except RunError as error:
            raise RunError(f"{error}; the last good state is in {folder.path}") from error
        seconds += time.monotonic() - begun
        if progress is not None and leads:
            progress(run.step, plan.steps, terms["loss"])
        finished = run.step == plan.steps
        stop = not finished and deadline.minutes is not None and agreed(deadline.over)
        if leads and (run.step % logged == 0 or finished):
            rate = (run.step - since) * plan.batch_size / max(1e-9, seconds)
            since, seconds = run.step, 0.0
            seen = run.step * plan.batch_size
            folder.log({"step": run.step, "images": seen, "images_per_s": round(rate, 1), **terms})
        if run.step % plan.save_every == 0 or finished or stop:
            state = run.state()
            if leads:
                folder.save(run.step, state)
        after(finished)
        if stop:
            raise Paused(f"{deadline.minutes:g} minutes are over at step {run.step} of {plan.steps}")


def check_finite(loss: float, step: int) -> None:
    """Raise `RunError` for a loss that is no number."""
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss} at step {step}")


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Linear warm-up over `warmup` x `steps`, then cosine decay to zero."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the step that comes."""
    for group in optimizer.param_groups:
        group["lr"] = rate
