"""Which real images are nearest to samples, beside those nearest to h; and whether samples are copies of any.

Samples of h should lie in its neighborhood (Bordes et al. 2021): the k real images nearest to them are held against
the k nearest to h, as lists and by class. Copies are looked for among training images alone (`memorization.py`), and
only where those are given.

All sources and samples may have the same few neighbors (hubs of a high-dimensional space), so beside k / gallery, what
random lists share, stands what the samples of a source share with the lists of other sources.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common, memorization
from rcdm_fast.analysis.common import ExperimentConfig, Progress, Redrawn
from rcdm_fast.analysis.memorization import Copies
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import Count, CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.diffusion.sampling_config import PER_SOURCE
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics import nearest
from rcdm_fast.metrics.intervals import LEAST, Floats, fraction_difference
from rcdm_fast.model import Model

METHOD = (
    "Sources are spread evenly over the data; all other images are the gallery. Every sample is re-encoded. "
    "Neighbors are exact, by Euclidean distance: of the mean representation of a source's samples, and of each sample "
    "by itself. Chance: the fraction of k in the gallery, and the list of another source's h. "
    "Intervals: 95 % over sources, bootstrap for distances, Wilson's score for fractions, Newcombe's for their "
    "differences in pairs. After Bordes et al. (2021)."
)


@dataclass(frozen=True, kw_only=True)
class NeighborsConfig(ExperimentConfig):
    """What to sample and to compare.

    Attributes:
        sources: source images, spread evenly over the data; 0 means 80, which can tell that there are no copies
            (64 cannot), or half of the data if that is less.
        per: samples of each source.
        neighbors: k, the length of lists.
        shown: sources in the figure.
    """

    sources: CountOrNone = 0
    per: Count = PER_SOURCE
    neighbors: int = 5
    shown: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbors < 1 or self.shown < 1:
            raise ConfigError(f"neighbors and shown must be at least 1, got {self.neighbors} and {self.shown}")


@dataclass(frozen=True)
class Setting:
    """Sources S and gallery G, samples P of each source, lists of K places in the gallery.

    Attributes:
        sources, rest: their places in the data, int64 [S], [G].
        h, gallery: representations, float32 [S,D], [G,D].
        drawn: samples.
        of_h: neighbors of h, int64 [S,1,K].
        of_mean: of the mean of samples' representations, int64 [S,1,K].
        of_each: of each sample, int64 [S,P,K].
    """

    sources: Tensor
    rest: Tensor
    h: Tensor
    gallery: Tensor
    drawn: Redrawn
    of_h: Tensor
    of_mean: Tensor
    of_each: Tensor


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: NeighborsConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
    training: ImageSet | None = None,
) -> Analysis:
    """Neighbors of samples beside neighbors of h, and a search for copies of training images.

    Args:
        model: a model with an encoder.
        data: sources and gallery, which the model was not trained on; fractions of classes need labels.
        config: sizes and solver.
        progress: called with (sources done, all of them).
        shared: with other experiments.
        training: the images that the model was trained on; without them nothing is said about copies.

    Raises:
        ConfigError: too few images, training images of another size, data that are training images, or a model
            without an encoder.
    """
    found = _setting(model, data, config, progress, shared)
    size = len(found.rest)
    lists = {"the mean of samples": found.of_mean, "each sample": found.of_each}
    tables, findings = [_overlap_table(found, lists, config)], [_overlap_finding(found, config)]
    if data.labels is not None:
        tables.append(_class_table(found, lists, data.labels, config))
        findings.append(_class_finding(found, data.labels, config))
    findings.append(_near_finding(found, config))
    if training is None:
        findings.append(Finding(memorization.CLAIM, None, memorization.NOT_ASKED))
    else:
        copied = _copies(model, data, training, found, config, shared)
        tables.append(memorization.table(copied))
        findings += [each.finding() for each in copied]
    name = common.name_of(model)
    return Analysis(
        name="neighbors",
        title=f"Real images nearest to samples of {name}",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": len(found.sources),
            "gallery": size,
            "data": data.fingerprint,
            "training": None if training is None else training.fingerprint,
        },
        tables=tuple(tables),
        findings=tuple(findings),
        figures={"neighbors": _sheet(found, data, config)},
        captions={
            "neighbors": "An image, the gallery images nearest to its h, samples of h, and the gallery images "
            "nearest to the mean of their representations."
        },
        method=METHOD if training is None else f"{METHOD} {memorization.METHOD}",
    )


def _copies(
    model: Model,
    data: ImageSet,
    training: ImageSet,
    found: Setting,
    config: NeighborsConfig,
    shared: Shared | None,
) -> list[Copies]:
    known = encoded(shared, common.encoder_of(model, "copies need"), training)
    drawn = (found.drawn.images, found.drawn.representations)
    return memorization.search(drawn, (data.floats(found.sources).cpu(), found.h), training, known, config)


def split(data: ImageSet, config: NeighborsConfig) -> tuple[Tensor, Tensor]:
    """Places of sources and of the gallery, which has no image of a source's photograph.

    Raises `ConfigError` if there are too few images for both.
    """
    needed = LEAST + max(LEAST, config.neighbors + 1)
    if len(data) < needed:
        raise ConfigError(f"at least {needed} images are needed, {LEAST} of them as sources; got {len(data)}")
    known = data.one_of_each()
    most = len(known) - config.neighbors - 1
    count = config.sources or min(80, len(known) // 2, most)
    if not LEAST <= count <= most:
        raise ConfigError(
            f"{count} sources: at least {LEAST}, at most {most}, so that the gallery has {config.neighbors + 1}"
        )
    sources = known[evenly(count, len(known))]
    if data.photographs is None:
        rest = torch.ones(len(data), dtype=torch.bool)
        rest[sources] = False
    else:
        rest = ~torch.isin(data.photographs, data.photographs[sources])
    return sources, rest.nonzero().flatten()


def _setting(
    model: Model, data: ImageSet, config: NeighborsConfig, progress: Progress | None, shared: Shared | None
) -> Setting:
    encoder = common.encoder_of(model, "neighbors of samples need")
    sources, rest = split(data, config)
    known = encoded(shared, encoder, data)
    h, gallery = known[sources], known[rest]
    drawn = common.redraw(model, h, sources, config, progress)
    count = config.neighbors
    of_each = nearest.neighbors(drawn.representations.flatten(0, 1), gallery, count)
    return Setting(
        sources,
        rest,
        h,
        gallery,
        drawn,
        nearest.neighbors(h, gallery, count)[:, None],
        nearest.neighbors(drawn.representations.mean(dim=1), gallery, count)[:, None],
        of_each.view(len(sources), -1, count),
    )


def overlap(lists: Tensor, of_h: Tensor, size: int) -> tuple[Floats, Floats]:
    """Fraction of lists that is in the list of the source's h, and in the lists of the other sources' h.

    Args:
        lists: places in the gallery, int64 [S,Q,K]; the Q lists of a source are averaged.
        of_h: the same of h, int64 [S,1,K].
        size: of the gallery.

    Returns:
        Both float64 [S]: own, and the mean over the other sources.
    """
    count = len(lists)
    together = _membership(lists, size) @ _membership(of_h, size).T / lists.shape[2]
    own = together.diagonal()
    others = (together.sum(dim=1) - own) / (count - 1)
    return own.clamp(0, 1).numpy(), others.clamp(0, 1).numpy()  # sums of parts pass the ends by rounding


def _membership(lists: Tensor, size: int) -> Tensor:
    """In which fraction of a source's lists each gallery image is; int64 [S,Q,K] -> float64 [S,G]."""
    one = torch.full((len(lists), lists[0].numel()), 1 / lists.shape[1], dtype=torch.float64)
    return torch.zeros(len(lists), size, dtype=torch.float64).scatter_add_(1, lists.flatten(1), one)


