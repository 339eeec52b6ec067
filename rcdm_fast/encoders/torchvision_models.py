"""Encoders of torchvision: ``torchvision:NAME``, with random, published or local weights.

Does not know how images are resized or layers pooled (`base.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import weights
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, need, reason
from rcdm_fast.encoders.layers import LayerOutput
from rcdm_fast.encoders.sources import Source

log = logging.getLogger(__name__)

OPTIONS = weights.OPTIONS | {"pretrained"}
AUXILIARY = ("googlenet", "inception_v3")  # have classifiers in their middle, which are for training
HEADS = ("fc", "classifier", "heads", "head")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load(source: Source, fields: Mapping[str, Any]) -> Network:
    """A torchvision classification model whose last linear layer is removed, and its convention.

    ``pretrained=1`` takes the library's default weights, ``weights=`` one of its weight names (``IMAGENET1K_V1``) or a
    local file; without either the weights are random, the same every time. Named weights bring their own convention;
    otherwise it is that of the model's first published weights. ``cls`` and ``mean`` pooling of a vision transformer's
    ``backbone`` read the tokens of its ``encoder``.

    Raises:
        EncoderError: torchvision is missing, the name is unknown, or the weights cannot be had or do not fit.
    """
    models = need("torchvision.models", "encoders")
    if source.name not in models.list_models(module=models):
        raise EncoderError(f"{source.shown}: torchvision has no classification model of that name")
    named, path = _named_weights(models, source)
    keywords: dict[str, Any] = {}
    if named is None and source.name.startswith("vit_") and "image_size" in fields:
        keywords["image_size"] = fields["image_size"]
    if path and source.name in AUXILIARY:
        keywords["aux_logits"] = False
    model = _create(models, source, named, keywords)
    name, _ = last_linear(model, source)
    model.set_submodule(name, nn.Identity())
    if path:
        weights.load_into(model, source, (name,))
    elif named is None:
        log.warning("%s: random weights (add pretrained=1 or weights=...)", source)
    forward = None
    tokens = isinstance(model, models.VisionTransformer)
    if tokens and fields.get("layer", "backbone") == "backbone" and fields.get("pooling", "none") != "none":
        forward = LayerOutput(model, "encoder")
    convention = _convention(models, source, named, getattr(model, "image_size", None))
    return Network(model, convention, forward, prefix_tokens=1 if tokens else None)


def last_linear(model: nn.Module, source: Source) -> tuple[str, nn.Module]:
    """Name and module of the last linear layer (or 1x1 convolution) of a model's classifier."""
    for head in HEADS:
        if isinstance(getattr(model, head, None), nn.Module):
            layers = model.get_submodule(head).named_modules(prefix=head)
            linear: list[tuple[str, nn.Module]] = [i for i in layers if isinstance(i[1], nn.Linear | nn.Conv2d)]
            if linear:
                return linear[-1]
    raise EncoderError(f"{source.shown}: no classifier to remove in this model")


def _named_weights(models: Any, source: Source) -> tuple[Any, str | None]:
    """The weights' enum member, or the path of a local file, as the options say."""
    choice = source.options.get("weights")
    if not choice and not source.flag("pretrained"):
        return None, None
    known = models.get_model_weights(source.name)
    if not choice:
        return known.DEFAULT, None
    if source.flag("pretrained"):
        raise EncoderError(f"{source.shown}: give pretrained=1 or weights=..., not both")
    if choice in known.__members__:
        return known[choice], None
    return None, choice


def _create(models: Any, source: Source, named: Any, keywords: Mapping[str, Any]) -> nn.Module:
    try:
        with weights.repeatable():
            model: nn.Module = models.get_model(source.name, weights=named, **keywords)
    except Exception as error:
        raise EncoderError(f"{source.shown}: torchvision cannot make this model ({reason(error)})") from error
    return model


def _convention(models: Any, source: Source, named: Any, image_size: int | None) -> EncoderConfig:
    chosen = named if named is not None else next(iter(models.get_model_weights(source.name)))
    preset = chosen.transforms()
    size = image_size or preset.crop_size[0]
    resize_to = preset.resize_size[0] if size == preset.crop_size[0] else size
    return EncoderConfig(
        source=str(source),
        image_size=size,
        resize_to=resize_to,
        interpolation="bicubic" if preset.interpolation.value == "bicubic" else "bilinear",
        rounding="torchvision",
        mean=tuple(preset.mean) if preset.mean else IMAGENET_MEAN,
        std=tuple(preset.std) if preset.std else IMAGENET_STD,
    )
