"""What an image processor of transformers does to an image, as an `EncoderConfig`; what that cannot say is refused.

A processor is a class with keys, and both are lists of what is understood here: another class, or another key that is
set to something, is refused by name and never ignored. What was understood is then tried on images (`check`): the
processor itself decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from rcdm_fast.config import EncoderConfig, Interpolation
from rcdm_fast.doors import door, printable
from rcdm_fast.encoders import preprocess
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.encoders.sources import Source
from rcdm_fast.images import from_pil

BY_HAND = "state image_size, mean and std (and resize, resize_to, interpolation, channel_order) as options instead"
TOLERANCE = 0.02  # relative L2; rounding to 8 bits and to whole pixels make up to 0.006, a wrong filter or step 0.05

RESAMPLING: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
# Resize, center crop, rescale, normalize, each if its key says so.
_PLAIN = frozenset(
    [
        "Beit",
        "Bit",
        "Blip",
        "CLIP",
        "Chameleon",
        "ChineseCLIP",
        "DINOv3ViT",
        "DPT",
        "DeiT",
        "DepthPro",
        "Flava",
        "Gemma3",
        "Llava",
        "MobileNetV1",
        "MobileNetV2",
        "OwlViT",
        "PPChart2Table",
        "PPDocLayoutV2",
        "PPDocLayoutV3",
        "PPDocLayoutV4",
        "PromptDepthAnything",
        "Pvt",
        "RTDetr",
        "Sam2",
        "Sam3",
        "SegGpt",
        "Segformer",
        "Siglip",
        "Tipsv2",
        "Tipsv2Dpt",
        "ViT",
    ]
)
_SPECIAL = frozenset(["ConvNext", "EfficientNet", "Levit", "MobileViT", "PoolFormer"])
_PIXEL_KEYS = frozenset(
    [
        "size",
        "crop_size",
        "resample",
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "rescale_factor",
        "do_normalize",
        "image_mean",
        "image_std",
        "crop_pct",
        "rescale_offset",
        "include_top",
        "do_flip_channel_order",
    ]
)
# About other outputs than the image, or about forms in which an image never comes here.
_WITHOUT_EFFECT = frozenset(
    [
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "model_input_names",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "disable_grouping",
        "do_convert_rgb",
        "default_to_square",
        "do_reduce_labels",
        "reduce_labels",
        "do_convert_annotations",
        "format",
        "mask_size",
        "prompt_scale_to_meter",
        "input_size_patches",
        "total_mask_patches",
        "mask_group_min_patches",
        "mask_group_max_patches",
        "mask_group_min_aspect_ratio",
        "mask_group_max_aspect_ratio",
        "return_image_mask",
        "return_codebook_pixels",
        "_valid_processor_keys",
    ]
)
_NEUTRAL = {"ensure_multiple_of": 1, "size_divisor": 1}  # values of keys that then change nothing


def read_convention(
    source: Source, processor: Mapping[str, Any], stated: Collection[str] = frozenset()
) -> EncoderConfig:
    """The input convention that an image processor describes.

    Args:
        source: named in errors, and in the result.
        processor: its keys, as `to_dict` gives them. Without an ``image_processor_type`` a plain one is meant.
        stated: fields of an `EncoderConfig` that the user states; an interpolation that we do not have is no
            error then.

    Raises:
        EncoderError: an unknown class or key, values of wrong types, or steps that an `EncoderConfig` cannot say:
            padding, tiles, another resampling than bilinear and bicubic, images that are not resized or not square.
    """
    with door(EncoderError, f"{source.shown}: its image processor cannot be read"):
        return _read(source, processor, stated)


def _read(source: Source, processor: Mapping[str, Any], stated: Collection[str]) -> EncoderConfig:
    typed = "image_processor_type" in processor
    given = str(processor.get("image_processor_type", "image processor"))
    name = printable(given)
    kind = given.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    _understood(source, name, kind if typed else "", processor)

    def on(key: str) -> bool:  # an instance leaves out what is None; a bare description leaves out what is usual
        return bool(processor.get(key, not typed))

    if not on("do_resize"):
        raise EncoderError(f"{source.shown}: its {name} does not resize images, which must have one size; {BY_HAND}")
    squash, resize_to = _sides(source, name, processor.get("size") or {}, "size")
    image_size = resize_to
    if kind == "ConvNext":  # below 384 px the size is that of the crop
        squash = resize_to >= 384
        resize_to = resize_to if squash else int(resize_to / processor["crop_pct"])
    elif kind == "Levit" and not squash:
        resize_to = int(256 / 224 * resize_to)
        image_size = resize_to
    elif kind == "PoolFormer" and processor.get("crop_pct"):
        squash, resize_to = False, int(resize_to / processor["crop_pct"])
        image_size = resize_to
    elif not typed and processor.get("crop_pct"):
        raise EncoderError(f"{source.shown}: crop_pct of an unnamed image processor is not understood; {BY_HAND}")
    if processor.get("do_center_crop"):
        fixed, image_size = _sides(source, name, processor.get("crop_size") or {}, "crop_size")
        if not fixed:
            raise EncoderError(f"{source.shown}: crop_size of its {name} is not supported; {BY_HAND}")
    if not squash and image_size == resize_to and not _square(kind, processor):
        raise EncoderError(f"{source.shown}: its {name} makes images that are not square; {BY_HAND}")
    mean, std = _normalization(kind, processor, on)
    return EncoderConfig(
        source=str(source),
        image_size=image_size,
        resize="squash" if squash else "short_side",
        resize_to=resize_to,
        rounding="transformers",
        border="black" if resize_to < image_size else "none",
        interpolation=_interpolation(source, name, processor.get("resample"), stated),
        mean=mean,
        std=std,
        channel_order="bgr" if kind == "MobileViT" and processor.get("do_flip_channel_order") else "rgb",
    )


def check(source: Source, processor: Any, convention: EncoderConfig) -> None:
    """Try a convention against the processor that it was read from, on images of three shapes.

    Raises:
        EncoderError: the processor makes something else of them, or fails.
    """
    for width, height in ((480, 320), (320, 480), (800, 200)):
        photo = _photo(width, height)
        with door(EncoderError, f"{source.shown}: {type(processor).__name__} fails on an image; {BY_HAND}"):
            theirs = processor(photo, return_tensors="pt")["pixel_values"]
            theirs = theirs.to(torch.float32)
        ours = preprocess.normalize(preprocess.view(from_pil(photo), convention), convention)
        shape = list(getattr(theirs, "shape", ()))
        if shape != list(ours.shape):
            raise EncoderError(
                f"{source.shown}: {type(processor).__name__} makes {shape} of an image, not {list(ours.shape)}; "
                f"{BY_HAND}"
            )
        error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
        if not error <= TOLERANCE:
            raise EncoderError(
                f"{source.shown}: what {type(processor).__name__} does to images is not understood here (relative "
                f"error {error:.2f} on an image of {width}x{height}); {BY_HAND}"
            )


def _understood(source: Source, name: str, kind: str, processor: Mapping[str, Any]) -> None:
    """Refuse a class and keys that are not on the lists; "" stands for a plain processor without a name."""
    if kind and kind not in _PLAIN | _SPECIAL:
        raise EncoderError(f"{source.shown}: the image processor {name} is not supported; {BY_HAND}")
    for key, value in processor.items():
        known = key in _PIXEL_KEYS or key in _WITHOUT_EFFECT or key.startswith("codebook_")
        neutral = value is None or value is False or value in ({}, [], "", 0) or value == _NEUTRAL.get(key)
        if not known and not neutral:
            raise EncoderError(
                f"{source.shown}: {printable(key)}={_shown(value)} of its {name} is not supported; {BY_HAND}"
            )
    own = {"include_top": "EfficientNet", "rescale_offset": "EfficientNet", "do_flip_channel_order": "MobileViT"}
    for key, owner in own.items():
        if processor.get(key) and kind not in ("", owner):
            raise EncoderError(f"{source.shown}: {key} of its {name} is not supported; {BY_HAND}")
    if processor.get("crop_pct") and kind not in ("", "ConvNext", "PoolFormer"):
        raise EncoderError(f"{source.shown}: crop_pct of its {name} is not supported; {BY_HAND}")


def _shown(value: Any) -> str:
    """A value in an error, of reasonable length."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}..."


