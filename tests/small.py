"""A small model with made-up weights, quick enough for any test, and images made from nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast.config import EncoderConfig, ScheduleConfig, UNetConfig
from rcdm_fast.diffusion.sampling_config import SamplingConfig, SamplingKeywords, chosen
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.model import Model
from rcdm_fast.models.unet import UNet
from tests.reference_weights import make_tensors

DIM = 6
UNET = UNetConfig(
    image_size=8,
    num_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    learn_sigma=True,
    representation_dim=DIM,
)
SCHEDULE = ScheduleConfig(diffusion_steps=1000, variance="learned_range")


def network(**changes: object) -> UNet:
    """A small network with weights that do something (a fresh one gives zeros)."""
    unet = UNet(dataclasses.replace(UNET, **changes))  # type: ignore[arg-type]
    unet.load_state_dict(
        _tensors(tuple((name, tensor.shape) for name, tensor in unet.state_dict().items())), strict=True
    )
    return unet


@functools.cache
def _tensors(shapes: tuple[tuple[str, torch.Size], ...]) -> dict[str, Tensor]:
    """Made once in a process for thousands of networks, which copy them."""
    return make_tensors(dict(shapes))


class MeanColor(nn.Module):
    """A representation of six numbers: mean and spread of each color."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)


def encoder() -> ImageEncoder:
    """An encoder that needs no training."""
    return ImageEncoder(MeanColor(), EncoderConfig("module", image_size=8))


def model(**changes: object) -> Model:
    """A small model; with its encoder if it takes representations."""
    unet = network(**changes)
    schedule = SCHEDULE if unet.config.learn_sigma else dataclasses.replace(SCHEDULE, variance="fixed_large")
    return Model.from_network(unet, schedule, encoder() if unet.config.representation_dim else None)


def quick_model(**changes: object) -> Model:
    """A model for tests that need any: without a level of smaller maps, so in half the time."""
    return model(**{"channel_mult": (1,), **changes})


def make_images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth colorful images; float32 [count,3,size,size] in [-1,1]."""
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    return smooth.clamp(-1, 1)


def asked(answer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In place of `Model.sample`: the answer is given the configuration's fields as keywords."""

    def sample(h: Tensor, config: SamplingConfig | None = None, **given: Any) -> Tensor:
        settings = {name: given.pop(name) for name in SamplingKeywords.__annotations__.keys() & given.keys()}
        return answer(h, **vars(chosen(config, settings)), **given)

    return sample
