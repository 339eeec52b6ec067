"""Modules and functions that a program gives as encoders: what is known of the images that they take.

A network does not say what it was trained on, and a wrong size or normalization makes a representation that looks like
one and is none. So the convention comes from whoever knows it: the caller, the model file that was trained with the
module, or the module itself where its library wrote it down (timm's `pretrained_cfg`). Otherwise it is asked for.

Knows nothing about specifications.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rcdm_fast.checks import choice
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import timm_models
from rcdm_fast.encoders.base import Encoder, ImageEncoder
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.encoders.layers import Forward

Pooler = Callable[[Any], Tensor]
PoolingGiven = Literal["none", "cls", "mean", "max", "flatten", "map"] | Pooler

ASKED = (
    "say what images it takes: EncoderConfig('module', image_size=224, mean=(0.485, 0.456, 0.406), "
    "std=(0.229, 0.224, 0.225)) is usual for ImageNet, mean and std of 0.5 are for images in [-1,1]"
)


def encoder(
    network: Forward,
    device: str | torch.device,
    config: EncoderConfig | None = None,
    layer: str | None = None,
    pooling: PoolingGiven | None = None,
) -> ImageEncoder:
    """An encoder of a module or function.

    Args:
        network: called with normalized images [N,3,s,s]; a module stays as it is (`ImageEncoder`).
        device: where to run a function, and where representations are returned.
        config: the convention; None where the module itself tells it.
        layer, pooling: in place of those of `config`; a function makes [N,D], or maps [N,C,h,w], of whatever the
            layer gives.

    Raises:
        EncoderError: nothing tells the convention; or as `ImageEncoder`.
        ConfigError: no such pooling.
    """
    known = config or stated(network)
    if known is None:
        name = getattr(network, "__name__", type(network).__name__)
        raise EncoderError(f"nothing tells what images {name} takes; {ASKED}")
    changes: dict[str, Any] = {} if layer is None else {"layer": layer}
    pooler: Pooler | None = None
    if callable(pooling):
        pooler, changes["pooling"] = pooling, "function"
    elif pooling is not None:
        changes["pooling"] = choice(pooling, "pooling", ("none", "cls", "mean", "max", "flatten", "map"))
    changed = {key: value for key, value in changes.items() if value != getattr(known, key)}
    if changed:  # the width and the order of another output
        known = dataclasses.replace(known, dim=0, layout="auto" if config is None else config.layout, **changed)
    return ImageEncoder(network, known, device, pooler=pooler)


def stated(network: Forward) -> EncoderConfig | None:
    """The convention that a module's library wrote into it (timm's `pretrained_cfg`); None if there is none.

    Raises:
        EncoderError: it says what is not supported.
    """
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "pretrained_cfg", None), Mapping):
        return None
    return dataclasses.replace(timm_models.told_by(network), source="module")


def of_stored(stored: EncoderConfig | None, given: Any) -> EncoderConfig | None:
    """The convention in a model file, if a module or function is given in place of the one that it was trained with."""
    bare = callable(given) and not isinstance(given, type | Encoder)
    return stored if bare and stored is not None and stored.source == "module" else None
