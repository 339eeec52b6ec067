"""Several representations side by side: what one keeps and another drops, and what each leaves open.

The same sources, augmentations and noise for every model (`sweeps.py`), so differences are taken in pairs. That one
keeps what another drops is said only where each one's own verdict says so: a difference alone may be the decoders'.
Two controls stand beside: the variance across samples at fixed h (`spread.py`), and readouts of the change from h,
which need no decoder (`readout.py`). What is read less well is less readable, and not gone.

Meant for the backbone and the projector of one encoder (Bordes et al. 2021, section 5), but any models do that make
images of the same content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rcdm_fast import host
from rcdm_fast.analysis import augment, claims, common, invariance, layer_figures, readout, rules, sweeps
from rcdm_fast.analysis import spread as spreads
from rcdm_fast.analysis.common import Progress
from rcdm_fast.analysis.layer import Layer, LayersConfig
from rcdm_fast.analysis.recovery import difference
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.analysis.rules import Between
from rcdm_fast.analysis.shared import Shared, encoded
from rcdm_fast.analysis.sweeps import Invariance
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import resampled
from rcdm_fast.model import Model

NOTE = (
    "Slopes, and their difference in pairs. Yes: the first is kept, the other is dropped, and the difference lies "
    "above 0. No: the first is dropped or the other is kept. A smaller slope alone may be due to a worse decoder. "
    f"Verdicts here are each by itself. {rules.UNADJUSTED}"
)
METHOD = (
    " The models share sources and noise. Open fraction: variance across samples of one h over the variance of real "
    "images. Of two readouts the difference of R^2 is taken on the same images; it does not depend on the decoders."
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
        progress: called with (parts done, all of them): of every model each augmentation, and the variance at fixed h.
        shared: with other experiments.

    Raises:
        ConfigError: fewer than two models, too few images, a model without an encoder.
    """
    if len(models) < 2:
        raise ConfigError("layers are compared: name another model with --against")
    return compared(measured(models, names(models), data, config, progress, shared), models, data, config)


