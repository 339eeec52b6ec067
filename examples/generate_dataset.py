"""A torch DataLoader over images that are drawn while it is read.

python examples/generate_dataset.py PHOTOS

Generated images as training data, without files: 4 samples of each photograph, shuffled within a buffer, in batches.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import rcdm_fast


class Samples(IterableDataset[tuple[Tensor, int]]):
    """(image uint8 [3,H,W], item) pairs of a model's samples, shuffled within `buffer` of them."""

    def __init__(self, model: rcdm_fast.Model, source: str, per: int = 4, steps: int = 10, buffer: int = 256) -> None:
        self.model, self.source, self.per, self.steps, self.buffer = model, source, per, steps, buffer

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        kept: list[tuple[Tensor, int]] = []
        order = random.Random(0)
        for batch in rcdm_fast.generate(self.model, self.source, per=self.per, steps=self.steps):
            kept += zip(batch.images, batch.item.tolist(), strict=True)
            order.shuffle(kept)
            while len(kept) > self.buffer:
                yield kept.pop()
        yield from kept


def main(photos: str) -> None:
    """Draw and count."""
    model = rcdm_fast.load("cifar10-simclr-trunk")
    # num_workers=0: the model draws in this process, on its device, and reads ahead with threads of its own
    for images, items in DataLoader(Samples(model, photos), batch_size=16, num_workers=0):
        print(f"{list(images.shape)} {images.dtype}, of items {sorted(set(items.tolist()))}")


if __name__ == "__main__":
    main(sys.argv[1])
