"""Problems whose answer is known: values of a Gaussian mixture with its exact score, and the flow that it has.

Knows nothing about which solvers there are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion.schedule import Floats
from rcdm_fast.diffusion.solvers import SolverOptions

WEIGHTS, MEANS, DEVIATIONS = (0.4, 0.6), (-0.6, 0.5), (0.3, 0.4)  # of values, independent of each other
FREE = SolverOptions(clip=False)


def posterior_mean(x: Tensor, alpha_bar: float) -> Tensor:
    """E[x0 | x] for values of the mixture."""
    signal, noise = math.sqrt(alpha_bar), 1 - alpha_bar
    logs, means = [], []
    for weight, mean, deviation in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True):
        total = alpha_bar * deviation**2 + noise
        logs.append(math.log(weight) - 0.5 * math.log(total) - (x - signal * mean) ** 2 / (2 * total))
        means.append(mean + signal * deviation**2 / total * (x - signal * mean))
    fraction = torch.softmax(torch.stack(logs), dim=0)
    return (fraction * torch.stack(means)).sum(dim=0)


class Ladder:
    """A schedule with any signal at its steps, of a network that gives x0."""

    config = ScheduleConfig(prediction="x0")

    def __init__(self, log_snr: Floats) -> None:  # halves of it: log(alpha / sigma), falling
        self.log_snr = log_snr
        self.alpha_bar = 1 / (1 + np.exp(-2 * log_snr))
        self.alpha_bar_prev = np.append(1.0, self.alpha_bar[:-1])
        self.alpha_bar_next = np.append(self.alpha_bar[1:], 0.0)

    def __len__(self) -> int:
        return len(self.alpha_bar)


def flow(x: Tensor, begin: float, end: float, steps: int) -> Tensor:
    """The probability flow from one log(alpha / sigma) to another, by Runge and Kutta in y = x / sigma."""

    def slope(y: Tensor, at: float) -> Tensor:
        alpha_bar = 1 / (1 + math.exp(-2 * at))
        return math.exp(at) * posterior_mean(y * math.sqrt(1 - alpha_bar), alpha_bar)

    def sigma(at: float) -> float:
        return math.sqrt(1 / (1 + math.exp(2 * at)))

    y, h = x / sigma(begin), (end - begin) / steps
    for i in range(steps):
        at = begin + i * h
        k1 = slope(y, at)
        k2 = slope(y + h / 2 * k1, at + h / 2)
        k3 = slope(y + h / 2 * k2, at + h / 2)
        k4 = slope(y + h * k3, at + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * sigma(end)


def refuse(i: int) -> Tensor:
    """In place of fresh noise."""
    raise AssertionError(f"noise was drawn at step {i}")
