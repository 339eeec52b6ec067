"""Sample sheets during training: the same pictures, representations and noise every time.

Knows nothing about the training run but its averaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import images
from rcdm_fast.config import ScheduleConfig, UNetConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.sampling_config import QUICK_STEPS
from rcdm_fast.model import Model
from rcdm_fast.models import networks


@dataclass(frozen=True)
class FixedBatch:
    """Pictures [N,3,S,S] in [-1,1], their representations [N,D], and how many samples of each to draw."""

    pictures: Tensor
    representations: Tensor
    per: int

    @classmethod
    def make(cls, data: ImageSet, representations: Tensor, count: int, per: int) -> FixedBatch:
        """`count` pictures spread evenly over the set."""
        index = torch.linspace(0, len(data) - 1, min(count, len(data))).long()
        return cls(data.floats(index), representations[index], per)


def write(
    path: Path, unet: UNetConfig, schedule: ScheduleConfig, weights: Mapping[str, Tensor], batch: FixedBatch
) -> None:
    """Draw samples with `QUICK_STEPS` DDIM steps and save them, each source picture at the left of its row."""
    model = Model.from_network(networks.from_tensors(unet, weights), schedule)
    samples = model.sample(batch.representations, per=batch.per, steps=QUICK_STEPS)
    rows = [
        [images.to_pil(picture), *(images.to_pil(sample) for sample in row)]
        for picture, row in zip(batch.pictures, samples, strict=True)
    ]
    images.save(images.sheet(rows, cell=64, column_titles=["source"], group_gaps=[1]), path)
