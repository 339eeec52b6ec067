"""The operators' schemas and fake implementations, declared once for every build.

An install without native code has them too, so that graphs can be traced anywhere. A fake says which inputs are
accepted and what the output looks like: shape, dtype, strides, device.

Knows nothing about how an operator is computed (`reference.py`, csrc/).
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMESPACE = "rcdm_fast"
PICTURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

torch.library.define(f"{NAMESPACE}::pictures_to_uint8", "(Tensor pictures) -> Tensor", tags=_TAGS)


def _pictures_to_uint8(pictures: Tensor) -> Tensor:
    check_picture_dtype(pictures)
    return torch.empty_like(pictures, dtype=torch.uint8)


torch.library.register_fake(f"{NAMESPACE}::pictures_to_uint8", _pictures_to_uint8)


def check_picture_dtype(pictures: Tensor) -> None:
    """`TypeError` unless the dtype is one of `PICTURE_DTYPES`."""
    if pictures.dtype not in PICTURE_DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in PICTURE_DTYPES)
        raise TypeError(f"expected pictures of dtype {expected}; got {str(pictures.dtype).removeprefix('torch.')}")
