"""What positions in the middle of a map say of what is drawn there and around.

A map, patch tokens or a convolution's features, says something at every position. Two questions, source by source, each
with another image beside it that is no source:

* *Faithful*: encoded again, is each position of a sample nearer to the source's there than to the other image's?
* *Kept*: a square of positions in the middle is the source's, the rest is filled, with the other image's map or with
  the mean map. How far is the source's drawn there, and around?

Three samples (of the whole source, of what fills, of both mixed) begin from the same noise. How far the mixed one
follows the source is the regression of (mixed - filling) on (source - filling) over the pixels of a ring around the
middle: 1 if it is drawn as the whole source's map draws it, 0 as the filling's.

That is of encoder and decoder together: a decoder brings maps to the size of an image by interpolation, so that a
position reaches a little beyond its own pixels whatever it holds. How much of the film of a ring is the kept positions'
stands beside. What is not drawn may still be there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, Progress
from rcdm_fast.analysis.recovery import check_sources
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table
from rcdm_fast.analysis.rules import RULES
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import Count, CountOrNone, choice
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Floats, Interval
from rcdm_fast.model import Model
from rcdm_fast.models.condition_map import weights

CELL = 96  # pixels
FRAME = "#d1495b"
FILLS = {"swap": "another image's map", "mean": "the mean map of the data"}


@dataclass(frozen=True, kw_only=True)
class TokensConfig(ExperimentConfig):
    """What to mix and sample.

    Attributes:
        sources: source images, spread evenly over the data, as many others between them; 0 means 64, or half of what
            there is if that is fewer.
        sides: of the square of positions in the middle, one size after another; () means 1, 2 and 4, as far as there
            is something around them.
        fill: what stands in place of the source's map: "swap" (another image's) or "mean" (of the data).
        shown: sources in the figure.
    """

    sources: CountOrNone = 0
    sides: tuple[int, ...] = ()
    fill: Literal["swap", "mean"] = "swap"
    shown: Count = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.fill, "fill", FILLS)
        if any(side < 1 for side in self.sides) or len(set(self.sides)) != len(self.sides):
            raise ConfigError(f"sides are different whole numbers from 1 on, got {self.sides}")


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: TokensConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """The experiment.

    Args:
        model: a decoder of maps, with its encoder.
        data: images that sources are taken from.
        config: sizes and solver.
        progress: called with (parts done, all of them).
        shared: with other experiments.

    Raises:
        ConfigError: a decoder of vectors, one without an encoder, under 40 images or twice the sources, a map finer
            than its images, or a square that leaves nothing.
    """
    shape = model.config.unet.condition_map
    if not shape:
        raise ConfigError(
            f"{common.name_of(model)} is a decoder of vectors: this experiment is about positions of maps"
        )
    encoder = common.encoder_of(model, "positions of samples need")
    sides = _sides(config, shape, model.image_size)
    places, others = _pairs(data, config)
    if config.fill == "mean":
        gallery = encoded(shared, encoder, data)
        h, other = (gallery[each].view(-1, *shape) for each in (places, others))
        filling = gallery.mean(dim=0).view(1, *shape).expand_as(h)
    else:
        h, other = (encoded(shared, encoder, data, each).view(-1, *shape) for each in (places, others))
        filling = other
    total = 2 + len(sides)

    def drawn(maps: Tensor, part: int) -> Tensor:
        found = common.draw(model, maps.flatten(1), places, config)
        if progress is not None:
            progress(part, total)
        return found

    whole, filled = drawn(h, 1), drawn(filling, 2)
    mixed = {
        side: drawn(torch.where(within(shape[1:], side), h, filling), 3 + number) for number, side in enumerate(sides)
    }
    again = encoder.encode(whole.flatten(0, 1)).cpu().view(len(h), -1, *shape)
    own, far = nearer(again, h, other), distances(again, h, other)
    rings = {side: ring_of(shape[1:], whole.shape[-2:], side) for side in sides}
    kept = {side: follows(each, whole, filled, rings[side], config) for side, each in mixed.items()}
    parts = {side: film_of(shape[1:], rings[side], side) for side in sides}
    name = common.name_of(model)
    grid = f"{shape[1]} x {shape[2]}"
    return Analysis(
        name="tokens",
        title=f"What positions of the map hold ({name}, {grid})",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": len(places),
            "sides": sides,
            "map": shape,
            "data": data.fingerprint,
        },
        tables=(
            _faithful_table(own, far, config),
            _kept_table(kept, parts, config.fill),
        ),
        findings=tuple(_findings(own, kept)),
        figures={"samples": _sheet(data, places, (whole, filled), mixed, shape[1:], config)},
        captions={
            "samples": f"The source, samples of its map and of mixed ones, from the same noise; what is left is "
            f"{FILLS[config.fill]}. Framed: the positions in the middle."
        },
        method=f"Maps of {grid} positions. Beside each source stands another image, which is no source; mixed maps are "
        f"filled with {FILLS[config.fill]}, and drawn from the noise of the whole ones. Follows: regression of "
        "(mixed - filling) on (whole - filling) over pixels and samples of a ring of positions around the middle. "
        "Intervals: 95 %, bootstrap over sources, Wilson's score for fractions; each sentence is decided by itself.",
    )


def _sides(config: TokensConfig, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    least = min(shape[1:])
    sides = config.sides or tuple(side for side in (1, 2, 4) if side < least)
    if not sides or max(sides) >= least:
        raise ConfigError(f"a square of {max(sides, default=1)} positions leaves nothing of {shape[1]} x {shape[2]}")
    if max(shape[1:]) > size:
        raise ConfigError(f"a map of {shape[1]} x {shape[2]} has positions without a pixel in images of {size} px")
    return sides


def _pairs(data: ImageSet, config: TokensConfig) -> tuple[Tensor, Tensor]:
    """Places of sources and as many others, half of the data away (classes often stand together); each in one pair."""
    both = common.choose_sources(data, 2 * config.sources, 128)
    count = len(both) // 2
    check_sources(count, len(both))
    return both[: 2 * count : 2], both[1 : 2 * count : 2].roll(count // 2)


def steps_to(grid: Sequence[int], side: int) -> Tensor:
    """How many positions each one lies outside the square in the middle, 0 inside; int64 [h,w]."""
    found = []
    for count in grid:
        first = (count - side) // 2
        at = torch.arange(count)
        found.append(torch.stack([first - at, at - (first + side - 1), torch.zeros_like(at)]).amax(dim=0))
    return torch.maximum(found[0][:, None], found[1][None])


def within(grid: Sequence[int], side: int) -> Tensor:
    """Whether each position lies in the square in the middle, bool [h,w]."""
    return steps_to(grid, side) == 0


def ring_of(grid: Sequence[int], size: Sequence[int], side: int) -> Tensor:
    """The same steps for every pixel of an image of that size, by the position that it lies in; int64 [H,W]."""
    rows, columns = (torch.arange(pixels) * count // pixels for count, pixels in zip(grid, size, strict=True))
    return steps_to(grid, side)[rows][:, columns]


def film_of(grid: Sequence[int], rings: Tensor, side: int) -> list[float]:
    """How much of the film of each ring's pixels is that of the positions in the middle, by interpolation alone."""
    down, across = (
        weights(of, to, torch.float64, torch.device("cpu")) for of, to in zip(grid, rings.shape, strict=True)
    )
    part = down @ within(grid, side).double() @ across.T
    return [float(part[rings == ring].mean()) for ring in range(int(rings.max()) + 1)]


