"""How well a model predicts an image from a noisy one, noise level by noise level.

Measured on images that a model was trained on and on others, the difference is what it has memorized: at high noise
it answers from the representation alone, and there a decoder of few images overfits first.

Knows nothing about samples (`evaluation.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rcdm_fast import host
from rcdm_fast.checks import ConfigError
from rcdm_fast.data.image_set import ImageSet, step_generator
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import x0_factors
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.model import Model

FRACTIONS = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98)  # of the schedule's steps


@host.guarded(gradients=True, random=True)
def x0_errors(
    model: Model,
    data: ImageSet,
    index: torch.Tensor,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    resamples: int = 2000,
    h: torch.Tensor | None = None,
) -> dict[int, Interval]:
    """Mean squared error of x0 predicted from one noisy image each, by the plain network (`Model.network`).

    Args:
        model: a model with an encoder.
        data: images of the size that the model makes.
        index: the images to measure on, int64 [M], at least two.
        timesteps: of the schedule the model was trained with, from 0; by default `FRACTIONS` of them.
        seed: of the noise, the same for every model.
        batch_size: images at once.
        resamples: bootstrap draws behind the 95 % intervals over images.
        h: representations of those images, float32 [M,D]; computed by the encoder if left out.

    Returns:
        By timestep, the mean over images, channels and pixels of (predicted - x0)^2, for x0 in [-1,1].

    Raises:
        ConfigError: a model without an encoder, fewer than two images, or timesteps that the schedule does not have.
    """
    encoder = model.encoder
    if encoder is None and h is None:
        raise ConfigError("errors of x0 need the model's encoder; give one with --encoder")
    if len(index) < 2:
        raise ConfigError(f"an interval needs at least 2 images, got {len(index)}")
    schedule = Schedule.make(model.config.schedule)
    if timesteps is None:
        timesteps = sorted({int(fraction * len(schedule)) for fraction in FRACTIONS})
    wrong = [t for t in timesteps if not 0 <= t < len(schedule)]
    if wrong:
        raise ConfigError(
            f"timesteps {wrong} are not among the {len(schedule)} of the schedule, 0 to {len(schedule) - 1}"
        )
    errors: dict[int, list[torch.Tensor]] = {t: [] for t in timesteps}
    for number, places in enumerate(torch.arange(len(index)).split(batch_size)):
        part = index[places]
        x0 = data.floats(part).cpu()
        if h is not None:
            own = h[places]
        else:
            assert encoder is not None
            own = encoder.encode(data.seen(part, encoder))
        for t in timesteps:
            eps = torch.randn(x0.shape, generator=step_generator(seed, number, stream=t))
            alpha_bar = float(schedule.alpha_bar[t])
            x = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * eps
            of_x, of_output = x0_factors(schedule, t)
            predicted = of_x * x + of_output * model.network(x, torch.full((len(x),), t), own)[:, :3].cpu()
            errors[t].append((predicted - x0).square().mean(dim=(1, 2, 3)).double())
    return {
        t: bootstrap(torch.cat(rows).numpy(), resamples, np.random.default_rng([seed, t])) for t, rows in errors.items()
    }
