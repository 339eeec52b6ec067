"""A square cut out of a resized image, at the cost of the square: what lies outside of it is never computed.

Whether the whole is resized and then cropped or the other way round is the same image; resized whole, a strip of
20000 x 8 pixels at 256 pixels a side takes gigabytes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Filter = Literal["bilinear", "bicubic", "area"]

_WASTE = 8  # how many times the square may be resized and thrown away before it is cut out first


def cropped(images: Tensor, shape: tuple[int, int], corner: tuple[int, int], size: int, filter: Filter) -> Tensor:
    """Resize to `shape` (antialiased), and of that the square of `size` pixels whose first pixel is `corner`.

    Args:
        images: float [N,C,H,W].
        shape: height and width of the whole when it is resized; at least `size`.
        corner: row and column in it.
        size: side of the square.
        filter: as in PyTorch; bicubic may overshoot.

    Returns:
        [N,C,size,size], with memory of its own or the images themselves. Images up to about eight times as long as
        wide have the bits of PyTorch's `interpolate`; longer ones agree with it in float64.
    """
    top, left = corner
    if tuple(images.shape[-2:]) == shape:
        return _own(images[..., top : top + size, left : left + size], images)
    if shape[0] * shape[1] <= _WASTE * size * size:
        whole = resized(images, shape, filter)
        return _own(whole[..., top : top + size, left : left + size], whole)
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    first_row, rows = _weights(images.shape[-2], shape[0], top, size, filter)
    first_column, columns = _weights(images.shape[-1], shape[1], left, size, filter)
    part = images[..., first_row : first_row + rows.shape[1], first_column : first_column + columns.shape[1]]
    rows, columns = rows.to(images.device, exact), columns.to(images.device, exact)
    return (rows @ (part.to(exact) @ columns.T)).to(images.dtype)


def _own(part: Tensor, whole: Tensor) -> Tensor:
    """A part of an image in memory of its own, so that who keeps it does not keep the whole."""
    return part if part.numel() == whole.numel() else part.clone(memory_format=torch.contiguous_format)


def resized(images: Tensor, shape: tuple[int, int], filter: Filter) -> Tensor:
    """The whole at `shape`, as PyTorch resizes it (antialiased); [N,C,H,W] -> [N,C,*shape]."""
    if filter == "area":
        return F.interpolate(images, size=shape, mode="area")
    return F.interpolate(images, size=shape, mode=filter, align_corners=False, antialias=True)


def halved(images: Tensor, dimension: int) -> Tensor:
    """Means of two neighbors along one dimension; float [...,L,...] -> [...,L//2,...].

    Of an odd number of pixels some are of three: those whose centers lie in the box, as in PIL's box filter, and by its
    arithmetic where a center lies on an edge.
    """
    length = images.shape[dimension]
    scale = length / (length // 2)
    centers = (torch.arange(length // 2, dtype=torch.float64) + 0.5) * scale
    first = (centers - 0.5 * scale + 0.5).long()
    pixels = first[:, None] + torch.arange(3)
    distance = (pixels - centers[:, None] + 0.5) * (1 / scale)
    inside = (distance > -0.5) & (distance <= 0.5) & (pixels < length)
    weights = (inside / inside.sum(dim=1, keepdim=True)).to(images)
    shape = [-1 if each == dimension % images.ndim else 1 for each in range(images.ndim)]
    places = pixels.clamp_max(length - 1).to(images.device)
    parts = [images.index_select(dimension, places[:, each]) * weights[:, each].view(shape) for each in range(3)]
    return parts[0] + parts[1] + parts[2]


def _weights(length: int, resized: int, start: int, count: int, filter: Filter) -> tuple[int, Tensor]:
    """What pixels `start` to `start + count` of a resized line are made of.

    Returns:
        the first pixel of the line that is needed, and weights float64 [count,needed]; the same as in PyTorch's
        antialiased filters and adaptive mean.
    """
    places = torch.arange(start, start + count, dtype=torch.int64)
    if filter == "area":
        low, high = places * length // resized, -((-(places + 1) * length) // resized)
    else:
        scale = length / resized
        reach = (2.0 if filter == "bicubic" else 1.0) * max(scale, 1.0)
        center = (places.double() + 0.5) * scale
        low = (center - reach + 0.5).clamp_min(0).long()
        high = (center + reach + 0.5).long().clamp_max(length)
    first, last = int(low.min()), int(high.max())
    pixels = torch.arange(first, last)
    inside = (pixels >= low[:, None]) & (pixels < high[:, None])
    if filter == "area":
        weights = inside.double()
    else:
        distance = (pixels + 0.5 - center[:, None]).abs() / max(scale, 1.0)
        weights = (_cubic(distance) if filter == "bicubic" else (1 - distance).clamp_min(0)) * inside
    return first, weights / weights.sum(dim=1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as antialiased bicubic filters have it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
