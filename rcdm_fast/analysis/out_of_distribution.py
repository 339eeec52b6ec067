"""Images unlike those that the model was trained for, beside familiar ones: are samples as faithful to them?

A decoder could draw the familiar image that is nearest to h. Bordes et al. (2021, figure 2 and section 4) show that
samples of images from elsewhere resemble these. Three measurements, for both groups: how far re-encoded samples are
from h, whether they lead back to the image, and how much samples of one image differ.

Two things would flatter unfamiliar images. Their nearest neighbor is far, so a distance in its units is small: the
same distance stands in a unit that all images share, too. And whatever is badly drawn may be nearer to any photograph
than to the data. So an image is ranked among the data and *all* photographs, and chance is measured: it is the rank
that the samples of the other images of its group give to it.

Knows nothing about what the model was trained on: familiar is what the caller calls data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, Progress, Redrawn
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import Count, CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.diffusion.sampling_config import PER_SOURCE
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics import nearest
from rcdm_fast.metrics.intervals import LEAST, Floats, Interval, fraction_difference
from rcdm_fast.model import Model

MARGIN = 0.25  # of a nearest-neighbor distance: a difference that is surely smaller counts as none

HEADS = (
    "nearest neighbor at",
    "samples from h, of own neighbor's distance",
    "samples from h, of the data's",
    "MRR",
    "MRR by others' samples",
    "spread (8-bit levels)",
)
RANKS = ("MRR", "MRR by others' samples")  # of these, means of reciprocal ranks
NOTE = (
    "Distances in units of the mean distance from a familiar image to its nearest neighbor in the data, or to the "
    "image's own nearest neighbor. MRR: mean reciprocal rank of the image among the data and the photographs; "
    "chance is what the samples of other images of the group give to it."
)
METHOD = (
    "Every sample is re-encoded. Its distance to h is told in two units: the distance from h to its nearest neighbor "
    "in the data, and the mean of that distance over familiar images. As faithful: in both units the mean over "
    f"unfamiliar images is surely less than {MARGIN} larger; open where not even samples of familiar images lead "
    "back to them. Back to the image: its reciprocal rank among the data and all photographs by its own samples, "
    "less that by the samples of the other images of its group, in pairs. Intervals: 95 % over images, bootstrap, of "
    "reciprocal ranks by Wilson's score, of their differences by Newcombe's. After Bordes et al. (2021), figure 2 "
    "and section 4."
)


@dataclass(frozen=True, kw_only=True)
class UnfamiliarConfig(ExperimentConfig):
    """What to sample.

    Attributes:
        sources: familiar images, spread evenly over the data; 0 means 64, or all there are if fewer.
        per: samples of each image; at least 2.
        shown: images of each group in the figures.
    """

    sources: CountOrNone = 0
    per: Count = PER_SOURCE
    shown: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per < 2:
            raise ConfigError(f"how much samples differ needs at least 2 of each image, got {self.per}")
        if self.shown < 1:
            raise ConfigError(f"shown must be at least 1, got {self.shown}")


@dataclass(frozen=True)
class Real:
    """Representations of all real images.

    Attributes:
        h: of the data, then of the photographs; float32 [G,D].
        known: how many of these are data.
        unit: mean distance from a familiar image to its nearest other image of the data.
    """

    h: Tensor
    known: int
    unit: float


@dataclass(frozen=True)
class Group:
    """What was measured of one kind of images; S images, P samples of each.

    Attributes:
        name: for readers.
        images: float32 [S,3,H,W].
        samples: float32 [S,P,3,H,W].
        apart: distance to the nearest other image of the data, over the data's mean; float64 [S].
        own: distance of samples to h over the distance to the nearest other image; float64 [S].
        shared: the same over the data's mean distance.
        back: reciprocal rank of the image by its own samples; float64 [S].
        chance: the same by the samples of the other images; None for a single image.
        spread: of samples, in 8-bit levels; float64 [S].
    """

    name: str
    images: Tensor
    samples: Tensor
    apart: Floats
    own: Floats
    shared: Floats
    back: Floats
    chance: Floats | None
    spread: Floats

    @property
    def enough(self) -> bool:
        """Whether there are enough images for intervals."""
        return len(self.images) >= LEAST


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    photos: ImageSet,
    config: UnfamiliarConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """Samples of photographs and of familiar images, measured alike.

    Args:
        model: a model with an encoder.
        data: familiar images, at least 20; sources and neighbors come from them.
        photos: unfamiliar images, all of them drawn. With fewer than 20 there is no comparison, only their numbers.
        config: sizes and solver.
        progress: called with (images done, all of them).
        shared: with other experiments.

    Raises:
        ConfigError: too few familiar images, no photograph, or a model without an encoder.
    """
    encoder = common.encoder_of(model, "a comparison of samples with h needs")
    if not len(photos):
        raise ConfigError("there are no photographs to draw samples of")
    places = common.choose_sources(data, config.sources)
    gallery, h = encoded(shared, encoder, data), encoded(shared, encoder, photos)
    total = len(places) + len(photos)

    def report(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    real = Real(torch.cat([gallery, h]), len(data), float(nearest.apart(gallery[places], gallery).mean()))
    drawn = common.redraw(model, gallery[places], places, config, report(0))
    familiar = _group("familiar", data.floats(places).cpu(), drawn, places, real)
    added = len(data) + torch.arange(len(photos))  # their places, and noise of their own
    drawn = common.redraw(model, h, added, config, report(len(places)))
    unfamiliar = _group("unfamiliar", photos.floats(slice(None)).cpu(), drawn, added, real)
    tables = [_group_table((familiar, unfamiliar), len(real.h), config)]
    if not unfamiliar.enough:
        tables.append(_photo_table(unfamiliar, photos))
    name = common.name_of(model)
    return Analysis(
        name="unfamiliar",
        title=f"Images that {name} does not know",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": len(places),
            "photographs": len(photos),
            "data": data.fingerprint,
            "photos": photos.fingerprint,
        },
        tables=tuple(tables),
        findings=(_as_faithful(unfamiliar, familiar, config), _back(unfamiliar)),
        figures={each.name: _sheet(each, config) for each in (unfamiliar, familiar)},
        captions={
            "unfamiliar": f"Photographs as {name} gets them, and samples of their representations.",
            "familiar": "The same for images of the data.",
        },
        method=METHOD,
    )


def _group(name: str, images: Tensor, drawn: Redrawn, places: Tensor, real: Real) -> Group:
    """The images at `places` among all real ones, measured."""
    count, per = drawn.representations.shape[:2]
    h = real.h[places]
    apart = nearest.apart(h, real.h[: real.known])
    reciprocal = 1 / nearest.ranks(drawn.representations.flatten(0, 1), real.h, places)
    by_source = reciprocal.view(count, per, count).mean(dim=1)  # samples of a source, ranks of an image
    back = by_source.diagonal()
    return Group(
        name,
        images,
        drawn.images,
        (apart / real.unit).numpy(),
        nearest.relative(drawn.representations, h, apart).numpy(),
        nearest.relative(drawn.representations, h, torch.full_like(apart, real.unit)).numpy(),
        back.numpy(),
        ((by_source.sum(dim=0) - back) / (count - 1)).clamp(0, 1).numpy() if count > 1 else None,
        common.spread_of(drawn.images).numpy(),
    )


def _numbers(group: Group) -> tuple[Floats | None, ...]:
    """In the order of `HEADS`."""
    return group.apart, group.own, group.shared, group.back, group.chance, group.spread


def _group_table(groups: tuple[Group, ...], size: int, config: UnfamiliarConfig) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        cells: list[Cell] = [group.name, len(group.images)]
        for head, values in zip(HEADS, _numbers(group), strict=True):
            if values is None:
                cells.append(None)
            elif not group.enough:
                cells.append(float(values.mean()))
            else:
                cells.append(common.fraction(values) if head in RANKS else common.interval(values, config))
        rows.append(tuple(cells))
    drawn = float((1 / np.arange(1, size + 1)).mean())
    note = f"{NOTE} A rank drawn at random from {size} images would give an MRR of {drawn:.2g}."
    title = "Samples of familiar and of unfamiliar images"
    return Table("groups", title, ("images", "number", *HEADS), tuple(rows), note, False)


def _photo_table(group: Group, photos: ImageSet) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number in range(len(photos)):
        name = photos.paths[number].name if photos.paths else number
        values = (None if each is None else float(each[number]) for each in _numbers(group))
        rows.append((name, *values))
    return Table("photographs", "Every photograph", ("photograph", *HEADS), tuple(rows), one_unit=False)


def _too_few(group: Group) -> str:
    return f"an interval over photographs needs at least {LEAST} of them, got {len(group.images)}"


def _as_faithful(unfamiliar: Group, familiar: Group, config: UnfamiliarConfig) -> Finding:
    claim = "samples of unfamiliar images are as faithful as those of familiar ones"
    if not unfamiliar.enough:
        return Finding(claim, None, _too_few(unfamiliar))
    own = common.difference(unfamiliar.own, familiar.own, config)
    shared = common.difference(unfamiliar.shared, familiar.shared, config)
    holds = common.all_hold(common.below(each, MARGIN) for each in (own, shared))
    measured = (
        f"distance to h less that of familiar images: {cell_text(own)} of the own neighbor's distance, "
        f"{cell_text(shared)} of the data's; surely under {MARGIN} in both counts as the same"
    )
    if holds and common.above(_gain(familiar)) is not True:
        return Finding(claim, None, f"samples of familiar images do not lead back to them either; {measured}")
    return Finding(claim, holds, measured)


def _gain(group: Group) -> Interval:
    """Reciprocal rank by own samples less that by others', in pairs; at least two images."""
    assert group.chance is not None
    return fraction_difference(group.back, group.chance)


def _back(group: Group) -> Finding:
    claim = "samples of unfamiliar images lead back to their image better than chance"
    if not group.enough or group.chance is None:
        return Finding(claim, None, _too_few(group))
    own, chance, gain = common.fraction(group.back), common.fraction(group.chance), _gain(group)
    measured = f"MRR {cell_text(own)}, by the samples of other photographs {cell_text(chance)}"
    numbers = (("MRR of samples", own), ("of other photographs' samples", chance))
    return Finding(claim, common.above(gain), f"{measured}, difference {cell_text(gain)}", numbers=numbers)


def _sheet(group: Group, config: UnfamiliarConfig) -> Image.Image:
    picked = evenly(min(config.shown, len(group.images)), len(group.images)).tolist()
    rows = [[to_pil(each) for each in (group.images[row], *group.samples[row])] for row in picked]
    return image_sheet(rows, cell=80, column_titles=("image", "samples"), group_gaps=(1,))
