"""What a representation keeps of a transformed image, and what it is invariant to (Bordes et al. 2021, section 5).

Tables, sentences and figures of what `sweeps.py` measures. Knows nothing about other models (`layers.py` compares).
"""

from __future__ import annotations

import dataclasses

from PIL import Image
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import claims, common, properties, rules, sweeps
from rcdm_fast.analysis.common import Progress
from rcdm_fast.analysis.readout import BENT, LINEAR, MIN_READERS
from rcdm_fast.analysis.recovery import recovery
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.rules import RULES
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.analysis.sweeps import Invariance, InvarianceConfig, Sweep
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import from_uint8, image_sheet, to_pil
from rcdm_fast.model import Model

METHOD = (
    "Samples are drawn from the representation of every transformed image, with the same noise at every step for all "
    "versions of one source. The property that the transformation changes is measured in images and samples by the "
    "same formula. The slope says how much of its change in the image its change in the samples follows (1 entirely, "
    f"0 not at all). Kept: the slope is surely above {RULES.kept_above:g}. Dropped: it is surely within "
    f"+-{RULES.dropped_within:g}, and R^2 of two readouts of the change from h, a linear and a non-linear one that are "
    f"fitted on changes and left-out images, is surely below {RULES.readable:g}. Else inconclusive, with the smallest "
    f"slope that such a run calls kept in {100 * RULES.detected_power:.0f} %. r correlates the changes (circular for "
    "hue and direction) and decides nothing; chance is what |r| passes once in twenty times when the samples' changes "
    f"are dealt to other sources. {rules.UNADJUSTED} Verdicts hold for all claims together (Holm). After Bordes et al. "
    "(2021)."
)


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: InvarianceConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """The experiment as tables, sentences and figures; arguments and errors as in `measure`."""
    found = sweeps.measure(model, data, config, progress, shared)
    figures, captions = {}, {}
    for each in _all(found) if config.shown else ():
        name = f"rows-{each.augmentation.name}"
        figures[name] = rows([each], ["samples"])
        captions[name] = f"{each.augmentation.name} ({each.augmentation.about}); {sentence(each)}."
    return Analysis(
        name="invariance",
        title=f"What {found.model} keeps of transformed images",
        model=found.model,
        settings=settings(config, data, found),
        tables=(recovered_table(found), readout_table(found), kept_table(found, config)),
        findings=claims.together(_finding(each) for each in _all(found)),
        figures=figures,
        captions=captions,
        method=METHOD,
    )


def _all(found: Invariance) -> list[Sweep]:
    return list(found.sweeps.values())


def settings(config: InvarianceConfig, data: ImageSet, found: Invariance) -> dict[str, object]:
    """What has to be repeated to get the same numbers."""
    return {
        **dataclasses.asdict(config),
        "sources": len(found.sources),
        "augmentations": {each.augmentation.name: list(each.augmentation.magnitudes) for each in _all(found)},
        "data": data.fingerprint,
        "same_noise_difference": found.repeated,
        "fitted_on": found.read_on,
        "left_out": list(found.still),
        "rules": rules.VERSION,
    }


def label(each: Sweep) -> str:
    """For a row: "hue", "grayscale: saturation"."""
    name, changed = each.augmentation.name, called(each)
    return name if name == changed else f"{name}: {changed}"


def called(each: Sweep) -> str:
    """What readers call the property that is changed."""
    return properties.find(each.augmentation.changes).called


def sentence(each: Sweep) -> str:
    """The numbers in words, and the verdict's reason."""
    got = each.recovery
    read = [f"{name} {cell_text(each.readout.explained(name))}" for name in each.readout.gained]
    parts = [
        f"slope {cell_text(got.slope)}: {got.verdict.reason}",
        f"r = {cell_text(got.correlation)}, chance {got.chance:.2g}",
        *([f"R^2 of readouts: {', '.join(read)}"] if read else []),
        f"h moves by {cell_text(each.readout.movement)} of the squared distance to the nearest other image",
    ]
    if got.verdict.kept is None:
        parts.append(f"such a run calls a slope of {got.verdict.detectable:.2f} kept in 80 %")
    return "; ".join(parts)


