"""What image processors of transformers do to an image: matched, or refused by name; all that are installed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.auto import image_processing_auto as auto

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import EncoderError, build, preprocess
from rcdm_fast.encoders.processors import check, read_convention
from rcdm_fast.encoders.sources import Source
from rcdm_fast.images import from_pil
from tests.tolerances import PROCESSOR_L2

SOURCE = Source("transformers", "somewhere")
MAPPING: dict[str, dict[str, str | None]] = vars(auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
NAMES = sorted({name for names in MAPPING.values() for name in names.values() if name})
# What single classes are known for, and must not be refused for.
HONOURED = (
    "EfficientNet",
    "MobileViT",
    "Levit",
    "ConvNext",
    "PoolFormer",
    "ViT",
    "CLIP",
    "Siglip",
    "Bit",
    "DeiT",
    "Beit",
)
REFUSED = ("BridgeTower", "Owlv2", "Vilt", "Detr", "Perceiver", "Pixtral", "Siglip2", "Qwen2VL", "Donut", "Chameleon")


def photo(width: int, height: int) -> Image.Image:
    """Waves of another length in every color, and nothing symmetric."""
    y, x = np.mgrid[0:height, 0:width]
    waves = (100 * np.sin(x / 29), 100 * np.cos(y / 17) + y / 16, 90 * np.sin((x + y) / 38))
    return Image.fromarray((128 + np.stack(waves, -1)).clip(0, 255).astype(np.uint8))


def seen(image: Image.Image, config: EncoderConfig) -> Tensor:
    return preprocess.normalize(preprocess.view(from_pil(image), config), config)


def made(name: str, **changes: Any) -> Any:
    """A processor as its class makes it, or None where that needs more than we have here."""
    with contextlib.suppress(ImportError, TypeError, ValueError):
        return auto.get_image_processor_class_from_name(name)(**changes)
    return None


def matches(processor: Any, config: EncoderConfig) -> bool:
    for width, height in ((480, 320), (320, 480)):  # sides that stay whole numbers of pixels at any even size
        image = photo(width, height)
        theirs = processor(image, return_tensors="pt")["pixel_values"].float()
        ours = seen(image, config)
        if ours.shape != theirs.shape or (ours - theirs).norm() > PROCESSOR_L2 * theirs.norm():
            return False
    return True


def refused(data: dict[str, Any]) -> str:
    """Why a processor is refused; empty if it is not."""
    try:
        read_convention(SOURCE, data)
    except EncoderError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_every_processor_is_matched_or_refused_by_name(name: str) -> None:
    processor, public = made(name), name.removesuffix("Pil")
    if processor is None:
        data: dict[str, Any] = {"image_processor_type": name, "size": {"height": 32, "width": 32}}
    else:
        data = processor.to_dict()
    refusal = refused(data)
    if refusal:
        assert public in refusal
        assert "image_size, mean and std" in refusal or "interpolation=" in refusal
        assert public.removesuffix("ImageProcessor") not in HONOURED
        return
    config = read_convention(SOURCE, data)
    assert public.removesuffix("ImageProcessor") not in REFUSED
    assert matches(processor, config)
    if public in ("ViTImageProcessor", "LevitImageProcessor", "MobileViTImageProcessor"):
        check(SOURCE, processor, config)


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("EfficientNet", {"include_top": False}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNet", {"do_center_crop": True}),
    ("EfficientNet", {"do_normalize": False}),
    ("MobileViT", {"do_flip_channel_order": False}),
    ("MobileViT", {"size": {"shortest_edge": 288}}),
    ("MobileViT", {"do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}),
    ("Levit", {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}),
    ("ConvNext", {"size": {"shortest_edge": 224}}),
    ("ConvNext", {"size": {"shortest_edge": 288}, "crop_pct": 0.9}),
    ("PoolFormer", {"crop_pct": 0.95, "size": {"shortest_edge": 114}, "crop_size": {"height": 114, "width": 114}}),
    ("ViT", {"do_normalize": False}),
    ("ViT", {"do_normalize": None}),
    ("ViT", {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}),
    ("CLIP", {"crop_size": {"height": 256, "width": 256}}),  # larger than the resized image: a black border
    ("DeiT", {"size": {"height": 128, "width": 128}, "crop_size": {"height": 160, "width": 160}}),
]


@pytest.mark.parametrize(("kind", "changes"), CHANGES)
@pytest.mark.parametrize("backend", ["", "Pil"])
def test_keys_that_change_pixels_are_honoured(kind: str, changes: dict[str, Any], backend: str) -> None:
    processor = made(f"{kind}ImageProcessor{backend}", **changes)
    config = read_convention(SOURCE, processor.to_dict())
    assert matches(processor, config)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ViT", {"resample": 0}),
        ("ViT", {"resample": 1}),
        ("ViT", {"do_resize": False}),
        ("ViT", {"size": {"shortest_edge": 32}}),
        ("ViT", {"size": {"shortest_edge": 32, "longest_edge": 64}}),
        ("CLIP", {"do_center_crop": False}),
        ("CLIP", {"do_pad": True, "pad_size": {"height": 300, "width": 300}}),
        ("CLIP", {"crop_size": {"height": 224, "width": 200}}),
        ("Llava", {"do_pad": True}),
        ("DPT", {"keep_aspect_ratio": True, "ensure_multiple_of": 32}),
        ("GotOcr2", {"crop_to_patches": True}),
    ],
)
def test_keys_that_cannot_be_honoured_are_refused(kind: str, changes: dict[str, Any]) -> None:
    processor = made(f"{kind}ImageProcessor", **changes)
    with pytest.raises(EncoderError, match=f"somewhere: .*{kind}ImageProcessor"):
        read_convention(SOURCE, processor.to_dict())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"do_sharpen": True}, "do_sharpen=True"),
        ({"gamma": 2.2}, "gamma=2.2"),
        ({"image_processor_type": "SharpeningImageProcessor"}, "SharpeningImageProcessor is not supported"),
        ({"do_flip_channel_order": True, "image_processor_type": "ViTImageProcessor"}, "do_flip_channel_order"),
        ({"size": "large"}, "cannot be read"),
        ({"image_mean": "bright"}, "cannot be read"),
        ({"image_mean": [0.5, 0.5]}, "cannot be read"),
        ({"rescale_factor": 0}, "cannot be read"),
        ({"size": [[[3]]]}, "cannot be read"),
    ],
)
def test_what_is_not_understood_is_never_ignored(data: dict[str, Any], message: str) -> None:
    plain = {"size": {"height": 30, "width": 30}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert read_convention(SOURCE, {**plain, "do_sharpen": False, "gamma": None}).image_size == 30
    with pytest.raises(EncoderError, match=message):
        read_convention(SOURCE, plain | data)


def test_an_interpolation_can_be_stated_instead() -> None:
    processor = made("ViTImageProcessor", resample=1)
    config = read_convention(SOURCE, processor.to_dict(), {"interpolation"})
    assert config.interpolation == "bicubic"
    check(SOURCE, processor, config)


class Sharpened(transformers.ViTImageProcessor):
    """Says what its parent says, and does something else."""

    def rescale_and_normalize(self, *arguments: Any, **keywords: Any) -> Tensor:
        out: Tensor = super().rescale_and_normalize(*arguments, **keywords)
        return out * 1.2


def test_a_convention_is_tried_on_images() -> None:
    config = read_convention(SOURCE, transformers.ViTImageProcessor().to_dict())
    with pytest.raises(EncoderError, match=r"Sharpened does to images.*relative error 0\.17"):
        check(SOURCE, Sharpened(), config)


def test_an_encoder_sees_what_its_processor_makes(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "hidden_sizes": [8, 8, 16],
        "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 16],
        "num_attention_heads": 2,
    }
    network: Any = transformers.MobileViTModel(transformers.MobileViTConfig(image_size=64, **shape))
    network.eval()
    network.save_pretrained(tmp_path)
    processor = made("MobileViTImageProcessor", size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    image = photo(480, 320)
    with torch.inference_mode():
        expected = network(**processor(image, return_tensors="pt")).pooler_output
    encoder = build(f"transformers:{tmp_path}")
    assert encoder.config.channel_order == "bgr"
    found = encoder.encode(from_pil(image))
    assert (found - expected).norm() <= PROCESSOR_L2 * expected.norm()

    described = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**described, "do_sharpen": True}))
    with pytest.raises(EncoderError, match="do_sharpen"):
        build(f"transformers:{tmp_path}")
    by_hand = build(
        f"transformers:{tmp_path}?image_size=64&resize_to=72&mean=0&std=1&channel_order=bgr&interpolation=bicubic"
    )
    assert (by_hand.encode(from_pil(image)) - expected).norm() <= PROCESSOR_L2 * expected.norm()


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 16, "width": "x" * 5000}},
        {"size": {"x\n" * 5000: 3}},
        {"size": "y" * 5000},
        {"crop_size": {"height": [7] * 5000, "width": 3}, "do_center_crop": True},
        {"resample": 10**3000},
        {"resample": "z" * 5000},
        {"k\n" * 5000: 1},
        {"padding": ["p" * 5000]},
        {"image_processor_type": "t\n" * 5000},
        {"image_mean": ["m" * 5000] * 3, "do_normalize": True},
    ],
    ids=lambda changes: " ".join(key[:20].strip() for key in changes),
)
def test_what_a_file_says_is_repeated_in_one_line_of_bounded_length(changes: dict[str, Any]) -> None:
    whole = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True}
    message = refused({**whole, **changes})
    assert message.startswith("transformers:somewhere: ")
    assert len(message) < 1000
    assert message.isprintable()
