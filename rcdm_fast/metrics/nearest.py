"""Real images near a representation: distances, ranks and lists of neighbors, all exact.

A distance between representations says nothing by itself, so it is told in units of the distance to the nearest other
real image. Sees representations only: knows nothing about images or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.images import from_uint8

SAME = 1e-5  # of |h|: what two encodings of one image may differ by, in batches of different sizes
ROWS = 64  # held against the gallery at once: [64, 50,000] float64 are 26 MB
IMAGES = 1024  # of the gallery at once, in pixels: at 128 px 200 MB


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """sum (a_i - b_j)^2 in float64; [N,D], [M,D] -> [N,M]."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


def rank_of(distances: Tensor, index: int) -> Tensor:
    """Rank of column `index` in every row of [N,M], 1 for the smallest; ties count half; float64 [N]."""
    own = distances[:, index : index + 1]
    closer = (distances < own).sum(dim=1)
    ties = (distances == own).sum(dim=1) - 1
    return 1 + closer.double() + ties.double() / 2


def neighbors(h: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Places of the nearest gallery representations, nearest first; [N,D], [G,D] -> int64 [N,count]."""
    found = [squared_distances(part, gallery).topk(count, largest=False).indices for part in h.split(ROWS)]
    return torch.cat(found)


def distance(h: Tensor, gallery: Tensor) -> Tensor:
    """Distance to the nearest gallery representation, 0 where the gallery has the same; [N,D], [G,D] -> float64 [N]."""
    return torch.cat([squared_distances(part, gallery).min(dim=1).values.sqrt() for part in h.split(ROWS)])


def pixel_distance(images: Tensor, pixels: Tensor) -> Tensor:
    """Distance to the nearest real image, over all pixels and colors.

    The nearest one is looked for in float32; to that one the distance is exact, 0 for the same image.

    Args:
        images: float32 [N,3,H,W] in [-1,1].
        pixels: real images, uint8 [G,3,H,W], also where they are mapped from a file.

    Returns:
        float64 [N].
    """
    rows = images.float().flatten(1).cpu()
    best, place = torch.full((len(rows),), torch.inf), torch.zeros(len(rows), dtype=torch.int64)
    for start in range(0, len(pixels), IMAGES):
        part = from_uint8(pixels[start : start + IMAGES]).flatten(1).cpu()
        nearer, index = (part.square().sum(dim=1) - 2 * rows @ part.T).min(dim=1)
        place = torch.where(nearer < best, start + index, place)
        best = torch.minimum(nearer, best)
    found = [
        (row.double() - from_uint8(pixels[at]).flatten().cpu().double()).norm()
        for row, at in zip(rows, place.tolist(), strict=True)
    ]
    return torch.stack(found)


def apart(h: Tensor, gallery: Tensor) -> Tensor:
    """Distance to the nearest gallery representation that is another one; [N,D], [G,D] -> float64 [N].

    The same one (h itself, or a copy of its image) is left out: as a unit it would be zero.

    Raises:
        ConfigError: the gallery holds nothing else.
    """
    found = []
    for part in h.split(ROWS):
        to_gallery = squared_distances(part, gallery).sqrt()
        same = to_gallery <= SAME * part.double().norm(dim=1, keepdim=True)
        found.append(to_gallery.masked_fill(same, torch.inf).min(dim=1).values)
    result = torch.cat(found)
    if not bool(result.isfinite().all()):
        raise ConfigError("all images have the same representation: there is no nearest other one")
    return result


def relative(again: Tensor, h: Tensor, unit: Tensor) -> Tensor:
    """Distance of samples' representations [S,P,D] to h [S,D] in units [S], mean over samples; float64 [S]."""
    far: Tensor = (again.double() - h.double()[:, None]).norm(dim=2).mean(dim=1)
    return far / unit


def ranks(again: Tensor, gallery: Tensor, places: Tensor) -> Tensor:
    """Rank in the gallery of the images at `places`, by distance to every sample; 1 is best, ties count half.

    Args:
        again: representations of samples [N,D].
        gallery: real representations [G,D].
        places: int64 [S].

    Returns:
        float64 [N,S], from 1 to G.
    """
    found = []
    for part in again.split(ROWS):
        to_gallery = squared_distances(part, gallery)
        own, ordered = to_gallery[:, places], to_gallery.sort(dim=1).values
        closer, upto = torch.searchsorted(ordered, own), torch.searchsorted(ordered, own, right=True)
        found.append(1 + closer + (upto - closer - 1).double() / 2)
    return torch.cat(found)
