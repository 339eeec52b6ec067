"""Sample sheets during training: the same images, representations and noise every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast.config import ScheduleConfig, UNetConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import image_sheet, save_image, to_pil
from rcdm_fast.model import Model
from rcdm_fast.models import networks


@dataclass(frozen=True)
class FixedBatch:
    """Images [N,3,S,S] in [-1,1], their representations [N,D], and how many samples of each to draw."""

    images: Tensor
    representations: Tensor
    per: int

    @classmethod
    def make(cls, data: ImageSet, representations: Tensor, count: int, per: int) -> FixedBatch:
        """`count` images spread evenly over the set."""
        index = torch.linspace(0, len(data) - 1, min(count, len(data))).long()
        return cls(data.floats(index), representations[index], per)


def write(
    path: Path, unet: UNetConfig, schedule: ScheduleConfig, weights: Mapping[str, Tensor], batch: FixedBatch
) -> None:
    """Draw samples and save them, each source image at the left of its row."""
    model = Model.from_network(networks.from_tensors(unet, weights), schedule)
    samples = model.sample(batch.representations, per=batch.per)
    rows = [
        [to_pil(image), *(to_pil(sample) for sample in row)] for image, row in zip(batch.images, samples, strict=True)
    ]
    save_image(image_sheet(rows, cell=64, column_titles=["source"], group_gaps=[1]), path)
