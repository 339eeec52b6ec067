"""What evaluates the network along a trajectory, as solvers and requests see it; `engines` has the runtimes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rcdm_fast.diffusion.conditioning import Batch, ConditioningPlan
from rcdm_fast.diffusion.solvers import StepNoise
from rcdm_fast.diffusion.trajectory import Trajectory
from rcdm_fast.models.networks import Watch


class Engine(ABC):
    """Evaluates the network. `bind` makes it ready for a batch; what that gives is asked step by step.

    A runtime has `evaluate` and `describe`, and the others where there is something to do. Batches may be bound beside
    each other: what is bound stays bound, whatever the engine does in between.
    """

    name: str
    precision: str
    files: tuple[Path, ...] = ()  # beside the model: what it runs, or was calibrated in
    digests: tuple[str, ...] = ()  # SHA-256 of each of `files`, where they were calibrated
    watch: Watch | None = None  # of the weights, where the engine keeps a form of its own of them

    def bind(self, plan: ConditioningPlan, rows: Tensor) -> Bound:
        """The engine for a batch of images whose conditions are these rows of the plan, int64 [N]."""
        return self.bound(plan.batch(rows))

    def bound(self, batch: Batch) -> Bound:
        """The same for a batch at hand, such as another engine had.

        Raises:
            ConfigError: the network's weights are others than they were at the first batch, and the engine's are not.
        """
        if self.watch is not None:
            self.watch.check(self.name)
        self.prepare(batch)
        return Bound(self, batch)

    def prepare(self, batch: Batch) -> None:  # noqa: B027 - most have nothing to prepare
        """Whatever takes time and can be done before the first evaluation of a batch."""

    @abstractmethod
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        """See `Bound.predict`; x has as many images as the batch."""

    def trajectory(self, batch: Batch, trajectory: Trajectory, x: Tensor, step_noise: StepNoise) -> Tensor | None:
        """See `Bound.trajectory`; most have no other way than step by step."""
        return None

    def first_nonfinite(self, batch: Batch, x: Tensor, k: int) -> str | None:
        """See `Bound.first_nonfinite`; the whole network, where a runtime shows no layers of it."""
        return None if bool(self.evaluate(batch, x, k).isfinite().all()) else "the exported network"

    @abstractmethod
    def describe(self) -> str:
        """One line: what runs, in which precision, on which device."""


@dataclass(frozen=True, eq=False)
class Bound:
    """An engine that is ready for one batch."""

    engine: Engine
    batch: Batch

    def predict(self, x: Tensor, k: int) -> Tensor:
        """One network evaluation: x [N,3,H,W] float32 at kept step k -> raw output [N,3 or 6,H,W] float32.

        Raises:
            ValueError: another number of images than was bound.
        """
        self._check(len(x))
        return self.engine.evaluate(self.batch, x, k)

    def trajectory(self, trajectory: Trajectory, x: Tensor, step_noise: StepNoise) -> Tensor | None:
        """All of a trajectory at once, where the engine has a way that it measured as faster than step by step.

        Args:
            trajectory: whose network evaluations are of as many images as were bound.
            x: x_T, float32 [n,3,H,W].
            step_noise: noise of the steps.

        Returns:
            x0, float32 [n,3,H,W], with the numbers that `trajectory(self.predict, x, step_noise)` gives (on a GPU up to
            rounding, where cuDNN has measured another algorithm meanwhile); or None: nothing was done, run that.

        Raises:
            ValueError: another number of images or of steps than was bound.
        """
        asked, bound = len(trajectory.schedule), len(self.batch.plan.timesteps)
        if asked != bound:
            raise ValueError(f"{asked} steps, bound was a plan of {bound}")
        self._check(len(x) if trajectory.guidance is None else 2 * len(x))
        return self.engine.trajectory(self.batch, trajectory, x, step_noise)

    def first_nonfinite(self, x: Tensor, k: int) -> str | None:
        """Name of the first layer whose output is not finite at step k, or None; slow, for error messages."""
        self._check(len(x))
        return self.engine.first_nonfinite(self.batch, x, k)

    def _check(self, count: int) -> None:
        if count != len(self.batch):
            raise ValueError(f"{count} images, bound was a batch of {len(self.batch)}")


class EngineWrapper(Engine):
    """Another engine as it is; a subclass adds to what it does.

    It never runs a whole trajectory, so that a subclass sees every evaluation.
    """

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.precision = engine.precision
        self.files, self.digests = engine.files, engine.digests
        self.watch = engine.watch
        self._engine = engine

    def prepare(self, batch: Batch) -> None:
        self._engine.prepare(batch)

    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        return self._engine.evaluate(batch, x, k)

    def first_nonfinite(self, batch: Batch, x: Tensor, k: int) -> str | None:
        return self._engine.first_nonfinite(batch, x, k)

    def describe(self) -> str:
        return self._engine.describe()
