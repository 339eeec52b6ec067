"""Distances between the distributions of real images and of samples, in one stated feature space, as a report.

A Fréchet distance is called FID only in the space of the published Inception weights; so is the Inception Score.

None of these numbers reaches its ideal with few images, not even for images from the same distribution: beside them
stand those of real images in the place of samples, as many of them. What samples can be asked for is that row.

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
# Under so many images for each feature the Fréchet distance of two sets from one distribution, D / 4 (1/N + 1/M) of the
# total variance, is more than 2.5 % of that, from N alone.
ENOUGH = 10


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
        few: a set has fewer than `ENOUGH` images for each feature: the Fréchet distance of equal distributions is then
            far from 0.
        kernel_distance: unbiased MMD^2 with a cubic kernel, mean over subsets; around 0 for equal distributions, also
            with few images.
        kernel_subset_spread: standard deviation over the subsets, which overlap. Not an error of the distance: it
            is 0 where a subset is the whole set.
        kernel_subsets, kernel_subset_size: how many subsets, of how many images.
        precision, recall: improved precision and recall with 3 neighbors, in [0,1].
        density, coverage: with 5 neighbors; density may pass 1.
        inception: FID and Inception Score; None in every other feature space.
        of_real: the same with as many real images in the place of samples, if there were any.
    """

    features: str
    dim: int
    real: int
    samples: int
    frechet_distance: float
    rank_deficient: bool
    few: bool
    kernel_distance: float
    kernel_subset_spread: float
    kernel_subsets: int
    kernel_subset_size: int
    precision: float
    recall: float
    density: float
    coverage: float
    inception: InceptionScores | None = None
    of_real: Distribution | None = None


def check_counts(real: int, samples: int) -> None:
    """Raises `ConfigError` for fewer images than `measure` needs, before anything is drawn."""
    if min(real, samples) < LEAST:
        raise ConfigError(
            f"distances of distributions need at least {LEAST} real images and {LEAST} samples, "
            f"got {real} and {samples}"
        )


def measure(
    name: str,
    real: Tensor,
    samples: Tensor,
    logits: Tensor | None = None,
    seed: int = 0,
    others: Tensor | None = None,
) -> Distribution:
    """All distances between two sets of features.

    Args:
        name: the feature space.
        real: features [N,D] of real images, N >= 6.
        samples: features [M,D] of samples, M >= 6; independent of each other, so one of each source.
        logits: [M,1008] of the samples; given if, and only if, the features are those of the published Inception.
        seed: of subsets and of the order of samples in the Inception Score.
        others: features [M,D] of real images that are not among `real`: the ceiling, `Distribution.of_real`.

    Raises:
        ConfigError: too few images, not as many others as samples, or features that are not of one space or not finite.
    """
    check_counts(len(real), len(samples))
    if others is not None and len(others) != len(samples):
        raise ConfigError(f"{len(others)} real images in the place of {len(samples)} samples: as many are needed")
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
        few=fewest < ENOUGH * dim,
        kernel_distance=kernel,
        kernel_subset_spread=spread,
        kernel_subsets=SUBSETS,
        kernel_subset_size=min(SUBSET_SIZE, fewest),
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        inception=None if logits is None else _inception(frechet, logits, seed),
        of_real=None if others is None else measure(name, real, others, seed=seed),
    )


def _inception(frechet: float, logits: Tensor, seed: int) -> InceptionScores:
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    return InceptionScores(frechet, *distances.inception_score(logits[order]))


def table(found: Distribution) -> list[str]:
    """Lines for a reader, the feature space first; real images in the place of samples in a second column."""
    lines = [f"{found.samples} samples beside {found.real} real images; features: {found.features} ({found.dim})"]
    labels = (
        "FID" if found.inception else "Fréchet distance",
        "kernel distance",
        f"precision ({BALL} neighbors)",
        f"recall ({BALL} neighbors)",
        f"density ({COVERAGE_BALL} neighbors)",
        f"coverage ({COVERAGE_BALL} neighbors)",
    )
    columns = [_numbers(found)]
    if found.of_real is not None:
        columns.append(_numbers(found.of_real))
        lines.append(f"  {'':24s} {'samples':12s} as many real images")
    lines += [
        f"  {label:24s} {'  '.join(f'{text:11s}' for text in row)}".rstrip()
        for label, row in zip(labels, zip(*columns, strict=True), strict=True)
    ]
    lines.append(
        f"  kernel distance: mean over {found.kernel_subsets} subsets of {found.kernel_subset_size}, which differ by "
        f"{found.kernel_subset_spread:.2g} (they overlap: no standard error)"
    )
    if found.inception is not None:
        score = found.inception
        lines.append(
            f"  {'Inception Score':24s} {score.inception_score:.4g}; parts differ by {score.inception_score_std:.2g}"
        )
    return lines + _warning(found)


def _numbers(found: Distribution) -> tuple[str, ...]:
    far = (f"{found.frechet_distance:.4g}", f"{found.kernel_distance:.4g}")
    return (*far, *(f"{each:.3f}" for each in (found.precision, found.recall, found.density, found.coverage)))


def _warning(found: Distribution) -> list[str]:
    least = min(found.real, found.samples)
    if found.rank_deficient:
        return [
            f"  warning: under {found.dim + 1} images the covariance of {found.dim} features is singular; "
            "the Fréchet distance is too large and depends on the number of images"
        ]
    if found.few:
        return [
            f"  warning: {least} images are under {ENOUGH} for each of {found.dim} features; the Fréchet distance is "
            "too large and depends on the number of images"
        ]
    return []
