"""Ridge regression in closed form: `ridge`, from one encoder's representations to the conditioning vectors of another.

Sums over images are kept in float64 and are all that is needed, so the images are passed once and any number of
penalties can be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.errors import RunError

HELD_OUT = 10  # every tenth image chooses the penalty
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # per image and standardized number
CHUNK = 8192  # images per product


@dataclass(frozen=True)
class Ridge:
    """What `ridge` found.

    Attributes:
        weight, bias: the map [E,D], [E], float64.
        penalty: the chosen one of `PENALTIES`.
        explained: fraction of the targets' variance that the map explains on held-out images; at most 1.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    explained: float


def ridge(inputs: Tensor, old: Tensor, weight: Tensor, bias: Tensor) -> Ridge:
    """The best affine map from representations to conditioning vectors, in closed form and float64.

    The penalty (on W, not on b) is the one with the least error on every tenth image; the map is then solved again
    on all of them.

    Args:
        inputs: standardized representations [V,N,D], V views of N images.
        old: the old encoder's representations of the same images [V,N,F].
        weight, bias: what makes conditioning vectors of those, [E,F] and [E].

    Raises:
        RunError: fewer than two images.
    """
    views, count, width = inputs.shape
    if count < 2:
        raise RunError(f"a regression needs at least 2 images, the data has {count}")
    held, rest = (Moments(width + 1, len(bias)) for _ in range(2))
    for view in range(views):
        for start in range(0, count, CHUNK):
            part = slice(start, min(start + CHUNK, count))
            x = F.pad(inputs[view, part].double(), (0, 1), value=1.0)
            y = old[view, part].double() @ weight.T.double() + bias.double()
            chosen = torch.arange(part.start, part.stop) % HELD_OUT == 0
            held.add(x[chosen], y[chosen])
            rest.add(x[~chosen], y[~chosen])
    errors = [held.error(rest.solve(penalty)) for penalty in PENALTIES]
    best = min(range(len(PENALTIES)), key=errors.__getitem__)
    spread = held.error(rest.mean())
    solution = (held + rest).solve(PENALTIES[best])
    explained = 1 - errors[best] / max(spread, 1e-300)
    return Ridge(solution[:width].T.contiguous(), solution[width].clone(), PENALTIES[best], explained)


class Moments:
    """Sums over images that least squares needs: x x', x y', y y' and the count; x ends with a 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.yy = 0.0
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in images [n,D+1] and their targets [n,E]."""
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        self.yy += float(y.square().sum())
        self.count += len(x)

    def __add__(self, other: Moments) -> Moments:
        total = Moments(*self.xy.shape)
        total.xx, total.xy = self.xx + other.xx, self.xy + other.xy
        total.yy, total.count = self.yy + other.yy, self.count + other.count
        return total

    def solve(self, penalty: float) -> Tensor:
        """The map [D+1,E], its last row the bias."""
        weight = torch.full((len(self.xx),), penalty * self.count, dtype=torch.float64)
        weight[-1] = 0
        solution: Tensor = torch.linalg.solve(self.xx + weight.diag(), self.xy)
        return solution

    def mean(self) -> Tensor:
        """The map [D+1,E] that always gives the mean of the targets."""
        solution = torch.zeros_like(self.xy)
        solution[-1] = self.xy[-1] / self.count
        return solution

    def error(self, solution: Tensor) -> float:
        """Sum of squared errors of a map [D+1,E]."""
        return self.yy + float((solution * (self.xx @ solution - 2 * self.xy)).sum())
