"""Encoders of timm: ``timm:NAME``, with random, published or local weights.

Does not know how images are resized or layers pooled (`base.py`).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import weights
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, need, reason
from rcdm_fast.encoders.sources import Source

log = logging.getLogger(__name__)

OPTIONS = weights.OPTIONS | {"pretrained"}
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "bicubic", "random": "bicubic"}


def load(source: Source, fields: Mapping[str, Any]) -> Network:
    """A timm model without its classifier, and the convention of its `pretrained_cfg`.

    ``backbone`` with pooling ``none`` is the pooled representation before the classifier; with ``cls`` or ``mean`` the
    unpooled `forward_features` is taken. Without ``pretrained=1`` or ``weights=FILE`` the weights are random,
    the same every time.

    Raises:
        EncoderError: timm is missing, the name is unknown, the weights cannot be had or do not fit, or the model's own
            transform pads images and no option says what to do instead.
    """
    timm = need("timm", "encoders")
    pretrained, path = source.flag("pretrained"), source.options.get("weights")
    if pretrained and path:
        raise EncoderError(f"{source.shown}: give pretrained=1 or weights=FILE, not both")
    model = _create(timm, source, pretrained, fields.get("image_size"))
    if path:
        weights.load_into(model, source, _classifiers(model.pretrained_cfg))
    elif not pretrained:
        log.warning("%s: random weights (add pretrained=1 or weights=FILE)", source)
    pooled = fields.get("layer", "backbone") == "backbone" and fields.get("pooling", "none") == "none"
    unpooled = fields.get("layer", "backbone") == "backbone" and not pooled
    return Network(
        model, _convention(timm, source, model, fields), forward=model.forward_features if unpooled else None
    )


def told_by(model: Any) -> EncoderConfig:
    """The convention that any network of timm's tells of itself. Raises `EncoderError` as `load`."""
    name = str(model.pretrained_cfg.get("architecture") or type(model).__name__)
    return _convention(need("timm", "encoders"), Source("timm", name), model, {})


def _create(timm: Any, source: Source, pretrained: bool, image_size: int | None) -> Any:
    keywords: dict[str, Any] = {"num_classes": 0}
    cfg = timm.get_pretrained_cfg(source.name) if timm.is_model(source.name) else None
    if cfg is not None and image_size is not None and cfg.fixed_input_size and image_size != cfg.input_size[-1]:
        keywords["img_size"] = image_size
    try:
        with weights.repeatable():
            return timm.create_model(source.name, pretrained=pretrained, **keywords)
    except Exception as error:
        near = difflib.get_close_matches(source.name, timm.list_models()) if cfg is None else []
        hint = f"; there are {', '.join(near)}" if near else ""
        raise EncoderError(f"{source.shown}: timm cannot make this model ({reason(error)}){hint}") from error


def _classifiers(cfg: Any) -> tuple[str, ...]:
    """Where the classifier was that this network is made without."""
    named = cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _convention(timm: Any, source: Source, model: Any, fields: Mapping[str, Any]) -> EncoderConfig:
    """At the stated size, if there is one: timm divides by the fraction of the crop, and rounds, at that size."""
    data = timm.data.resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise EncoderError(f"{source.shown}: takes images [{channels},{height},{width}]; only square RGB is supported")
    size = fields.get("image_size", height)
    resize_to = int(size / data["crop_pct"])
    if (data["crop_mode"] == "border" and "resize" not in fields) or (resize_to < size and "resize_to" not in fields):
        raise EncoderError(
            f"{source.shown}: its own transform pads images, which is not supported; to do without it say "
            f"resize=short_side or resize=squash, and resize_to={size}"
        )
    return EncoderConfig(
        source=str(source),
        image_size=size,
        resize="squash" if data["crop_mode"] == "squash" else "short_side",
        resize_to=max(size, resize_to),
        interpolation=INTERPOLATIONS.get(data["interpolation"], "bicubic"),  # type: ignore[arg-type]
        rounding="torchvision",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
