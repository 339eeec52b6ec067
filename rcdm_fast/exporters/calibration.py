"""What a network meets while images are drawn, for quantization: x, timesteps and representations of trajectories.

Random numbers in place of x would calibrate for images that never occur.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcdm_fast.config import ModelConfig
from rcdm_fast.diffusion import solvers
from rcdm_fast.diffusion.noise import keyed_noise
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.exporters.graph import timestep_inputs

STEPS = 25
SEED = 0

Evaluate = Callable[..., Tensor]  # (x, base timesteps and fractions, representations or labels if any) -> raw output


@torch.inference_mode()
def draw(evaluate: Evaluate, config: ModelConfig, given: Tensor | None, count: int = 0, steps: int = STEPS) -> Tensor:
    """One image of every representation or label by DDIM, from the same noise whatever evaluates the network.

    Args:
        evaluate: the network; gets x float32 [R,3,H,W], timesteps int64 [R] and their fractions float32 [R], and
            `given` unless that is None.
        config: the model's.
        given: representations float32 [R,D] or labels int64 [R]; None for an unconditional network.
        count: R where `given` is None.
        steps: network evaluations per image.

    Returns:
        float32 [R,3,H,W].
    """
    schedule = Schedule.make(config.schedule, steps)
    size = config.unet.image_size
    condition = () if given is None else (given,)
    items = [(item, 0) for item in range(count if given is None else len(given))]
    noise = keyed_noise(SEED, items, 0, (3, size, size), torch.device("cpu"))

    def predict(x: Tensor, k: int) -> Tensor:
        return evaluate(x, *timestep_inputs(schedule.timesteps[k], len(x)), *condition)

    return solvers.ddim(predict, noise, schedule, SolverOptions(), lambda _: noise)


def collect(
    evaluate: Evaluate, config: ModelConfig, given: Tensor | None, count: int = 0, steps: int = STEPS
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`draw`, and what the network was given in S steps: x [S*R,3,H,W], timesteps and fractions [S*R], and `given`."""
    seen: list[tuple[Tensor, ...]] = []

    def watched(x: Tensor, *rest: Tensor) -> Tensor:
        seen.append((x.clone(), *rest))
        return evaluate(x, *rest)

    images = draw(watched, config, given, count, steps)
    return images, tuple(torch.cat(parts) for parts in zip(*seen, strict=True))
