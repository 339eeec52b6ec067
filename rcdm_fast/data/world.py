"""Worlds of known truth: images drawn from a few independent factors, as a source of items like any other.

``world:shapes?count=20000&size=32&seed=0`` names one. Nothing is read: an item is drawn whenever it is asked for, from
factors that depend on (world, seed, place) alone, so a world of more items begins with the items of a smaller one. What
would be seen had one factor another value is drawn by `World.render`.

``shapes``: one object on a plain ground. ``textured``, a harder ruler: two objects, of which the front one may hide the
other, on a striped ground. Its first eight factors are those of ``shapes``, of the front object.

Factors and their ranges, drawn uniformly and independently:

    shape          ell, crescent, wedge, pair: a number in 0..3
    x, y           center of mass, in sides of the image to the right of and below its middle: -0.13..0.13
    size           root of the object's area in sides of the image: 0.19..0.31
    angle, hue     of the object, in degrees, angles clockwise: 0..360
    ground_hue     degrees
    light          what all colors are multiplied by: 0.5..1
    back_shape, back_x, back_y (-0.25..0.25), back_size, back_angle, back_hue
    stripe_angle   degrees;  stripe_period: in sides of the image, 0.15..0.3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.checks import Checked, ConfigError, Range, Seed, choice, whole
from rcdm_fast.data import world_shapes
from rcdm_fast.data.readers.image_files import Item
from rcdm_fast.data.world_shapes import OUTLINES, Palette, Scene, Stripes, Thing
from rcdm_fast.doors import printable
from rcdm_fast.images import ImageError

PREFIX = "world:"
VERSION = 1  # of what is drawn for a place
SHAPES = tuple(OUTLINES)
_WORDS = 16  # random numbers kept for an item; as many as factors can be
_AT_ONCE = 256


@dataclass(frozen=True)
class Factor:
    """One thing that varies: a ``choice`` among `high` whole numbers, a ``scalar``, or degrees on a ``circle``."""

    name: str
    kind: Literal["choice", "scalar", "circle"]
    low: float
    high: float


def _circle(name: str) -> Factor:
    return Factor(name, "circle", 0.0, 360.0)


def _object(before: str, reach: float) -> tuple[Factor, ...]:
    return (
        Factor(f"{before}shape", "choice", 0.0, float(len(SHAPES))),
        Factor(f"{before}x", "scalar", -reach, reach),
        Factor(f"{before}y", "scalar", -reach, reach),
        Factor(f"{before}size", "scalar", 0.19, 0.31),
        _circle(f"{before}angle"),
        _circle(f"{before}hue"),
    )


_ONE = (*_object("", 0.13), _circle("ground_hue"), Factor("light", "scalar", 0.5, 1.0))
_TEXTURED = (*_object("back_", 0.25), _circle("stripe_angle"), Factor("stripe_period", "scalar", 0.15, 0.3))
FACTORS: dict[str, tuple[Factor, ...]] = {"shapes": _ONE, "textured": (*_ONE, *_TEXTURED)}

_OBJECT, _GROUND = Palette(0.66, 0.34), Palette(0.38, 0.2)
_FRONT, _BACK, _DULL = Palette(0.7, 0.3), Palette(0.42, 0.38), Palette(0.38, 0.14)
_STRIPES = 0.5  # by which fraction the ground is darker where they are darkest


@dataclass(frozen=True)
class World(Checked):
    """A world; items by place, and any other image of it by its factors.

    Attributes:
        world: ``shapes`` or ``textured``.
        count: items, at most ten million.
        size: pixels of a side.
        seed: of the items' factors.
    """

    world: Literal["shapes", "textured"] = "shapes"
    count: Annotated[int, Range(1, 10_000_000)] = 20_000
    size: Annotated[int, Range(8, 512)] = 32
    seed: Seed = 0

    @property
    def name(self) -> str:
        """The text that names this world."""
        return f"{PREFIX}{self.world}?count={self.count}&seed={self.seed}&size={self.size}"

    @property
    def about(self) -> tuple[Factor, ...]:
        """Its factors, in the order in which they are given everywhere."""
        return FACTORS[self.world]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the factors."""
        return tuple(factor.name for factor in self.about)

    def __len__(self) -> int:
        return self.count

    def factors(self, places: Sequence[int] | Tensor) -> Tensor:
        """Factors of items; float64 [N,F], in the order of `names`. Raises `ConfigError` for a place beyond the end."""
        chosen = [whole(place, "the place of an item", Range(0, self.count - 1)) for place in places]
        raw = np.empty((len(chosen), _WORDS), np.uint64)
        key = np.array([self.seed, VERSION], np.uint64)
        for row, place in enumerate(chosen):
            counter = np.array([0, place, list(FACTORS).index(self.world), 0], np.uint64)
            raw[row] = np.random.Philox(counter=counter, key=key).random_raw(_WORDS)
        return self.scaled(torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53))

    def scaled(self, uniform: Tensor) -> Tensor:
        """Factors for numbers that are uniform in [0,1); float64 [N,F or more] -> float64 [N,F]."""
        columns = [
            torch.floor(uniform[:, place] * factor.high)
            if factor.kind == "choice"
            else factor.low + (factor.high - factor.low) * uniform[:, place]
            for place, factor in enumerate(self.about)
        ]
        return torch.stack(columns, dim=1)

    def render(self, factors: Tensor) -> Tensor:
        """Images of any factors, those of no item too: what an intervention shows.

        Args:
            factors: float [N,F]; scalars within their ranges (see the module), degrees may be any.

        Returns:
            uint8 [N,3,size,size]; the same bits in whatever company a row is drawn.

        Raises:
            ConfigError: factors of another shape, not finite, or out of range.
        """
        rows = self.checked(factors).tolist()
        draw = _scene if self.world == "shapes" else _textured
        return torch.from_numpy(world_shapes.draw([draw(row) for row in rows], self.size))

    def checked(self, factors: Tensor) -> Tensor:
        """Factors as float64 [N,F], degrees brought into [0,360). Raises `ConfigError`, see `render`."""
        if factors.ndim != 2 or factors.shape[1] != len(self.about) or not factors.dtype.is_floating_point:
            shape = f"{factors.dtype} {list(factors.shape)}"
            raise ConfigError(f"factors of world:{self.world} are float [N,{len(self.about)}], got {shape}")
        factors = factors.detach().cpu().double().clone()
        if not bool(factors.isfinite().all()):
            raise ConfigError(f"factors of world:{self.world} must be finite")
        for place, factor in enumerate(self.about):
            column = factors[:, place]
            if factor.kind == "circle":
                factors[:, place] = torch.remainder(column, 360.0)
                continue
            highest = factor.high - 1 if factor.kind == "choice" else factor.high
            wrong = (column < factor.low) | (column > highest)
            if factor.kind == "choice":
                wrong |= column != column.round()
            if bool(wrong.any()):
                numbers = " (a whole number)" if factor.kind == "choice" else ""
                raise ConfigError(
                    f"{factor.name} must be in {factor.low:g}..{highest:g}{numbers}, got {float(column[wrong][0]):g}"
                )
        return factors

    def pixels(self, places: Sequence[int] | Tensor) -> Tensor:
        """Images of items; uint8 [N,3,size,size]."""
        return self.render(self.factors(places))

    def blocks(self) -> Iterator[tuple[range, Tensor, Tensor]]:
        """All items in order: their places, factors and images."""
        for start in range(0, self.count, _AT_ONCE):
            places = range(start, min(start + _AT_ONCE, self.count))
            factors = self.factors(places)
            yield places, factors, self.render(factors)

    def items(self) -> Iterator[Item]:
        """All items in order, as a reader gives them; their classes are their shapes."""
        for places, factors, pixels in self.blocks():
            for place, row, image in zip(places, factors.tolist(), pixels.numpy(), strict=True):
                yield Item(Path(self.name) / str(place), SHAPES[int(row[0])], image)


