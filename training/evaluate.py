"""How faithful samples are to the representation they were drawn from: mean rank and MRR of the source picture.

Every sample is re-encoded; the gallery of real representations is ranked by squared distance to it, and the rank of
the source picture's own representation is counted (1 is best; Bordes et al. 2021, section 4.1). Ties count half.
Chance is a rank drawn uniformly from the gallery. Intervals are bootstrap intervals over source pictures, whose
samples are not independent.

Knows nothing about how a model was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.pipeline import Model
from rcdm_fast.training import representations
from rcdm_fast.training.data import ImageSet


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure.

    Attributes:
        sources: source pictures, spread evenly over the gallery; 0 means 256, or the whole gallery if it is smaller.
        samples: samples of each.
        gallery: real pictures that a sample is ranked among, spread evenly over the data; 0 means all.
        steps, solver, seed, batch_size: as in `Model.sample`.
        resamples: bootstrap draws behind the 95 % intervals.
    """

    sources: int = 0
    samples: int = 4
    gallery: int = 0
    steps: int | str = 50
    solver: str = "ddim"
    seed: int = 0
    batch_size: int = 64
    resamples: int = 2000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Faithfulness:
    """What `evaluate` measured.

    Attributes:
        mrr: mean reciprocal rank of the source, in (0,1].
        mean_rank: mean rank of the source, from 1.
        distance: mean squared distance between a sample's representation and h.
        nearest: mean squared distance between h and its nearest other real representation.
        chance_mrr, chance_mean_rank: of a rank drawn at random.
        gallery, sources, samples: sizes.
        reciprocal_ranks: of every source, the mean over its samples.
    """

    mrr: Interval
    mean_rank: Interval
    distance: Interval
    nearest: float
    chance_mrr: float
    chance_mean_rank: float
    gallery: int
    sources: int
    samples: int
    reciprocal_ranks: tuple[float, ...] = field(repr=False)


def evaluate(
    model: Model, data: ImageSet, config: EvaluateConfig, progress: Callable[[int, int], None] | None = None
) -> Faithfulness:
    """Sample, re-encode and rank.

    Args:
        model: a model with an encoder.
        data: gallery and source pictures, of the size that the model makes.
        config: sizes and solver.
        progress: called with (sources done, sources in all).

    Raises:
        ConfigError: fewer pictures than asked for, or a model without an encoder.
    """
    encoder = model.encoder
    if encoder is None:
        raise ConfigError("evaluation needs the model's encoder; give one with --encoder")
    size = config.gallery or len(data)
    count = config.sources or min(256, size)
    if size > len(data) or count > size:
        raise ConfigError(f"{count} sources in a gallery of {size} pictures: the data has {len(data)}")
    if count < 2 or config.samples < 1:
        raise ConfigError("an interval needs at least 2 source pictures and 1 sample of each")
    chosen = torch.linspace(0, len(data) - 1, size).round().long()
    gallery = representations.compute(encoder, data.subset(chosen))
    sources = torch.linspace(0, size - 1, count).round().long()
    ranks, distances = [], []
    chunk = max(1, config.batch_size // config.samples)
    for part in sources.split(chunk):
        h = gallery[part]
        pictures = model.sample(
            h,
            items=part,
            per=config.samples,
            steps=config.steps,
            solver=config.solver,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        again = encoder.encode(pictures.flatten(0, 1)).cpu().view(len(part), config.samples, -1)
        for row, source in enumerate(part.tolist()):
            to_gallery = squared_distances(again[row], gallery)
            own = to_gallery[:, source]
            distances.append(own)
            ranks.append(rank_of(to_gallery, source))
        if progress is not None:
            progress(len(ranks), count)
    rank = torch.stack(ranks).double().numpy()
    to_others = torch.cat([squared_distances(gallery[part], gallery) for part in sources.split(256)])
    to_others[torch.arange(len(sources)), sources] = torch.inf
    rng = np.random.default_rng(config.seed)
    reciprocal = (1 / rank).mean(axis=1)
    return Faithfulness(
        mrr=bootstrap(reciprocal, config.resamples, rng),
        mean_rank=bootstrap(rank.mean(axis=1), config.resamples, rng),
        distance=bootstrap(torch.stack(distances).double().numpy().mean(axis=1), config.resamples, rng),
        nearest=float(to_others.min(dim=1).values.mean()),
        chance_mrr=float((1 / np.arange(1, size + 1)).mean()),
        chance_mean_rank=(size + 1) / 2,
        gallery=size,
        sources=count,
        samples=config.samples,
        reciprocal_ranks=tuple(reciprocal.tolist()),
    )


def mrr_change(got: Faithfulness, want: Faithfulness, resamples: int = 2000, seed: int = 0) -> Interval:
    """Relative change of the MRR between two ways to draw the same samples, with its interval; -0.02 is 2 % less.

    Both come from the same sources and noise, so sources are drawn in pairs: the interval is that of the change alone.

    Raises:
        ConfigError: not the same sources.
    """
    if (got.sources, got.samples, got.gallery) != (want.sources, want.samples, want.gallery):
        raise ConfigError("a change of MRR needs the same sources, samples and gallery on both sides")
    a, b = np.array(got.reciprocal_ranks), np.array(want.reciprocal_ranks)
    draws = np.random.default_rng(seed).integers(0, len(a), size=(resamples, len(a)))
    low, high = np.quantile(a[draws].mean(axis=1) / b[draws].mean(axis=1) - 1, [0.025, 0.975])
    return Interval(float(a.mean() / b.mean() - 1), float(low), float(high))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """sum (a_i - b_j)^2 in float64; [N,D], [M,D] -> [N,M]."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def rank_of(distances: Tensor, index: int) -> Tensor:
    """Rank of column `index` in every row of [N,M], 1 for the smallest; ties count half; float64 [N]."""
    own = distances[:, index : index + 1]
    closer = (distances < own).sum(dim=1)
    ties = (distances == own).sum(dim=1) - 1
    return 1 + closer.double() + ties.double() / 2


def bootstrap(values: np.ndarray, resamples: int, rng: np.random.Generator) -> Interval:
    """Mean of `values` [N] with its 95 % percentile bootstrap interval."""
    draws = rng.integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
