"""The image of the paper: photographs, and samples of their representations beside them.

What all samples of a photograph share is in its representation; where they differ it is not. The numbers beside the
images: how far re-encoded samples are from h, and how much samples of one photograph differ. Works with any number
of images; nothing here is a statistic over a population.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from rcdm_fast import host
from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig, Progress
from rcdm_fast.analysis.result import Analysis, Cell, Table
from rcdm_fast.checks import Count
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.metrics.intervals import bootstrap
from rcdm_fast.model import Model

SHOWN = 12  # photographs in the figure
HEADS = 3  # of them at the top of a page


@dataclass(frozen=True, kw_only=True)
class PhotosConfig(ExperimentConfig):
    """What to sample: as `Model.sample` does, since the samples are looked at; intervals are over those of one."""

    steps: Count | str = SamplingConfig.steps
    per: Count = SamplingConfig.per


@host.guarded(gradients=True, random=True)
def run(model: Model, data: ImageSet, config: PhotosConfig, progress: Progress | None = None) -> Analysis:
    """Samples of every photograph.

    Args:
        model: a model with an encoder.
        data: photographs at the size of the model.
        config: what to sample.
        progress: called with (photographs done, all of them).

    Raises:
        ConfigError: no encoder, or under 2 samples of each.
    """
    encoder = common.encoder_of(model, "samples of photographs need")
    if config.per < 2:
        raise ConfigError(f"how much samples differ needs at least 2 of each photograph, got {config.per}")
    rng = np.random.default_rng(config.seed)
    rows: list[tuple[Cell, ...]] = []
    images = []
    for number in range(len(data)):
        place = slice(number, number + 1)
        source, h = data.floats(place), encoder.encode(data.seen(place, encoder)).cpu()
        drawn = common.draw(model, h, torch.tensor([number]), config)[0]
        again = encoder.encode(drawn).cpu()
        moved = ((again - h).double().norm(dim=1) / h.double().norm().clamp_min(1e-12)).numpy()
        spread = common.spread_of(drawn[None])[0]
        rows.append(
            (data.paths[number].name if data.paths else number, bootstrap(moved, config.resamples, rng), float(spread))
        )
        if number < SHOWN:
            images.append([to_pil(image) for image in (*source, *drawn)])
        if progress is not None:
            progress(number + 1, len(data))
    name = common.name_of(model)
    titles = ["source", "samples"] + [""] * (config.per - 1)
    return Analysis(
        name="photos",
        title="Samples of photographs",
        model=name,
        settings={**dataclasses.asdict(config), "data": data.fingerprint},
        tables=(
            Table(
                "photos",
                "Samples of every photograph",
                (
                    "photograph",
                    "distance of re-encoded samples to h, relative to |h|",
                    "spread of samples (8-bit levels)",
                ),
                tuple(rows),
                "Spread: standard deviation over samples, averaged over pixels and colors. Intervals over samples.",
            ),
        ),
        figures={"samples": image_sheet(images, cell=72, column_titles=titles, group_gaps=[1])},
        heads=tuple(image_sheet([row[:4]], cell=96) for row in images[:HEADS]),
        captions={"samples": f"Photographs as {name} sees them, and samples of their representations."},
        method="Every sample has its own noise, which the seed, the "
        "photograph's place and the sample's number decide. After Bordes et al. (2021), figure 1.",
    )