def _overlap_table(found: Setting, lists: dict[str, Tensor], config: NeighborsConfig) -> Table:
    size = len(found.rest)
    rows: list[tuple[Cell, ...]] = []
    for name, each in lists.items():
        own, others = map(common.fraction, overlap(each, found.of_h, size))
        rows.append((name, own, others, config.neighbors / size))
    title = f"Neighbors in common with h, of {config.neighbors} among {size} images"
    columns = ("neighbors of", "in common with h", "with another source's h", "random lists")
    return Table("overlap", title, columns, tuple(rows), "1: the same images; 0: none of them.")


def _overlap_finding(found: Setting, config: NeighborsConfig) -> Finding:
    own, others = overlap(found.of_each, found.of_h, len(found.rest))
    gain = fraction_difference(own, others)
    measured = (
        f"{common.percent(common.fraction(own))} of a sample's neighbors are neighbors of its h, "
        f"{common.percent(gain)} more than of another source's h"
    )
    return Finding("samples lie in the neighborhood of their h", common.above(gain), measured)


def _of_class(found: Setting, lists: Tensor, labels: Tensor) -> Floats:
    """Fraction of neighbors with the source's class, float64 [S]."""
    same = labels[found.rest][lists] == labels[found.sources][:, None, None]
    return same.double().flatten(1).mean(dim=1).numpy()


