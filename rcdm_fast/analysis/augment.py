"""Transformations of a picture with a swept magnitude, each with the property that it changes.

All take and give pictures float32 [N,3,H,W] in [-1,1], and magnitude 0 (1 for factors, threshold 1 for solarise) is
the picture itself. What a transformation moves into view repeats the border, so that no black corner tells on it.

Knows nothing about models or about how properties are measured (`properties.py`); it only names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import images
from rcdm_fast.config import ConfigError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's "L"


@dataclass(frozen=True)
class Augmentation:
    """One transformation.

    Attributes:
        name: short, for options, tables and files.
        about: what the magnitude is, with its unit.
        changes: the property that it changes, a name in `properties.PROPERTIES`.
        magnitudes: the values of a sweep; the one that changes nothing is not among them.
        transform: (pictures in [-1,1], magnitude) -> pictures, not yet clipped.
    """

    name: str
    about: str
    changes: str
    magnitudes: tuple[float, ...]
    transform: Callable[[Tensor, float], Tensor]

    def __call__(self, pictures: Tensor, magnitude: float) -> Tensor:
        """The transformed pictures, float32 [N,3,H,W] in [-1,1]. Raises `ImageError` or `ConfigError`."""
        if not math.isfinite(magnitude):
            raise ConfigError(f"the magnitude of {self.name} must be a number, got {magnitude}")
        return self.transform(images.check(pictures).float(), magnitude).clamp(-1, 1)


def luminance(colours: Tensor) -> Tensor:
    """Weighted sum of the channels (BT.601), in the range of the input; [N,3,H,W] -> [N,1,H,W]."""
    weights = torch.tensor(LUMA, dtype=colours.dtype, device=colours.device)
    return (colours * weights[:, None, None]).sum(dim=1, keepdim=True)


def flip(pictures: Tensor, magnitude: float) -> Tensor:
    """Mirror left and right if the magnitude is 1; 0 leaves the picture."""
    if magnitude not in (0, 1):
        raise ConfigError(f"a picture is mirrored (1) or not (0), got {magnitude}")
    return pictures.flip(3) if magnitude else pictures


def _moved(pictures: Tensor, share: float, dim: int) -> Tensor:
    size = pictures.shape[dim]
    places = (torch.arange(size, device=pictures.device) - round(share * size)).clamp(0, size - 1)
    return pictures.index_select(dim, places)


def shift_x(pictures: Tensor, share: float) -> Tensor:
    """Move to the right by a share of the width, in whole pixels."""
    return _moved(pictures, share, 3)


def shift_y(pictures: Tensor, share: float) -> Tensor:
    """Move down by a share of the height, in whole pixels."""
    return _moved(pictures, share, 2)


def _affine(pictures: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Sample the picture at matrix @ (x, y), coordinates in pixels from its centre; bilinear, border repeated."""
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=pictures.device) - (height - 1) / 2,
        torch.arange(width, device=pictures.device) - (width - 1) / 2,
        indexing="ij",
    )
    from_x = matrix[0][0] * x + matrix[0][1] * y
    from_y = matrix[1][0] * x + matrix[1][1] * y
    grid = torch.stack([from_x * 2 / width, from_y * 2 / height], dim=-1).expand(len(pictures), -1, -1, -1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def zoom(pictures: Tensor, factor: float) -> Tensor:
    """Enlarge about the centre (a crop) by a factor; under 1 it shrinks."""
    if factor <= 0:
        raise ConfigError(f"a zoom factor must be positive, got {factor}")
    return _affine(pictures, ((1 / factor, 0.0), (0.0, 1 / factor)))


def rotate(pictures: Tensor, degrees: float) -> Tensor:
    """Turn counterclockwise about the centre."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(pictures, ((cos, -sin), (sin, cos)))


def grayscale(pictures: Tensor, amount: float) -> Tensor:
    """Mix with the picture's luminance; 1 is grey."""
    if not 0 <= amount <= 1:
        raise ConfigError(f"an amount of grey must be in 0..1, got {amount}")
    return torch.lerp(pictures, luminance(pictures).expand_as(pictures), amount)


def brightness(pictures: Tensor, factor: float) -> Tensor:
    """Multiply the colours, counted from black, by a factor."""
    if factor < 0:
        raise ConfigError(f"a brightness factor must not be negative, got {factor}")
    return (pictures + 1) * factor - 1


def hue(pictures: Tensor, degrees: float) -> Tensor:
    """Turn the hue of every pixel in HSV; saturation and value stay."""
    colours = (pictures + 1) / 2
    value = colours.amax(dim=1)
    chroma = value - colours.amin(dim=1)
    angle = hue_of(colours) + degrees / 60
    channels = []
    for offset in (5.0, 3.0, 1.0):  # HSV to RGB without cases: V - C max(0, min(k, 4 - k, 1)), k = (offset + H) mod 6
        k = (offset + angle) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1) * 2 - 1


def hue_of(colours: Tensor) -> Tensor:
    """HSV hue of colours in [0,1]; [N,3,H,W] -> [N,H,W] in [0,6), 0 where there is none."""
    red, green, blue = colours.unbind(dim=1)
    value = colours.amax(dim=1)
    chroma = value - colours.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    from_blue = (red - green) / safe + 4
    from_green = (blue - red) / safe + 2
    from_red = ((green - blue) / safe) % 6
    sector = torch.where(value == red, from_red, torch.where(value == green, from_green, from_blue))
    return torch.where(chroma > 0, sector, 0.0)


def blur(pictures: Tensor, share: float) -> Tensor:
    """Gaussian blur whose standard deviation is a share of the width."""
    if share < 0:
        raise ConfigError(f"the width of a blur must not be negative, got {share}")
    return images.blur(pictures, share * pictures.shape[3])


def solarise(pictures: Tensor, threshold: float) -> Tensor:
    """Invert every channel value above a threshold in 0..1; at 1 nothing changes."""
    return torch.where(pictures > threshold * 2 - 1, -pictures, pictures)


AUGMENTATIONS: dict[str, Augmentation] = {
    each.name: each
    for each in (
        Augmentation("flip", "mirrored left-right", "asymmetry", (1.0,), flip),
        Augmentation("shift-x", "to the right, share of the width", "mass-x", (-0.25, -0.125, 0.125, 0.25), shift_x),
        Augmentation("shift-y", "down, share of the height", "mass-y", (-0.25, -0.125, 0.125, 0.25), shift_y),
        Augmentation("zoom", "factor about the centre", "scale", (0.6, 0.8, 1.25, 1.6), zoom),
        Augmentation("rotation", "degrees counterclockwise", "orientation", (-40.0, -20.0, 20.0, 40.0), rotate),
        Augmentation("grayscale", "share of the colour removed", "saturation", (0.33, 0.67, 1.0), grayscale),
        Augmentation("brightness", "factor", "brightness", (0.5, 0.75, 1.25, 1.5), brightness),
        Augmentation("hue", "degrees", "hue", (-90.0, -45.0, 45.0, 90.0), hue),
        Augmentation("blur", "standard deviation, share of the width", "sharpness", (0.02, 0.04, 0.08), blur),
        Augmentation("solarise", "values above it are inverted", "highlights", (0.8, 0.6, 0.4), solarise),
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
