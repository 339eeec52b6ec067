"""What a representation keeps of a transformed image, and what it is invariant to (Bordes et al. 2021, section 5).

For every source x, augmentation T and magnitude, samples are drawn from h(T(x)). All versions of one source share the
noise of x_T and of every step (the noise is keyed by source and sample number), so two samples differ only by what
their representations say. The property that T changes is measured in images and samples alike, and the change in the
samples is held against the change in the image (`recovery.py`).

Knows nothing about other models (`layers.py` compares), nor how the decoder was trained: what it cannot draw is missing
from the samples although h may hold it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import augment, charts, common, properties
from rcdm_fast.analysis.augment import Augmentation
from rcdm_fast.analysis.common import ExperimentConfig, Progress, choose_sources
from rcdm_fast.analysis.properties import Property
from rcdm_fast.analysis.recovery import Changes, Recovery, recovery
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.checks import Count, CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.diffusion.sampling_config import PER_VERSION
from rcdm_fast.images import from_uint8, image_sheet, to_pil, to_uint8
from rcdm_fast.model import Model

METHOD = (
    "Samples are drawn from the representation of every transformed image, with the same noise at every step for all "
    "versions of one source. The property that the transformation changes is measured in images and samples by the "
    "same formula. r correlates its change in the samples with its change in the image over all sources and "
    "magnitudes (circular for hue and direction); the slope says how much is followed (1 entirely, 0 not at all). "
    "Intervals: 95 %, bootstrap over sources. Chance: what |r| passes once in twenty times when the samples' changes "
    "are dealt to other sources. A decoder that draws badly recovers less than h holds. After Bordes et al. (2021)."
)


@dataclass(frozen=True, kw_only=True)
class InvarianceConfig(ExperimentConfig):
    """What to sample.

    Attributes:
        sources: source images, spread evenly over the data; 0 means 64, or all there are if fewer.
        per: samples of each version; their changes are averaged.
        augmentations: names in `augment.AUGMENTATIONS`; none means all.
        shown: source images in the figures.
    """

    sources: CountOrNone = 0
    per: Count = PER_VERSION
    augmentations: tuple[str, ...] = ()
    shown: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shown < 0:
            raise ConfigError(f"shown must not be negative, got {self.shown}")


@dataclass(frozen=True)
class Sweep:
    """One augmentation over its magnitudes; F shown sources, M magnitudes.

    Attributes:
        augmentation: what was done to the images.
        changes: of the property that it changes.
        recovery: the numbers.
        images, samples: shown rows, uint8 [F,M+1,3,H,W]; the untransformed version first.
    """

    augmentation: Augmentation
    changes: Changes
    recovery: Recovery
    images: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Invariance:
    """What `measure` found.

    Attributes:
        model: its name.
        sources: places of the source images in the data, int64 [S].
        sweeps: by name of the augmentation.
        kept: of every property, its values in untransformed images beside those in their samples (M = 1).
        repeated: largest difference between two drawings of the same h with the same noise; 0 where an engine's
            results do not depend on the batch.
    """

    model: str
    sources: Tensor
    sweeps: dict[str, Sweep]
    kept: dict[str, Changes]
    repeated: float


def draw(model: Model, h: Tensor, items: Tensor, config: InvarianceConfig, per: int | None = None) -> Tensor:
    """Samples of V versions of S sources with shared noise; h [V,S,D], items int64 [S] -> [V,S,per,3,H,W], CPU."""
    versions, sources = h.shape[:2]
    images = common.draw(model, h.flatten(0, 1), items.repeat(versions), config, per)
    return images.view(versions, sources, *images.shape[1:])


def measured(each: Property, images: Tensor) -> Tensor:
    """The property of images [...,3,H,W] -> [...]; samples may pass the bounds by rounding, so they are clipped."""
    return each(images.flatten(0, -4).clamp(-1, 1)).view(images.shape[:-3])


def measure(
    model: Model,
    data: ImageSet,
    config: InvarianceConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Invariance:
    """Draw and measure every augmentation, or take what was measured with these settings before.

    Args:
        model: a model with an encoder.
        data: images that sources are taken from.
        config: sizes and solver.
        progress: called with (augmentations done, all of them).
        shared: with other experiments.

    Raises:
        ConfigError: too few images, an unknown augmentation, a model without an encoder.
    """
    if shared is None:
        return _measure(model, data, config, progress)
    asked = tuple(getattr(config, item.name) for item in dataclasses.fields(InvarianceConfig))
    found = shared.once(model, (data.fingerprint, asked), lambda: _measure(model, data, config, progress))
    if progress is not None:
        progress(len(found.sweeps), len(found.sweeps))
    return found


def _measure(model: Model, data: ImageSet, config: InvarianceConfig, progress: Progress | None) -> Invariance:
    chosen = augment.find(config.augmentations)
    common.encoder_of(model, "this experiment needs")
    items = choose_sources(data, config.sources)
    plain = data.floats(items)
    h = model.encode(plain)[None]
    base = draw(model, h, items, config)[0]
    again = draw(model, h[:, :1], items[:1], config)[0, 0]
    sweeps = {}
    for done, each in enumerate(chosen):
        sweeps[each.name] = _sweep(model, each, plain, base, items, config)
        if progress is not None:
            progress(done + 1, len(chosen))
    kept = {each.name: kept_values(each, plain, base) for each in properties.PROPERTIES.values()}
    name = common.name_of(model)
    return Invariance(name, items, sweeps, kept, float((again - base[0]).abs().max()))


def _sweep(
    model: Model, each: Augmentation, plain: Tensor, base: Tensor, items: Tensor, config: InvarianceConfig
) -> Sweep:
    versions = torch.stack([each(plain, magnitude) for magnitude in each.magnitudes])
    h = model.encode(versions.flatten(0, 1)).unflatten(0, versions.shape[:2])
    drawn = draw(model, h, items, config)
    prop = properties.find(each.changes)
    of_plain, of_base = measured(prop, plain), measured(prop, base)
    in_images = prop.change(of_plain[None, :, None], measured(prop, versions)[..., None])
    in_samples = prop.change(of_base[None], measured(prop, drawn))
    changes = Changes(in_images.T, in_samples.T, prop.strength(of_plain), prop.period)
    shown = evenly(min(config.shown, len(items)), len(items))  # data may lie by class
    images = torch.cat([plain[None, shown], versions[:, shown]]).transpose(0, 1)
    samples = torch.cat([base[None, shown, 0], drawn[:, shown, 0]]).transpose(0, 1)
    found = recovery(changes, config.resamples, config.seed)
    return Sweep(each, changes, found, to_uint8(images), to_uint8(samples))


def kept_values(prop: Property, plain: Tensor, base: Tensor) -> Changes:
    """A property of source images [S,3,H,W] beside the mean of their samples' [S,P,3,H,W]; M = 1."""
    of_plain, of_base = measured(prop, plain), measured(prop, base)
    if prop.period is None:
        return Changes(of_plain[:, None], of_base.mean(dim=1)[:, None], torch.ones(len(plain), dtype=torch.float64))
    directions = prop.degrees(of_plain)[:, None], prop.degrees(of_base.sum(dim=1))[:, None]
    return Changes(*directions, of_plain.abs(), prop.period)


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    data: ImageSet,
    config: InvarianceConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """The experiment as tables, sentences and figures; arguments and errors as in `measure`."""
    found = measure(model, data, config, progress, shared)
    bars = [charts.Bar(label(each), (each.recovery.correlation,), (each.recovery.chance,)) for each in _all(found)]
    drawn = {"recovered": charts.intervals(bars, [found.model], "Correlation of changes: samples with images")}
    figures = {}
    captions = {"recovered": "Dots: r with its 95 % interval. Gray: what chance gives."}
    for each in _all(found) if config.shown else ():
        name = f"rows-{each.augmentation.name}"
        figures[name] = rows([each], ["samples"])
        captions[name] = f"{each.augmentation.name} ({each.augmentation.about}); {sentence(each.recovery)}."
    return Analysis(
        name="invariance",
        title=f"What {found.model} keeps of transformed images",
        model=found.model,
        settings=settings(config, data, found),
        tables=(recovered_table(found), kept_table(found, config)),
        findings=tuple(_finding(each) for each in _all(found)),
        figures=figures,
        captions=captions,
        method=METHOD,
        charts=drawn,
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
    }