def _frequency(found: Setting, labels: Tensor) -> Floats:
    """Fraction of the gallery that has the source's class, float64 [S]."""
    same: Tensor = labels[found.sources][:, None] == labels[found.rest][None]
    return same.double().mean(dim=1).numpy()


def _class_table(found: Setting, lists: dict[str, Tensor], labels: Tensor, config: NeighborsConfig) -> Table:
    chance = float(_frequency(found, labels).mean())
    of_h = _of_class(found, found.of_h, labels)
    rows: list[tuple[Cell, ...]] = [("h", common.fraction(of_h), None, chance)]
    for name, each in lists.items():
        values = _of_class(found, each, labels)
        rows.append((name, common.fraction(values), fraction_difference(values, of_h), chance))
    columns = ("neighbors of", "of the source's class", "less those of h", "random images")
    return Table("class", "Neighbors with the class of the source", columns, tuple(rows))


def _class_finding(found: Setting, labels: Tensor, config: NeighborsConfig) -> Finding:
    values, chance = _of_class(found, found.of_each, labels), _frequency(found, labels)
    of_h = common.fraction(_of_class(found, found.of_h, labels))
    gain = fraction_difference(values, chance)
    measured = (
        f"{common.percent(common.fraction(values))} of a sample's neighbors, "
        f"{common.percent(of_h)} of the neighbors of h, {100 * chance.mean():.0f} % of the gallery"
    )
    claim = "neighbors of samples have the class of the source more often than chance"
    return Finding(claim, common.above(gain), measured)


def _near_finding(found: Setting, config: NeighborsConfig) -> Finding:
    unit = nearest.apart(found.h, found.gallery)
    far = common.interval(nearest.relative(found.drawn.representations, found.h, unit).numpy(), config)
    measured = f"distance to h {cell_text(far)} of the distance from h to its nearest gallery image"
    numbers = (("distance of a sample, of that of the nearest image", far),)
    return Finding("samples are nearer to h than any real image", common.below(far, 1.0), measured, numbers=numbers)


def _sheet(found: Setting, data: ImageSet, config: NeighborsConfig) -> Image.Image:
    gallery, rows = found.rest, []
    for row in evenly(min(config.shown, len(found.sources)), len(found.sources)).tolist():
        source = data.floats(found.sources[row : row + 1]).cpu()
        of_h, of_mean = (data.floats(gallery[each[row, 0]]).cpu() for each in (found.of_h, found.of_mean))
        shown = (*source, *of_h, *found.drawn.images[row], *of_mean)
        rows.append([to_pil(image) for image in shown])
    count, per = config.neighbors, config.per
    titles = ["image", "nearest to h", *[""] * (count - 1), "samples", *[""] * (per - 1), "nearest to samples"]
    return image_sheet(rows, cell=72, column_titles=titles, group_gaps=(1, 1 + count, 1 + count + per))
