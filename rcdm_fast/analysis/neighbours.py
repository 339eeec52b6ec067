"""Which real pictures are near h, and which are near its samples: the neighbourhood as the decoder sees it.

If samples keep what h holds, their nearest real pictures are those of h. Numbers: the share of neighbours in common,
the share with the source's class, and, as a check for copies, how near samples come to a single real picture. After
Bordes et al. (2021), section 4, and common practice in looking at generative models' nearest neighbours.

Neighbours are exact. Knows nothing about pixels: "near" means in the encoder's representation.
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
from rcdm_fast.analysis.intervals import interval
from rcdm_fast.analysis.recovery import MIN_SOURCES, check_sources
from rcdm_fast.analysis.result import Analysis, Cell, Finding, Table, cell_text
from rcdm_fast.config import ConfigError
from rcdm_fast.pipeline import Model
from rcdm_fast.training import representations
from rcdm_fast.training.data import ImageSet

COPY = 0.5  # of the usual distance to the nearest real picture: below, samples count as copies


@dataclass(frozen=True)
class NeighboursConfig:
    """What to sample and compare.

    Attributes:
        sources: source pictures, spread evenly over one half of the data (the other is the gallery); 0 means 64.
        samples: of each source.
        neighbours: real pictures that are compared.
        steps, solver, seed, batch_size: as in `Model.sample`.
        resamples: bootstrap draws behind the intervals, over sources.
        shown: sources in the figure.
    """

    sources: int = 0
    samples: int = 4
    neighbours: int = 20
    steps: int | str = 25
    solver: str = "ddim"
    seed: int = 0
    batch_size: int = 64
    resamples: int = 2000
    shown: int = 5

    def __post_init__(self) -> None:
        if min(self.samples, self.neighbours, self.shown) < 1:
            raise ConfigError("samples, neighbours and shown must be at least 1")


@dataclass(frozen=True)
class Found:
    """Neighbours among the gallery, nearest first; S sources, k neighbours.

    Attributes:
        of_h, of_samples: places in the gallery, int64 [S,k]; of samples: of their mean representation.
        copies: mean distance of samples to their nearest real picture over that of h to its own, float64 [S].
    """

    of_h: Tensor
    of_samples: Tensor
    copies: np.ndarray


def run(
    model: Model, data: ImageSet, config: NeighboursConfig, progress: Callable[[int, int], None] | None = None
) -> Analysis:
    """Neighbours of sources and of their samples.

    Args:
        model: a model with an encoder.
        data: pictures; shares of classes need labels.
        config: sizes and solver.
        progress: called with (sources done, all of them).

    Raises:
        ConfigError: too few pictures, or a model without an encoder.
    """
    if model.encoder is None:
        raise ConfigError("neighbours need the model's encoder; give one with --encoder")
    needed = 2 * max(MIN_SOURCES, config.neighbours + 1)
    if len(data) < needed:
        raise ConfigError(f"at least {needed} pictures are needed, half of them as the gallery; got {len(data)}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(config.seed))
    known, rest = (part.sort().values for part in (order[: len(data) // 2], order[len(data) // 2 :]))
    count = config.sources or min(64, len(rest))
    check_sources(count, len(rest))
    chosen = rest[torch.linspace(0, len(rest) - 1, count).round().long()]
    gallery = representations.compute(model.encoder, data.subset(known))
    h = representations.compute(model.encoder, data.subset(chosen))
    drawn = reencoded.draw(
        model, h, chosen, config, lambda done: progress(done, count) if progress is not None else None
    )
    found = neighbours(drawn, gallery, config.neighbours)
    name = model.config.name or "(unnamed)"
    rows, findings = _overlap(found, len(gallery), config)
    if data.labels is not None:
        rows += _classes(found, data.labels[known], data.labels[chosen], config)
    copies = interval(found.copies, config)
    rows.append(("samples to their nearest real picture, over h to its own", copies, None))
    held = True if copies.low > COPY else False if copies.high < COPY else None
    findings.append(Finding("samples are no copies of the gallery's pictures", held, f"ratio {cell_text(copies)}"))
    return Analysis(
        name="neighbours",
        title=f"Nearest real pictures by representation and by samples of {name}",
        model=name,
        settings={
            **dataclasses.asdict(config),
            "sources": count,
            "gallery": len(gallery),
            "data": data.fingerprint,
        },
        tables=(
            Table(
                "neighbours",
                f"The {config.neighbours} nearest of {len(gallery)} real pictures",
                ("share", "value", "chance"),
                tuple(rows),
                "Neighbours of samples: of the mean representation of a source's samples.",
                False,
            ),
        ),
        findings=tuple(findings),
        figures={"neighbours": _sheet(data, known, chosen, drawn.pictures, found, config)},
        captions={
            "neighbours": "A picture; the real pictures nearest to its h; samples of h; those nearest to the samples."
        },
        method="Sources come from one half of the data, real pictures from the other. Nearness: Euclidean distance of "
        f"representations, exact. Copies: a ratio surely above {COPY:g} means that samples come hardly nearer to a "
        "single real picture than pictures do to each other; only pictures in the data can be found, so to look for "
        "copies of training pictures the data has to be these. Intervals: 95 %, bootstrap over sources.",
    )


def neighbours(drawn: reencoded.Reencoded, gallery: Tensor, k: int) -> Found:
    """The k nearest of a gallery float32 [G,D] to every h and to its samples."""
    of_h = reencoded.to_gallery(drawn.h, gallery)
    of_samples = reencoded.to_gallery(drawn.again.mean(dim=1), gallery)
    single = torch.stack([reencoded.to_gallery(each, gallery).min(dim=1).values.mean() for each in drawn.again])
    copies = single / of_h.min(dim=1).values.clamp_min(1e-12)
    near_h, near_samples = (each.topk(k, dim=1, largest=False).indices for each in (of_h, of_samples))
    return Found(near_h, near_samples, copies.numpy())


def _overlap(found: Found, gallery: int, config: NeighboursConfig) -> tuple[list[tuple[Cell, ...]], list[Finding]]:
    shared = (found.of_h[:, :, None] == found.of_samples[:, None, :]).any(dim=2).double().mean(dim=1).numpy()
    chance = config.neighbours / gallery
    value = interval(shared, config)
    held = True if value.low > chance else False if value.high < chance else None
    text = f"{cell_text(value)} in common, chance {chance:.3g}"
    finding = Finding("samples have the real neighbours of the picture they were drawn from", held, text)
    return [("neighbours of h that are neighbours of its samples", value, chance)], [finding]


def _classes(found: Found, gallery: Tensor, own: Tensor, config: NeighboursConfig) -> list[tuple[Cell, ...]]:
    chance = float((gallery[None] == own[:, None]).double().mean())
    rows: list[tuple[Cell, ...]] = []
    for name, places in (("h", found.of_h), ("samples", found.of_samples)):
        same = (gallery[places] == own[:, None]).double().mean(dim=1).numpy()
        rows.append((f"neighbours of {name} with the source's class", interval(same, config), chance))
    return rows


def _sheet(
    data: ImageSet, known: Tensor, chosen: Tensor, samples: Tensor, found: Found, config: NeighboursConfig
) -> Image.Image:
    shown = min(4, config.neighbours)
    rows = []
    for row in range(min(config.shown, len(chosen))):
        source = data.floats(chosen[row : row + 1]).cpu()
        near = [data.floats(known[each[row, :shown]]).cpu() for each in (found.of_h, found.of_samples)]
        rows.append([images.to_pil(each) for part in (source, near[0], samples[row], near[1]) for each in part])
    per = samples.shape[1]
    titles = ["picture", "near h", *[""] * (shown - 1), "samples", *[""] * (per - 1), "near samples"]
    return images.sheet(rows, cell=64, column_titles=titles, group_gaps=[1, 1 + shown, 1 + shown + per])
