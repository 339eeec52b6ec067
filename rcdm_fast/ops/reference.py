"""What every operator computes, in plain PyTorch: the truth that other implementations are tested against.

Works on every device and every build. Knows nothing about native libraries or how an implementation is chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops.schema import check_picture_dtype


def pictures_to_uint8(pictures: Tensor) -> Tensor:  # float [...] in [-1,1] -> uint8 [...] in 0..255
    """Levels 0..255 of pictures in [-1,1]: (x + 1) * 127.5 in float32, rounded half to even, clipped; NaN gives 0.

    Equal to `rcdm_fast.images.to_uint8` for every number; the strides are those of `torch.empty_like(pictures)`.

    Raises:
        TypeError: the dtype is not float32, bfloat16 or float16.
    """
    check_picture_dtype(pictures)
    levels = pictures.to(torch.float32).add(1.0).mul_(127.5).round_().nan_to_num_(nan=0.0).clamp_(0, 255)
    return torch.empty_like(pictures, dtype=torch.uint8).copy_(levels)
