"""Where the channels of a layer's output are: never a representation that has one number per row of pixels."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import Encoder, EncoderError, build, layout
from tests.encoder_checks import close, make_images

SIZE = 32
CONFIG = EncoderConfig("module", image_size=SIZE, pooling="mean")


def convolution(channels: int, stride: int = 4) -> nn.Module:
    return nn.Conv2d(3, channels, stride, stride)


class Arranged(nn.Module):
    """A convolution [N,C,8,8] whose output is put into another order."""

    def __init__(self, channels: int, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution = convolution(channels)
        self.arrange = arrange

    def forward(self, x: Tensor) -> Tensor:
        return self.arrange(self.convolution(x))


ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NCHW": (lambda x: x, "nchw"),
    "NHWC": (lambda x: x.permute(0, 2, 3, 1), "nhwc"),
    "NTD": (lambda x: x.flatten(2).transpose(1, 2), "nhwc"),
    "NDT": (lambda x: x.flatten(2), "nchw"),
    "flat": (
        lambda x: nn.functional.avg_pool2d(x, (2, 1)),
        "nchw",
    ),  # 4 by 8: with 8 channels the other order is square
    "flat last": (lambda x: nn.functional.avg_pool2d(x, (2, 1)).permute(0, 2, 3, 1), "nhwc"),
}


@pytest.mark.parametrize("channels", [3, 8, 64])  # 8: rows, columns and channels are as many, 64: as many as tokens
@pytest.mark.parametrize("order", ORDERS)
def test_mean_of_any_order(order: str, channels: int) -> None:
    arrange, expected = ORDERS[order]
    network = Arranged(channels, arrange).eval()
    images = make_images(SIZE)
    with torch.no_grad():
        seen = network.convolution(images)
        mean = seen.mean((2, 3))
    encoder = build(network, config=CONFIG)
    assert (encoder.dim, encoder.config.layout) == (channels, expected)
    assert close(encoder.encode(images), mean)
    again = build(network, config=encoder.config)
    assert torch.equal(again.encode(images), encoder.encode(images))


def test_an_order_that_nothing_shows_is_asked_for() -> None:
    network = Arranged(8, lambda x: x.mean((2, 3))[:, :, None] * torch.linspace(1, 2, 5))  # [N,8,5] without places
    with pytest.raises(EncoderError, match=r"\[N,T,D\] or \[N,D,T\]; say layout=nhwc or layout=nchw"):
        build(network, config=CONFIG)
    images = make_images(SIZE)
    for order, width in (("nchw", 8), ("nhwc", 5)):
        encoder = build(network, config=dataclasses.replace(CONFIG, layout=order))  # type: ignore[arg-type]
        assert encoder.dim == width
        assert close(encoder.encode(images), network(images).mean(2 if order == "nchw" else 1).detach())


def test_a_stated_order_is_taken_and_its_width_must_fit() -> None:
    network = Arranged(16, lambda x: x.permute(0, 2, 3, 1))
    assert build(network, config=dataclasses.replace(CONFIG, layout="nchw")).dim == 8
    stored = dataclasses.replace(CONFIG, dim=8)  # of a decoder that was trained on rows of pixels
    with pytest.raises(EncoderError, match=r"gives \[2, 16\], configured are \[2, 8\]"):
        build(network, config=stored).encode(make_images(SIZE))


def test_pooled_maps_of_either_order_are_representations() -> None:
    for arrange in (lambda x: x.mean((2, 3), keepdim=True), lambda x: x.mean((2, 3))[:, None, None]):
        network = Arranged(5, arrange)
        images = make_images(SIZE)
        encoder = build(network, config=dataclasses.replace(CONFIG, pooling="none"))
        assert close(encoder.encode(images), network(images).flatten(1).detach())


def test_layers_before_the_class_token_have_none() -> None:
    spec = "timm:deit_tiny_patch16_224?image_size=64&layer=patch_embed"
    encoder = build(f"{spec}&pooling=mean")
    network: Any = encoder.network  # type: ignore[attr-defined]
    images = make_images(64)
    with torch.no_grad():
        patches = network.patch_embed(normalized(encoder.config, images))
    assert close(encoder.encode(images), patches.mean(1))
    with pytest.raises(EncoderError, match="no class token"):
        build(f"{spec}&pooling=cls")


def test_a_class_token_alone_has_no_patches_to_average() -> None:
    network = Arranged(8, lambda x: x.mean((2, 3))[:, None])
    network.num_prefix_tokens = 1  # type: ignore[assignment]
    with pytest.raises(EncoderError, match="no tokens of patches; choose pooling=cls"):
        build(network, config=CONFIG)
    assert build(network, config=dataclasses.replace(CONFIG, pooling="cls")).dim == 8


def normalized(config: EncoderConfig, images: Tensor) -> Tensor:
    mean, std = torch.tensor(config.mean)[:, None, None], torch.tensor(config.std)[:, None, None]
    return ((images + 1) / 2 - mean) / std


@pytest.mark.parametrize("channels", [8, 16])
def test_onnx_outputs_with_channels_last(tmp_path: Path, channels: int) -> None:
    weight = np.random.default_rng(0).standard_normal((channels, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "w"], ["nchw"], strides=[4, 4]),
        helper.make_node("Transpose", ["nchw"], ["nhwc"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["nhwc", "tokens"], ["ntd"]),
        helper.make_node("Transpose", ["ntd"], ["ndt"], perm=[0, 2, 1]),
    ]
    float32 = TensorProto.FLOAT
    shapes = {"nhwc": [8, 8, channels], "nchw": [channels, 8, 8], "ntd": [64, channels], "ndt": [channels, 64]}
    outputs = [helper.make_tensor_value_info(name, float32, ["N", *shape]) for name, shape in shapes.items()]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([0, 64, channels]), "tokens")]
    inputs = [helper.make_tensor_value_info("x", float32, ["N", SIZE, SIZE, 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    images = make_images(SIZE)
    expected = torch.nn.functional.conv2d(images, torch.from_numpy(weight), stride=4).mean((2, 3))
    for name in shapes:
        encoder = build(f"onnx:{tmp_path}/m.onnx?layer={name}&pooling=mean")
        assert encoder.dim == channels
        assert close(encoder.encode(images), expected)


@pytest.mark.parametrize(
    ("spec", "width"),
    [
        ("torchvision:swin_t?layer=norm&pooling=mean&image_size=64&resize_to=64", 768),
        pytest.param(
            "torchvision:swin_t?layer=features.1&pooling=mean&image_size=64&resize_to=64", 96, marks=pytest.mark.long
        ),
        pytest.param(
            "torchvision:swin_t?layer=permute&pooling=mean&image_size=64&resize_to=64", 768, marks=pytest.mark.long
        ),
        ("torchvision:convnext_tiny?layer=features.1.0.block.5&pooling=mean&image_size=64&resize_to=64", 96),
        pytest.param("timm:volo_d1_224?layer=network.0&pooling=mean", 192, marks=pytest.mark.long),
        ("timm:gcvit_xxtiny?layer=stages.0&pooling=mean", 64),
        ("timm:nest_tiny?layer=levels.0.transformer_encoder&pooling=mean", None),
    ],
)
def test_known_networks_with_channels_last(spec: str, width: int | None) -> None:
    if width is None:  # [N,blocks,T,C]: neither positions nor tokens
        with pytest.raises(EncoderError, match="layout="):
            build(spec)
    else:
        assert build(spec).dim == width


def test_transformers_networks_with_channels_last(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    config = transformers.SamVisionConfig(
        **shape, output_channels=12, window_size=4, mlp_dim=16, global_attn_indexes=[1], num_pos_feats=8
    )
    transformers.SamVisionModel(config).save_pretrained(tmp_path)
    by_hand = "image_size=64&mean=0.5&std=0.5&pooling=mean"
    assert build(f"transformers:{tmp_path}?{by_hand}").dim == 12
    inside = build(f"transformers:{tmp_path}?{by_hand}&layer=vision_encoder.layers.0")
    assert (inside.dim, inside.config.layout) == (16, "nhwc")


def test_evidence() -> None:
    assert layout.by_shape((1, 16, 8, 8)) == "nchw"
    assert layout.by_shape((1, 8, 8, 16)) == "nhwc"
    assert layout.by_shape((1, 8, 8, 8)) is None
    assert layout.by_shape((1, 8, 4, 2)) is None
    assert layout.by_shape((1, 64, 8)) is None
    assert layout.by_width((1, 49, 512), 512) == layout.by_width((1, 7, 7, 512), 512) == "nhwc"
    assert layout.by_width((1, 512, 49), 512) == "nchw"
    assert layout.by_width((1, 49, 49), 49) is layout.by_width((1, 49, 512), None) is None
    assert layout.by_trial(lambda x: x.flatten(1), SIZE) is None
    assert layout.by_trial(lambda x: x * 0, SIZE) is None
    assert layout.by_trial(lambda x: x * float("nan"), SIZE) is None


FAMILIES = (
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_byobnet",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_families_have_as_many_numbers_as_features(name: str) -> None:
    expected: Any = timm.create_model(name, num_classes=0)
    assert build(f"timm:{name}?pooling=mean").dim == expected.num_features


def smallest(module: str) -> str | None:
    """The smallest model of a file of timm; none where all are too large for a test."""
    sizes = []
    for name in timm.list_models(module=module):
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.input_size[0] == 3 and cfg.input_size[1] == cfg.input_size[2] <= 256:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    model: Any = timm.create_model(name, num_classes=0)
                except Exception:  # networks that cannot be made without memory
                    continue
            sizes.append((sum(parameter.numel() for parameter in model.parameters()), name))
            if sizes[-1][0] < 8_000_000:
                break
    return min(sizes)[1] if sizes else None


def built(spec: str) -> Encoder | None:
    """The encoder, or None where it is refused for what is documented: an order that nothing shows, padded images."""
    try:
        return build(spec)
    except EncoderError as error:
        if not any(words in str(error) for words in ("layout=", "pads images", "pooling=cls")):
            raise
    return None


@pytest.mark.long
def test_all_timm_families_have_as_many_numbers_as_features(short: bool) -> None:
    modules = timm.list_modules()
    tried = 0
    for module in modules[::36] if short else modules:
        name = smallest(module)
        if name is None:
            continue
        expected: Any = timm.create_model(name, num_classes=0)
        encoder = built(f"timm:{name}?pooling=mean")
        if encoder is None:
            continue
        width = (
            expected.embed_dim[0] if module == "crossvit" else expected.num_features
        )  # two branches: the first counts
        assert encoder.dim == width, name
        tried += 1
    assert tried >= len(modules) // (120 if short else 2)
