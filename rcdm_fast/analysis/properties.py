"""Properties of an image that can be read off its pixels, the same way for photographs and for samples.

A linear property is one number per image. A circular one (hue, orientation) is a complex number per image: its
angle is the direction, its length says how strongly the image has one, so that a gray image has a hue of length 0
rather than a made-up angle.

Colors are counted from 0 (black) to 1; x runs to the right and y down, in fractions of the image's sides, 0 at the
center. Luminance Y is 0.299 R + 0.587 G + 0.114 B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.analysis.augment import blur, hue_of, luminance
from rcdm_fast.config import ConfigError
from rcdm_fast.images import check_images


@dataclass(frozen=True)
class Property:
    """One property.

    Attributes:
        name: short, for tables and JSON.
        about: for readers, with its unit.
        read: colors float64 [N,3,H,W] in [0,1] -> float64 [N], or complex128 [N] if it is circular.
        period: degrees after which a circular property repeats; None for a linear one.
        word: what readers call it; its name where that is a word already.
    """

    name: str
    about: str
    read: Callable[[Tensor], Tensor]
    period: float | None = None
    word: str = ""

    @property
    def called(self) -> str:
        """What readers call it: "horizontal position"."""
        return self.word or self.name

    def __call__(self, images: Tensor) -> Tensor:
        """Measured values of images float [N,3,H,W] in [-1,1]; float64 or complex128 [N], on the CPU."""
        return self.read((check_images(images).double() + 1) / 2).cpu()

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean change between paired measurements [...,P] -> float64 [...], in the property's unit.

        A circular change is an angle in degrees, in (-period/2, period/2]; pairs count by the product of their lengths.
        """
        if self.period is None:
            return (after - before).mean(dim=-1)
        return self.degrees((after * before.conj()).sum(dim=-1))

    def degrees(self, measured: Tensor) -> Tensor:
        """Direction of a circular measurement, complex128 [...] -> float64 [...] in (-period/2, period/2]."""
        if self.period is None:
            raise ValueError(f"{self.name} is not circular")
        return torch.angle(measured) * (self.period / (2 * math.pi))

    def strength(self, measured: Tensor) -> Tensor:
        """How much each measurement counts: its length if it is circular, else 1; float64, of the same shape."""
        return torch.ones_like(measured) if self.period is None else measured.abs()


def saturation(colors: Tensor) -> Tensor:
    """Mean over pixels of max(R,G,B) - min(R,G,B); 0 (gray) to 1."""
    return (colors.amax(dim=1) - colors.amin(dim=1)).mean(dim=(1, 2))


def hue(colors: Tensor) -> Tensor:
    """Mean over pixels of C exp(i H), C = max(R,G,B) - min(R,G,B), H the HSV hue; angle 0..360 degrees, length 0..1."""
    chroma = colors.amax(dim=1) - colors.amin(dim=1)
    return torch.polar(chroma, hue_of(colors) * (math.pi / 3)).mean(dim=(1, 2))


def brightness(colors: Tensor) -> Tensor:
    """Mean of Y; 0 (black) to 1 (white)."""
    return luminance(colors).mean(dim=(1, 2, 3))


def highlights(colors: Tensor) -> Tensor:
    """Mean of 2 max(0, Y - 1/2): how much lies in the bright half; 0 to 1."""
    return 2 * (luminance(colors) - 0.5).clamp_min(0).mean(dim=(1, 2, 3))


def sharpness(colors: Tensor) -> Tensor:
    """Root mean square of Y - blurred Y (Gaussian, deviation 1/32 of the width): fine detail; 0 to about 0.5."""
    gray = luminance(colors)
    fine = gray - blur(gray.expand(-1, 3, -1, -1), 1 / 32)[:, :1]
    return fine.square().mean(dim=(1, 2, 3)).sqrt()


def asymmetry(colors: Tensor) -> Tensor:
    """Mean Y of the right half minus that of the left half; -1 to 1. Mirroring changes its sign."""
    gray = luminance(colors)[:, 0]
    half = gray.shape[2] // 2
    return gray[:, :, -half:].mean(dim=(1, 2)) - gray[:, :, :half].mean(dim=(1, 2))


FLOOR = 0.15  # of a distance in RGB: what a pixel of the ground may differ by, in samples of a short training above all


