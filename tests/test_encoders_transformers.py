"""Encoders of Hugging Face transformers, from small local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import EncoderError, build
from rcdm_fast.encoders.processors import read_convention
from rcdm_fast.encoders.sources import Source
from tests.encoder_checks import close, make_images

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 7,
}
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def save(model: Any, folder: Path, processor: Any) -> Any:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval()


def center_crop() -> Any:
    return transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, image_mean=MEAN, image_std=STD
    )


def square() -> Any:
    return transformers.ViTImageProcessor(size={"height": 28, "width": 28})


def normalized(images: Tensor) -> Tensor:
    return ((images + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_class_token_patches_and_layers(tmp_path: Path, registers: int) -> None:
    network: Any = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE))
    if registers:
        shape = transformers.Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=registers)
        network = transformers.Dinov2WithRegistersModel(shape)
    model = save(network, tmp_path, center_crop())
    images = make_images(28)
    with torch.inference_mode():
        output = model(normalized(images), output_hidden_states=True)
    tokens = output.last_hidden_state
    assert tokens.shape[1] == 1 + registers + 16
    encoder = build(f"transformers:{tmp_path}")
    config = encoder.config
    assert (config.pooling, config.dim, config.resize_to, config.image_size) == ("cls", 16, 32, 28)
    assert (config.resize, config.interpolation, config.mean) == ("short_side", "bicubic", tuple(MEAN))
    assert close(encoder.encode(images), tokens[:, 0])
    mean = build(f"transformers:{tmp_path}?pooling=mean")
    assert close(mean.encode(images), tokens[:, 1 + registers :].mean(1))
    layer = build(f"transformers:{tmp_path}?layer=encoder.layer.0&pooling=cls")
    assert close(layer.encode(images), output.hidden_states[1][:, 0])
    assert close(build(layer.config).encode(images), output.hidden_states[1][:, 0])


def test_clip_backbone_and_projector(tmp_path: Path) -> None:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text |= {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(vision_config=SHAPE, text_config=text, projection_dim=6)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size=28, image_mean=MEAN, image_std=STD
    )
    model = save(transformers.CLIPModel(config), tmp_path / "clip", processor)
    images = make_images(28)
    with torch.inference_mode():
        output = model.vision_model(normalized(images))
        projection = model.visual_projection(output.pooler_output)
    assert close(build(f"transformers:{tmp_path}/clip").encode(images), output.pooler_output)
    projector = build(f"transformers:{tmp_path}/clip?layer=projector&normalize=1")
    assert close(projector.encode(images), F.normalize(projection, dim=1))
    mean = build(f"transformers:{tmp_path}/clip?pooling=mean").encode(images)
    assert close(mean, output.last_hidden_state[:, 1:].mean(1))

    alone = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**SHAPE, projection_dim=6))
    save(alone, tmp_path / "vision", processor)
    with torch.inference_mode():
        expected = alone(normalized(images)).image_embeds
    assert close(build(f"transformers:{tmp_path}/vision?layer=projector").encode(images), expected)


def test_ijepa_has_no_class_token(tmp_path: Path) -> None:
    model = save(transformers.IJepaModel(transformers.IJepaConfig(**SHAPE)), tmp_path, square())
    images = make_images(28)
    with torch.inference_mode():
        tokens = model(images).last_hidden_state
    encoder = build(f"transformers:{tmp_path}")
    assert (encoder.config.pooling, encoder.config.resize) == ("mean", "squash")
    assert close(encoder.encode(images), tokens.mean(1))
    with pytest.raises(EncoderError, match="no class token"):
        build(f"transformers:{tmp_path}?pooling=cls")


def test_convolutional_networks_use_their_own_pooling(tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1], image_size=32)
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, image_mean=MEAN, image_std=STD)
    model = save(transformers.ConvNextModel(config), tmp_path, processor)
    images = make_images(32, 32)
    with torch.inference_mode():
        output = model(normalized(images))
    encoder = build(f"transformers:{tmp_path}")
    assert (encoder.config.pooling, encoder.config.resize_to) == ("none", int(32 / processor.crop_pct))
    assert close(encoder.encode(images), output.pooler_output)
    mean = build(f"transformers:{tmp_path}?pooling=mean").encode(images)
    assert close(mean, output.last_hidden_state.mean((2, 3)))


def test_other_image_sizes_interpolate_positions(tmp_path: Path) -> None:
    model = save(transformers.ViTModel(transformers.ViTConfig(**SHAPE)), tmp_path, square())
    images = make_images(42, 42)
    with torch.inference_mode():
        tokens = model(images, interpolate_pos_encoding=True).last_hidden_state
    encoder = build(f"transformers:{tmp_path}?image_size=42&pooling=mean")
    assert close(encoder.encode(images), tokens[:, 1:].mean(1))


def test_missing_weights_are_an_error_unless_unused(tmp_path: Path) -> None:
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE))
    save(classifier, tmp_path / "classifier", square())
    images = make_images(28)
    with torch.inference_mode():
        tokens = classifier.vit(images).last_hidden_state
    assert close(build(f"transformers:{tmp_path}/classifier").encode(images), tokens[:, 0])
    with pytest.raises(EncoderError, match="no weights of the pooler"):
        build(f"transformers:{tmp_path}/classifier?pooling=none")

    deeper = transformers.ViTConfig(**{**SHAPE, "num_hidden_layers": 3})
    deeper.save_pretrained(tmp_path / "classifier")
    with pytest.raises(EncoderError, match="no weights for"):
        build(f"transformers:{tmp_path}/classifier")


def test_folders_that_hold_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="give image_size, mean and std"):
        build(f"transformers:{tmp_path}")
    with pytest.raises(EncoderError, match="cannot load it"):
        build(f"transformers:{tmp_path}?image_size=28&mean=0.5&std=0.5")
    words = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    transformers.BertModel(words).save_pretrained(tmp_path / "words")
    with pytest.raises(EncoderError, match="does not take images"):
        build(f"transformers:{tmp_path}/words?image_size=28&mean=0.5&std=0.5")
    text = (tmp_path / "words" / "config.json").read_text()
    (tmp_path / "words" / "config.json").write_text(text.replace('hidden_layers": 1', 'hidden_layers": 32769'))
    with pytest.raises(EncoderError, match="num_hidden_layers is 32769; at most 1000 are built"):
        build(f"transformers:{tmp_path}/words?image_size=28&mean=0.5&std=0.5")


SOURCE = Source("transformers", "somewhere")


def test_conventions_of_image_processors() -> None:
    plain = {"size": {"height": 30, "width": 30}, "resample": 3, "image_mean": MEAN, "image_std": STD}
    expected = EncoderConfig(
        str(SOURCE),
        image_size=30,
        resize="squash",
        resize_to=30,
        interpolation="bicubic",
        rounding="transformers",
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    )
    assert read_convention(SOURCE, plain) == expected
    raw = read_convention(SOURCE, {**plain, "do_normalize": False})
    assert (raw.mean, raw.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    twice = read_convention(SOURCE, {**plain, "rescale_factor": 2 / 255, "rescale_offset": True})
    x = torch.rand(5)
    assert close((x - twice.mean[0]) / twice.std[0], (2 * x - 1 - MEAN[0]) / STD[0])
    cropped = read_convention(SOURCE, {**plain, "do_center_crop": True, "crop_size": {"height": 26, "width": 26}})
    assert (cropped.resize, cropped.resize_to, cropped.image_size) == ("squash", 30, 26)


@pytest.mark.parametrize("size", [{"height": 30, "width": 20}, {"longest_edge": 30}, {}])
def test_processors_that_are_not_supported(size: dict[str, int]) -> None:
    with pytest.raises(EncoderError, match="image processor"):
        read_convention(SOURCE, {"size": size})
