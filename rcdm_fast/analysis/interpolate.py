"""Images along the way from one representation to another, and whether the way is even.

Pairs of images, straight lines and great circles from h_a (0) to h_b (1), both ends exact; all frames of a pair start
from one x_T, those of another pair from another one. Re-encoded samples say where they are: the fraction of the way,
projected onto h_b - h_a. On an even way it grows with the frame; where it jumps, the decoder knows no images in
between. That a fraction grows says nothing of this: it does in a single step, too. So a line and a step are fitted to
every way by itself. After Bordes et al. (2021), figure 7.

Knows nothing about classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, Progress, interval
from rcdm_fast.analysis.recovery import check_sources
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table
from rcdm_fast.checks import CountOrNone, Range
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling import interpolation_path
from rcdm_fast.diffusion.sampling_config import ONE_WAY
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics.intervals import Floats
from rcdm_fast.model import Model

ROUNDING = 1e-12  # a sum of squared fractions that is left by rounding
MODES: tuple[Literal["linear", "spherical"], ...] = ("linear", "spherical")


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(ExperimentConfig):
    """What to sample.

    Attributes:
        sources: pairs of images; 0 means 32, or as many as there are.
        per: ways of each pair; one.
        frames: of a way, both ends included.
        shown: pairs in the figure.
    """

    sources: CountOrNone = 0
    per: Annotated[int, Range(ONE_WAY, ONE_WAY)] = ONE_WAY
    frames: int = 7
    shown: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 3 or self.shown < 1:
            raise ConfigError(f"a way needs at least 3 frames and 1 shown pair, got {self.frames} and {self.shown}")


@host.guarded(gradients=True, random=True)
def run(model: Model, data: ImageSet, config: InterpolateConfig, progress: Progress | None = None) -> Analysis:
    """Both kinds of ways between all pairs.

    Args:
        model: a model with an encoder.
        data: images.
        config: sizes.
        progress: called with (pairs done, all of them).

    Raises:
        ConfigError: too few images, or a model without an encoder.
    """
    encoder = common.encoder_of(model, "ways between representations need")
    pairs = _pairs(data, config)
    fractions: dict[str, list[Tensor]] = {mode: [] for mode in MODES}
    rows: list[list[Tensor]] = []
    names: list[str] = []
    for number, (a, b) in enumerate(pairs.tolist()):
        places = torch.tensor([a, b])
        ends, h = data.floats(places), encoder.encode(data.seen(places, encoder))
        for mode in MODES:
            path = interpolation_path(h[0], h[1], config.frames, mode)
            drawn = model.sample(path, config, items=[number] * config.frames, batch_size=config.batch_size)[:, 0]
            fractions[mode].append(fraction_of_way(encoder.encode(drawn).cpu(), *h.cpu()))
            if number < config.shown:
                rows.append([ends[0], *drawn.cpu(), ends[1]])
                names.append(mode)
        if progress is not None:
            progress(number + 1, len(pairs))
    found = {mode: torch.stack(parts).numpy() for mode, parts in fractions.items()}
    name = common.name_of(model)
    titles = ["a", *(f"{frame / (config.frames - 1):.2f}" for frame in range(config.frames)), "b"]
    sheet = [[to_pil(each) for each in row] for row in rows]
    return Analysis(
        name="interpolate",
        title=f"Between two representations of {name}",
        model=name,
        settings={**dataclasses.asdict(config), "sources": len(pairs), "data": data.fingerprint},
        tables=(_table(found, config), _evenness_table(found, config)),
        findings=tuple(_finding(mode, values, config) for mode, values in found.items()),
        figures={
            "ways": image_sheet(
                sheet, cell=64, column_titles=titles, row_titles=names, group_gaps=[1, config.frames + 1]
            )
        },
        captions={"ways": "Two images, and samples along the line and great circle between them, a pair from one x_T."},
        method="Frames lie at even distances from 0 (exactly h of the first image) to 1 (exactly the second one's). "
        "Fraction of the way: projection of the re-encoded sample minus h_a onto h_b - h_a, over its square. Line or "
        "step: (S - L) / (S + L), L and S the sums of squares that the best line and the best step leave of one pair's "
        "fractions; evenly: the slope is surely above a half of the way, and that number surely above 0. Intervals: "
        "95 %, bootstrap over pairs. After Bordes et al. (2021), figure 7.",
    )


def _pairs(data: ImageSet, config: InterpolateConfig) -> Tensor:
    """Places of images in a random order, int64 [P,2]; no two of one photograph."""
    known = data.one_of_each()
    count = config.sources or min(32, len(known) // 2)
    check_sources(count, len(known) // 2)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(config.seed))
    return known[order[: 2 * count]].view(count, 2)


def fraction_of_way(h: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(h - start) . (end - start) / |end - start|^2; [F,D], [D], [D] -> float64 [F]."""
    way = (end - start).double()
    along: Tensor = (h.double() - start.double()) @ way
    return along / way.square().sum().clamp_min(1e-24)