def follows(mixed: Tensor, whole: Tensor, filled: Tensor, rings: Tensor, config: ExperimentConfig) -> list[Interval]:
    """How far mixed samples [S,P,3,H,W] follow those of the whole map, ring by ring from the middle."""
    wanted, got = (whole - filled).double(), (mixed - filled).double()
    found = []
    for ring in range(int(rings.max()) + 1):
        inside = rings == ring
        top, bottom = ((got * wanted)[..., inside], wanted.square()[..., inside])
        follow, step = (each.flatten(1).sum(dim=1).numpy() for each in (top, bottom))
        found.append(_ratio(follow, step, config))
    return found


def _ratio(top: Floats, bottom: Floats, config: ExperimentConfig) -> Interval:
    """mean(top) / mean(bottom) over sources; without an interval where the decoder draws both alike."""
    if not bottom.any():
        return intervals.alone(0.0)
    return intervals.ratio(top, bottom, config.resamples, np.random.default_rng(config.seed))


def distances(again: Tensor, h: Tensor, other: Tensor) -> tuple[Floats, Floats]:
    """Squared distances [S,L] of positions of samples [S,P,C,h,w] to the source's, and from there to the other's."""
    far = (again - h[:, None]).double().square().sum(dim=2).mean(dim=1)
    return far.flatten(1).numpy(), (h - other).double().square().sum(dim=1).flatten(1).numpy()


