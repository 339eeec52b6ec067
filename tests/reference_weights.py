"""The made-up weights of the reference cases: numpy's PCG64, tensor by tensor in sorted order of the names.

tests/reference/CASE holds the published flags of a case, and what the published code gave for these weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.models.flags import configs_from_flags
from rcdm_fast.models.unet import UNet

FOLDER = Path(__file__).parent / "reference"
CASES = ("rcdm_32", "rcdm_32_plain")
SEED = 20211216


def make_tensors(shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """float32 tensors of the given shapes; norm weights near 1, biases near 0, others scaled by their fan-in."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    tensors = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        z = generator.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            z = (z / np.float64(math.sqrt(math.prod(shape[1:])))).astype(np.float32)  # divided in float64
        elif name.endswith("weight"):
            z = 1 + 0.1 * z
        else:
            z = 0.05 * z
        tensors[name] = torch.from_numpy(z)
    return tensors


def flags_path(case: str) -> Path:
    """The published flags of a case."""
    return FOLDER / case / "flags.json"


def state_dict(case: str) -> dict[str, Tensor]:
    """The published-format weights of a case."""
    with torch.device("meta"):
        network = UNet(configs_from_flags(flags_path(case))[0])
    return make_tensors({name: tensor.shape for name, tensor in network.state_dict().items()})
