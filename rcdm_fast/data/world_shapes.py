"""Drawing scenes of the worlds of known truth: objects on a ground, from numbers alone.

An object is one of four outlines, none with a rotational symmetry. All have the same area and their center of mass in
the origin, so place and size mean the same for each. Every pixel is the mean of 4 x 4 points of the scene.

Only sums, products and comparisons of float32 numbers happen per point, and sines are taken one by one with Python's
`math`: an image has the same bits in any block of images, which `encoders/oracle.py` relies on.

Knows nothing about factors' ranges, or how scenes are drawn at random (`world.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Inside = NDArray[np.bool_]

SIDE = 4  # points of a pixel along each side
_BLOCK = 1 << 20  # points at once: what fits into a cache


@dataclass(frozen=True)
class Outline:
    """A shape in coordinates of its own: whether points lie inside, its area, and its center of mass."""

    inside: Callable[[Floats, Floats], Inside]
    area: float
    center: tuple[float, float]


@dataclass(frozen=True)
class Palette:
    """Colors of a thing by hue: red, green and blue are middle + swing cos(hue - 0, 120, 240 degrees), in [0,1]."""

    middle: float
    swing: float

    def __call__(self, hue: float) -> tuple[float, float, float]:
        """The color of a hue in degrees."""
        return tuple(self.middle + self.swing * math.cos(math.radians(hue - turn)) for turn in (0, 120, 240))  # type: ignore[return-value]


@dataclass(frozen=True)
class Thing:
    """An object.

    Attributes:
        shape: number of its outline.
        x, y: its center of mass, in sides of the image to the right of and below its middle.
        size: root of its area, in sides of the image.
        angle: degrees, clockwise.
        color: red, green and blue in [0,1].
    """

    shape: int
    x: float
    y: float
    size: float
    angle: float
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Stripes:
    """Soft stripes of a ground.

    Attributes:
        angle: degrees, clockwise; at 0 they are upright.
        period: sides of the image.
        depth: by which fraction the ground is darker than its color where they are darkest.
    """

    angle: float
    period: float
    depth: float


@dataclass(frozen=True)
class Scene:
    """Things, the hindmost first, on a ground of one color, and the light that all of it is multiplied by."""

    things: tuple[Thing, ...]
    ground: tuple[float, float, float]
    light: float
    stripes: Stripes | None = None


def _ell(u: Floats, v: Floats) -> Inside:
    inside: Inside = (u >= 0) & (v <= 1) & (((u <= 0.36) & (v >= 0)) | ((u <= 0.84) & (v >= 0.66)))
    return inside


def _crescent(u: Floats, v: Floats) -> Inside:
    square = v * v
    inside: Inside = (u * u + square <= 0.25) & ((u - np.float32(0.3)) * (u - np.float32(0.3)) + square > 0.16)
    return inside


def _wedge(u: Floats, v: Floats) -> Inside:
    inside: Inside = (u >= 0) & (np.abs(v) + np.float32(0.32) * u <= 0.32)
    return inside


def _pair(u: Floats, v: Floats) -> Inside:
    square = v * v
    inside: Inside = (u * u + square <= 0.16) | ((u - np.float32(0.75)) * (u - np.float32(0.75)) + square <= 0.04)
    return inside


def _lens(one: float, other: float, apart: float) -> tuple[float, float]:
    """Area that two discs (radii, distance) share, and its center of mass from the middle of the first."""
    place = (apart**2 + one**2 - other**2) / (2 * apart)  # of the line through both crossings
    first = one**2 * math.acos(place / one) - place * math.sqrt(one**2 - place**2)
    rest = apart - place
    second = other**2 * math.acos(rest / other) - rest * math.sqrt(other**2 - rest**2)
    # both segments have the same chord, so their moments about their own discs' middles cancel
    return first + second, apart * second / (first + second)


def _make_outlines() -> dict[str, Outline]:
    bar, foot = 0.36, (0.84 - 0.36) * 0.34
    ell = bar + foot
    lens, place = _lens(0.5, 0.4, 0.3)
    disc, dot = math.pi * 0.16, math.pi * 0.04
    crescent = math.pi * 0.25 - lens
    return {
        "ell": Outline(_ell, ell, ((bar * 0.18 + foot * 0.6) / ell, (bar * 0.5 + foot * 0.83) / ell)),
        "crescent": Outline(_crescent, crescent, (-lens * place / crescent, 0.0)),
        "wedge": Outline(_wedge, 0.32, (1 / 3, 0.0)),
        "pair": Outline(_pair, disc + dot, (dot * 0.75 / (disc + dot), 0.0)),
    }


OUTLINES = _make_outlines()
_LISTED = tuple(OUTLINES.values())


def draw(scenes: Sequence[Scene], size: int) -> NDArray[np.uint8]:
    """Images of scenes; uint8 [N,3,size,size]."""
    out = np.empty((len(scenes), 3, size, size), np.uint8)
    step = max(1, _BLOCK // (SIDE * size) ** 2)
    for start in range(0, len(scenes), step):
        part = scenes[start : start + step]
        colors = _drawn(part, size) * _column([scene.light for scene in part])
        out[start : start + step] = np.floor(colors * np.float32(255) + np.float32(0.5)).clip(0, 255)
    return out


def _drawn(scenes: Sequence[Scene], size: int) -> Floats:
    """Colors before the light; float32 [N,3,size,size]."""
    seen = np.ones((len(scenes), SIDE * size, SIDE * size), bool)  # points that nothing covers yet
    total = np.zeros((len(scenes), 3, size, size), np.float32)
    for depth in reversed(range(len(scenes[0].things))):
        things = [scene.things[depth] for scene in scenes]
        inside = _inside(things, size) & seen
        seen &= ~inside
        total += _share(inside)[:, None] * _color([thing.color for thing in things])
    ground = _share(seen * _shade(scenes, size) if scenes[0].stripes else seen)
    return total + ground[:, None] * _color([scene.ground for scene in scenes])


def _inside(things: Sequence[Thing], size: int) -> Inside:
    out = np.empty((len(things), SIDE * size, SIDE * size), bool)
    numbers = np.array([thing.shape for thing in things])
    for shape in np.unique(numbers):
        places = np.flatnonzero(numbers == shape).tolist()
        outline = _LISTED[int(shape)]
        chosen = [things[place] for place in places]
        u, v = _turned(chosen, [math.sqrt(outline.area) / thing.size for thing in chosen], size, outline.center)
        out[places] = outline.inside(u, v)
    return out


def _turned(
    things: Sequence[Thing], scales: Sequence[float], size: int, origin: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Points of the image in the own coordinates of things; two of float32 [N,4 size,4 size]."""
    right = _points(size) - _column([thing.x for thing in things])[:, 0]  # [N,1,P]
    down = _points(size)[:, None] - _column([thing.y for thing in things])[:, 0]  # [N,P,1]
    turns = [math.radians(thing.angle) for thing in things]
    cos = _column([scale * math.cos(turn) for scale, turn in zip(scales, turns, strict=True)])[:, 0]
    sin = _column([scale * math.sin(turn) for scale, turn in zip(scales, turns, strict=True)])[:, 0]
    u = (right * cos + np.float32(origin[0])) + down * sin
    v = (down * cos + np.float32(origin[1])) - right * sin
    return u, v


