"""Sample sheets during training: the same images, representations and noise every time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import memory
from rcdm_fast.config import ScheduleConfig, UNetConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import image_sheet, save_image, to_pil
from rcdm_fast.model import Model
from rcdm_fast.models import networks

log = logging.getLogger(__name__)


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
    path: Path,
    unet: UNetConfig,
    schedule: ScheduleConfig,
    weights: Mapping[str, Tensor],
    batch: FixedBatch,
    device: torch.device | str = "cpu",
) -> None:
    """Draw samples and save them, each source image at the left of its row.

    A GPU draws them itself: other processes of a run wait meanwhile, and give up after minutes. Where its memory does
    not suffice beside the run they are drawn on the CPU, and that is logged.
    """

    def drawn(where: torch.device | str) -> Tensor:
        model = Model.from_network(networks.from_tensors(unet, weights), schedule, device=where)
        return model.sample(batch.representations, per=batch.per).cpu()

    samples: Tensor | None = None
    try:
        samples = drawn(device)
    except Exception as error:
        if torch.device(device).type == "cpu" or not memory.out_of_memory(error):
            raise
        log.warning("%s: drawn on the CPU, as %s has no memory left for it", path, device)
    if samples is None:  # what the failed try held went with its error
        memory.release()
        samples = drawn("cpu")
    rows = [
        [to_pil(image), *(to_pil(sample) for sample in row)] for image, row in zip(batch.images, samples, strict=True)
    ]
    save_image(image_sheet(rows, cell=64, column_titles=["source"], group_gaps=[1]), path)
