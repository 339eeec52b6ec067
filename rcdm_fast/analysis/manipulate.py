"""What happens to samples when h itself is changed: class kept, property moved.

Two ways (Bordes et al. 2021, section 5.3, and its published code). *Dimensions*: those that are non-zero for more than
`threshold` of the `neighbors` nearest neighbors of h are what the neighborhood has in common; they are set to zero,
or to a target image's values. *Directions*, for encoders whose outputs are not sparse: h moves along the difference
of mean representations of images with much and with little of a property, or along a principal component. Beside each
stands a control of the same size: as many random dimensions, or a random direction of the same length.

Neighbors are exact; a gallery of 100,000 takes seconds. Knows nothing about how properties are measured
(`properties.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import common, grounds, properties
from rcdm_fast.analysis.common import ExperimentConfig, Progress, fraction, percent
from rcdm_fast.analysis.directions import class_of, common_dimensions, mean_difference, principal_directions
from rcdm_fast.analysis.recovery import check_sources
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.checks import CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics.intervals import LEAST, Interval, fraction_difference
from rcdm_fast.model import Model

SPARSE = 0.2  # fraction of zeros from which "non-zero" tells dimensions apart


@dataclass(frozen=True, kw_only=True)
class ManipulateConfig(ExperimentConfig):
    """What to change and sample.

    Attributes:
        sources: source images, spread evenly over one half of the data (the other is the gallery); 0 means 64.
        neighbors, threshold: of the common dimensions; 20 and 14 as published.
        properties: whose directions are tried; names in `properties.PROPERTIES`.
        components: principal components tried.
        strength: length of a step along a direction: of the difference of means, or of the component's deviation.
        knn: neighbors that vote for a class.
        shown: sources in the figure.
    """

    sources: CountOrNone = 0
    neighbors: int = 20
    threshold: int = 14
    properties: tuple[str, ...] = ("brightness", "sharpness", "asymmetry")
    components: int = 2
    strength: float = 2.0
    knn: int = 20
    shown: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < self.neighbors:
            raise ConfigError(f"threshold must be in 0..{self.neighbors - 1}, got {self.threshold}")
        if min(self.knn, self.shown) < 1 or self.components < 0:
            raise ConfigError("knn and shown must be at least 1, components at least 0")
        for name in self.properties:
            if properties.find(name).period is not None:
                raise ConfigError(f"{name} is an angle: there is no more or less of it")


@dataclass(frozen=True)
class Setting:
    """Gallery and sources; G gallery images, S sources."""

    gallery: Tensor  # float32 [G,D]
    gallery_images: Tensor  # float32 [G,3,H,W]
    gallery_labels: Tensor | None  # int64 [G]
    h: Tensor  # float32 [S,D]
    images: Tensor  # float32 [S,3,H,W]
    labels: Tensor | None  # int64 [S]
    items: Tensor  # int64 [S]


@dataclass(frozen=True)
class Change:
    """One manipulation of all sources.

    Attributes:
        name: for tables.
        h: changed representations, float32 [S,D].
        control: the same with something random of the same size.
        wanted: what should move: a property's name (upwards), or "target" (samples come nearer to `target`).
        target: representations that samples should come nearer to, float32 [S,D].
        dimensions: whether it changes what neighbors have in common, which the paper says is the ground.
    """

    name: str
    h: Tensor
    control: Tensor
    wanted: str
    target: Tensor | None = None
    dimensions: bool = False


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: ManipulateConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """All manipulations of all sources.

    Args:
        model: a model with an encoder.
        data: images; class columns need labels.
        config: sizes and solver.
        progress: called with (manipulations done, all of them).
        shared: with other experiments.

    Raises:
        ConfigError: too few images, or a model without an encoder.
    """
    setting = _setting(model, data, config, shared)
    changes = _changes(setting, config)
    before = common.draw(model, setting.h, setting.items, config)
    rows: list[tuple[Cell, ...]] = []
    findings: list[Finding] = []
    moved_where: list[grounds.Moved] = []
    figure = [[setting.images[row], before[row, 0]] for row in range(min(config.shown, len(setting.h)))]
    kept_before = _kept(model, before, setting, config)
    for number, change in enumerate(changes):
        after = common.draw(model, change.h, setting.items, config)
        control = common.draw(model, change.control, setting.items, config)
        moved, moved_control = (_moved(model, before, each, change) for each in (after, control))
        gain = fraction_difference(moved, moved_control)
        kept, kept_control = (_kept(model, each, setting, config) for each in (after, control))
        row: list[Cell] = [change.name, change.wanted, fraction(moved), fraction(moved_control), gain]
        if kept is not None and kept_control is not None:
            row += [fraction(kept), fraction(kept_control)]
        rows.append(tuple(row))
        findings.append(_finding(change, gain, moved, kept, kept_before))
        if change.dimensions:
            leans = grounds.lean(before, after), grounds.lean(before, control)
            moved_where.append(grounds.Moved(change.name, *leans, kept, kept_control))
            findings.append(grounds.finding(moved_where[-1], config))
        for place, shown in enumerate(figure):
            shown.append(after[place, 0])
        if progress is not None:
            progress(number + 1, len(changes))
    name = common.name_of(model)
    columns = ["manipulation", "wanted", "moved as wanted", "control", "difference"]
    note = "Fraction of samples that move as wanted against the unchanged h with the same noise; by chance a half do."
    if kept_before is not None:
        columns += ["class kept", "class kept, control"]
        unchanged = percent(fraction(kept_before))
        note += f" Class by {config.knn}-NN of the re-encoded sample; unchanged h: {unchanged}."
    tables = [Table("manipulations", "Moved as wanted, and class kept", tuple(columns), tuple(rows), note)]
    if moved_where:
        tables.append(grounds.table(moved_where, config))
    titles = ["image", "sample", *(change.name for change in changes)]
    return Analysis(
        name="manipulate",
        title=f"Changes of the representation of {name}",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": len(setting.h),
            "gallery": len(setting.gallery),
            "zeros": round(float((setting.gallery == 0).float().mean()), 4),
            "data": data.fingerprint,
        },
        tables=tuple(tables),
        findings=tuple(findings),
        figures={
            "rows": image_sheet(
                [[to_pil(each) for each in row] for row in figure],
                cell=80,
                column_titles=titles,
                group_gaps=[1, 2],
            )
        },
        captions={"rows": "An image, a sample of its h, and samples of the changed h with the same noise."},
        method="Sources come from one half of the data, neighbors, directions and votes from the other. Dimensions: "
        f"non-zero in more than {config.threshold} of {config.neighbors} nearest neighbors, set to zero or to the "
        "values of a random target image. Directions: difference of means between the upper and the lower third of a "
        "property, and principal components. Controls: as many random dimensions; a random direction of the same "
        "length, another one for every source. Intervals: 95 % over sources, Wilson's score for fractions, Newcombe's "
        "for their differences in pairs. After Bordes et al. (2021), section 5.3."
        + (f" {grounds.METHOD}" if moved_where else ""),
    )


def _setting(model: Model, data: ImageSet, config: ManipulateConfig, shared: Shared | None) -> Setting:
    encoder = common.encoder_of(model, "changes of h need")
    needed = 2 * max(LEAST, config.neighbors + 1)
    if len(data) < needed:
        raise ConfigError(f"at least {needed} images are needed, half of them as the gallery; got {len(data)}")
    gallery, rest = data.halves(config.seed)
    if len(gallery) <= config.neighbors:
        raise ConfigError(f"{config.neighbors} neighbors need more images in a half of the data than {len(gallery)}")
    rest = data.one_of_each(rest)
    count = config.sources or min(64, len(rest))
    check_sources(count, len(rest))
    chosen = rest[evenly(count, len(rest))]
    labels = data.labels
    return Setting(
        encoded(shared, encoder, data, gallery),
        data.floats(gallery).cpu(),
        None if labels is None else labels[gallery],
        encoded(shared, encoder, data, chosen),
        data.floats(chosen).cpu(),
        None if labels is None else labels[chosen],
        chosen,
    )


def _changes(setting: Setting, config: ManipulateConfig) -> list[Change]:
    generator = torch.Generator().manual_seed(config.seed)
    h, gallery = setting.h, setting.gallery
    changes = []
    if float((gallery == 0).float().mean()) >= SPARSE:
        common = common_dimensions(h, gallery, config.neighbors, config.threshold)
        random = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in common])
        target = gallery[torch.randint(len(gallery), (len(h),), generator=generator)]
        zeroed, other = torch.where(common, 0.0, h), torch.where(random, 0.0, h)
        changes.append(Change("common dimensions zeroed", zeroed, other, "target", zeroed, True))
        swapped, other = torch.where(common, target, h), torch.where(random, target, h)
        changes.append(Change("common dimensions swapped", swapped, other, "target", target, True))
    for name in config.properties:
        values = properties.find(name)(setting.gallery_images)
        direction = config.strength * mean_difference(gallery, values)
        control = h + _random_like(direction, len(h), generator)
        changes.append(Change(f"towards more {name}", h + direction, control, name))
    for number, component in enumerate(principal_directions(gallery, config.components)):
        direction = config.strength * component
        control = h + _random_like(direction, len(h), generator)
        changes.append(Change(f"component {number + 1}", h + direction, control, "target", h + direction))
    return changes


def _random_like(direction: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random directions of the same length, another one for every source; [D] -> [count,D]."""
    random = torch.randn(count, len(direction), generator=generator)
    length: Tensor = direction.norm() / random.norm(dim=1, keepdim=True)
    return random * length


