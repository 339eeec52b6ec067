"""What a student learns from: its teacher's trajectories, and its own steps beside them, with gradients.

A trajectory is the teacher's way from one x_T to an image, by DPM-Solver++(2M) over many timesteps, among them all of
the student's. The student walks by DDIM from the same x_T, which counts as its state at the first of its timesteps:
between the last base timestep and that one hardly anything happens, and no network is asked.

Knows nothing about optimizers and files (`distill.py`).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion import multistep
from rcdm_fast.diffusion.schedule import Placement, Schedule, place
from rcdm_fast.diffusion.solvers import Predict, Solver, SolverOptions, eps_factors, x0_factors
from rcdm_fast.models.unet import UNet
from rcdm_fast.precision import ieee_fp32


class Conditions(NamedTuple):
    """What a batch of trajectories is drawn for: representations [N,D] and labels [N], where the network takes them."""

    h: Tensor | None
    label: Tensor | None


def student_steps(config: ScheduleConfig, nfe: int, placement: Placement) -> tuple[int, ...]:
    """So many timesteps, ascending: those of `place`, without the first and the last base timestep."""
    return place(Schedule.make(config).alpha_bar, nfe + 2, placement)[1:-1]


def teacher_schedule(config: ScheduleConfig, own: tuple[int, ...], between: int) -> Schedule:
    """Both ends, the student's timesteps, and `between` each two of them so many more, even in log(alpha / sigma)."""
    alpha_bar = Schedule.make(config).alpha_bar
    last = len(alpha_bar) - 1
    snr = np.log(alpha_bar) - np.log1p(-alpha_bar)
    ends = sorted({0, *own, last})
    kept = set(ends)
    for a, b in itertools.pairwise(ends):
        wanted = np.linspace(snr[a], snr[b], between + 2)
        kept |= set(np.interp(wanted, snr[::-1], np.arange(last, -1, -1)).round().astype(int).tolist())
    return Schedule(config, tuple(sorted(kept)))


def predict_with(network: UNet, schedule: Schedule, given: Conditions) -> Predict:
    """The network as a solver asks it; eps (or what it gives) alone, without a learned variance."""
    seen = schedule.network_timesteps

    def predict(x: Tensor, k: int) -> Tensor:
        out: Tensor = network(x, torch.full((len(x),), seen[k], device=x.device), given.h, given.label)
        return out[:, :3]

    return predict


def images(network: UNet, solver: Solver, schedule: Schedule, x: Tensor, given: Conditions) -> Tensor:
    """What a solver without noise makes of x_T [N,3,H,W]."""
    with torch.no_grad(), ieee_fp32(x.device):
        return solver(predict_with(network, schedule, given), x, schedule, SolverOptions(), _no_noise)


def _no_noise(i: int) -> Tensor:
    raise AssertionError("a solver that follows the flow draws no noise")


def teacher_states(
    network: UNet, schedule: Schedule, own: tuple[int, ...], x: Tensor, given: Conditions
) -> list[Tensor]:
    """Where a trajectory is at the student's timesteps but the first, from noise on, and its image; [N,3,H,W] each."""
    predict = predict_with(network, schedule, given)
    found: dict[float, Tensor] = {}

    def noted(x: Tensor, k: int) -> Tensor:
        found[schedule.timesteps[k]] = x
        return predict(x, k)

    with torch.no_grad(), ieee_fp32(x.device):
        image = multistep.dpmpp_2m(noted, x, schedule, SolverOptions(), _no_noise)
    return [*(found[t] for t in reversed(own[:-1])), image]


def student_step(x: Tensor, output: Tensor, schedule: Schedule, k: int) -> Tensor:
    """`solvers.ddim` from kept step k, with gradients for the network's output [N,3,H,W]."""
    target = float(schedule.alpha_bar_prev[k])
    of_x, of_output = x0_factors(schedule, k)
    x0: Tensor = _Clipped.apply(x * of_x + output * of_output)
    x_to_eps, x0_to_eps = eps_factors(schedule, k)
    signal, noise = math.sqrt(target), math.sqrt(1 - target)
    return x0 * (signal + noise * x0_to_eps) + x * (noise * x_to_eps)


class _Clipped(torch.autograd.Function):
    """x0 in [-1,1]; what lies beyond has a gradient where it is to come back, as it could not learn to without."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor) -> Tensor:
        ctx.save_for_backward(x0)
        return x0.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x0,) = ctx.saved_tensors
        outwards = ((x0 > 1) & (grad < 0)) | ((x0 < -1) & (grad > 0))
        return grad.masked_fill(outwards, 0.0)
