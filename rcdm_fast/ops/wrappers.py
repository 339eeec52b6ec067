"""The operators as functions: check the input, then run the native implementation or the reference.

The choice depends only on the input's device and on which native parts are loaded; `describe()` tells the latter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops import library, reference, schema


def pictures_to_uint8(pictures: Tensor) -> Tensor:  # float [...] in [-1,1] -> uint8 [...] in 0..255
    """Levels 0..255 of pictures in [-1,1], as `reference.pictures_to_uint8` defines them, bit for bit.

    Args:
        pictures: float32, bfloat16 or float16 of any shape; a dense tensor's strides are kept.

    Raises:
        TypeError: another dtype.
    """
    schema.check_picture_dtype(pictures)
    if library.has_native(pictures.device.type):
        levels: Tensor = torch.ops.rcdm_fast.pictures_to_uint8(pictures)
        return levels
    return reference.pictures_to_uint8(pictures)