def _moved(model: Model, before: Tensor, after: Tensor, change: Change) -> np.ndarray:
    """Fraction of each source's samples that moved as wanted, float64 [S]; a tie is a half."""
    if change.target is None:
        each = properties.find(change.wanted)
        first, second = (each(part.flatten(0, 1).clamp(-1, 1)).view(before.shape[:2]) for part in (before, after))
        step = (second - first).double()
    else:
        assert model.encoder is not None
        target = change.target[:, None].double()
        far = [
            (model.encoder.encode(part.flatten(0, 1)).cpu().view(*before.shape[:2], -1).double() - target).norm(dim=2)
            for part in (before, after)
        ]
        step = far[0] - far[1]
    return ((step > 0).double() + 0.5 * (step == 0).double()).mean(dim=1).numpy()


def _kept(model: Model, samples: Tensor, setting: Setting, config: ManipulateConfig) -> np.ndarray | None:
    """Fraction of each source's samples that have its class, float64 [S]; None without labels."""
    if setting.labels is None or setting.gallery_labels is None or model.encoder is None:
        return None
    again = model.encoder.encode(samples.flatten(0, 1)).cpu()
    predicted = class_of(again, setting.gallery, setting.gallery_labels, config.knn).view(samples.shape[:2])
    return (predicted == setting.labels[:, None]).double().mean(dim=1).numpy()


def _finding(
    change: Change,
    gain: Interval,
    moved: np.ndarray,
    kept: np.ndarray | None,
    kept_before: np.ndarray | None,
) -> Finding:
    text = f"{percent(fraction(moved))} of samples move as wanted, {percent(gain)} more than with the control"
    if kept is not None and kept_before is not None:
        text += f"; the class is kept in {percent(fraction(kept))} (unchanged h: {percent(fraction(kept_before))})"
    wanted = "the target" if change.target is not None else f"more {change.wanted}"
    claim, group = f"{change.name}: samples move to {wanted}", "samples move as the change says"
    return Finding(claim, common.above(gain), text, group, change.name)
