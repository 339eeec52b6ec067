"""Encoders of torch.hub: ``torchhub:OWNER/REPO:NAME`` (GitHub) or ``torchhub:FOLDER:NAME``.

A hub repository is code that runs on loading, so it is loaded only when the caller says that it is trusted.

Does not know how images are resized or layers pooled (`base.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.doors import printable
from rcdm_fast.encoders import weights
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, Untrusted, reason
from rcdm_fast.encoders.sources import Source
from rcdm_fast.encoders.torchvision_models import IMAGENET_MEAN, IMAGENET_STD

OPTIONS = weights.OPTIONS | {"pretrained"}


def load(source: Source, fields: Mapping[str, Any], trusted: bool) -> Network:
    """A module of a hub repository.

    ``pretrained=0`` or ``1`` is passed to the repository's function if given; ``weights=FILE`` is loaded strictly.
    Hub modules state no input convention; the default is the customary one of ImageNet models (short side to 256
    pixels, bicubic, crop of 224, ImageNet mean and std).

    Raises:
        ConfigError: the spec has no name after the repository.
        EncoderError: not trusted, not reachable, or no such model.
    """
    repository, colon, name = source.name.rpartition(":")
    if not colon or not repository or not name:
        raise ConfigError(f"{source.shown}: expected torchhub:REPOSITORY:NAME")
    if not trusted:
        raise Untrusted(f"{source.shown}: loading it runs the code of {printable(repository)}")
    keywords: dict[str, Any] = {"pretrained": source.flag("pretrained")} if "pretrained" in source.options else {}
    where = "local" if os.path.isdir(repository) else "github"
    hub: Any = torch.hub
    try:
        with weights.repeatable():
            module = hub.load(repository, name, source=where, trust_repo=True, verbose=False, **keywords)
    except Exception as error:
        raise EncoderError(f"{source.shown}: torch.hub cannot load it ({reason(error)})") from error
    if not isinstance(module, nn.Module):
        raise EncoderError(f"{source.shown}: is {type(module).__name__}, not a network")
    if "weights" in source.options:
        weights.load_into(module, source)
    return Network(module, convention(str(source)))


def convention(source: str) -> EncoderConfig:
    """The customary ImageNet convention."""
    return EncoderConfig(
        source, resize_to=256, interpolation="bicubic", rounding="torchvision", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
