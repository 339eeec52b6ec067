"""What the encoder tests share: random images, and the comparison of representations."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.tolerances import ENCODER_L2


def make_images(height: int, width: int = 0, count: int = 2) -> Tensor:
    """Random [count,3,height,width] in [-1,1] with a mean that is not zero; square if `width` is left out."""
    return torch.rand(count, 3, height, width or height) * 1.6 - 1.0


def close(found: Tensor, expected: Tensor, tolerance: float = ENCODER_L2) -> bool:
    """Whether shapes are equal and the relative L2 distance is within the tolerance."""
    if found.shape != expected.shape:
        return False
    return bool((found.double() - expected.double()).norm() <= tolerance * expected.double().norm())
