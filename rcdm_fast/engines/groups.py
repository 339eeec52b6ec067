"""Images in groups of one fixed size, the last one padded: what makes fp32 images independent of their batch.

Otherwise an image would depend on its batch: the order in which a convolution sums changes with the batch size and the
number of threads (by up to 1e-6), and the first steps of a trajectory magnify that up to 2e4 times. On two cores
groups of four 32-pixel images are as fast per image as batches of 32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GROUP_PIXELS = 4 * 32 * 32
LARGEST_GROUP = 4


def group_size(height: int, width: int) -> int:
    """Images of a group."""
    return max(1, min(LARGEST_GROUP, GROUP_PIXELS // (height * width)))


def in_groups(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
    """run(images, what belongs to each of them), group by group; [N,...], [N,...] -> [N,...]."""
    size = group_size(x.shape[2], x.shape[3])
    out = []
    for start in range(0, len(x), size):
        part, own = x[start : start + size], rows[start : start + size]
        if len(part) < size:
            padded = torch.arange(size, device=x.device) % len(part)
            out.append(run(part[padded], own[padded])[: len(part)])
        else:
            out.append(run(part, own))
    return torch.cat(out)
