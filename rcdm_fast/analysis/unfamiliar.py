"""Photographs that are not like the training data, beside pictures that are: do their samples still share what h holds?

Beside each other: how far h lies from the data, how far re-encoded samples lie from h, and the rank of the source's h
among the data's. After Bordes et al. (2021), figure 2: conditioning on representations goes on working out of
distribution, because h says what is to be drawn.

Knows nothing about what makes a photograph unfamiliar: the user chose them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import images
from rcdm_fast.analysis import reencoded
from rcdm_fast.analysis.intervals import interval, positive
from rcdm_fast.analysis.recovery import MIN_SOURCES, check_sources
from rcdm_fast.analysis.reencoded import Reencoded
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.config import ConfigError
from rcdm_fast.pipeline import Model
from rcdm_fast.training import representations
from rcdm_fast.training.data import ImageSet
from rcdm_fast.training.evaluate import Interval

SHOWN = 12  # photographs in the figure and in the table


@dataclass(frozen=True)
class UnfamiliarConfig:
    """What to sample.

    Attributes:
        sources: familiar pictures, spread evenly over the gallery; 0 means 64, or all there are if fewer.
        gallery: pictures of the data that ranks and distances refer to, spread evenly; 0 means 2,000, or all.
        samples: of each picture.
        steps, solver, seed, batch_size: as in `Model.sample`.
        resamples: bootstrap draws behind the intervals, over pictures.
    """

    sources: int = 0
    gallery: int = 0
    samples: int = 4
    steps: int | str = 25
    solver: str = "ddim"
    seed: int = 0
    batch_size: int = 64
    resamples: int = 2000

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {self.samples}")


@dataclass(frozen=True)
class Group:
    """What was found for one kind of pictures; all float64 [S].

    Attributes:
        name: of the kind.
        apart: distance of h to its nearest picture of the gallery.
        error: mean distance of re-encoded samples to h.
        reciprocal: mean reciprocal rank of h among the gallery.
    """

    name: str
    apart: np.ndarray
    error: np.ndarray
    reciprocal: np.ndarray


def run(
    model: Model,
    data: ImageSet,
    photos: ImageSet,
    config: UnfamiliarConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Samples of the photographs and of as many familiar pictures as the settings say.

    Args:
        model: a model with an encoder.
        data: pictures like those it was trained on.
        photos: others.
        config: sizes and solver.
        progress: called with (pictures done, all of them).

    Raises:
        ConfigError: too few pictures in the data, or a model without an encoder.
    """
    if model.encoder is None:
        raise ConfigError("samples of photographs need the model's encoder; give one with --encoder")
    count = config.gallery or min(2000, len(data))
    if not MIN_SOURCES < count <= len(data):
        raise ConfigError(f"a gallery of {count}: more than {MIN_SOURCES} are needed, and the data has {len(data)}")
    known = data.subset(torch.linspace(0, len(data) - 1, count).round().long())
    wanted = config.sources or min(64, count)
    check_sources(wanted, count)
    own = torch.linspace(0, count - 1, wanted).round().long()
    gallery = representations.compute(model.encoder, known)
    strange = representations.compute(model.encoder, photos)
    total = wanted + len(photos)

    def told(before: int) -> Callable[[int], None]:
        return lambda done: progress(before + done, total) if progress is not None else None

    near = reencoded.draw(model, gallery[own], own, config, told(0))
    far = reencoded.draw(model, strange, torch.arange(len(photos)), config, told(wanted))
    groups = (
        _group("familiar", near, gallery, own),
        _group("unfamiliar", far, gallery, None),
    )
    name = model.config.name or "(unnamed)"
    chance = float((1 / np.arange(1, count + 1)).mean())
    return Analysis(
        name="unfamiliar",
        title=f"Photographs that {name} was not trained for",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": wanted,
            "gallery": count,
            "photographs": len(photos),
            "data": known.fingerprint,
            "photos": photos.fingerprint,
        },
        tables=(_groups_table(groups, chance, config), _photos_table(groups, photos)),
        findings=_findings(groups, chance, config),
        figures={"samples": _sheet(photos, far)},
        captions={"samples": "Photographs at the size of the model, and samples of their representations."},
        method=f"Distances are in units of the mean distance of a familiar h to its nearest of {count} real pictures. "
        "Rank: of the source's h among these pictures' representations, itself left out, by distance to the re-encoded "
        "sample. Intervals: 95 %, bootstrap over pictures, the two kinds independently. After Bordes et al. (2021), "
        "figure 2.",
    )


