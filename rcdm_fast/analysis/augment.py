"""Transformations of an image with a swept magnitude, each with the property that it changes.

All take and give images float32 [N,3,H,W] in [-1,1], and magnitude 0 (1 for factors, threshold 1 for solarize) is
the image itself. What a transformation moves into view repeats the border, so that no black corner tells on it.

Knows nothing about models or about how properties are measured (`properties.py`); it only names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.config import ConfigError
from rcdm_fast.images import blur_images, check_images

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's "L"


@dataclass(frozen=True)
class Augmentation:
    """One transformation.

    Attributes:
        name: short, for options, tables and files.
        about: what the magnitude is, with its unit.
        changes: the property that it changes, a name in `properties.PROPERTIES`.
        magnitudes: the values of a sweep; the one that changes nothing is not among them.
        transform: (images in [-1,1], magnitude) -> images, not yet clipped.
    """

    name: str
    about: str
    changes: str
    magnitudes: tuple[float, ...]
    transform: Callable[[Tensor, float], Tensor]

    def __call__(self, images: Tensor, magnitude: float) -> Tensor:
        """The transformed images, float32 [N,3,H,W] in [-1,1]. Raises `ImageError` or `ConfigError`."""
        if not math.isfinite(magnitude):
            raise ConfigError(f"the magnitude of {self.name} must be a number, got {magnitude}")
        return self.transform(check_images(images).float(), magnitude).clamp(-1, 1)


def luminance(colors: Tensor) -> Tensor:
    """Weighted sum of the channels (BT.601), in the range of the input; [N,3,H,W] -> [N,1,H,W]."""
    weights = torch.tensor(LUMA, dtype=colors.dtype, device=colors.device)
    return (colors * weights[:, None, None]).sum(dim=1, keepdim=True)


def flip(images: Tensor, magnitude: float) -> Tensor:
    """Mirror left and right if the magnitude is 1; 0 leaves the image."""
    if magnitude not in (0, 1):
        raise ConfigError(f"an image is mirrored (1) or not (0), got {magnitude}")
    return images.flip(3) if magnitude else images


def _moved(images: Tensor, fraction: float, dim: int) -> Tensor:
    size = images.shape[dim]
    places = (torch.arange(size, device=images.device) - round(fraction * size)).clamp(0, size - 1)
    return images.index_select(dim, places)


def shift_x(images: Tensor, fraction: float) -> Tensor:
    """Move to the right by a fraction of the width, in whole pixels."""
    return _moved(images, fraction, 3)


def shift_y(images: Tensor, fraction: float) -> Tensor:
    """Move down by a fraction of the height, in whole pixels."""
    return _moved(images, fraction, 2)


def _affine(images: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Sample the image at matrix @ (x, y), coordinates in pixels from its center; bilinear, border repeated."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) - (height - 1) / 2,
        torch.arange(width, device=images.device) - (width - 1) / 2,
        indexing="ij",
    )
    from_x = matrix[0][0] * x + matrix[0][1] * y
    from_y = matrix[1][0] * x + matrix[1][1] * y
    grid = torch.stack([from_x * 2 / width, from_y * 2 / height], dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge about the center (a crop) by a factor; under 1 it shrinks."""
    if factor <= 0:
        raise ConfigError(f"a zoom factor must be positive, got {factor}")
    return _affine(images, ((1 / factor, 0.0), (0.0, 1 / factor)))


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn counterclockwise about the center."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(images, ((cos, -sin), (sin, cos)))


def grayscale(images: Tensor, amount: float) -> Tensor:
    """Mix with the image's luminance; 1 is gray."""
    if not 0 <= amount <= 1:
        raise ConfigError(f"an amount of gray must be in 0..1, got {amount}")
    return torch.lerp(images, luminance(images).expand_as(images), amount)


def brightness(images: Tensor, factor: float) -> Tensor:
    """Multiply the colors, counted from black, by a factor."""
    if factor < 0:
        raise ConfigError(f"a brightness factor must not be negative, got {factor}")
    return (images + 1) * factor - 1


def hue(images: Tensor, degrees: float) -> Tensor:
    """Turn the hue of every pixel in HSV; saturation and value stay."""
    colors = (images + 1) / 2
    value = colors.amax(dim=1)
    chroma = value - colors.amin(dim=1)
    angle = hue_of(colors) + degrees / 60
    channels = []
    for offset in (5.0, 3.0, 1.0):  # HSV to RGB without cases: V - C max(0, min(k, 4 - k, 1)), k = (offset + H) mod 6
        k = (offset + angle) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1) * 2 - 1


def hue_of(colors: Tensor) -> Tensor:
    """HSV hue of colors in [0,1]; [N,3,H,W] -> [N,H,W] in [0,6), 0 where there is none."""
    red, green, blue = colors.unbind(dim=1)
    value = colors.amax(dim=1)
    chroma = value - colors.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    from_blue = (red - green) / safe + 4
    from_green = (blue - red) / safe + 2
    from_red = ((green - blue) / safe) % 6
    sector = torch.where(value == red, from_red, torch.where(value == green, from_green, from_blue))
    return torch.where(chroma > 0, sector, 0.0)


def blur(images: Tensor, fraction: float) -> Tensor:
    """Gaussian blur whose standard deviation is a fraction of the width."""
    if fraction < 0:
        raise ConfigError(f"the width of a blur must not be negative, got {fraction}")
    return blur_images(images, fraction * images.shape[3])


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert every channel value above a threshold in 0..1; at 1 nothing changes."""
    return torch.where(images > threshold * 2 - 1, -images, images)


AUGMENTATIONS: dict[str, Augmentation] = {
    each.name: each
    for each in (
        Augmentation("flip", "mirrored left-right", "asymmetry", (1.0,), flip),
        Augmentation("shift-x", "to the right, fraction of the width", "mass-x", (-0.25, -0.125, 0.125, 0.25), shift_x),
        Augmentation("shift-y", "down, fraction of the height", "mass-y", (-0.25, -0.125, 0.125, 0.25), shift_y),
        Augmentation("zoom", "factor about the center", "scale", (0.6, 0.8, 1.25, 1.6), zoom),
        Augmentation("rotation", "degrees counterclockwise", "orientation", (-40.0, -20.0, 20.0, 40.0), rotate),
        Augmentation("grayscale", "fraction of the color removed", "saturation", (0.33, 0.67, 1.0), grayscale),
        Augmentation("brightness", "factor", "brightness", (0.5, 0.75, 1.25, 1.5), brightness),
        Augmentation("hue", "degrees", "hue", (-90.0, -45.0, 45.0, 90.0), hue),
        Augmentation("blur", "standard deviation, fraction of the width", "sharpness", (0.02, 0.04, 0.08), blur),
        Augmentation("solarize", "values above it are inverted", "highlights", (0.8, 0.6, 0.4), solarize),
    )
}


def find(names: Sequence[str] = ()) -> tuple[Augmentation, ...]:
    """The augmentations of these names, all of them if none is given; `ConfigError` lists the known ones."""
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise ConfigError(f"no augmentation called {', '.join(unknown)}; known: {', '.join(AUGMENTATIONS)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"an augmentation is named twice: {', '.join(names)}")
    return tuple(AUGMENTATIONS[name] for name in names or AUGMENTATIONS)
