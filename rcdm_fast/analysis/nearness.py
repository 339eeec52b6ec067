"""How far from h everything lies: samples, augmented views, neighbors, images of the class, any image.

Bordes et al. (2021, section 4.1 and appendix) hold the distance from h to its samples against such distances. A sample
that lies as near as a view of the image that the encoder was trained to ignore is as near as the encoder can tell; one
that lies as far as another image of the class shows the class and nothing more.

Distances are Euclidean, in units of the mean distance from a source to its nearest other image. Which of two groups is
nearer is counted in pairs, source by source: the fraction of pairs of a sample and an image of the group, both held
against the same h, in which the sample is the nearer one. A half is what the same distances would give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common, histograms
from rcdm_fast.analysis.common import ExperimentConfig, Progress
from rcdm_fast.analysis.result import Analysis, Finding, Table
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import Count, CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling_config import PER_SOURCE
from rcdm_fast.encoders import Encoder
from rcdm_fast.images import blur_images
from rcdm_fast.metrics import nearest
from rcdm_fast.metrics.intervals import Floats, Interval
from rcdm_fast.model import Model
from rcdm_fast.training.augment import AugmentConfig, random_views

SAMPLES, BLURRED, VIEWS = "samples", "the source, blurred by 1 px", "augmented views"
NEAREST, CLASS, ANY = "nearest neighbor", "other images of the class", "any other images"
HELD_AGAINST = {VIEWS: "augmented views of the image", CLASS: "other images of its class"}


@dataclass(frozen=True, kw_only=True)
class NearnessConfig(ExperimentConfig):
    """What to measure.

    Attributes:
        sources: source images, spread evenly over the data; 0 means 64, or all there are if fewer.
        per: samples of each.
        views: augmented views of each, as SimCLR's (`training/augment.py`).
        others: images of its class, and of any, that each is held against; as many as there are where there are fewer.
        neighbor: the rank of a further neighbor that is held against, besides the nearest.
    """

    sources: CountOrNone = 0
    per: Count = PER_SOURCE
    views: Count = 8
    others: Count = 32
    neighbor: Count = 10


@dataclass(frozen=True)
class Group:
    """Distances from h to images of one kind.

    Attributes:
        name: for readers.
        far: for each of S sources the distances to its images, in one unit for all sources; float64, of any lengths.
    """

    name: str
    far: Sequence[Floats]

    def means(self) -> Floats:
        """Mean distance of each source's, float64 [S]."""
        return np.array([each.mean() for each in self.far])


def nearer(samples: Group, others: Group) -> Floats:
    """Fraction of pairs in which the sample is nearer than the other, ties half; float64 [S]."""
    fractions = []
    for own, other in zip(samples.far, others.far, strict=True):
        step = own[:, None] - other[None]
        fractions.append(((step < 0) + 0.5 * (step == 0)).mean())
    return np.array(fractions)


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: NearnessConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """Distances from h to samples and to real images of several kinds.

    Args:
        model: a model with an encoder.
        data: sources and what they are held against; without labels nothing is said of classes.
        config: sizes and solver.
        progress: called with (sources done, all of them).
        shared: with other experiments.

    Raises:
        ConfigError: under 20 images, no more of them than `neighbor`, or a model without an encoder.
    """
    encoder = common.encoder_of(model, "distances from h need")
    places = common.choose_sources(data, config.sources)
    if len(data) <= config.neighbor:
        raise ConfigError(f"neighbor number {config.neighbor} needs more images than {len(data)}")
    gallery = encoded(shared, encoder, data)
    h = gallery[places]
    drawn = common.redraw(model, h, places, config, progress)
    groups = [
        Group(SAMPLES, _far(h, drawn.representations)),
        Group(BLURRED, _far(h, _blurred(encoder, data, places))),
        Group(VIEWS, _far(h, _views(encoder, data, places, config))),
        *_real(data, places, gallery, config),
    ]
    unit = float(next(each for each in groups if each.name == NEAREST).means().mean())
    groups = [Group(each.name, [far / unit for far in each.far]) for each in groups]
    name = common.name_of(model)
    return Analysis(
        name="distances",
        title=f"How far from h samples of {name} lie, and what else does",
        model=name,
        settings={**dataclasses.asdict(config), "sources": len(places), "unit": unit, "data": data.fingerprint},
        tables=(_table(groups, config),),
        findings=tuple(_findings(groups)),
        figures={
            "distances": histograms.histograms(
                [(group.name, np.concatenate(group.far)) for group in groups],
                "Distance from h (1: to the nearest other image)",
            )
        },
        captions={
            "distances": "Distances from h, each row's histogram by itself; the line marks its median. 1 is the mean "
            "distance from an image to the nearest other one."
        },
        method="Distances between representations are Euclidean, over the mean distance from a source to its nearest "
        "other image. Samples and changed images are encoded again. Views: SimCLR's crops, flips and colors "
        f"({_settings(AugmentConfig())}). Nearer: the fraction of pairs of a sample and an image of the group, both "
        "held against the same h, ties half; a half is what equal distances would give. Intervals: 95 % over sources, "
        "bootstrap for distances, Wilson's score for fractions. After Bordes et al. (2021), section 4.1.",
    )


