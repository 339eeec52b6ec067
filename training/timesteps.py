"""Which steps of the diffusion process a batch is trained on.

Loss-aware sampling: steps are drawn in proportion to the root mean square of their last losses, once every step has
enough of them, and the loss is weighted by the inverse probability, so that its expectation stays (Nichol and Dhariwal
2021, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

HISTORY = 10  # losses kept per step (the paper's number)
UNIFORM_FRACTION = 0.001  # of the probability, spread over all steps, so that none starves


class UniformSteps:
    """Every step alike."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Steps int64 [count] in 0..steps-1 and the weights of their losses, float32 [count]."""
        return torch.randint(self.steps, (count,), generator=generator), torch.ones(count)

    def learn(self, steps: Tensor, losses: Tensor) -> None:
        """Take the losses [N] at steps [N] of the whole batch into account."""

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""


class LossAwareSteps(UniformSteps):
    """See the module."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self._losses = torch.zeros(steps, HISTORY, dtype=torch.float64)
        self._counts = torch.zeros(steps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """Of every step; float64 [steps]."""
        if bool((self._counts < HISTORY).any()):
            return torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        fraction = self._losses.square().mean(dim=1).sqrt()
        return (1 - UNIFORM_FRACTION) * fraction / fraction.sum() + UNIFORM_FRACTION / self.steps

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chances = self.probabilities()
        steps = torch.multinomial(chances, count, replacement=True, generator=generator)
        return steps, (1 / (self.steps * chances[steps])).float()

    def learn(self, steps: Tensor, losses: Tensor) -> None:
        for step, loss in zip(steps.tolist(), losses.double().tolist(), strict=True):
            kept = self._losses[step]
            if self._counts[step] == HISTORY:
                kept[:-1] = kept[1:].clone()
                kept[-1] = loss
            else:
                kept[self._counts[step]] = loss
                self._counts[step] += 1

    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses, "counts": self._counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._losses, self._counts = state["losses"].clone(), state["counts"].clone()


def make(kind: str, steps: int) -> UniformSteps:
    """``uniform`` or ``loss_aware``."""
    return LossAwareSteps(steps) if kind == "loss_aware" else UniformSteps(steps)
