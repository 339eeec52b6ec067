"""Cross-validated ridge regression: how much of a target is read off inputs that the map was not fitted on.

Every group (the versions of one image) is left out in turn, which a ridge allows in closed form: with residuals e and
the part H of the hat matrix of a group, the errors of a map fitted without it are (I - H)^-1 e. The penalty of a group
is the one that does best for the groups of the other half, so none is chosen by what it is judged by.

`waves` makes the map a non-linear one: a fixed number of random cosines, which approximate a Gaussian kernel (Rahimi
and Recht 2007).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # a row, on standardized inputs


def errors(inputs: Tensor, targets: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Squared errors of groups that were left out: of the ridge, and of the mean alone.

    Args:
        inputs: float [N,M,F], M rows of each of N groups.
        targets: float [N,M,T].
        floor: inputs whose standard deviation is at most this are left out, as rounding.

    Returns:
        float64 [N], [N], summed over rows and targets.
    """
    groups, rows, _ = inputs.shape
    y = targets.double().flatten(0, 1)
    y = y - y.mean(dim=0)
    values, z = _principal(_standardized(inputs.double().flatten(0, 1), floor))
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


def _standardized(x: Tensor, floor: float) -> Tensor:
    x = x - x.mean(dim=0)
    deviation = x.square().mean(dim=0).sqrt()
    moving = deviation > max(floor, 1e-6 * float(deviation.max()))
    return x[:, moving] / deviation[moving]


def _principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared lengths of the principal components of rows [n,F], and the rows along them [n,C]; C is at most n."""
    if x.shape[1] <= len(x):
        values, vectors = torch.linalg.eigh(x.T @ x)
        return values.clamp_min(0), x @ vectors
    values, vectors = torch.linalg.eigh(x @ x.T)
    values = values.clamp_min(0)
    return values, vectors * values.sqrt()


def waves(before: Tensor, change: Tensor, count: int, floor: float = 0.0, seed: int = 0) -> Tensor:
    """Random cosines of inputs and their change together, less those without the change: 0 where nothing changes.

    Half of them are as wide as the median distance between rows, half a third of that. Changes count as much as inputs,
    however small they are, unless they are rounding.

    Args:
        before: float [N,D].
        change: float [N,M,D].
        count: of cosines.
        floor: a change whose root mean square is at most this is none.
        seed: of the cosines.

    Returns:
        float64 [N,M,count].
    """
    before, change = before.double(), change.double()
    deviation = before.std(dim=0)
    moving = deviation > 1e-6 * deviation.max()
    u = (before - before.mean(dim=0))[:, moving] / deviation[moving]
    v = change[:, :, moving] / deviation[moving]
    size = float(v.square().sum(dim=2).mean().sqrt())
    if float(change.square().mean().sqrt()) <= floor or size == 0:
        return torch.zeros(*change.shape[:2], count, dtype=torch.float64)
    v = v * (float(u.square().sum(dim=1).mean().sqrt()) / size)
    rows = torch.cat([u[:, None].expand_as(v), v], dim=2)
    width = float(torch.nn.functional.pdist(rows.flatten(0, 1)[:: max(1, v.shape[1])][:500]).median()) or 1.0
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(rows.shape[2], count, dtype=torch.float64, generator=generator) / width
    turns[:, count // 2 :] *= 3
    shift = 2 * math.pi * torch.rand(count, dtype=torch.float64, generator=generator)
    still = u @ turns[: u.shape[1]] + shift
    return (still[:, None] + v @ turns[u.shape[1] :]).cos() - still.cos()[:, None]
