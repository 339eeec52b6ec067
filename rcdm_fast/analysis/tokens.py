"""What single positions of a map hold: are they drawn where they lie, and what do they know of their surroundings?

A map, patch tokens or a convolution's features, says something at every position. Three questions, source by source,
each with another source beside it:

* *Faithful*: encoded again, is each position of a sample nearer to the source's there than to the other one's?
* *Kept*: some positions in the middle are the source's, the rest is filled with the other one's map. What is drawn
  there, and around? A patch that knows nothing of its surroundings changes no pixel beyond its own.
* *Replaced*: the rest is the source's, and the middle is filled. What is drawn in the middle shows whether the
  surroundings say it, too.

All three samples (whole source, whole other one, mixed) begin from the same noise. How far the mixed one follows the
source is the regression of (mixed - other) on (source - other) over the pixels of a ring around the middle: 1 if it is
drawn as the whole source's map draws it, 0 as the other's.
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

CELL = 96  # pixels
FRAME = "#d1495b"
FILLS = {"swap": "another source's map", "mean": "the mean map of the data"}


@dataclass(frozen=True, kw_only=True)
class TokensConfig(ExperimentConfig):
    """What to mix and sample.

    Attributes:
        sources: source images, spread evenly over the data; 0 means 64, or all there are if fewer.
        sides: of the square of positions in the middle, one size after another; () means 1, 2 and 4, as far as there
            is something around them.
        fill: what stands in place of the source's map: "swap" (another source's) or "mean" (of the data).
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