def recovered_table(found: Invariance) -> Table:
    """A row for each augmentation."""
    lines: list[tuple[Cell, ...]] = []
    for each in _all(found):
        got = each.recovery
        names = (each.augmentation.name, called(each))
        moved = each.readout.movement.value
        lines.append((*names, got.slope, got.verdict.word, got.verdict.detectable, got.correlation, got.chance, moved))
    still = f" Left out, for nothing changes in these images: {common.listed(found.still)}." if found.still else ""
    return Table(
        "recovered",
        f"{found.model}: change of the property in samples, against that in the image",
        ("augmentation", "property", "slope", "verdict", "detectable slope", "r", "chance of |r|", "h moves"),
        tuple(lines),
        f"{len(found.sources)} sources. Verdicts are on slopes, each by itself (rules of {rules.VERSION}); r "
        "describes. h moves: squared distance, over that to the nearest other image. Detectable: a slope that such a "
        f"run calls kept in {100 * RULES.detected_power:.0f} %. {rules.UNADJUSTED}{still}",
        label=1,
    )


def readout_table(found: Invariance) -> Table:
    """A row for each augmentation: what readouts find in h, and how far it moves."""
    lines: list[tuple[Cell, ...]] = []
    for each in _all(found):
        read = each.readout
        explained = [read.explained(name) if name in read.gained else None for name in (LINEAR, BENT)]
        lines.append((each.augmentation.name, called(each), *explained, cell_text(read.movement)))
    note = (
        f"R^2 on left-out images of {found.read_on}, fitted on changes: 1 reads the change, 0 no more than its mean. "
        "It does not depend on the decoder. h moves: squared distance, over that to the nearest other image. "
        f"{rules.UNADJUSTED}"
        if found.read_on
        else f"Readouts are left out: they take at least {MIN_READERS} images. Nothing is called dropped without them."
    )
    heads = ("augmentation", "property", f"{LINEAR} R^2", f"{BENT} R^2", "h moves")
    return Table(
        "readout", f"{found.model}: the change read off h, without a decoder", heads, tuple(lines), note, label=1
    )


def kept_table(found: Invariance, config: InvarianceConfig) -> Table:
    """A row for each property: how far untransformed images share it with their samples."""
    lines: list[tuple[Cell, ...]] = []
    for name, changes in found.kept.items():
        got = recovery(changes, config.resamples, config.seed)
        lines.append((name, properties.find(name).about, got.correlation, got.chance))
    return Table(
        "shared",
        f"{found.model}: property of an image against that of its samples, over untransformed images",
        ("property", "what", "r", "chance of |r|"),
        tuple(lines),
    )


def _finding(each: Sweep) -> Finding:
    what, group = called(each), "the representation keeps"
    found = each.recovery.verdict
    otherwise, numbers = f"the representation drops {what}", (("slope", found.slope),)
    return Finding(
        f"{group} {what}", found.kept, sentence(each), group, what, found.p, otherwise=otherwise, numbers=numbers
    )


def rows(found: list[Sweep], names: list[str], cell: int = 96) -> Image.Image:
    """For every shown source a row of transformed images, and below it the samples of every sweep (one per model)."""
    lines, titles = [], []
    first = found[0]
    for number in range(len(first.images)):
        lines.append([_pil(image) for image in first.images[number]])
        titles.append("image")
        for sweep, name in zip(found, names, strict=True):
            lines.append([_pil(image) for image in sweep.samples[number]])
            titles.append(name)
    columns = ["as it is", *(f"{magnitude:g}" for magnitude in first.augmentation.magnitudes)]
    return image_sheet(lines, cell=cell, row_titles=titles, column_titles=columns, group_gaps=(1,))


def _pil(pixels: Tensor) -> Image.Image:
    return to_pil(from_uint8(pixels))