def evenness(fractions: Floats) -> Floats:
    """Whether the fractions along each way lie on a line or on a step: 1 a line exactly, -1 a step, 0 as near to both.

    (step - line) / (step + line) of the sums of squares that are left over by the best line and by the best step (one
    level before some frame, another from it on; every place is tried). Fractions float64 [P,F], F >= 3 -> [P].
    """
    frames = np.arange(fractions.shape[1]) - (fractions.shape[1] - 1) / 2
    centered = fractions - fractions.mean(axis=1, keepdims=True)
    line = np.square(centered - np.outer(centered @ frames / np.square(frames).sum(), frames)).sum(axis=1)
    step = np.min(
        [_apart(fractions[:, :at]) + _apart(fractions[:, at:]) for at in range(1, fractions.shape[1])], axis=0
    )
    both = line + step
    whole: Floats = np.divide(step - line, both, out=np.zeros_like(both), where=both > ROUNDING)
    return whole


def _apart(fractions: Floats) -> Floats:
    """Sum of squares about the mean, of every row."""
    found: Floats = np.square(fractions - fractions.mean(axis=1, keepdims=True)).sum(axis=1)
    return found


def rise(fractions: Floats) -> Floats:
    """Slope of the best line through each way's fractions, over the whole way: 1 from end to end; [P,F] -> [P]."""
    frames = np.linspace(-0.5, 0.5, fractions.shape[1])
    found: Floats = fractions @ frames / np.square(frames).sum()
    return found


def largest_jump(fractions: Floats) -> Floats:
    """The most that a way goes forward between two frames, in fractions of the way; [P,F] -> [P]."""
    found: Floats = np.diff(fractions, axis=1).max(axis=1)
    return found


def _table(found: dict[str, Floats], config: InterpolateConfig) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for frame in range(config.frames):
        asked = frame / (config.frames - 1)
        rows.append((round(asked, 4), *(interval(values[:, frame], config) for values in found.values())))
    columns = ("fraction of the way asked", *found)
    note = (
        "Means over pairs: an obedient decoder gives the fraction that was asked. Steps of single pairs at different "
        "places look even here; the next table does not average them."
    )
    return Table("way", "Fraction of the way at which re-encoded samples lie", columns, tuple(rows), note)


def _evenness_table(found: dict[str, Floats], config: InterpolateConfig) -> Table:
    said = {"rise (1: from end to end)": rise, "line (1) or step (-1)": evenness, "largest jump": largest_jump}
    rows: list[tuple[Cell, ...]] = [
        (name, *(interval(measure(values), config) for values in found.values())) for name, measure in said.items()
    ]
    note = f"Of each pair by itself. On an even way the largest jump is {1 / (config.frames - 1):.2g}, in a step 1."
    return Table("evenness", "Is the way even?", ("measure", *found), tuple(rows), note)


def _finding(mode: str, values: Floats, config: InterpolateConfig) -> Finding:
    """Samples get there (the rise is surely above a half), and a line surely fits single ways better than a step."""
    rises, even, jump = (interval(measure(values), config) for measure in (rise, evenness, largest_jump))
    holds = common.all_hold((common.above(rises, 0.5), common.above(even)))
    measured = (
        f"rise {common.text(rises)} of the way; line (1) or step (-1) {common.text(even)}; largest jump between two "
        f"frames {common.text(jump)}, on an even way {1 / (config.frames - 1):.2f}"
    )
    return Finding(f"samples go evenly from one image to the other along the {mode} way", holds, measured)