def measured(
    models: Sequence[Model],
    called: Sequence[str],
    data: ImageSet,
    config: LayersConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> list[Layer]:
    """What is found for each model, which is called so; arguments and errors as in `run`."""
    if config.spread_samples < 2:
        raise ConfigError(f"a variance needs at least 2 samples of each source, got {config.spread_samples}")
    each_takes = len(augment.find(config.augmentations)) + 1
    layers = []
    for number, (model, name) in enumerate(zip(models, called, strict=True)):
        told = _from(progress, number * each_takes, len(models) * each_takes)
        layers.append(_layer(model, name, data, config, told, shared))
    return layers


def compared(layers: list[Layer], models: Sequence[Model], data: ImageSet, config: LayersConfig) -> Analysis:
    """The first of what was `measured` beside each of the others."""
    first, others = layers[0], layers[1:]
    figures, captions = layer_figures.figures_of(layers, data, config)
    tables = [_side_by_side(first, other) for other in others]
    tables += [invariance.recovered_table(_named(layer)) for layer in layers]
    tables += [_open_table(layers, config, own) for own in (False, True)]
    tables += [_readout_table(first, other) for other in others if first.invariance.read_on]
    found = first.invariance
    details = invariance.settings(config, data, found)
    details["same_noise_difference"] = max(layer.invariance.repeated for layer in layers)
    return Analysis(
        name="layers",
        title=f"What {common.listed([layer.name for layer in layers])} keep of transformed images",
        model=", ".join(map(common.name_of, models)),
        settings=details,
        tables=tuple(_unique(tables)),
        findings=claims.together(finding for other in others for finding in _findings(first, other, config)),
        figures=figures,
        captions=captions,
        method=invariance.METHOD + METHOD,
    )


def _from(progress: Progress | None, before: int, total: int) -> Progress:
    def told(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    return told


def _layer(
    model: Model, name: str, data: ImageSet, config: LayersConfig, progress: Progress, shared: Shared | None
) -> Layer:
    """All of one model."""
    found = sweeps.measure(model, data, config, progress, shared)
    h = encoded(shared, common.encoder_of(model, "a layer has"), data, found.sources)
    samples = common.draw(model, h, found.sources, config, config.spread_samples)
    spread = spreads.spread(samples, data.floats(evenly(min(len(data), 2000), len(data))))
    progress(len(augment.find(config.augmentations)) + 1, 0)
    return Layer(name, found, samples, spread)


def _named(layer: Layer) -> Invariance:
    return dataclasses.replace(layer.invariance, model=layer.name)


def compare(first: Layer, other: Layer, name: str) -> Between:
    """Whether the first keeps the property that an augmentation changes, and the other drops it."""
    a, b = first.invariance.sweeps[name], other.invariance.sweeps[name]
    return rules.between(difference(a.changes, b.changes), a.recovery.verdict, b.recovery.verdict)


def _side_by_side(first: Layer, other: Layer) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for name, a in first.invariance.sweeps.items():
        b, found = other.invariance.sweeps[name], compare(first, other, name)
        slopes = found.first.slope, found.second.slope, found.difference
        words = found.first.word, found.second.word, found.holds
        r = (each.recovery.correlation.value for each in (a, b))
        lines.append((name, invariance.called(a), *slopes, *words, *r))
    both = first.name, other.name
    heads = ("augmentation", "property", *(f"slope {each}" for each in both), "difference", *both, "kept, dropped")
    title = f"Kept by {first.name}, dropped by {other.name}: how far samples follow changes of images"
    return Table("side-by-side", title, (*heads, *(f"r {each}" for each in both)), tuple(lines), NOTE, label=1)


def _readout_table(first: Layer, other: Layer) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for name, a in first.invariance.sweeps.items():
        b = other.invariance.sweeps[name].readout
        for kind in a.readout.gained:
            apart = readout.difference(a.readout, b, kind)
            explained = a.readout.explained(kind), b.explained(kind)
            lines.append((name, invariance.called(a), kind, *explained, apart))
    heads = ("augmentation", "property", "readout", f"R^2 {first.name}", f"R^2 {other.name}", "difference")
    title = f"Without a decoder: R^2 of readouts of the change, {first.name} and {other.name}"
    return Table("readouts", title, heads, tuple(lines), rules.UNADJUSTED, label=1)


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
    decided = {name: compare(first, other, name) for name in first.invariance.sweeps}
    found = [_kept_and_dropped(first, other, name, each) for name, each in decided.items()]
    color = [decided[name] for name in ("grayscale", "hue") if name in decided]
    if len(color) == 2:
        text = ", ".join(
            f"{what}: {_WORDS[each.holds]}" for what, each in zip(("saturation", "hue"), color, strict=True)
        )
        held = common.all_hold(each.holds for each in color)
        p = min(each.p for each in color if each.holds is False) if held is False else max(each.p for each in color)
        claim = f"{first.name} keeps color, {other.name} drops it"
        found.append(Finding(claim, held, text, _group(first, other), "color (saturation and hue)", p))
    if first.invariance.read_on:
        found += [_readable(first, other, name) for name in decided]
    found.append(_open_finding(first, other, config))
    return found


_WORDS = {True: "holds", False: "does not hold", None: "is inconclusive"}


def _group(first: Layer, other: Layer) -> str:
    return f"{first.name} keeps it and {other.name} drops it"


def _kept_and_dropped(first: Layer, other: Layer, name: str, found: Between) -> Finding:
    a, b = first.invariance.sweeps[name], other.invariance.sweeps[name]
    text = f"slopes {cell_text(found.first.slope)} and {cell_text(found.second.slope)}, difference "
    text += cell_text(found.difference)
    for layer, sweep in ((first, a), (other, b)):
        verdict = sweep.recovery.verdict
        text += f"; {layer.name}: {verdict.word} ({verdict.reason})"
        if verdict.kept is None:
            text += f", detectable from {verdict.detectable:.2f}"
    moved = (cell_text(each.readout.movement) for each in (a, b))
    text += "; r = {:.2f} and {:.2f}".format(*(each.recovery.correlation.value for each in (a, b)))
    text += "; h moves by {} and {} of the squared distance to the nearest other image".format(*moved)
    what = invariance.called(a)
    claim = f"{first.name} keeps {what}, {other.name} drops it"
    otherwise = f"{first.name} drops {what}" if found.first.kept is False else f"{other.name} keeps {what}, too"
    numbers = tuple(
        (f"slope of {layer.name}", each.slope) for layer, each in ((first, found.first), (other, found.second))
    )
    return Finding(claim, found.holds, text, _group(first, other), what, found.p, otherwise=otherwise, numbers=numbers)


def _readable(first: Layer, other: Layer, name: str) -> Finding:
    a, b = (each.invariance.sweeps[name].readout for each in (first, other))
    apart = readout.difference(a, b, readout.LINEAR)
    text = "R^2 of {} and {}, difference {}".format(
        *map(cell_text, (a.explained(readout.LINEAR), b.explained(readout.LINEAR), apart))
    )
    bent = (cell_text(each.explained(readout.BENT)) for each in (a, b))
    text += "; of a non-linear readout {} and {}".format(*bent)
    what = invariance.called(first.invariance.sweeps[name])
    numbers = tuple(
        (f"R^2 from {layer.name}", each.explained(readout.LINEAR)) for layer, each in ((first, a), (other, b))
    )
    group = f"a change is less linearly readable from {other.name} than from {first.name}"
    claim = f"a change of {what} is less linearly readable from {other.name} than from {first.name}"
    return Finding(claim, common.above(apart), text, group, what, rules.p_apart(apart), numbers=numbers)


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
    claim = f"{other.name} leaves more of the pixels open than {first.name}"
    numbers = (("difference of the variances", apart),)
    return Finding(claim, held, text, p=rules.p_apart(apart), numbers=numbers)
