"""What an encoder sees of a picture: resize, centre crop, normalisation, all read from an `EncoderConfig`.

Knows nothing about networks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.config import EncoderConfig


def view(images: Tensor, config: EncoderConfig) -> Tensor:
    """The part of each picture that the encoder sees, at the encoder's size.

    Resizing is antialiased; what a bicubic filter overshoots is clipped, as in 8-bit pictures.

    Args:
        images: float [N,3,H,W] in [-1,1].
        config: `image_size`, `resize`, `resize_to` and `interpolation` are used.

    Returns:
        float32 [N,3,s,s] in [-1,1] with s = `config.image_size`; the pictures themselves if they have that size.
    """
    images = images.to(torch.float32)
    size, target = config.image_size, config.resize_to or config.image_size
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if target < size:
        return _bordered(images, config)
    if config.resize == "squash":
        images = _resize(images, target, target, config.interpolation)
    else:
        scale = target / min(height, width)
        images = _resize(images, round(height * scale), round(width * scale), config.interpolation)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def _bordered(images: Tensor, config: EncoderConfig) -> Tensor:
    """Pictures that are made smaller than the encoder's size: the rest is black."""
    size, target = config.image_size, config.resize_to
    height, width = images.shape[-2:]
    if config.resize == "squash":
        height = width = target
    else:
        height, width = int(height * target / min(height, width)), int(width * target / min(height, width))
    images = _resize(images, height, width, config.interpolation)
    top, left = max(0, height - size) // 2, max(0, width - size) // 2
    images = images[..., top : top + size, left : left + size]
    height, width = images.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top), value=-1.0)


def _resize(images: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    if interpolation == "box_bicubic":
        while min(images.shape[-2:]) >= 2 * min(height, width):
            images = F.interpolate(images, size=(images.shape[-2] // 2, images.shape[-1] // 2), mode="area")
    if tuple(images.shape[-2:]) == (height, width):
        return images
    if interpolation == "area":
        return F.interpolate(images, size=(height, width), mode="area")
    mode = "bilinear" if interpolation == "bilinear" else "bicubic"
    resized = F.interpolate(images, size=(height, width), mode=mode, align_corners=False, antialias=True)
    return resized.clamp(-1.0, 1.0)


def normalise(views: Tensor, config: EncoderConfig) -> Tensor:
    """Float [N,3,s,s] in [-1,1] -> the same pictures mapped to [0,1], in `channel_order`, minus `mean`, by `std`."""
    if config.channel_order == "bgr":
        views = views.flip(1)
    mean = views.new_tensor(config.mean)[:, None, None]
    std = views.new_tensor(config.std)[:, None, None]
    return views * (0.5 / std) + (0.5 - mean) / std
