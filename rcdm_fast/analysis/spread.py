"""What a representation leaves open: the variance across samples that share h (Bordes et al. 2021, figure 2).

Where samples of one h agree, h decides; where they differ, only the noise does. Variances are put beside those of real
images (0: h fixes it, 1: as free as between any two images) and beside that of all samples together. The first is
low too where a decoder draws the same whatever h says, as one that paints everything gray does: the second is high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.analysis import properties
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Floats, Interval


@dataclass(frozen=True)
class Spread:
    """Variances at fixed h; S sources.

    Attributes:
        maps: of every pixel across samples, mean over channels, images in [-1,1]; float64 [S,H,W].
        within: of pixels and of every property across the samples of a source, by name; float64 [S].
        between: the same of real images.
        overall: the same of all samples together, whatever their source.
    """

    maps: Tensor
    within: dict[str, Floats]
    between: dict[str, float]
    overall: dict[str, float]


def spread(samples: Tensor, real: Tensor) -> Spread:
    """Variances of samples [S,P,3,H,W] at fixed h, beside those of real images [G,3,H',W']; all in [-1,1].

    A circular property is measured by its direction alone: 1 - the length of the mean of unit vectors, with the bias of
    P samples taken out.

    Raises:
        ConfigError: fewer than 2 samples or real images.
    """
    if samples.shape[1] < 2 or len(real) < 2:
        raise ConfigError(f"a variance needs at least 2 samples of each source, got {samples.shape[1]}")
    variance = samples.double().var(dim=1)  # [S,3,H,W]
    maps = variance.mean(dim=1)
    within: dict[str, Floats] = {"pixels": maps.mean(dim=(1, 2)).numpy()}
    between = {"pixels": float(real.double().var(dim=0).mean())}
    overall = {"pixels": float(samples.double().flatten(0, 1).var(dim=0).mean())}
    for each in properties.PROPERTIES.values():
        of_samples = each(samples.flatten(0, 1).clamp(-1, 1))
        within[each.name] = _variance(of_samples.view(samples.shape[:2])).numpy()
        overall[each.name] = float(_variance(of_samples[None])[0])
        between[each.name] = float(_variance(each(real)[None])[0])
    return Spread(maps, within, between, overall)


def _variance(values: Tensor) -> Tensor:
    """Variance along the last dimension, [S,P] -> [S]; of directions, the expected 1 - cos between two of them."""
    if not values.is_complex():
        return values.var(dim=1)
    unit = values / values.abs().clamp_min(1e-12)
    count = values.shape[1]
    return 1 - (unit.sum(dim=1).abs().square() - count) / (count * (count - 1))


def fraction(found: Spread, name: str, counts: Floats, own: bool = False) -> Floats:
    """Variance at fixed h over that of real images, or (own) of all samples; counts as in `fractions`, [B,S] -> [B]."""
    mean = counts @ found.within[name] / counts.sum(axis=1)
    whole = (found.overall if own else found.between)[name]
    return mean / whole if whole > 0 else np.zeros(len(counts))


def fractions(found: Spread, counts: Floats, own: bool = False) -> dict[str, Interval]:
    """The fraction of pixels and of every property, with intervals over sources; source s counts counts[b,s] times."""
    alone = np.ones((1, counts.shape[1]))
    result = {}
    for name in found.within:
        result[name] = intervals.of(fraction(found, name, alone, own)[0], fraction(found, name, counts, own))
    return result


def heat(maps: Tensor, largest: float) -> Tensor:
    """Maps [S,H,W] >= 0 as images [S,3,H,W] in [-1,1]: black, red, yellow, white; `largest` and above is white."""
    if not largest > 0:
        raise ConfigError(f"a map needs a positive end of its scale, got {largest}")
    level = (maps / largest).clamp(0, 1) * 3
    return torch.stack([level.clamp(0, 1), (level - 1).clamp(0, 1), (level - 2).clamp(0, 1)], dim=1).float() * 2 - 1
