"""Cross-validated ridge regression: how much of a target is read off inputs that the map was not fitted on.

Every group (the versions of one image) is left out in turn, which a ridge allows in closed form: with residuals e and
the part H of the hat matrix of a group, the errors of a map fitted without it are (I - H)^-1 e. The penalty of a group
is the one that does best for the groups of the other half, so none is chosen by what it is judged by.

`waves` makes the map a non-linear one: a fixed number of random cosines of the inputs, which approximate a Gaussian
kernel (Rahimi and Recht 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # a row, on standardized inputs


def errors(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of groups that were left out: of the ridge, and of the mean alone.

    Args:
        inputs: float [N,M,F], M rows of each of N groups. Numbers that do not vary are left out.
        targets: float [N,M,T].

    Returns:
        float64 [N], [N], summed over rows and targets.
    """
    groups, rows, _ = inputs.shape
    y = targets.double().flatten(0, 1)
    y = y - y.mean(dim=0)
    values, z = _principal(_standardized(inputs.double().flatten(0, 1)))
    even = torch.full((groups, rows, rows), 1 / len(y), dtype=torch.float64)  # the mean's part of the hat matrix
    grouped = z.view(groups, rows, z.shape[1])

    def left_out(residuals: Tensor, hat: Tensor) -> Tensor:
        found = torch.linalg.solve(torch.eye(rows, dtype=torch.float64) - hat, residuals.view(groups, rows, -1))
        squares: Tensor = found.square().sum(dim=(1, 2))
        return squares

    tried = []
    for penalty in PENALTIES:
        shrunk = 1 / (values + penalty * len(y))
        residuals = y - z @ (shrunk[:, None] * (z.T @ y))
        tried.append(left_out(residuals, even + (grouped * shrunk) @ grouped.transpose(1, 2)))
    found = torch.stack(tried)
    halves = torch.arange(groups) % 2
    best = torch.stack([found[:, halves != half].sum(dim=1).argmin() for half in (0, 1)])
    return found[best[halves], torch.arange(groups)], left_out(y, even)


def _standardized(x: Tensor) -> Tensor:
    x = x - x.mean(dim=0)
    deviation = x.square().mean(dim=0).sqrt()
    moving = deviation > 1e-6 * deviation.max()
    return x[:, moving] / deviation[moving]


def _principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared lengths of the principal components of rows [n,F], and the rows along them [n,C]; C is at most n."""
    if x.shape[1] <= len(x):
        values, vectors = torch.linalg.eigh(x.T @ x)
        return values.clamp_min(0), x @ vectors
    values, vectors = torch.linalg.eigh(x @ x.T)
    values = values.clamp_min(0)
    return values, vectors * values.sqrt()


def waves(like: Tensor, count: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Random cosines of inputs, half of them as wide as the median distance of `like` [N,D], half a third of that.

    Returns:
        float [...,D] -> float64 [...,count].
    """
    like = like.double()
    mean, deviation = like.mean(dim=0), like.std(dim=0)
    moving = deviation > 1e-6 * deviation.max()
    scale = torch.where(moving, 1 / torch.where(moving, deviation, 1.0), 0.0)
    apart = torch.nn.functional.pdist((like[:500] - mean) * scale)
    width = float(apart.median()) if len(apart) and float(apart.median()) > 0 else 1.0
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(like.shape[1], count, dtype=torch.float64, generator=generator) / width
    turns[:, count // 2 :] *= 3
    shift = 2 * math.pi * torch.rand(count, dtype=torch.float64, generator=generator)

    def features(h: Tensor) -> Tensor:
        found: Tensor = ((h.double() - mean) * scale @ turns + shift).cos() * math.sqrt(2 / count)
        return found

    return features
