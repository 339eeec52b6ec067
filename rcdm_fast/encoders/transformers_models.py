"""Encoders of Hugging Face transformers: ``transformers:NAME_OR_FOLDER`` (DINOv2, I-JEPA, CLIP, ViT, ConvNeXt...).

The input convention comes from the model's image processor (`processors.py`). Code inside model repositories is never
run.

Does not know how images are resized or layers pooled (`base.py`).
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import downloads
from rcdm_fast.config import EncoderConfig, Pooling
from rcdm_fast.doors import door, printable, regular_folder
from rcdm_fast.encoders import weights
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, need, reason
from rcdm_fast.encoders.processors import check, read_convention
from rcdm_fast.encoders.sources import Source

log = logging.getLogger(__name__)

OPTIONS = frozenset({"revision"})
MAX_DEPTH = 1000  # layers; the deepest vision networks have about a hundred


class Tower(nn.Module):
    """A vision network called with images only; `projector` on top of its pooled output where there is one.

    Args:
        backbone: a vision network of transformers.
        projector: its projection, or None.
        image_size: pixels of the images it will see.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module | None, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        if projector is not None:
            self.projector = projector
        self.keywords: dict[str, Any] = {"return_dict": True}
        trained_at = getattr(backbone.config, "image_size", image_size)
        if trained_at != image_size and "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters:
            self.keywords["interpolate_pos_encoding"] = True

    def forward(self, x: Tensor) -> Any:
        """[N,3,s,s] -> the backbone's named outputs, or [N,D] with a projector."""
        output = self.backbone(pixel_values=x, **self.keywords)
        return self.projector(output.pooler_output) if hasattr(self, "projector") else output


def load(source: Source, fields: Mapping[str, Any]) -> Network:
    """The vision network of a transformers model.

    Pooling defaults to what the model is made for: ``none`` (its own pooled output) for CLIP, SigLIP and convolutional
    networks, ``cls`` where there is a class token, ``mean`` otherwise. ``projector`` is CLIP's visual projection. A
    masked auto-encoder sees the whole image. The image processor is not read when size, mean and std are all given.

    Raises:
        EncoderError: transformers is missing; no such model, or not one of images; weights are missing from the file.
    """
    transformers = need("transformers", "encoders")
    folder = os.path.isdir(source.name)
    if folder:
        with door(EncoderError, f"{source.shown}: cannot be read"):
            regular_folder(source.name)
    local = folder or downloads.offline()
    where: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if "revision" in source.options:
        where["revision"] = source.options["revision"]
    if {"image_size", "mean", "std"} <= fields.keys():
        convention = EncoderConfig(str(source), image_size=fields["image_size"], mean=fields["mean"], std=fields["std"])
    else:
        convention = _convention(transformers, source, where, fields)
    model, missing = _model(transformers, source, where)
    backbone = getattr(model, "vision_model", model)
    if not isinstance(backbone, nn.Module) or "pixel_values" not in inspect.signature(backbone.forward).parameters:
        raise EncoderError(f"{source.shown}: {type(model).__name__} does not take images")
    projector = getattr(model, "visual_projection", None)
    size = fields.get("image_size", convention.image_size)
    tower = Tower(backbone, projector, size).eval()
    pooling, prefix_tokens = _structure(source, tower, size)
    if missing and fields.get("pooling", pooling) == "none":
        raise EncoderError(f"{source.shown}: the file has no weights of the pooler; choose pooling=cls or pooling=mean")
    convention = dataclasses.replace(convention, pooling=pooling)
    return Network(tower, convention, prefix_tokens=prefix_tokens)


def _model(transformers: Any, source: Source, where: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """The model, and names of pooler weights that its file lacks; other missing weights are an error."""
    try:
        config = transformers.AutoConfig.from_pretrained(source.name, **where)
        if config.model_type == "vit_mae":
            config.mask_ratio = 0.0
        _check_depth(config.to_dict())
        architecture = (config.architectures or [""])[0]
        projects = architecture.endswith("VisionModelWithProjection")  # AutoModel would leave the projection out
        with weights.repeatable():
            model, report = getattr(transformers, architecture if projects else "AutoModel").from_pretrained(
                source.name, config=config, dtype=torch.float32, output_loading_info=True, **where
            )
    except Exception as error:
        raise EncoderError(f"{source.shown}: transformers cannot load it ({reason(error)})") from error
    missing = sorted(report["missing_keys"])
    fatal = [name for name in missing if "pooler" not in name.split(".")]
    if fatal:
        raise EncoderError(f"{source.shown}: the file has no weights for {', '.join(fatal[:5])} ({len(fatal)} in all)")
    if report["unexpected_keys"]:
        log.info("%s: %d weights in the file are not part of the encoder", source, len(report["unexpected_keys"]))
    return model, missing


def _check_depth(config: Mapping[str, Any]) -> None:
    """Layers are built one by one, before anything shows that the file has no weights for them."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_depth(value)
        named = any(word in str(key) for word in ("layers", "depth", "blocks"))
        numbers = value if isinstance(value, list | tuple) else [value]
        if named and any(isinstance(number, int) and number > MAX_DEPTH for number in numbers):
            raise ValueError(f"{key} is {printable(value)}; at most {MAX_DEPTH} are built")


def _structure(source: Source, tower: Tower, size: int) -> tuple[Pooling, int | None]:
    """Default pooling, and the number of tokens before the patches (None without tokens), from one gray image."""
    try:
        with torch.inference_mode():
            output = tower.backbone(torch.zeros(1, 3, size, size), **tower.keywords)
    except Exception as error:
        raise EncoderError(f"{source.shown}: fails on an image of {size} px ({reason(error)})") from error
    hidden, pooled = output.get("last_hidden_state"), output.get("pooler_output")
    prefix: int | None = None
    patch = getattr(tower.backbone.config, "patch_size", None)
    if isinstance(hidden, Tensor) and hidden.ndim == 3 and isinstance(patch, int):
        extra = hidden.shape[1] - (size // patch) ** 2
        prefix = extra if extra > 0 else 0
    if pooled is not None and (prefix in (None, 0) or hasattr(tower.backbone, "post_layernorm")):
        return "none", prefix
    return ("cls" if prefix else "mean"), prefix


def _convention(
    transformers: Any, source: Source, where: Mapping[str, Any], fields: Mapping[str, Any]
) -> EncoderConfig:
    """What the model's own image processor does, read from its keys and then tried on images."""
    need("torchvision", "encoders")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source.name, **where)
        data: Mapping[str, Any] = processor.to_dict()
    except Exception as error:
        raise EncoderError(
            f"{source.shown}: no image processor ({reason(error)}); give image_size, mean and std as options to do "
            "without"
        ) from error
    convention = read_convention(source, data, fields.keys())
    check(source, processor, convention)
    return convention
