"""A program that uses the public API with types. mypy checks it; it is never run.

What a reader of the documentation would write; `assert_type` holds the signatures to what they promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import torch
from PIL import Image
from torch import Tensor

import rcdm_fast
from rcdm_fast import info, ops


def from_photographs(paths: Sequence[Path]) -> Tensor:
    """Photographs -> samples from their representations."""
    model = rcdm_fast.load("cifar10-simclr-trunk")
    assert_type(model, rcdm_fast.Model)
    h = model.encode(paths)
    assert_type(h, Tensor)
    images = model.sample(h, per=4, steps=25, solver="ddim", eta=0.5, seed=1, clip=True, progress=True)
    assert_type(images, Tensor)
    return images


def from_images(images: list[Image.Image], device: torch.device) -> Tensor:
    """Every option by name."""
    model = rcdm_fast.load(
        Path("model.pt"),
        flags={"image_size": 32, "num_channels": 32},
        encoder=None,
        device=device,
        engine="auto",
        precision="bf16",
    )
    items = torch.arange(len(images))
    h = model.encode(images)
    x = model.sample(h, items=items, per=2, steps="10,10,5", solver="ancestral", batch_size=8)
    again = model.sample(h, per=2, steps=10, noise=torch.randn_like(x), step_noise=torch.randn(10, *x.shape))
    return torch.cat([x, again])


def inversion(batch: Tensor) -> Tensor:
    """Float images [N,3,H,W] -> x_T -> the raw output of the network."""
    model = rcdm_fast.load("model.safetensors", device="cpu", precision="fp32")
    h = model.encode(batch)
    noise = model.invert(batch, h, steps=50, clip=True)
    assert_type(noise, Tensor)
    t = torch.zeros(len(batch), dtype=torch.int64)
    out = model.network(noise, t, representation=h)
    assert_type(out, Tensor)
    return out


def with_labels(labels: Tensor) -> Tensor:
    """A class-conditional model."""
    model = rcdm_fast.load("classes.pt", flags="flags.json")
    x = model.sample(label=labels, per=1)
    return model.network(x[:, 0], torch.full((len(x),), 10), label=labels)


def levels(images: Tensor) -> Tensor:
    """The operators and the report have types too."""
    assert_type(ops.describe(), tuple[ops.Part, ...])
    facts = info.report()
    assert facts["versions"]
    following, _ = ops.solver_step(images, images, x_to_x0=1, output_to_x0=1, bound=1, x0_to_next=1, x_to_next=1)
    return following
