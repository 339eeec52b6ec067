"""SimCLR's random views, for a whole batch at once (Chen et al. 2020, appendix A, without blur as for CIFAR-10).

The other methods' views differ by solarization and, for DINO, by small crops.

Every image of the batch gets its own crop, flip, color jitter and gray decision; all of them are one affine
resampling and one 3x3 color matrix per image, so the cost is small beside a CPU encoder's. Color operations are
applied in a fixed order (brightness, contrast, saturation, hue), hue as a rotation in YIQ space; the published
pipeline shuffles the order and turns hue in HSV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.checks import Checked, Fraction, NotNegative, Range
from rcdm_fast.devices import sent

_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """Strength of the views.

    Attributes:
        min_scale: smallest fraction of the image's area that a crop keeps.
        brightness, contrast, saturation: factors are drawn from [1 - v, 1 + v].
        hue: largest rotation, in turns (0.5 is half the color circle).
        jitter: probability of any color change.
        gray: probability of dropping color.
    """

    min_scale: Annotated[float, Range(above=0, most=1)] = 0.2
    brightness: NotNegative = 0.4
    contrast: NotNegative = 0.4
    saturation: NotNegative = 0.4
    hue: NotNegative = 0.1
    jitter: Fraction = 0.8
    gray: Fraction = 0.2


def random_views(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """One random view of every image; float [N,3,H,W] in [-1,1] -> the same shape and range."""
    views = random_crop_flip(images, config.min_scale, generator)
    return random_color(views, config, generator)


def random_crop_flip(
    images: Tensor, min_scale: float, generator: torch.Generator, max_scale: float = 1.0, size: int | None = None
) -> Tensor:
    """Random resized crop (fraction of the area in [min_scale, max_scale], aspect in [3/4, 4/3]) and horizontal flip.

    [N,3,H,W] -> the same, or [N,3,size,size] where a size (pixels) is given; bilinear, without low-pass filter.
    """
    count = len(images)
    area = _uniform(count, min_scale, max_scale, generator)
    aspect = torch.exp(_uniform(count, math.log(3 / 4), math.log(4 / 3), generator))
    width = (area * aspect).sqrt().clamp(max=1.0)
    height = (area / aspect).sqrt().clamp(max=1.0)
    center_x = _uniform(count, -1.0, 1.0, generator) * (1 - width)
    center_y = _uniform(count, -1.0, 1.0, generator) * (1 - height)
    flip = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float()
    zero = torch.zeros(count)
    theta = torch.stack([width * flip, zero, center_x, zero, height, center_y], dim=1).view(count, 2, 3)
    shape = list(images.shape) if size is None else [count, images.shape[1], size, size]
    grid = F.affine_grid(sent(theta, images.device), shape, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def random_color(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Color jitter and gray, as one matrix and one offset per image; [N,3,H,W] in [-1,1]."""
    count = len(images)
    pixels = images.flatten(2).add(1).div(2)  # [N,3,HW] in [0,1]
    drawn = [
        _factor(count, config.brightness, generator),
        _factor(count, config.contrast, generator),
        _factor(count, config.saturation, generator),
        _uniform(count, -config.hue, config.hue, generator),
        torch.rand(count, generator=generator),
        torch.rand(count, generator=generator),
    ]
    # One small transfer, and a GPU is never waited for: what follows is computed where the images are.
    brightness, contrast, saturation, turns, jittered, grayed = sent(torch.stack(drawn), images.device)[..., None, None]
    gray = sent(torch.tensor(_GRAY), images.device)
    identity = torch.eye(3, device=images.device).expand(count, 3, 3)
    to_gray = gray.expand(3, 3)
    hue = _rotation(turns.flatten())

    mean_gray = torch.einsum("c,nc->n", gray, pixels.mean(dim=2)).view(-1, 1, 1) * brightness
    color = hue @ (saturation * identity + (1 - saturation) * to_gray)
    matrix = color * (brightness * contrast)
    offset = (1 - contrast) * mean_gray  # a gray offset is unchanged by saturation and hue

    keep = jittered >= config.jitter
    matrix = torch.where(keep, identity, matrix)
    offset = torch.where(keep, torch.zeros_like(offset), offset)
    matrix = torch.where(grayed < config.gray, to_gray @ matrix, matrix)

    out = torch.baddbmm(offset.expand(-1, 3, 1), matrix, pixels).clamp_(0, 1)
    return out.mul_(2).sub_(1).view_as(images)


def random_solarize(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Turn over the upper half of the values of some images (Grill et al. 2020, appendix B); [N,3,H,W] in [-1,1].

    Draws nothing when `probability` is 0.
    """
    if probability == 0:
        return images
    chosen = (torch.rand(len(images), generator=generator) < probability).view(-1, 1, 1, 1)
    return torch.where(sent(chosen, images.device) & (images >= 0), -images, images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _factor(count: int, strength: float, generator: torch.Generator) -> Tensor:
    return _uniform(count, max(0.0, 1 - strength), 1 + strength, generator)


def _rotation(turns: Tensor) -> Tensor:
    """Color matrices [N,3,3] that turn the hue by `turns` [N] in YIQ space."""
    yiq = torch.tensor(_RGB_TO_YIQ)
    back = sent(torch.linalg.inv(yiq), turns.device)
    angle = turns * 2 * math.pi
    cos, sin = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    matrix: Tensor = back @ turn @ sent(yiq, turns.device)
    return matrix