def _shade(scenes: Sequence[Scene], size: int) -> Floats:
    """What stripes leave of the ground's color at every point: a triangle wave, of exact arithmetic only."""
    stripes = [scene.stripes or Stripes(0.0, 1.0, 0.0) for scene in scenes]
    turns = [math.radians(each.angle) for each in stripes]
    cos = _column([math.cos(turn) / each.period for turn, each in zip(turns, stripes, strict=True)])[:, 0]
    sin = _column([math.sin(turn) / each.period for turn, each in zip(turns, stripes, strict=True)])[:, 0]
    phase = _points(size) * cos + _points(size)[:, None] * sin
    wave = np.abs((phase - np.floor(phase)) * np.float32(2) - np.float32(1))
    left: Floats = np.float32(1) - wave * _column([each.depth for each in stripes])[:, 0]
    return left


def _points(size: int) -> Floats:
    """Where points lie along a side; float32 [4 size] in sides of the image from its middle."""
    count = SIDE * size
    return ((np.arange(count) + 0.5) / count - 0.5).astype(np.float32)


def _share(points: Inside | Floats) -> Floats:
    """Mean of every pixel's points; [N,4 size,4 size] -> float32 [N,size,size]. Summed in one order."""
    each: NDArray[Any] = points.astype(np.uint8 if points.dtype == bool else np.float32)
    rows = each[:, 0::SIDE] + each[:, 1::SIDE] + each[:, 2::SIDE] + each[:, 3::SIDE]
    sums = rows[..., 0::SIDE] + rows[..., 1::SIDE] + rows[..., 2::SIDE] + rows[..., 3::SIDE]
    mean: Floats = sums.astype(np.float32) * np.float32(1 / SIDE**2)
    return mean


def _color(colors: Sequence[tuple[float, float, float]]) -> Floats:
    return np.array(colors, np.float32)[:, :, None, None]


def _column(numbers: Sequence[float]) -> Floats:
    return np.array(numbers, np.float32)[:, None, None, None]
