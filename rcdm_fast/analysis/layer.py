"""What the comparison of several models asks for, and what it finds for one of them.

Knows nothing about how that is measured (`layers.py`) or shown (`layer_figures.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rcdm_fast.analysis.spread import Spread
from rcdm_fast.analysis.sweeps import Invariance, InvarianceConfig
from rcdm_fast.checks import Count, CountOrNone
from rcdm_fast.diffusion.sampling_config import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class LayersConfig(InvarianceConfig):
    """What to sample, beyond the invariance.

    Attributes:
        spread_samples: samples of each source behind the variance at fixed h.
        mapped: sources in the figure of variances.
    """

    spread_samples: Count = SamplingConfig.per
    mapped: CountOrNone = 6


@dataclass(frozen=True)
class Layer:
    """What was found for one model: `samples` [S,P,3,H,W] behind `spread`."""

    name: str
    invariance: Invariance
    samples: Tensor
    spread: Spread