@dataclass(frozen=True)
class Mixed:
    """Samples of maps that are partly the source's.

    Attributes:
        side: of the square in the middle, in positions.
        kept: samples of maps that are the source's in the middle, float32 [S,P,3,H,W].
        replaced: of maps that are the source's around it.
    """

    side: int
    kept: Tensor
    replaced: Tensor


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
        ConfigError: a decoder of vectors, one without an encoder, under 20 images, or a square that leaves nothing.
    """
    shape = model.config.unet.condition_map
    if not shape:
        raise ConfigError(
            f"{common.name_of(model)} is a decoder of vectors: this experiment is about positions of maps"
        )
    encoder = common.encoder_of(model, "positions of samples need")
    sides = _sides(config, shape)
    places = common.choose_sources(data, config.sources)
    gallery = encoded(shared, encoder, data)
    h = gallery[places].view(-1, *shape)
    another = h.roll(len(h) // 2, 0)
    other = another if config.fill == "swap" else gallery.mean(dim=0).view(1, *shape).expand_as(h)
    total = 2 + 2 * len(sides)

    def drawn(maps: Tensor, part: int) -> Tensor:
        found = common.draw(model, maps.flatten(1), places, config)
        if progress is not None:
            progress(part, total)
        return found

    whole, filled = drawn(h, 1), drawn(other, 2)
    mixes = []
    for number, side in enumerate(sides):
        middle = within(shape[1:], side)
        parts = (
            drawn(torch.where(middle, h, other), 3 + 2 * number),
            drawn(torch.where(middle, other, h), 4 + 2 * number),
        )
        mixes.append(Mixed(side, *parts))
    again = encoder.encode(whole.flatten(0, 1)).cpu().view(len(h), -1, *shape)
    own, far = nearer(again, h, another), distances(again, h, another)
    rings = {side: ring_of(shape[1:], whole.shape[-2:], side) for side in sides}
    kept = {each.side: follows(each.kept, whole, filled, rings[each.side], config) for each in mixes}
    replaced = {each.side: follows(each.replaced, filled, whole, rings[each.side], config)[0] for each in mixes}
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
            _kept_table(kept, config.fill),
            _replaced_table(replaced, config.fill),
        ),
        findings=tuple(_findings(own, kept, replaced)),
        figures={"samples": _sheet(data, places, (whole, filled), mixes, shape[1:], config)},
        captions={
            "samples": f"The source, samples of its map and of mixed ones, from the same noise; what is left is "
            f"{FILLS[config.fill]}. Framed: the positions in the middle."
        },
        method=f"Maps of {grid} positions; beside each source's stands {FILLS[config.fill]}. Mixed maps are drawn from "
        "the noise of the whole ones. Follows: regression of (mixed - filled) on (whole - filled) over pixels and "
        "samples of a ring of positions around the middle. Intervals: 95 %, bootstrap over sources, Wilson's score for "
        "fractions.",
    )


def _sides(config: TokensConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    least = min(shape[1:])
    sides = config.sides or tuple(side for side in (1, 2, 4) if side < least)
    if not sides or max(sides) >= least:
        raise ConfigError(f"a square of {max(sides, default=1)} positions leaves nothing of {shape[1]} x {shape[2]}")
    return sides


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
    """mean(top) / mean(bottom) over sources; 0 of nothing."""
    if not bottom.any():
        return common.interval(np.zeros(len(top)), config)
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


def _kept_table(kept: dict[int, list[Interval]], fill: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for ring in range(max(map(len, kept.values()))):
        rows.append((ring, *(each[ring] if ring < len(each) else None for each in kept.values())))
    heads = ("positions from the kept ones", *(f"{side} x {side} kept" for side in kept))
    note = (
        f"1: as the whole map of the source draws it; 0: as {FILLS[fill]} does. At 0 lie the kept positions themselves."
    )
    return Table("kept", "What kept positions say of their surroundings", heads, tuple(rows), note)


def _replaced_table(replaced: dict[int, Interval], fill: str) -> Table:
    rows = tuple((f"{side} x {side}", found) for side, found in replaced.items())
    note = f"1: as the whole of {FILLS[fill]} draws it; 0: as the source's map, which is all around, does."
    return Table("replaced", "What is drawn where positions were replaced", ("replaced", "follows"), rows, note)


def _findings(own: Floats, kept: dict[int, list[Interval]], replaced: dict[int, Interval]) -> list[Finding]:
    near = common.fraction(own.mean(axis=1))
    found = [
        Finding(
            "positions of samples are nearer to the source's than to another image's",
            common.above(near, 0.5),
            f"{common.percent(near)} of positions; a half by chance",
            numbers=(("nearer to the source's", near),),
        )
    ]
    for side, rings in kept.items():
        square = f"{side} x {side} positions"
        inside, beside = rings[0], rings[1]
        found += [
            Finding(
                f"samples follow {square} of the source where these lie",
                common.above(inside, RULES.kept_above),
                f"follows by {common.text(inside)}; surely above {RULES.kept_above:g} counts",
                numbers=(("follows there", inside),),
            ),
            Finding(
                f"{square} of the source are seen in what is drawn beside them",
                common.above(beside, RULES.dropped_within),
                f"follows by {common.text(beside)} one position away; surely above {RULES.dropped_within:g} counts",
                otherwise=f"{square} of the source are hardly seen in what is drawn beside them",
                numbers=(("follows one position away", beside),),
            ),
            Finding(
                f"what stands around {square} is drawn over them",
                common.below(replaced[side], 1 - RULES.kept_above),
                f"what replaced them is followed by {common.text(replaced[side])}; surely below "
                f"{1 - RULES.kept_above:g} counts",
                otherwise=f"{square} that were replaced are drawn in spite of what stands around",
                numbers=(("follows what replaced them", replaced[side]),),
            ),
        ]
    return found


def _sheet(
    data: ImageSet,
    places: Tensor,
    drawn: tuple[Tensor, Tensor],
    mixes: Sequence[Mixed],
    grid: Sequence[int],
    config: TokensConfig,
) -> Image.Image:
    titles = ["source", "its map", *(f"{each.side} x {each.side} kept" for each in mixes)]
    titles += [f"{each.side} x {each.side} replaced" for each in mixes]
    titles.append("the other map" if config.fill == "swap" else "the mean map")
    rows = []
    for row in evenly(min(config.shown, len(places)), len(places)).tolist():
        image = data.floats(places[row : row + 1]).cpu()[0]
        parts = [each.kept[row, 0] for each in mixes] + [each.replaced[row, 0] for each in mixes]
        framed = [_framed(part, grid, each.side) for part, each in zip(parts, [*mixes, *mixes], strict=True)]
        rows.append([to_pil(image), to_pil(drawn[0][row, 0]), *framed, to_pil(drawn[1][row, 0])])
    return image_sheet(rows, cell=CELL, column_titles=titles, group_gaps=[1, 2, 2 + len(mixes), 2 + 2 * len(mixes)])


def _framed(image: Tensor, grid: Sequence[int], side: int) -> Image.Image:
    """The image, enlarged, with a frame around the positions in the middle."""
    found = to_pil(image).resize((CELL, CELL), Image.Resampling.NEAREST)
    top, left = ((count - side) // 2 * CELL / count for count in grid)
    box = (left, top, left + side * CELL / grid[1] - 1, top + side * CELL / grid[0] - 1)
    ImageDraw.Draw(found).rectangle(tuple(map(round, box)), outline=FRAME)
    return found