def find(spec: str) -> World:
    """The world that ``NAME?count=20000&size=32&seed=0`` means. Raises `ImageError`."""
    name, _, query = spec.partition("?")
    where = f"{PREFIX}{printable(spec)}"
    try:
        choice(name, "world", FACTORS)
        options = dict(parse_qsl(query, keep_blank_values=True))
        for key in options:
            choice(key, "option", ("count", "size", "seed"))
        numbers = {key: number(value, key) for key, value in options.items()}
        return dataclasses.replace(World(name), **numbers)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ImageError(f"{where}: {error}") from error


def behind(paths: Sequence[Path]) -> tuple[World, list[int]] | None:
    """The world that items with these paths are of (`World.items`), and their places; None if they are of none."""
    names = {path.parent.as_posix() for path in paths}
    if len(names) != 1 or not (name := names.pop()).startswith(PREFIX):
        return None
    try:
        found = find(name.removeprefix(PREFIX))
        places = [number(path.name, "the place of an item") for path in paths]
    except (ConfigError, ImageError):  # a folder that is called like one
        return None
    return (found, places) if max(places) < len(found) else None


def number(text: str, key: str) -> int:
    """A whole number written in digits. Raises `ConfigError`."""
    if not (text.isascii() and text.isdecimal() and len(text) < 21):
        raise ConfigError(f"{key} must be a whole number, got {printable(text)!r}")
    return int(text)


def _thing(row: Sequence[float], palette: Palette) -> Thing:
    shape, x, y, size, angle, hue = row
    return Thing(int(shape), x, y, size, angle, palette(hue))


def _scene(row: Sequence[float]) -> Scene:
    return Scene((_thing(row[:6], _OBJECT),), _GROUND(row[6]), row[7])


def _textured(row: Sequence[float]) -> Scene:
    things = (_thing(row[8:14], _BACK), _thing(row[:6], _FRONT))
    return Scene(things, _DULL(row[6]), row[7], Stripes(row[14], row[15], _STRIPES))