def _settings(config: AugmentConfig) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(config).items())


def _far(h: Tensor, others: Tensor) -> list[Floats]:
    """Distances from h [S,D] to [S,N,D]."""
    return list((others.double() - h.double()[:, None]).norm(dim=2).numpy())


def _blurred(encoder: Encoder, data: ImageSet, places: Tensor) -> Tensor:
    images = data.floats(places).cpu()
    return encoder.encode(blur_images(images, 1.0)).cpu()[:, None]


def _views(encoder: Encoder, data: ImageSet, places: Tensor, config: NearnessConfig) -> Tensor:
    """Representations of random views of every source, float32 [S,V,D]; keyed by source, whatever the others are."""
    found = []
    for place in places:
        images = data.seen(place[None], encoder).cpu().expand(config.views, -1, -1, -1)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + int(place))
        found.append(encoder.encode(random_views(images, AugmentConfig(), generator)).cpu())
    return torch.stack(found)


def _real(data: ImageSet, places: Tensor, gallery: Tensor, config: NearnessConfig) -> list[Group]:
    """Neighbors, images of the class (where there are labels), any images.

    None of them is the source, a copy of it, or cut from its photograph.
    """
    near, further, same, anyone = [], [], [], []
    generator = torch.Generator().manual_seed(config.seed)
    for place in places.tolist():
        own = gallery[place].double()
        far = (gallery.double() - own).norm(dim=1)
        another = far > nearest.SAME * own.norm()
        if data.photographs is not None:
            another &= data.photographs != data.photographs[place]
        other = another.nonzero().flatten()
        ordered = far[other].sort().values
        near.append(ordered[:1].numpy())
        further.append(ordered[config.neighbor - 1 : config.neighbor].numpy())
        anyone.append(far[_some(other, config.others, generator)].numpy())
        if data.labels is not None:
            alike = other[data.labels[other] == data.labels[place]]
            same.append(far[_some(alike, config.others, generator)].numpy())
    if not all(map(len, further)):
        raise ConfigError(f"too many images are the same: there is no neighbor number {config.neighbor}")
    groups = [Group(NEAREST, near), Group(f"neighbor number {config.neighbor}", further)]
    if same and all(map(len, same)):
        groups.append(Group(CLASS, same))
    return [*groups, Group(ANY, anyone)]


def _some(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return places[torch.randperm(len(places), generator=generator)[:count]]


def _table(groups: Sequence[Group], config: NearnessConfig) -> Table:
    samples, *others = groups
    rows: list[tuple[str, Interval, Interval | None]] = [(SAMPLES, common.interval(samples.means(), config), None)]
    for each in others:
        rows.append((each.name, common.interval(each.means(), config), common.fraction(nearer(samples, each))))
    note = "In units of the mean distance from an image to the nearest other one. By equal distances a half is nearer."
    if CLASS not in (each.name for each in others):
        note += " Nothing is said of classes: there are no labels, or a source is the only image of its class."
    return Table("distances", "Distance from h", ("of", "distance", "samples are nearer"), tuple(rows), note, False)


def _findings(groups: Sequence[Group]) -> list[Finding]:
    samples, *others = groups
    found = []
    for each in others:
        if each.name in HELD_AGAINST:
            fraction = common.fraction(nearer(samples, each))
            claim = f"samples lie nearer to h than {HELD_AGAINST[each.name]}"
            text = (
                f"nearer in {common.percent(fraction)} of pairs; mean distances {samples.means().mean():.3g} "
                f"and {each.means().mean():.3g}"
            )
            found.append(Finding(claim, common.above(fraction, 0.5), text))
    return found
