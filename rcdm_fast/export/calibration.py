"""What a network meets while pictures are drawn, for quantisation: x, timesteps and representations of trajectories.

Random numbers in place of x would calibrate for pictures that never occur.

Knows nothing about quantisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast import conditioning, solvers
from rcdm_fast.config import ModelConfig
from rcdm_fast.noise import keyed_noise
from rcdm_fast.schedule import Schedule
from rcdm_fast.solvers import SolverOptions
from rcdm_fast.unet import UNet

STEPS = 25
SEED = 0


@torch.inference_mode()
def collect(network: UNet, config: ModelConfig, h: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one picture of every representation by DDIM, and keep what the network was given.

    Args:
        network: the model's.
        config: the model's.
        h: float32 [R,D].
        steps: network evaluations per picture.

    Returns:
        x float32 [S*R,3,H,W], base timesteps int64 [S*R], representations float32 [S*R,D] for S steps; on the CPU.
    """
    device = next(network.parameters()).device
    h = h.to(device)
    schedule = Schedule.make(config.schedule, steps)
    plan = conditioning.make_plan(network, schedule, h, None).with_rows(torch.arange(len(h)))
    seen: list[tuple[Tensor, int]] = []

    def predict(x: Tensor, k: int) -> Tensor:
        seen.append((x.cpu(), schedule.timesteps[k]))
        return network.denoise(x, plan.film(k))

    size = config.unet.image_size
    noise = keyed_noise(SEED, [(item, 0) for item in range(len(h))], 0, (3, size, size), device)
    solvers.ddim(predict, noise, schedule, SolverOptions(), lambda _: noise)
    timesteps = torch.tensor([t for _, t in seen]).repeat_interleave(len(h))
    return torch.cat([x for x, _ in seen]), timesteps, h.cpu().repeat(len(seen), 1)
