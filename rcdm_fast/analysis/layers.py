"""Several representations side by side: what one keeps and another drops, and what each leaves open.

The same sources, augmentations and noise for every model (`invariance.py`), so differences are taken in pairs. Two
controls stand beside: the variance across samples at fixed h (`spread.py`), and a linear readout of the property from h
that needs no decoder (`readout.py`).

Meant for the backbone and the projector of one encoder (Bordes et al. 2021, section 5), but any models do that make
images of the same content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.analysis import augment, common, invariance, layer_figures, readout
from rcdm_fast.analysis import spread as spreads
from rcdm_fast.analysis.common import Progress
from rcdm_fast.analysis.invariance import Invariance, InvarianceConfig
from rcdm_fast.analysis.layer import Layer, LayersConfig
from rcdm_fast.analysis.recovery import Changes, Recovery, difference, recovery
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval, resampled
from rcdm_fast.model import Model

NOTE = (
    "Difference of r with a 95 % interval over sources, paired. Yes: the first keeps the property (r above chance); "
    "the other's r is surely under half of it, or the other surely does not keep it (r not above chance, slope surely "
    "under 0.1). No: its r is surely over half, or the first does not keep the property."
)
METHOD = (
    " The models share sources and noise. Open share: variance across samples of one h over the variance of real "
    "images. Readout: the same r for the prediction of a ridge regression from h to the property, fitted on other "
    "images; it does not depend on the decoder, which may be better for one model than for the other."
)


def names(models: Sequence[Model]) -> list[str]:
    """How the models are called: by layer if they read different layers of one encoder, else by name or number."""
    encoders = [model.config.encoder for model in models]
    layers = [encoder.layer for encoder in encoders if encoder is not None]
    if len(set(layers)) == len(models) and len({encoder.source for encoder in encoders if encoder is not None}) == 1:
        return layers
    given = [common.name_of(model) for model in models]
    return [name if given.count(name) == 1 else f"{name} ({number + 1})" for number, name in enumerate(given)]


@host.guarded(gradients=True, random=True)
def run(
    models: Sequence[Model],
    data: ImageSet,
    config: LayersConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> Analysis:
    """The first model beside each of the others.

    Args:
        models: two or more, each with an encoder; the one that is expected to keep more comes first.
        data: images that sources are taken from.
        config: sizes and solver.
        progress: called with (parts done, all of them): of every model each augmentation, the variance at fixed h, and
            each augmentation's readout.
        shared: with other experiments.

    Raises:
        ConfigError: fewer than two models, too few images, a model without an encoder.
    """
    if len(models) < 2:
        raise ConfigError("layers are compared: name another model with --against")
    if config.spread_samples < 2:
        raise ConfigError(f"a variance needs at least 2 samples of each source, got {config.spread_samples}")
    augmentations = len(augment.find(config.augmentations))
    readers = _readers(data, common.choose_sources(data, config.sources), config)
    each_takes = augmentations + 1 + (augmentations if len(readers) else 0)
    layers = []
    for number, (model, name) in enumerate(zip(models, names(models), strict=True)):
        told = _from(progress, number * each_takes, len(models) * each_takes)
        layers.append(_layer(model, name, data, readers, config, told, shared))
    first, others = layers[0], layers[1:]
    drawn, below_charts = layer_figures.charts_of(layers, config)
    figures, below_figures = layer_figures.figures_of(layers, data, config)
    tables = [_side_by_side(first, other, config) for other in others]
    tables += [invariance.recovered_table(_named(layer)) for layer in layers]
    tables += [_open_table(layers, config, own) for own in (False, True)]
    tables += [_readout_table(first, other, config) for other in others if first.readout]
    found = first.invariance
    details = invariance.settings(config, data, found)
    details["same_noise_difference"] = max(layer.invariance.repeated for layer in layers)
    details["fitted_on"] = len(readers)
    return Analysis(
        name="layers",
        title=f"What {common.listed([layer.name for layer in layers])} keep of transformed images",
        model=", ".join(map(common.name_of, models)),
        settings=details,
        tables=tuple(_unique(tables)),
        findings=tuple(finding for other in others for finding in _findings(first, other, config)),
        figures=figures,
        captions=below_charts | below_figures,
        method=invariance.METHOD + METHOD,
        charts=drawn,
    )


def _from(progress: Progress | None, before: int, total: int) -> Progress:
    def told(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    return told


def _layer(
    model: Model,
    name: str,
    data: ImageSet,
    readers: Tensor,
    config: LayersConfig,
    progress: Progress,
    shared: Shared | None,
) -> Layer:
    """All of one model; `readers` are places of the images that readouts are fitted on, maybe none."""
    found = invariance.measure(model, data, config, progress, shared)
    assert model.encoder is not None, "measure has asked for it"
    plain = data.floats(found.sources)
    samples = common.draw(model, model.encode(plain), found.sources, config, config.spread_samples)
    real = data.floats(evenly(min(len(data), 2000), len(data)))
    spread = spreads.spread(samples, real)
    done = len(found.sweeps) + 1
    progress(done, 0)
    read = {}
    fitted_on = data.floats(readers)
    for each in augment.find(config.augmentations) if len(readers) else ():
        read[each.name] = readout.read(model.encoder, each, fitted_on, plain)
        progress(done + len(read), 0)
    return Layer(name, found, samples, spread, read)


def _readers(data: ImageSet, sources: Tensor, config: LayersConfig) -> Tensor:
    """Places of images that are no sources, spread evenly; none if the data has too few for a readout."""
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[sources] = False
    places = rest.nonzero().flatten()
    count = min(config.fitted_on, len(places))
    if count < readout.MIN_READERS:
        return places[:0]
    return places[evenly(count, len(places))]


def _named(layer: Layer) -> Invariance:
    return dataclasses.replace(layer.invariance, model=layer.name)


def verdict(a: Changes, b: Changes, of_a: Recovery, of_b: Recovery, config: InvarianceConfig) -> bool | None:
    """Whether a keeps the property and b drops it (`NOTE`); None if the intervals do not decide."""
    half = difference(a, b, config.resamples, config.seed, fraction=0.5)  # r(a)/2 - r(b)
    if of_a.kept and (half.low > 0 or of_b.kept is False):
        return True
    return False if half.high < 0 or of_a.kept is False else None


def decide(first: Layer, other: Layer, name: str, config: LayersConfig) -> tuple[bool | None, str]:
    """Verdict on one augmentation from samples and readout together, and a word on which decided.

    What the samples do not show although the readout finds it in the first representation is the decoder's fault: then
    the readout alone decides. Where both decide and contradict each other, the verdict is inconclusive.
    """
    a, b = first.invariance.sweeps[name], other.invariance.sweeps[name]
    by_samples = verdict(a.changes, b.changes, a.recovery, b.recovery, config)
    if name not in first.readout:
        return by_samples, ""
    of_a, of_b = (recovery(each.readout[name], config.resamples, config.seed) for each in (first, other))
    by_readout = verdict(first.readout[name], other.readout[name], of_a, of_b, config)
    if of_a.kept and not a.recovery.kept:
        return by_readout, f"; samples of {first.name} do not show it, so the readout decides"
    if None not in (by_samples, by_readout) and by_samples != by_readout:
        return None, "; samples and readout contradict each other"
    return by_samples, ""


def _apart(a: Changes, b: Changes, config: InvarianceConfig) -> Interval:
    return difference(a, b, config.resamples, config.seed)


def _side_by_side(first: Layer, other: Layer, config: LayersConfig) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for name, a in first.invariance.sweeps.items():
        b = other.invariance.sweeps[name]
        apart = _apart(a.changes, b.changes, config)
        decided = verdict(a.changes, b.changes, a.recovery, b.recovery, config)
        property_name = a.augmentation.changes
        lines.append((name, property_name, a.recovery.correlation, b.recovery.correlation, apart, decided))
    heads = ("augmentation", "property", f"r {first.name}", f"r {other.name}", "difference", "kept, dropped")
    title = f"Kept by {first.name}, dropped by {other.name}: correlation of the samples' changes with the images'"
    return Table("side-by-side", title, heads, tuple(lines), NOTE)


def _readout_table(first: Layer, other: Layer, config: LayersConfig) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for name, a in first.readout.items():
        b = other.readout[name]
        of_a, of_b = (recovery(each, config.resamples, config.seed) for each in (a, b))
        apart, decided = _apart(a, b, config), verdict(a, b, of_a, of_b, config)
        lines.append((name, augment.AUGMENTATIONS[name].changes, of_a.correlation, of_b.correlation, apart, decided))
    heads = ("augmentation", "property", f"r {first.name}", f"r {other.name}", "difference", "kept, dropped")
    title = f"Without a decoder: r of a linear readout of the property, {first.name} and {other.name}"
    return Table("readout", title, heads, tuple(lines))


def _open_table(layers: list[Layer], config: LayersConfig, own: bool) -> Table:
    counts = resampled(len(layers[0].samples), config.resamples, config.seed)
    found = [spreads.fractions(layer.spread, counts, own) for layer in layers]
    lines: list[tuple[Cell, ...]] = [(name, *(each[name] for each in found)) for name in found[0]]
    whole = "all samples' variance" if own else "real images' variance"
    note = (
        "1: samples differ as much within a source as between sources: nothing of it comes from the representation."
        if own
        else "0: fixed; 1: as free as between two real images, so not encoded. Low too where all samples are alike."
    )
    title = f"Left open at fixed h: variance across samples, fraction of {whole}"
    return Table("open-own" if own else "open", title, ("of", *(layer.name for layer in layers)), tuple(lines), note)


def _unique(tables: list[Table]) -> list[Table]:
    """Tables with a number after names that come twice."""
    seen: dict[str, int] = {}
    result = []
    for table in tables:
        seen[table.name] = seen.get(table.name, 0) + 1
        number = seen[table.name]
        result.append(dataclasses.replace(table, name=f"{table.name}-{number}") if number > 1 else table)
    return result


def _findings(first: Layer, other: Layer, config: LayersConfig) -> list[Finding]:
    decided: dict[str, bool | None] = {}
    found = []
    group = f"{first.name} keeps it and {other.name} drops it"
    for name, a in first.invariance.sweeps.items():
        b = other.invariance.sweeps[name]
        decided[name], how = decide(first, other, name, config)
        numbers = (a.recovery.correlation, b.recovery.correlation, _apart(a.changes, b.changes, config))
        text = "r = {} and {}, difference {}".format(*map(cell_text, numbers))
        if name in first.readout:
            read = (recovery(each.readout[name], config.resamples, config.seed) for each in (first, other))
            text += "; linear readout {} and {}".format(*(cell_text(each.correlation) for each in read)) + how
        changed = a.augmentation.changes
        claim = f"{first.name} keeps {changed} ({name}), {other.name} drops it"
        found.append(Finding(claim, decided[name], text, group, f"{changed} ({name})"))
    color = {name: decided[name] for name in ("grayscale", "hue") if name in decided}
    if len(color) == 2:
        words = {True: "holds", False: "does not hold", None: "is inconclusive"}
        text = ", ".join(f"{augment.AUGMENTATIONS[name].changes}: {words[each]}" for name, each in color.items())
        held = True if all(color.values()) else False if False in color.values() else None
        claim = f"{first.name} keeps color, {other.name} drops it"
        found.append(Finding(claim, held, text, group, "color (saturation and hue)"))
    found.append(_open_finding(first, other, config))
    return found


def _open_finding(first: Layer, other: Layer, config: LayersConfig) -> Finding:
    alone, counts = np.ones((1, len(first.samples))), resampled(len(first.samples), config.resamples, config.seed)
    of_first, of_other = (
        [spreads.fraction(layer.spread, "pixels", drawn) for drawn in (alone, counts)] for layer in (first, other)
    )
    apart = intervals.of(of_other[0][0] - of_first[0][0], of_other[1] - of_first[1])
    held = common.above(apart)
    text = (
        f"{of_first[0][0]:.3g} and {of_other[0][0]:.3g} of the variance of real pixels, difference {cell_text(apart)}"
    )
    return Finding(f"{other.name} leaves more of the pixels open than {first.name}", held, text)