def nearer(again: Tensor, h: Tensor, other: Tensor) -> Floats:
    """In how many of P samples each position is nearer to the source's than to the other's; fractions [S,L]."""
    own, foreign = ((again - each[:, None]).double().square().sum(dim=2) for each in (h, other))
    return ((own < foreign).double() + 0.5 * (own == foreign)).mean(dim=1).flatten(1).numpy()


def _faithful_table(own: Floats, far: tuple[Floats, Floats], config: TokensConfig) -> Table:
    """All positions, and the worst and the best of them."""
    by_position = own.mean(axis=0)
    picked: list[tuple[str, Callable[[Floats], Floats]]] = [
        ("all", lambda each: each.mean(axis=1)),
        ("the least faithful", lambda each: each[:, by_position.argmin()]),
        ("the most faithful", lambda each: each[:, by_position.argmax()]),
    ]
    rows = tuple(
        (name, common.fraction(pick(own)), _ratio(pick(far[0]), pick(far[1]), config)) for name, pick in picked
    )
    heads = ("positions", "nearer to the source's", "squared distance to it, over that between the two")
    note = "By chance a half is nearer. The least and the most faithful position are chosen by the same samples."
    return Table("faithful", "Positions of samples, encoded again", heads, rows, note, one_unit=False)


def _kept_table(kept: dict[int, list[Interval]], parts: dict[int, list[float]], fill: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for ring in range(max(map(len, kept.values()))):
        pairs = [(each[ring], parts[side][ring]) if ring < len(each) else (None, None) for side, each in kept.items()]
        rows.append((ring, *(found for found, _ in pairs), *(part for _, part in pairs)))
    squares = [f"{side} x {side}" for side in kept]
    heads = ("positions away", *(f"{each} kept" for each in squares), *(f"film of {each}" for each in squares))
    note = (
        f"1: as the whole map of the source draws it; 0: as {FILLS[fill]} does. At 0 lie the kept positions. "
        "Film: the part of a pixel's scales and shifts that is the kept positions', by interpolation alone."
    )
    return Table("kept", "How far positions in the middle are drawn, there and around", heads, tuple(rows), note)


def _findings(own: Floats, kept: dict[int, list[Interval]]) -> list[Finding]:
    near = common.fraction(own.mean(axis=1))
    found = [
        Finding(
            "positions of samples are nearer to the source's than to another image's",
            common.above(near, 0.5),
            f"{common.percent(near)} of positions; a half by chance",
            numbers=(("nearer to the source's", near),),
        )
    ]
    for side, (inside, beside, *_) in kept.items():
        square = f"{side} x {side} positions in the middle"
        found += [
            Finding(
                f"samples follow {square} where these lie",
                common.above(inside, RULES.kept_above),
                f"follows by {common.text(inside)}; surely above {RULES.kept_above:g} counts",
                numbers=(("follows there", inside),),
            ),
            Finding(
                f"{square} are seen in what is drawn beside them",
                common.above(beside, RULES.dropped_within),
                f"follows by {common.text(beside)} one position away; surely above {RULES.dropped_within:g} counts",
                otherwise=f"{square} are hardly seen in what is drawn beside them",
                numbers=(("follows one position away", beside),),
            ),
        ]
    return found


def _sheet(
    data: ImageSet,
    places: Tensor,
    drawn: tuple[Tensor, Tensor],
    mixed: dict[int, Tensor],
    grid: Sequence[int],
    config: TokensConfig,
) -> Image.Image:
    titles = ["source", "its map", *(f"{side} x {side} kept" for side in mixed)]
    titles.append("the other map" if config.fill == "swap" else "the mean map")
    rows = []
    for row in evenly(min(config.shown, len(places)), len(places)).tolist():
        image = data.floats(places[row : row + 1]).cpu()[0]
        framed = [_framed(samples[row, 0], grid, side) for side, samples in mixed.items()]
        rows.append([to_pil(image), to_pil(drawn[0][row, 0]), *framed, to_pil(drawn[1][row, 0])])
    return image_sheet(rows, cell=CELL, column_titles=titles, group_gaps=[1, 2, 2 + len(mixed)])


def _framed(image: Tensor, grid: Sequence[int], side: int) -> Image.Image:
    """The image, enlarged, with a frame around the positions in the middle."""
    found = to_pil(image).resize((CELL, CELL), Image.Resampling.NEAREST)
    top, left = ((count - side) // 2 * CELL / count for count in grid)
    box = (left, top, left + side * CELL / grid[1] - 1, top + side * CELL / grid[0] - 1)
    ImageDraw.Draw(found).rectangle(tuple(map(round, box)), outline=FRAME)
    return found
