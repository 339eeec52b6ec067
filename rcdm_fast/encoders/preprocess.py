"""What an encoder sees of an image: resize, center crop, normalization, all read from an `EncoderConfig`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import resizing
from rcdm_fast.config import EncoderConfig


def view(images: Tensor, config: EncoderConfig) -> Tensor:
    """The part of each image that the encoder sees, at the encoder's size.

    Resizing is antialiased; what a bicubic filter overshoots is clipped, as in 8-bit images. Only the part that is
    seen is computed, and what is returned keeps no more than that in memory.

    Args:
        images: float [N,3,H,W] in [-1,1].
        config: `image_size`, `resize`, `resize_to`, `rounding` and `interpolation` are used.

    Returns:
        float32 [N,3,s,s] in [-1,1] with s = `config.image_size`; with rounding ``nearest`` the images themselves if
        they have that size.
    """
    images = images.to(torch.float32)
    size = config.image_size
    if tuple(images.shape[-2:]) == (size, size) and config.rounding == "nearest":
        return images
    shape = resized_shape(images.shape[-2], images.shape[-1], config)
    if min(shape) < size:
        return _bordered(images, shape, config)
    corner = (_offset(shape[0] - size, config), _offset(shape[1] - size, config))
    filter = config.interpolation
    if filter == "box_bicubic":
        images, filter = _halved(images, min(shape)), "bicubic"
    seen = resizing.cropped(images, shape, corner, size, filter)
    return seen if filter == "area" or shape == tuple(images.shape[-2:]) else seen.clamp(-1.0, 1.0)


def resized_shape(height: int, width: int, config: EncoderConfig) -> tuple[int, int]:
    """Height and width of an image after resizing, before the crop."""
    target = config.resize_to or config.image_size
    if config.resize == "squash":
        return target, target
    if config.rounding == "nearest":
        scale = target / min(height, width)
        return round(height * scale), round(width * scale)
    if width <= height:
        return int(target * height / width), target
    return target, int(target * width / height)


def _offset(rest: int, config: EncoderConfig) -> int:
    """Where the crop begins when `rest` pixels are left over; torchvision rounds halves to even."""
    return round(rest / 2) if config.rounding == "torchvision" else rest // 2


def _halved(images: Tensor, target: int) -> Tensor:
    while min(images.shape[-2:]) >= 2 * target:
        images = resizing.halved(resizing.halved(images, -2), -1)
    return images


def _bordered(images: Tensor, shape: tuple[int, int], config: EncoderConfig) -> Tensor:
    """Images that are made smaller than the encoder's size: the rest is black."""
    size, filter = config.image_size, config.interpolation
    if filter == "box_bicubic":
        images, filter = _halved(images, min(shape)), "bicubic"
    if shape != tuple(images.shape[-2:]):
        images = resizing.resized(images, shape, filter)
        images = images if filter == "area" else images.clamp(-1.0, 1.0)
    top, left = (_offset(max(0, side - size), config) for side in shape)
    images = images[..., top : top + size, left : left + size]
    height, width = images.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top), value=-1.0)


def normalize(views: Tensor, config: EncoderConfig) -> Tensor:
    """Float [N,3,s,s] in [-1,1] -> the same images mapped to [0,1], in `channel_order`, minus `mean`, by `std`."""
    if config.channel_order == "bgr":
        views = views.flip(1)
    mean = views.new_tensor(config.mean)[:, None, None]
    std = views.new_tensor(config.std)[:, None, None]
    return views * (0.5 / std) + (0.5 - mean) / std
