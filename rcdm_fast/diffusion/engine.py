"""What evaluates the network along a trajectory, as solvers and requests see it; `engines` has the runtimes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rcdm_fast.diffusion.conditioning import ConditioningPlan


class Engine(Protocol):
    """Evaluates the network along a trajectory."""

    name: str
    precision: str

    def prepare(self, plan: ConditioningPlan, batch_size: int) -> None:
        """Make ready for batches of `batch_size` images whose conditions are `plan.rows`."""

    def predict(self, x: Tensor, k: int) -> Tensor:
        """One network evaluation: x [batch,3,H,W] float32 at kept step k -> raw output [batch,3 or 6,H,W] float32."""

    def first_nonfinite(self, x: Tensor, k: int) -> str | None:
        """Name of the first layer whose output is not finite at step k, or None; slow, for error messages."""

    def describe(self) -> str:
        """One line: what runs, in which precision, on which device."""
