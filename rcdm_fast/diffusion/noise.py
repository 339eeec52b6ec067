"""Gaussian noise that belongs to an image: keyed by (seed, item, sample, step), never by its place in a batch.

The generator is Philox 4x64 (Salmon et al. 2011, counter-based, as in NumPy): key (seed, item), counter (block, 0,
sample, step). Uniforms become normals by Box-Muller in float64 on the host and are rounded to float32 once, so every
device, engine and precision starts from the same bits.

Knows nothing about schedules: step 0 is x_T, step i + 1 the noise of the i-th step in order of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rcdm_fast.checks import Range, whole

MAX_SEED = 2**64


def check_seed(seed: Any) -> int:
    """The seed as an int, if it is a whole number in 0..2^64-1; `ConfigError` otherwise."""
    return whole(seed, "seed", Range(0, MAX_SEED - 1))


def keyed_normal(seed: int, item: int, sample: int, step: int, count: int) -> NDArray[np.float32]:
    """`count` standard normals for one image at one step; float32 [count].

    Args:
        seed: 0..2^64-1.
        item: key of the representation, any int64.
        sample: number of the image among those of its item, from 0.
        step: 0 for x_T, i + 1 for the i-th step.
        count: how many numbers.
    """
    counter = np.array([0, 0, sample, step], dtype=np.uint64)
    key = np.array([seed, item & (MAX_SEED - 1)], dtype=np.uint64)
    raw = np.random.Philox(counter=counter, key=key).random_raw(2 * (-(-count // 2)))
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform[0::2]))
    angle = (2.0 * np.pi) * uniform[1::2]
    normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normals[:count].astype(np.float32)


def keyed_noise(
    seed: int, keys: Sequence[tuple[int, int]], step: int, shape: tuple[int, int, int], device: torch.device | str
) -> Tensor:
    """Noise of several images at one step; float32 [len(keys), *shape] on `device`. `keys` are (item, sample)."""
    count = shape[0] * shape[1] * shape[2]
    out = np.empty((len(keys), count), dtype=np.float32)
    for row, (item, sample) in enumerate(keys):
        out[row] = keyed_normal(seed, item, sample, step, count)
    return torch.from_numpy(out).view(len(keys), *shape).to(device)
