"""What a network meets while pictures are drawn, for quantisation: x, timesteps and representations of trajectories.

Random numbers in place of x would calibrate for pictures that never occur.

Knows nothing about quantisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcdm_fast import solvers
from rcdm_fast.config import ModelConfig
from rcdm_fast.noise import keyed_noise
from rcdm_fast.schedule import Schedule
from rcdm_fast.solvers import SolverOptions

STEPS = 25
SEED = 0


Evaluate = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, base timesteps, representations) -> raw output


@torch.inference_mode()
def draw(evaluate: Evaluate, config: ModelConfig, h: Tensor, steps: int = STEPS) -> Tensor:
    """One picture of every representation by DDIM, from the same noise whatever evaluates the network.

    Args:
        evaluate: the network; gets x float32 [R,3,H,W], timesteps int64 [R] and h.
        config: the model's.
        h: float32 [R,D].
        steps: network evaluations per picture.

    Returns:
        float32 [R,3,H,W].
    """
    schedule = Schedule.make(config.schedule, steps)
    size = config.unet.image_size
    noise = keyed_noise(SEED, [(item, 0) for item in range(len(h))], 0, (3, size, size), h.device)

    def predict(x: Tensor, k: int) -> Tensor:
        return evaluate(x, torch.full((len(x),), schedule.timesteps[k], device=x.device), h)

    return solvers.ddim(predict, noise, schedule, SolverOptions(), lambda _: noise)


def collect(
    evaluate: Evaluate, config: ModelConfig, h: Tensor, steps: int = STEPS
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """`draw`, and what the network was given in S steps: x [S*R,3,H,W], timesteps [S*R], representations [S*R,D]."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def watched(x: Tensor, timesteps: Tensor, given: Tensor) -> Tensor:
        seen.append((x.clone(), timesteps, given))
        return evaluate(x, timesteps, given)

    pictures = draw(watched, config, h, steps)
    x, timesteps, given = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return pictures, (x, timesteps, given)
