"""One process of a small training run, for tests that kill it or start several of it.

python -m tests.training_process OUT ENCODER JSON
"""

from __future__ import annotations

import dataclasses
import json
import sys

import torch

from rcdm_fast.config import EncoderConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.images import to_uint8
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.train import train
from tests import small


def config(encoder_file: str, **changes: object) -> TrainConfig:
    """A run of a small network in float32."""
    base = TrainConfig(
        name="tiny", unet=dataclasses.replace(small.UNET, representation_dim=0), schedule=small.SCHEDULE,
        encoder=EncoderConfig(f"file:{encoder_file}", image_size=8), images=96, batch_size=16, compile=False,
        precision="fp32", save_every=2, sheet_every=0, weights="fp32",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def data() -> ImageSet:
    """48 made-up images."""
    pixels = to_uint8(small.make_images(48))
    return ImageSet(pixels, None, (), (), "made-up")


def main() -> None:
    """Train; every step's loss goes to OUT/losses.txt."""
    out, encoder_file, changes = sys.argv[1:]
    torch.set_num_threads(1)
    settings = config(encoder_file, **json.loads(changes))

    def progress(done: int, total: int, loss: float) -> None:
        sys.stdout.write(json.dumps({"step": done, "loss": loss}) + "\n")
        sys.stdout.flush()

    train(settings, data(), out, "cpu", progress)


if __name__ == "__main__":
    main()
