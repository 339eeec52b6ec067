"""Dimensions and directions of a representation that mean something, and votes of neighbors.

Knows nothing about images or samples (`manipulate.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def common_dimensions(h: Tensor, gallery: Tensor, neighbors: int, threshold: int) -> Tensor:
    """Dimensions that are non-zero in more than `threshold` of the nearest neighbors; [S,D], [G,D] -> bool [S,D].

    Nearest by angle: the published code normalizes every representation before it looks for neighbors.
    """
    to_gallery = torch.cdist(F.normalize(h.double(), dim=1), F.normalize(gallery.double(), dim=1))
    nearest = to_gallery.topk(neighbors, largest=False).indices
    counts: Tensor = (gallery[nearest] != 0).sum(dim=1)
    return counts > threshold


def mean_difference(gallery: Tensor, values: Tensor) -> Tensor:
    """Mean representation of the third with the largest values minus that of the third with the smallest; [D]."""
    third = max(1, len(values) // 3)
    order = values.argsort()
    much, little = gallery[order[-third:]].mean(dim=0), gallery[order[:third]].mean(dim=0)
    return much - little


def principal_directions(gallery: Tensor, count: int) -> Tensor:
    """The first principal components, each as long as the standard deviation along it; [G,D] -> [count,D]."""
    centered = (gallery - gallery.mean(dim=0)).double()
    _, scales, directions = torch.linalg.svd(centered, full_matrices=False)
    lengths = scales[:count] / (len(gallery) - 1) ** 0.5
    found: Tensor = directions[:count] * lengths[:, None]
    return found.float()


def class_of(h: Tensor, gallery: Tensor, labels: Tensor, k: int) -> Tensor:
    """Class by a vote of the k most similar (cosine) gallery images; [N,D] -> int64 [N]."""
    similarity = F.normalize(h.float(), dim=1) @ F.normalize(gallery.float(), dim=1).T
    voters = labels[similarity.topk(min(k, len(gallery)), dim=1).indices]
    return F.one_hot(voters, int(labels.max()) + 1).sum(dim=1).argmax(dim=1)
