"""One decoder at several depths: what each layer of an encoder, or each of several encoders, keeps of images.

The model's decoder is adapted to every representation by the same budget on the same images (`adapted.py`), then all
are measured with shared sources and noise (`layers.py`). One figure has the depth on one axis, and on the other what is
kept.

What an adapted decoder does not follow the representation may still hold: nothing is called dropped that a readout
finds, and how much of the decoder's conditioning each representation explains stands beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rcdm_fast import host, provenance
from rcdm_fast.analysis import adapted, augment, claims, common, depth_figure, invariance, layers, rules
from rcdm_fast.analysis import spread as spreads
from rcdm_fast.analysis.adapted import Pooled, Wanted
from rcdm_fast.analysis.common import Progress, choose_sources
from rcdm_fast.analysis.layer import Layer, LayersConfig
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table
from rcdm_fast.analysis.shared import Shared
from rcdm_fast.checks import Count, CountOrNone, choice
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.metrics.intervals import resampled
from rcdm_fast.model import Model

METHOD = (
    " The decoder of {decoder} was adapted to every representation in the same way: the map into it in closed form "
    "(ridge regression) on {images} images and their mirror images, none of them a source, then {steps} optimizer "
    "steps. Layers that give positions or tokens were pooled ({pooling}), which drops places whatever the layer holds."
)
MOST_SHOWN = 12  # photographs in the figure


@dataclass(frozen=True, kw_only=True)
class DepthConfig(LayersConfig):
    """What to sample, and the budget that a decoder is adapted by, the same for every representation.

    Attributes:
        adapt_images: images that maps are learned on, spread evenly over those that are no sources.
        adapt_steps: optimizer steps after the closed form.
        pooling: how one vector is made of a layer's output that has positions or tokens: mean, max, cls or flatten.
    """

    adapt_images: Count = 2000
    adapt_steps: CountOrNone = 0
    pooling: Pooled = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.pooling, "pooling", ("mean", "max", "cls", "flatten"))


@host.guarded(gradients=True, random=True)
def run(
    model: Model,
    wanted: Wanted,
    data: ImageSet,
    config: DepthConfig,
    progress: Progress | None = None,
    shared: Shared | None = None,
    photos: ImageSet | None = None,
) -> Analysis:
    """The comparison, with the figure of depth.

    Args:
        model: the model whose decoder is adapted, with its own encoder.
        wanted: which representations, in the order of the figure; and where adapted decoders are kept.
        data: images that sources are taken from, and, apart from those, images to adapt on.
        config: sizes, solver and budget.
        progress: called with (parts done, all of them).
        shared: with other experiments.
        photos: shown in the figure in place of some sources, at most 12; nothing is measured on them.

    Raises:
        ConfigError: fewer than two representations, one twice, too few images, or too many photographs.
        EncoderError: no such encoder or layer.
        RunError, CheckpointError, StorageError: as `training.adapt`.
    """
    found = adapted.chosen(model, wanted, config.pooling)
    names = adapted.labels(found)
    images = adapted.apart(data, choose_sources(data, config.sources), config.adapt_images)
    if photos is not None and len(photos) > MOST_SHOWN:
        raise ConfigError(f"{len(photos)} photographs make no figure: at most {MOST_SHOWN} are shown")
    parts = len(found)
    total = parts * (len(augment.find(config.augmentations)) + 2)

    def told(done: int) -> None:
        if progress is not None:
            progress(done, total)

    models = adapted.adapted(model, wanted, found, images, config.adapt_steps, told)
    photographed = [] if photos is None else _rows(models, photos, len(data), config)
    measured = layers.measured(models, names, data, config, lambda done, _: told(parts + done), shared)
    rows = photographed or depth_figure.of_sources(measured, data)
    compared = layers.compared(measured, models, data, config)
    findings = claims.together(_findings(measured))
    shown = depth_figure.draw(measured, _places(models), findings, rows)
    budget = METHOD.format(
        decoder=common.name_of(model), images=len(images), steps=config.adapt_steps, pooling=config.pooling
    )
    return dataclasses.replace(
        compared,
        title=f"What is kept at {common.listed(names)}",
        model=common.name_of(model),
        settings={
            **compared.settings,
            "adapted_on": images.fingerprint,
            "shown": None if photos is None else photos.fingerprint,
            "representations": [_described(name, each) for name, each in zip(names, models, strict=True)],
        },
        tables=(_kept_table(measured), _budget_table(names, models, measured, len(images), config), *compared.tables),
        findings=findings,
        figures={"depth": shown, **compared.figures},
        captions={**compared.captions, "depth": depth_figure.CAPTION},
        method=compared.method + budget,
    )


def _rows(models: Sequence[Model], photos: ImageSet, first: int, config: DepthConfig) -> list[depth_figure.Row]:
    """Photographs and samples of each representation; the noise is that of items from `first` on, of no source."""
    images, items, every = photos.floats(slice(None)), first + torch.arange(len(photos)), slice(None)
    drawn = []
    for model in models:
        encoder = common.encoder_of(model, "a representation has")
        h = encoder.encode(photos.seen(every, encoder)).cpu()
        drawn.append(common.draw(model, h, items, config, depth_figure.PAIR))
    return [(image, [samples[row] for samples in drawn]) for row, image in enumerate(images)]


def _places(models: Sequence[Model]) -> list[depth_figure.Place]:
    places = []
    for model in models:
        config = common.encoder_of(model, "a representation has").config
        source = adapted.short_source(config) + (", random weights" if adapted.random_weights(config) else "")
        places.append(depth_figure.Place(config.layer, source, config.dim, _explained(model)))
    return places


def _explained(model: Model) -> float:
    found = model.config.info["explained"]
    assert isinstance(found, float | int)
    return float(found)


def _described(name: str, model: Model) -> dict[str, object]:
    """A representation, and what was made for it: hashes of the adapted decoder and the encoder."""
    config = common.encoder_of(model, "a representation has").config
    return {
        "name": name,
        "layer": config.layer,
        "pooling": config.pooling,
        "dimensions": config.dim,
        "random_weights": adapted.random_weights(config),
        "explained": _explained(model),
        **provenance.of_model(model),
    }


def _kept_table(measured: list[Layer]) -> Table:
    """A row for each representation and augmentation, by augmentation."""
    lines: list[tuple[Cell, ...]] = []
    for name, first in measured[0].invariance.sweeps.items():
        for layer in measured:
            sweep = layer.invariance.sweeps[name]
            got = sweep.recovery
            lines.append(
                (
                    layer.name,
                    invariance.label(first),
                    got.slope,
                    got.verdict.word,
                    got.verdict.detectable,
                    sweep.readout.best,
                )
            )
    heads = ("representation", "property", "slope", "verdict", "detectable slope", "R^2 of the better readout")
    note = f"Verdicts here are each by itself. {rules.UNADJUSTED}"
    return Table("depth", "Kept at each depth: how far samples follow changes of images", heads, tuple(lines), note)


def _budget_table(
    names: list[str], models: Sequence[Model], measured: list[Layer], images: int, config: DepthConfig
) -> Table:
    counts = resampled(len(measured[0].samples), config.resamples, config.seed)
    lines: list[tuple[Cell, ...]] = []
    for name, model, layer in zip(names, models, measured, strict=True):
        encoder = common.encoder_of(model, "a representation has").config
        free = spreads.fractions(layer.spread, counts)["pixels"]
        random = adapted.random_weights(encoder)
        lines.append((name, encoder.dim, encoder.pooling, random, images, config.adapt_steps, _explained(model), free))
    heads = ("representation", "dimensions", "pooling", "random weights", "images", "steps", "explained", "open pixels")
    note = (
        "Explained: fraction of the conditioning that the decoder was trained with which a linear map of this "
        "representation gives, on images left out. Open pixels: variance across samples at fixed h over that of real "
        "images."
    )
    return Table("budget", "The decoder adapted to each, by the same budget", heads, tuple(lines), note, one_unit=False)


def _findings(measured: list[Layer]) -> list[Finding]:
    """Of each representation and property whether it is kept, by property."""
    found = []
    for name, first in measured[0].invariance.sweeps.items():
        what = f"{first.augmentation.changes} ({name})"
        for layer in measured:
            sweep = layer.invariance.sweeps[name]
            verdict = sweep.recovery.verdict
            group = f"{layer.name} keeps"
            text = invariance.sentence(sweep)
            found.append(Finding(f"{group} {what}", verdict.kept, text, group, what, verdict.p))
    return found
