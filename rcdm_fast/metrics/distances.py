"""Distances between two sets of feature vectors: Fréchet, kernel (MMD), precision and recall, density and coverage.

All take features [N,D] of real images and [M,D] of samples and compute in float64. torchmetrics and torch-fidelity
have the first two, for images; they are written again because there the root is taken of a product that is not
symmetric (and torchmetrics sums covariances as differences of squares). Tests hold ours to theirs.

Knows nothing about where features come from: a number is only as good as the feature space
(`encoders/features.py`), and numbers of two spaces must not be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.config import ConfigError

CHUNK = 1024
TIES = 1e-10  # of the mean squared norm: how far apart equal points may seem after rounding


def frechet_distance(real: Tensor, samples: Tensor) -> float:
    """|mu_r - mu_s|^2 + tr(A + B - 2 (A B)^(1/2)), mu the means and A, B the unbiased covariances of the sets.

    Centerd features are written Q R, so that A = R'R / (n-1) and the trace of the root is the nuclear norm of R_r R_s':
    no matrix is squared and no root is taken of a singular one. With N <= D a covariance is singular and the value
    depends much on N; whoever reports it should say so (Heusel et al. 2017, section 4; Dowson and Landau 1982).

    Args:
        real: [N,D] with N > 1.
        samples: [M,D] with M > 1.

    Raises:
        ConfigError: too few rows, another D, NaN or infinity.
    """
    real, samples = _checked(real, samples, 2)
    mean_r, mean_s = real.mean(dim=0), samples.mean(dim=0)
    root_r, root_s = _root(real - mean_r), _root(samples - mean_s)
    traces = root_r.square().sum() + root_s.square().sum()
    cross = torch.linalg.svdvals(root_r @ root_s.T).sum()
    return max(0.0, float((mean_r - mean_s).square().sum() + traces - 2 * cross))


def kernel_distance(
    real: Tensor, samples: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3: mean and standard deviation over random subsets.

    The subsets overlap, so their deviation says how much single ones vary and is no standard error of the mean.
    Around 0, and possibly below, when both sets come from one distribution, whatever their size (Binkowski et al. 2018,
    section 4; the usual KID of Inception features).

    Args:
        real: [N,D] with N > 1.
        samples: [M,D] with M > 1.
        subsets: how many are drawn.
        subset_size: rows of each side, drawn without replacement; at most N and M.
        seed: of the subsets.

    Raises:
        ConfigError: too few rows, another D, NaN or infinity.
    """
    real, samples = _checked(real, samples, 2)
    if subsets < 1 or subset_size < 2:
        raise ConfigError("a kernel distance needs at least 1 subset of 2 rows")
    size = min(subset_size, len(real), len(samples))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x = real[torch.from_numpy(rng.choice(len(real), size, replace=False))]
        y = samples[torch.from_numpy(rng.choice(len(samples), size, replace=False))]
        found.append(_mmd2(x, y))
    return float(np.mean(found)), float(np.std(found))


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall, in [0,1] (Kynkaanniemi et al. 2019, section 3).

    Precision is the fraction of samples inside a ball around some real point that reaches to its k-th nearest other
    real point; recall the same with the sets exchanged.

    Args:
        real: [N,D] with N > k.
        samples: [M,D] with M > k.
        k: neighbors that make a ball.

    Raises:
        ConfigError: too few rows, another D, NaN or infinity.
    """
    real, samples = _centered(real, samples, k + 1)
    ball_r, ball_s = _radii(real, k), _radii(samples, k)
    inside = torch.zeros(len(samples), dtype=torch.bool)
    covered = 0
    slack = _slack(real, samples)
    for rows, squared in _squared(real, samples):
        inside |= (squared <= ball_r[rows, None] + slack).any(dim=0)
        covered += int((squared <= ball_s + slack).any(dim=1).sum())
    return float(inside.double().mean()), covered / len(real)


def density_coverage(real: Tensor, samples: Tensor, k: int = 5) -> tuple[float, float]:
    """Density (0 or more, 1 for equal distributions) and coverage in [0,1] (Naeem et al. 2020, section 3).

    Density is the mean number of real balls that a sample lies in, over k; coverage the fraction of real balls that
    hold a sample. Single odd images weigh less than in precision and recall.

    Args:
        real: [N,D] with N > k.
        samples: [M,D].
        k: neighbors that make a ball.

    Raises:
        ConfigError: too few rows, another D, NaN or infinity.
    """
    real, samples = _centered(real, samples, k + 1)
    ball = _radii(real, k) + _slack(real, samples)
    held, covered = 0, 0
    for rows, squared in _squared(real, samples):
        inside = squared <= ball[rows, None]
        held += int(inside.sum())
        covered += int(inside.any(dim=1).sum())
    return held / (k * len(samples)), covered / len(real)


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) | p(y))): mean and standard deviation over parts of the samples (Salimans et al. 2016).

    Only logits of the Inception network give the score of that name.

    Args:
        logits: [N,classes], in an order that says nothing about the images.
        splits: parts; fewer when N is smaller.
    """
    if logits.ndim != 2 or not len(logits):
        raise ConfigError(f"expected logits [N,classes], got {list(logits.shape)}")
    scores = []
    for part in logits.double().tensor_split(min(splits, len(logits))):
        log_p = part.log_softmax(dim=1)
        log_mean = log_p.logsumexp(dim=0) - math.log(len(part))
        scores.append(float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def _checked(real: Tensor, samples: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    for name, values in (("real", real), ("samples", samples)):
        if values.ndim != 2:
            raise ConfigError(f"{name}: expected features [N,D], got {list(values.shape)}")
        if len(values) < rows:
            raise ConfigError(f"{name}: {len(values)} images; this distance needs at least {rows}")
        if not bool(values.isfinite().all()):
            raise ConfigError(f"{name}: the features contain NaN or infinity")
    if real.shape[1] != samples.shape[1]:
        raise ConfigError(f"features of width {real.shape[1]} and {samples.shape[1]} are not from one space")
    return real.double().cpu(), samples.double().cpu()


def _centered(real: Tensor, samples: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Both sets less the real mean, which costs no distance and keeps products small."""
    real, samples = _checked(real, samples, rows)
    mean = real.mean(dim=0)
    return real - mean, samples - mean


def _root(centered: Tensor) -> Tensor:
    """R [min(N,D),D] with R'R the covariance of centered [N,D]."""
    root: Tensor = torch.linalg.qr(centered, mode="r").R
    return root / math.sqrt(len(centered) - 1)


def _mmd2(x: Tensor, y: Tensor) -> float:
    count, width = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1) ** 3

    def others(a: Tensor) -> Tensor:
        gram = kernel(a, a)
        return (gram.sum() - gram.trace()) / (count * (count - 1))

    return float(others(x) + others(y) - 2 * kernel(x, y).mean())


def _squared(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Squared distances of some rows of `a` to all of `b`: (rows int64 [n], [n,M])."""
    norm_b = b.square().sum(dim=1)
    for rows in torch.arange(len(a)).split(CHUNK):
        part = a[rows]
        yield rows, (part.square().sum(dim=1, keepdim=True) + norm_b - 2 * part @ b.T).clamp_min_(0)


def _radii(points: Tensor, k: int) -> Tensor:
    """Squared distance of every point to its k-th nearest other one; [N]."""
    found = []
    for rows, squared in _squared(points, points):
        squared[torch.arange(len(rows)), rows] = torch.inf
        found.append(squared.kthvalue(k, dim=1).values)
    return torch.cat(found)


def _slack(real: Tensor, samples: Tensor) -> float:
    return TIES * float(torch.cat([real.square().sum(dim=1), samples.square().sum(dim=1)]).mean())