def _square(kind: str, processor: Mapping[str, Any]) -> bool:
    """Whether something makes an image square whose short side alone was given a size."""
    return bool(processor.get("do_center_crop")) or kind == "ConvNext"


def _normalization(
    kind: str, processor: Mapping[str, Any], on: Any
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std on a scale of [0,1] that amount to a processor's rescaling and normalization."""
    levels = 255.0 * float(processor.get("rescale_factor", 1 / 255)) if on("do_rescale") else 255.0
    offset = 1.0 if processor.get("rescale_offset") and on("do_rescale") else 0.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if kind != "MobileViT" and on("do_normalize") and processor.get("image_mean") is not None:
        mean, std = _three(processor["image_mean"]), _three(processor["image_std"])
    after = (1.0,) * 3
    if processor.get("include_top"):  # EfficientNet divides by std once more
        after = _three(processor["image_std"])
    return (
        _three([(value + offset) / levels for value in mean]),
        _three([value * again / levels for value, again in zip(std, after, strict=True)]),
    )


def _three(value: Any) -> tuple[float, float, float]:
    numbers = [float(item) for item in value] if isinstance(value, list | tuple) else [float(value)] * 3
    red, green, blue = numbers if len(numbers) != 1 else numbers * 3
    return red, green, blue


def _interpolation(source: Source, name: str, resample: Any, stated: Collection[str]) -> Interpolation:
    number = 2 if resample is None else int(resample)
    if number not in RESAMPLING and "interpolation" not in stated:
        known = {0: "nearest", 1: "Lanczos", 4: "box", 5: "Hamming"}.get(number, _shown(number))
        raise EncoderError(
            f"{source.shown}: its {name} resizes by {known} interpolation, which is not supported; to see images as "
            "nearly as can be, say interpolation=bicubic"
        )
    return RESAMPLING.get(number, "bicubic")


def _sides(source: Source, name: str, size: Any, key: str) -> tuple[bool, int]:
    """(whether both sides are fixed, pixels) of a size entry."""
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size} if key == "crop_size" else {"shortest_edge": size}
    stated = {edge: value for edge, value in dict(size).items() if value is not None}
    if stated.keys() == {"shortest_edge"}:
        return False, int(stated["shortest_edge"])
    if stated.keys() == {"height", "width"} and stated["height"] == stated["width"]:
        return True, int(stated["height"])
    if not stated:
        raise EncoderError(f"{source.shown}: its {name} states no image size; {BY_HAND}")
    raise EncoderError(f"{source.shown}: {key} {_shown(stated)} of its {name} is not supported; {BY_HAND}")


def _photo(width: int, height: int) -> Image.Image:
    """Slow gradients, another one in every color: a pixel's shift is little to them, another crop is much."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = x / width, y / height, (np.sin(9 * x / width) * np.cos(7 * y / height) + 1) / 2
    return Image.fromarray((20 + 215 * np.stack([red, green, blue], -1)).astype(np.uint8))