def _group(name: str, found: Reencoded, gallery: Tensor, own: Tensor | None) -> Group:
    nearest = reencoded.to_gallery(found.h, gallery, own).min(dim=1).values
    place = reencoded.ranks(found.again, found.h, gallery, own)
    return Group(name, nearest.numpy(), found.distances().mean(dim=1).numpy(), (1 / place).mean(dim=1).numpy())


def _groups_table(groups: tuple[Group, Group], chance: float, config: UnfamiliarConfig) -> Table:
    unit = groups[0].apart.mean()
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        cells = (interval(each, config) for each in (group.apart / unit, group.error / unit, group.reciprocal))
        rows.append((group.name, len(group.apart), *cells))
    columns = ("pictures", "number", "h to nearest real picture", "sample to h", "MRR of the source")
    note = f"Unit of distances: a familiar h to its nearest real picture. MRR by chance: {chance:.3g}."
    return Table("groups", "Familiar and unfamiliar pictures", columns, tuple(rows), note, False)


def _photos_table(groups: tuple[Group, Group], photos: ImageSet) -> Table:
    unit, far = groups[0].apart.mean(), groups[1]
    rows: list[tuple[Cell, ...]] = []
    for place in range(min(SHOWN, len(photos))):
        name = photos.paths[place].name if photos.paths else place
        numbers = (far.apart[place] / unit, far.error[place] / unit, far.reciprocal[place])
        rows.append((name, *map(float, numbers)))
    columns = ("photograph", "h to nearest real picture", "sample to h", "reciprocal rank")
    return Table("photographs", "Single photographs", columns, tuple(rows))


def _findings(groups: tuple[Group, Group], chance: float, config: UnfamiliarConfig) -> tuple[Finding, ...]:
    near, far = groups
    unit = near.apart.mean()
    few = len(far.apart) < MIN_SOURCES
    lacking = f" (of {len(far.apart)} photographs; {MIN_SOURCES} are needed to decide)" if few else ""
    found = []
    for claim, values in (
        ("unfamiliar photographs lie farther from the data than familiar pictures", (near.apart, far.apart)),
        ("samples of unfamiliar photographs are farther from h than those of familiar ones", (near.error, far.error)),
    ):
        apart = _difference(values[0] / unit, values[1] / unit, config)
        held = None if few else positive(apart)
        found.append(Finding(claim, held, f"difference {cell_text(apart)} nearest-neighbour distances{lacking}"))
    mrr = interval(far.reciprocal, config)
    held = None if few else True if mrr.low > chance else False if mrr.high < chance else None
    text = f"MRR {cell_text(mrr)}, chance {chance:.3g}{lacking}"
    found.append(Finding("samples of unfamiliar photographs lead back to them, better than chance", held, text))
    return tuple(found)


def _difference(near: np.ndarray, far: np.ndarray, config: UnfamiliarConfig) -> Interval:
    """Mean of far minus mean of near, resampled independently."""
    rng = np.random.default_rng(config.seed)
    means = [
        values[rng.integers(0, len(values), (config.resamples, len(values)))].mean(axis=1) for values in (near, far)
    ]
    low, high = np.quantile(means[1] - means[0], [0.025, 0.975])
    return Interval(float(far.mean() - near.mean()), float(low), float(high))


def _sheet(photos: ImageSet, found: Reencoded) -> Image.Image:
    rows = []
    for place in range(min(SHOWN, len(photos))):
        source = photos.floats(slice(place, place + 1))[0].cpu()
        rows.append([images.to_pil(each) for each in (source, *found.pictures[place])])
    titles = ["photograph", "samples", *[""] * (found.pictures.shape[1] - 1)]
    return images.sheet(rows, cell=80, column_titles=titles, group_gaps=[1])