def _mass(colors: Tensor) -> Tensor:
    """How far each pixel is from the mean color of the one-pixel border, beyond `FLOOR`; [N,H,W], a little above 0.

    What stands out from the border is taken for the object; on a uniform background this is exact. Without the floor,
    faint noise of a whole ground outweighs an object that covers a twentieth of it.
    """
    edge = torch.ones(colors.shape[-2:], dtype=torch.bool, device=colors.device)
    edge[1:-1, 1:-1] = False
    background = colors[:, :, edge].mean(dim=2)
    apart = (colors - background[:, :, None, None]).square().sum(dim=1).sqrt()
    return (apart - FLOOR).clamp_min(0) + 1e-9


def _places(count: int, like: Tensor) -> Tensor:
    """Centers of `count` pixels in fractions of the side, from the center of the image; -1/2 to 1/2."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) - (count - 1) / 2) / count


def mass_x(colors: Tensor) -> Tensor:
    """Mean x, weighed by each pixel's distance in RGB from the border's mean color; -0.5 (left) to 0.5 (right)."""
    mass = _mass(colors)
    return (mass.sum(dim=1) * _places(mass.shape[2], mass)).sum(dim=1) / mass.sum(dim=(1, 2))


def mass_y(colors: Tensor) -> Tensor:
    """Mean y, weighed as `mass_x`; -0.5 (top) to 0.5 (bottom)."""
    mass = _mass(colors)
    return (mass.sum(dim=2) * _places(mass.shape[1], mass)).sum(dim=1) / mass.sum(dim=(1, 2))


def scale(colors: Tensor) -> Tensor:
    """Root of the object's area, in sides of the image; 0 to 1, 1 where nothing stands out.

    The area is (sum m)^2 / sum m^2 of the weights m of `mass_x`: the number of pixels of an object of one color,
    whatever that is.
    """
    mass = _mass(colors)
    pixels = mass.shape[1] * mass.shape[2]
    return (mass.sum(dim=(1, 2)).square() / mass.square().sum(dim=(1, 2)) / pixels).sqrt()


def orientation(colors: Tensor) -> Tensor:
    """Direction of lines and edges: - sum over a centered disc of (Y_x - i Y_y)^2, over the sum of its magnitudes.

    Y_x and Y_y are central differences, y downwards; half the angle is the direction in degrees, 0 for horizontal
    lines, counterclockwise, 0..180 (the structure tensor's main axis). The disc's diameter is the shorter side, so that
    turning brings nothing new into it. Length 0 (no direction) to 1.
    """
    gray = luminance(colors)[:, 0]
    dx = (gray[:, 1:-1, 2:] - gray[:, 1:-1, :-2]) / 2
    dy = (gray[:, 2:, 1:-1] - gray[:, :-2, 1:-1]) / 2
    height, width = gray.shape[1:]
    y = _places(height, gray)[1:-1, None] * height
    x = _places(width, gray)[None, 1:-1] * width
    disc = (x.square() + y.square() <= (min(height, width) / 2) ** 2).to(gray.dtype)
    doubled = torch.complex(dx, -dy).square() * disc
    total = doubled.abs().sum(dim=(1, 2))
    return -doubled.sum(dim=(1, 2)) / torch.where(total > 0, total, 1.0)


PROPERTIES: dict[str, Property] = {
    each.name: each
    for each in (
        Property("asymmetry", "brightness right minus left (0..1)", asymmetry, word="left-right orientation"),
        Property("mass-x", "place of the mass across (fraction of the width)", mass_x, word="horizontal position"),
        Property("mass-y", "place of the mass down (fraction of the height)", mass_y, word="vertical position"),
        Property("scale", "root of the object's area (fraction of the side)", scale, word="size"),
        Property("orientation", "direction of lines (degrees of 180)", orientation, 180.0, "direction of lines"),
        Property("saturation", "mean chroma (0..1)", saturation),
        Property("brightness", "mean luminance (0..1)", brightness),
        Property("hue", "mean hue weighed by chroma (degrees of 360)", hue, 360.0),
        Property("sharpness", "fine detail (luminance, 0..1)", sharpness),
        Property("highlights", "what lies in the bright half (0..1)", highlights),
    )
}


def find(name: str) -> Property:
    """The property of that name; `ConfigError` lists the known ones."""
    if name not in PROPERTIES:
        raise ConfigError(f"no property called {name!r}; known: {', '.join(PROPERTIES)}")
    return PROPERTIES[name]
