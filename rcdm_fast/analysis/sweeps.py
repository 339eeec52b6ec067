"""Samples of transformed images, and how far the change of a property is followed in them.

For every source x, augmentation T and magnitude, samples are drawn from h(T(x)). All versions of one source share the
noise of x_T and of every step (the noise is keyed by source and sample number), so two samples differ only by what
their representations say. The property that T changes is measured in images and samples alike, and the change in the
samples is held against the change in the image (`recovery.py`). What a decoder cannot draw is missing from the samples
although h may hold it, so nothing is called dropped that a readout finds in h (`readout.py`, `rules.py`).

Knows nothing about other models, how results are shown (`invariance.py`), nor how the decoder was trained.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.analysis import augment, common, properties
from rcdm_fast.analysis.augment import Augmentation
from rcdm_fast.analysis.common import ExperimentConfig, Progress, choose_sources
from rcdm_fast.analysis.properties import Property
from rcdm_fast.analysis.readout import MIN_READERS, Reader, Readout
from rcdm_fast.analysis.recovery import Changes, Recovery, recovery
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.checks import Count, CountOrNone
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.diffusion.sampling_config import PER_VERSION
from rcdm_fast.images import to_uint8
from rcdm_fast.model import Model


@dataclass(frozen=True, kw_only=True)
class InvarianceConfig(ExperimentConfig):
    """What to sample.

    Attributes:
        sources: source images, spread evenly over the data; 0 means 64, or all there are if fewer.
        per: samples of each version, each of other noise; their changes are averaged.
        augmentations: names in `augment.AUGMENTATIONS`; none means all.
        shown: source images in the figures.
        fitted_on: images that readouts are fitted and judged on, one of each photograph; 0, or data of fewer than 50,
            leaves them out, and then nothing is called dropped.
    """

    sources: CountOrNone = 0
    per: Count = PER_VERSION
    augmentations: tuple[str, ...] = ()
    shown: int = 2
    fitted_on: CountOrNone = 400

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
        recovery: the numbers, with the verdict.
        readout: what is read off h without a decoder.
        images, samples: shown rows, uint8 [F,M+1,3,H,W]; the untransformed version first.
    """

    augmentation: Augmentation
    changes: Changes
    recovery: Recovery
    readout: Readout
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
        still: augmentations that change nothing of their property in these images, and are left out.
        read_on: images that readouts were fitted and judged on; 0 if there are none.
    """

    model: str
    sources: Tensor
    sweeps: dict[str, Sweep]
    kept: dict[str, Changes]
    repeated: float
    still: tuple[str, ...] = ()
    read_on: int = 0


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
        ConfigError: too few images, images of which nothing changes, an unknown augmentation, a model without an
            encoder, or one that gives the same representation for all images.
    """
    if shared is None:
        return _measure(model, data, config, progress)
    asked = tuple(getattr(config, item.name) for item in dataclasses.fields(InvarianceConfig))
    found = shared.once(model, (data.identity, asked), lambda: _measure(model, data, config, progress))
    if progress is not None:
        progress(len(found.sweeps), len(found.sweeps))
    return found


def _measure(model: Model, data: ImageSet, config: InvarianceConfig, progress: Progress | None) -> Invariance:
    chosen = augment.find(config.augmentations)
    sources = _Sources.drawn(model, data, config)
    again = draw(model, model.encode(sources.seen[:1]).flatten(1)[None], sources.items[:1], config)[0, 0]
    sweeps, still = {}, []
    for done, each in enumerate(chosen):
        found = sources.sweep(each)
        if found is None:
            still.append(each.name)
        else:
            sweeps[each.name] = found
        if progress is not None:
            progress(done + 1, len(chosen))
    if not sweeps:
        raise ConfigError(f"these images have no property that changes under {common.listed(still)}")
    kept = {each.name: kept_values(each, sources.plain, sources.base) for each in properties.PROPERTIES.values()}
    return Invariance(
        model=common.name_of(model),
        sources=sources.items,
        sweeps=sweeps,
        kept={name: changes for name, changes in kept.items() if changes.measurable},
        repeated=float((again - sources.base[0]).abs().max()),
        still=tuple(still),
        read_on=len(sources.reader.images) if sources.reader.fits else 0,
    )


@dataclass(frozen=True)
class _Sources:
    """What all sweeps of a model begin with.

    Sources [S,3,H,W], what the encoder sees of them [S,3,s,s], samples of them as they are [S,P,3,H,W], the reader.
    """

    model: Model
    config: InvarianceConfig
    items: Tensor
    plain: Tensor
    seen: Tensor
    base: Tensor
    reader: Reader

    @staticmethod
    def drawn(model: Model, data: ImageSet, config: InvarianceConfig) -> _Sources:
        encoder = common.encoder_of(model, "this experiment needs")
        items = choose_sources(data, config.sources)
        plain = data.floats(items)
        seen = plain if data.originals is None else data.seen(items, encoder)
        known = data.one_of_each()  # another crop of an image that is left out would tell what it shows
        read = known[evenly(min(config.fitted_on, len(known)), len(known))]
        fits = len(read) >= MIN_READERS
        if not fits:
            reader = Reader(encoder, plain, fits, seen)
        elif data.originals is None:
            reader = Reader(encoder, data.floats(read), fits)
        else:
            reader = Reader(encoder, data.floats(read), fits, data.seen(read, encoder))
        base = draw(model, model.encode(seen).flatten(1)[None], items, config)[0]
        return _Sources(model, config, items, plain, seen, base, reader)

    def sweep(self, each: Augmentation) -> Sweep | None:
        """Draw and measure; None where the property does not change in the images."""
        versions = torch.stack([each(self.plain, magnitude) for magnitude in each.magnitudes])
        prop = properties.find(each.changes)
        of_plain, of_base = measured(prop, self.plain), measured(prop, self.base)
        in_images = prop.change(of_plain[None, :, None], measured(prop, versions)[..., None]).T
        changes = Changes(in_images, torch.zeros_like(in_images), prop.strength(of_plain), prop.period)
        if not changes.measurable:
            return None
        seen = versions if self.seen is self.plain else torch.stack([each(self.seen, m) for m in each.magnitudes])
        h = self.model.encode(seen.flatten(0, 1)).flatten(1).unflatten(0, seen.shape[:2])
        drawn = draw(self.model, h, self.items, self.config)
        changes = dataclasses.replace(changes, samples=prop.change(of_base[None], measured(prop, drawn)).T)
        shown = evenly(min(self.config.shown, len(self.items)), len(self.items))  # data may lie by class
        images = torch.cat([self.plain[None, shown], versions[:, shown]]).transpose(0, 1)
        samples = torch.cat([self.base[None, shown, 0], drawn[:, shown, 0]]).transpose(0, 1)
        read = self.reader.read(each)
        found = recovery(changes, self.config.resamples, self.config.seed, read.all_explained)
        return Sweep(each, changes, found, read, to_uint8(images), to_uint8(samples))


def kept_values(prop: Property, plain: Tensor, base: Tensor) -> Changes:
    """A property of source images [S,3,H,W] beside the mean of their samples' [S,P,3,H,W]; M = 1."""
    of_plain, of_base = measured(prop, plain), measured(prop, base)
    if prop.period is None:
        return Changes(of_plain[:, None], of_base.mean(dim=1)[:, None], torch.ones(len(plain), dtype=torch.float64))
    directions = prop.degrees(of_plain)[:, None], prop.degrees(of_base.sum(dim=1))[:, None]
    return Changes(*directions, of_plain.abs(), prop.period)
