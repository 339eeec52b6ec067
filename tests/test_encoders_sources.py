"""Encoders of timm, torchvision and torch.hub."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from rcdm_fast import config as configs
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import EncoderError, ImageEncoder, build, torchvision_models
from tests.encoder_checks import close, make_images

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def imagenet(images: Tensor) -> Tensor:
    return ((images + 1) / 2 - IMAGENET_MEAN) / IMAGENET_STD


def made(spec: str) -> ImageEncoder:
    encoder = build(spec)
    assert isinstance(encoder, ImageEncoder)
    return encoder


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-18 with seven classes; torchvision and timm use the same names."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    model = torchvision.models.resnet18(num_classes=7)
    safetensors.torch.save_file(model.state_dict(), path)
    return path


def resnet(path: Path) -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=7)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_resnet_backbone_and_layers_equal_a_plain_forward(family: str, resnet_file: Path) -> None:
    reference: Any = resnet(resnet_file)
    images = make_images(32)
    spec = f"{family}:resnet18?weights={resnet_file}&image_size=32"
    with torch.inference_mode():
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(imagenet(images)))))
        layer3 = reference.layer3(reference.layer2(reference.layer1(x)))
        pooled = reference.layer4(layer3).mean((2, 3))
    encoder = build(spec)
    assert encoder.dim == 512
    assert close(encoder.encode(images), pooled)
    assert close(build(f"{spec}&layer=layer3&pooling=mean").encode(images), layer3.mean((2, 3)))
    with pytest.raises(EncoderError, match="choose pooling=mean"):
        build(f"{spec}&layer=layer3")


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_local_weights_are_loaded_strictly(family: str, resnet_file: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(resnet_file)
    del state["layer2.0.bn1.weight"]
    path = tmp_path / "partial.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    with pytest.raises(EncoderError, match=r"layer2\.0\.bn1\.weight"):
        build(f"{family}:resnet18?weights={path}")
    with pytest.raises(EncoderError, match="no such file"):
        build(f"{family}:resnet18?weights={tmp_path}/nothing.pt")
    with pytest.raises(EncoderError, match="not both"):
        build(f"{family}:resnet18?weights={path}&pretrained=1")


def test_nan_weights_are_noticed(resnet_file: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(resnet_file)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    path = tmp_path / "nan.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(EncoderError, match="NaN"):
        build(f"timm:resnet18?weights={path}&image_size=32")


def test_a_configuration_builds_the_same_encoder_again(resnet_file: Path) -> None:
    images = make_images(80)
    spec = f"torchvision:resnet18?weights={resnet_file}&image_size=48&pooling=mean&layer=layer2&normalize=1"
    encoder = build(spec)
    stored = configs.from_json(EncoderConfig, configs.to_json(encoder.config))
    again = build(stored)
    assert again.config == encoder.config
    assert torch.equal(again.encode(images), encoder.encode(images))
    assert close(encoder.encode(images).norm(dim=1), torch.ones(2))


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    images = make_images(32)
    before = torch.get_rng_state()
    first = build("timm:resnet18?image_size=32").encode(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(build("timm:resnet18?image_size=32").encode(images), first)


def test_timm_convention_and_vision_transformer_tokens() -> None:
    spec = "timm:test_vit?image_size=32"
    encoder = made(spec)
    assert encoder.config.mean == (0.5, 0.5, 0.5)
    assert (encoder.config.resize, encoder.config.interpolation) == ("short_side", "bicubic")
    assert encoder.config.resize_to == int(32 / 0.95)  # as timm divides for images of 32 px
    images = make_images(32)
    reference: Any = encoder._network.module
    with torch.inference_mode():
        tokens = reference.forward_features(images)
        block = reference.blocks[0](reference._pos_embed(reference.patch_embed(images)))
    assert tokens.shape[1] == 5
    assert close(encoder.encode(images), tokens[:, 0])
    assert close(build(f"{spec}&pooling=mean").encode(images), tokens[:, 1:].mean(1))
    assert close(build(f"{spec}&layer=blocks.0&pooling=mean").encode(images), block[:, 1:].mean(1))


def test_torchvision_conventions() -> None:
    encoder = build("torchvision:squeezenet1_1?image_size=56")
    assert encoder.dim == 512
    assert (encoder.config.image_size, encoder.config.resize_to) == (56, 64)
    assert encoder.config.interpolation == "bilinear"
    assert close(torch.tensor(encoder.config.mean), IMAGENET_MEAN.flatten())


def test_torchvision_vision_transformer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16).eval()
    monkeypatch.setattr(torchvision_models, "_create", lambda *_: model)
    images = make_images(32)
    with torch.inference_mode():
        patches = model._process_input(imagenet(images))
        tokens = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), patches], dim=1))
    assert tokens.shape == (2, 5, 8)
    spec = "torchvision:vit_b_16?image_size=32"
    assert close(build(f"{spec}&pooling=mean").encode(images), tokens[:, 1:].mean(1))
    model.heads = nn.Sequential(nn.Linear(8, 3))
    assert close(build(spec).encode(images), tokens[:, 0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet19", "resnet18"),
        ("torchvision:resnet19", "no classification model"),
        ("timm:resnet18?layer=layer9&pooling=mean", "layer"),
        ("timm:resnet18?pooling=cls&image_size=32", r"needs tokens \[N,T,D\]"),
    ],
)
def test_names_and_layers_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        build(spec)


HUB = '''
dependencies = ["torch"]
import torch

def flat(pretrained=False):
    """A flattening network."""
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3 if pretrained else 2))
    return layers

def text():
    """No network."""
    return "text"
'''


def test_torchhub_runs_code_only_when_trusted(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUB, encoding="utf-8")
    spec = f"torchhub:{tmp_path}:flat?image_size=8"
    with pytest.raises(EncoderError, match="trust=1"):
        build(spec)
    encoder = build(f"{spec}&trust_repo=1&pretrained=1")
    assert encoder.dim == 3
    assert encoder.config.source == f"torchhub:{tmp_path}:flat?pretrained=1"  # trust is not stored
    with pytest.raises(EncoderError, match=r"if you trust it, give the encoder as torchhub:.*&trust=1"):
        build(encoder.config)
    images = make_images(8)
    assert torch.equal(build(encoder.config, trust_repo=True).encode(images), encoder.encode(images))
    with pytest.raises(ConfigError, match="unknown option"):
        build(dataclasses.replace(encoder.config, source=f"torchhub:{tmp_path}:flat?trust_repo=1"))
    with pytest.raises(EncoderError, match="not a network"):
        build(f"torchhub:{tmp_path}:text?trust_repo=1")
    with pytest.raises(EncoderError, match="cannot load it"):
        build(f"torchhub:{tmp_path}:nothing?trust_repo=1")
    with pytest.raises(ConfigError, match="REPOSITORY:NAME"):
        build("torchhub:nothing")


def test_torchhub_local_weights(tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(HUB, encoding="utf-8")
    weight = torch.randn(2, 192)
    torch.save({"1.weight": weight, "1.bias": torch.zeros(2)}, tmp_path / "weights.pt")
    images = make_images(8)
    encoder = build(
        f"torchhub:{tmp_path}:flat?image_size=8&mean=0.5&std=0.5&weights={tmp_path}/weights.pt&trust_repo=1"
    )
    assert close(encoder.encode(images), images.flatten(1) @ weight.T)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EncoderError, match=r'pip install "\.\[encoders\]"'):
        build("timm:resnet18")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EncoderError, match=r'pip install "\.\[onnx\]"'):
        build("onnx:file.onnx")


@pytest.mark.parametrize(
    "spec",
    [
        "timm:z" + "\0" * 2000,
        "torchvision:" + "x" * 5000,
        "timm:" + "y" * 5000 + "?pretrained=1&weights=z",
        "torchhub:" + "a" * 9000,
        "torchhub:" + "a" * 400 + ":x?trust_repo=1",
        "torchhub:" + "/e" * 4000 + ":x?trust_repo=1",
        "onnx:" + "a" * 300 + ".onnx",
        "onnx:" + "/a" * 4000,
        "transformers:" + "/c" * 3000,
        "timm:resnet18?weights=" + "b" * 5000,
        "published:simclr?weights=" + "h" * 400,
        "native:" + "f" * 400,
        "bundled:" + "g" * 4000,
    ],
    ids=lambda spec: f"{spec[:10]!a}{len(spec)}",
)
def test_a_specification_is_repeated_at_bounded_length(spec: str) -> None:
    with pytest.raises((EncoderError, ConfigError)) as raised:
        build(spec)
    assert len(str(raised.value)) < 1500
    assert str(raised.value).isprintable()