def label(each: Sweep) -> str:
    """For a row: "hue", "grayscale: saturation"."""
    name, changed = each.augmentation.name, each.augmentation.changes
    return name if name == changed else f"{name}: {changed}"


def sentence(found: Recovery) -> str:
    """The numbers in words."""
    return f"r = {cell_text(found.correlation)}, slope {cell_text(found.slope)}, chance {found.chance:.2g}"


def recovered_table(found: Invariance) -> Table:
    """A row for each augmentation."""
    lines: list[tuple[Cell, ...]] = []
    for each in _all(found):
        got = each.recovery
        lines.append(
            (each.augmentation.name, each.augmentation.changes, got.correlation, got.slope, got.chance, got.kept)
        )
    return Table(
        "recovered",
        f"{found.model}: change of the property in samples, against that in the image",
        ("augmentation", "property", "r", "slope", "chance of |r|", "kept"),
        tuple(lines),
        f"{len(found.sources)} sources; kept: the interval of r lies above chance; no: the slope is surely under 0.1.",
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
    what, group = f"{each.augmentation.changes} ({each.augmentation.name})", "the representation keeps"
    return Finding(f"{group} {what}", each.recovery.kept, sentence(each.recovery), group, what)


def rows(sweeps: list[Sweep], names: list[str], cell: int = 96) -> Image.Image:
    """For every shown source a row of transformed images, and below it the samples of every sweep (one per model)."""
    lines, titles = [], []
    first = sweeps[0]
    for number in range(len(first.images)):
        lines.append([_pil(image) for image in first.images[number]])
        titles.append("image")
        for sweep, name in zip(sweeps, names, strict=True):
            lines.append([_pil(image) for image in sweep.samples[number]])
            titles.append(name)
    columns = ["as it is", *(f"{magnitude:g}" for magnitude in first.augmentation.magnitudes)]
    return image_sheet(lines, cell=cell, row_titles=titles, column_titles=columns, group_gaps=(1,))


def _pil(pixels: Tensor) -> Image.Image:
    return to_pil(from_uint8(pixels))
