"""Distances between the distributions of real images and of samples, in one stated feature space, as a report.

A Fréchet distance is called FID only in the space of the published Inception weights; so is the Inception Score.

Knows nothing about how samples were drawn; formulas are in `distances.py`, feature spaces in `encoders/features.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import distances

BALL = 3  # neighbors of precision and recall (Kynkaanniemi et al. 2019)
COVERAGE_BALL = 5  # neighbors of density and coverage (Naeem et al. 2020)
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as torch-fidelity has them
LEAST = COVERAGE_BALL + 1  # images of each kind


@dataclass(frozen=True)
class InceptionScores:
    """What bears these names only with the published Inception weights.

    Attributes:
        fid: Fréchet inception distance; 0 is best.
        inception_score, inception_score_std: mean and standard deviation over ten parts of the samples.
    """

    fid: float
    inception_score: float
    inception_score_std: float


@dataclass(frozen=True)
class Distribution:
    """Distances between real images and samples in one feature space.

    Attributes:
        features: the feature space.
        dim: its width D.
        real, samples: how many images of each kind.
        frechet_distance: between Gaussians with both sets' means and covariances; 0 is best.
        rank_deficient: a set has fewer than D + 1 images. Its covariance is then singular and the Fréchet distance
            too large, by an amount that depends on the number: do not compare it with one from other numbers.
        kernel_distance, kernel_distance_std: unbiased MMD^2 with a cubic kernel, mean and standard deviation over
            subsets; around 0 for equal distributions, also with few images.
        kernel_subsets, kernel_subset_size: how many subsets, of how many images.
        precision, recall: improved precision and recall with 3 neighbors, in [0,1].
        density, coverage: with 5 neighbors; density may pass 1.
        inception: FID and Inception Score; None in every other feature space.
    """

    features: str
    dim: int
    real: int
    samples: int
    frechet_distance: float
    rank_deficient: bool
    kernel_distance: float
    kernel_distance_std: float
    kernel_subsets: int
    kernel_subset_size: int
    precision: float
    recall: float
    density: float
    coverage: float
    inception: InceptionScores | None = None


def check_counts(real: int, samples: int) -> None:
    """Raises `ConfigError` for fewer images than `measure` needs, before anything is drawn."""
    if min(real, samples) < LEAST:
        raise ConfigError(
            f"distances of distributions need at least {LEAST} real images and {LEAST} samples, "
            f"got {real} and {samples}"
        )


def measure(name: str, real: Tensor, samples: Tensor, logits: Tensor | None = None, seed: int = 0) -> Distribution:
    """All distances between two sets of features.

    Args:
        name: the feature space.
        real: features [N,D] of real images, N >= 6.
        samples: features [M,D] of samples, M >= 6.
        logits: [M,1008] of the samples; given if, and only if, the features are those of the published Inception.
        seed: of subsets and of the order of samples in the Inception Score.

    Raises:
        ConfigError: too few images, or features that are not from one space or not finite.
    """
    check_counts(len(real), len(samples))
    frechet = distances.frechet_distance(real, samples)
    kernel, spread = distances.kernel_distance(real, samples, SUBSETS, SUBSET_SIZE, seed)
    precision, recall = distances.precision_recall(real, samples, BALL)
    density, coverage = distances.density_coverage(real, samples, COVERAGE_BALL)
    fewest, dim = min(len(real), len(samples)), real.shape[1]
    return Distribution(
        features=name,
        dim=dim,
        real=len(real),
        samples=len(samples),
        frechet_distance=frechet,
        rank_deficient=fewest < dim + 1,
        kernel_distance=kernel,
        kernel_distance_std=spread,
        kernel_subsets=SUBSETS,
        kernel_subset_size=min(SUBSET_SIZE, fewest),
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        inception=None if logits is None else _inception(frechet, logits, seed),
    )


def _inception(frechet: float, logits: Tensor, seed: int) -> InceptionScores:
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    return InceptionScores(frechet, *distances.inception_score(logits[order]))


def table(found: Distribution) -> list[str]:
    """Lines for a reader, the feature space first."""
    lines = [f"{found.samples} samples beside {found.real} real images; features: {found.features} ({found.dim})"]
    rows = [("FID" if found.inception else "Fréchet distance", f"{found.frechet_distance:.4g}")]
    kernel = f"{found.kernel_distance:.4g} +- {found.kernel_distance_std:.2g}"
    rows.append(("kernel distance", f"{kernel} ({found.kernel_subsets} subsets of {found.kernel_subset_size})"))
    rows.append(("precision, recall", f"{found.precision:.3f}, {found.recall:.3f} ({BALL} neighbors)"))
    rows.append(("density, coverage", f"{found.density:.3f}, {found.coverage:.3f} ({COVERAGE_BALL} neighbors)"))
    if found.inception is not None:
        score = found.inception
        rows.append(("Inception Score", f"{score.inception_score:.4g} +- {score.inception_score_std:.2g}"))
    lines += [f"  {label:18s} {value}" for label, value in rows]
    if found.rank_deficient:
        lines.append(
            f"  warning: under {found.dim + 1} images the covariance of {found.dim} features is singular; "
            "the Fréchet distance is too large and depends on the number of images"
        )
    return lines
