"""Flags recognized from the shapes of a network's tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rcdm_fast.config import ConfigError, UNetConfig
from rcdm_fast.models import infer_flags
from rcdm_fast.models.flags import FlagValue, configs_from_flags, flags_from_configs, read_flags
from rcdm_fast.models.infer_flags import LAYOUTS, RELEASE_FLAGS, recognize
from rcdm_fast.models.unet import UNet
from tests.test_flags import SMALL, VARIANTS, schedule_for

Shapes = dict[str, tuple[int, ...]]


def shapes_of(config: UNetConfig) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in UNet(config).state_dict().items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_tell_the_structure(name: str) -> None:
    unet = VARIANTS[name]
    heads = ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")
    given = {name: flags_from_configs(unet, schedule_for(unet))[name] for name in ("image_size", "dropout", *heads)}
    recognition = recognize(shapes_of(unet), given)
    assert configs_from_flags(recognition.flags) == (unet, schedule_for(unet))
    assert set(recognition.given) == set(given)
    assert not set(recognition.from_shapes) & set(given)


@pytest.mark.parametrize(
    ("name", "parameters_m"),
    [("published 128-px layout", 422.6), ("published 64-px layout", None), ("published 512-px layout", None)],
)
def test_published_layouts_need_no_flags(name: str, parameters_m: float | None) -> None:
    unet = configs_from_flags(LAYOUTS[name] | {"ssl_dim": 2048})[0]
    with torch.device("meta"):
        network = UNet(unet)
    if parameters_m is not None:
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count / 1e6 == pytest.approx(parameters_m, abs=0.05)
    recognition = recognize({key: tuple(tensor.shape) for key, tensor in network.state_dict().items()})
    assert recognition.layout == name
    assert dataclasses.replace(configs_from_flags(recognition.flags)[0], dropout=unet.dropout) == unet
    assert "image_size" in recognition.assumed
    assert f"assumed ({name}): image_size {unet.image_size}" in recognition.describe()


def test_a_layout_gives_way_to_flags() -> None:
    shapes = shapes_of(configs_from_flags(RELEASE_FLAGS | {"ssl_dim": 4})[0])
    recognition = recognize(shapes, {"image_size": 64, "num_heads": 8})
    unet = configs_from_flags(recognition.flags)[0]
    assert (unet.image_size, unet.num_heads, unet.attention_resolutions) == (64, 8, (16, 8, 4))


def test_what_must_be_given_is_listed() -> None:
    shapes = shapes_of(SMALL)
    with pytest.raises(ConfigError, match="cannot tell image_size") as raised:
        recognize(shapes)
    for told in ("num_channels 32", "channel_mult 1,2,2", "ssl_dim 7", "num_heads 4", "noise_schedule linear"):
        assert told in str(raised.value)
    with pytest.raises(ConfigError, match="cannot tell image_size"):
        recognize(shapes, {"num_heads": 2})


def test_image_size_follows_from_the_attention_given() -> None:
    given: dict[str, FlagValue] = {"attention_resolutions": "16"}
    recognition = recognize(shapes_of(SMALL), given)
    assert recognition.flags["image_size"] == 32
    assert "image_size" in recognition.from_shapes
    assert "num_heads 4" in recognition.describe()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_channels": 64}, "num_channels is given as 64, the tensors say 32"),
        ({"channel_mult": "1,2"}, "channel_mult is given as 1,2, the tensors say 1,2,2"),
        ({"num_res_blocks": 2}, "num_res_blocks is given as 2, the tensors say 1"),
        ({"learn_sigma": True}, "learn_sigma is given as True, the tensors say False"),
        ({"resblock_updown": True}, "resblock_updown"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm"),
        ({"feat_cond": False}, "feat_cond"),
        ({"ssl_dim": 8}, "ssl_dim is given as 8, the tensors say 7"),
        ({"class_cond": True}, "class_cond"),
        ({"num_classes": 10}, "num_classes is given as 10, the tensors say no classes"),
        ({"conv_resample": False}, "conv_resample"),
        ({"attention_resolutions": "8"}, "attention_resolutions is given as 8, the tensors say 16"),
        ({"attention_resolutions": ""}, "attention_resolutions is given as ''"),
    ],
)
def test_flags_that_contradict_the_shapes(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recognize(shapes_of(SMALL), read_flags({"image_size": 32} | wrong))


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"num_channels.*; ssl_dim"):
        recognize(shapes_of(SMALL), {"image_size": 32, "num_channels": 64, "ssl_dim": 8})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embed.0.weight": None}, "no time_embed.0.weight"),
        ({"time_embed.0.weight": (128,)}, r"time_embed.0.weight has shape \[128\]"),
        ({"time_embed.0.weight": (100, 32)}, "do not fit together"),
        ({"input_blocks.0.0.weight": (32, 6, 3, 3)}, "images of 6 channels"),
        ({"out.2.weight": None}, "no out.2.weight"),
        ({"out.2.weight": (4, 32, 3, 3)}, "do not fit together"),
        ({"input_blocks.9.0.in_layers.2.weight": (32, 32, 3, 3)}, "10 input blocks do not make"),
        ({"input_blocks.3.0.in_layers.2.weight": None}, "no input_blocks.3.0.in_layers.2.weight"),
    ],
)
def test_foreign_shapes(change: dict[str, tuple[int, ...] | None], message: str) -> None:
    shapes = {**shapes_of(SMALL), **change}
    with pytest.raises(ConfigError, match=message):
        recognize({name: shape for name, shape in shapes.items() if shape is not None}, {"image_size": 32})


def test_a_resnet_is_no_unet() -> None:
    with pytest.raises(ConfigError, match=r"not the tensors of an ADM UNet.*conv1.weight"):
        recognize({"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,)})
    with pytest.raises(ConfigError, match="found nothing"):
        recognize({})


def test_shapes_of_no_width() -> None:
    shapes = {"time_embed.0.weight": (0, 0), "input_blocks.0.0.weight": (0, 3, 3, 3), "out.2.weight": (3, 0, 3, 3)}
    with pytest.raises(ConfigError, match="not the tensors"):
        recognize(shapes)


def test_a_size_is_read_off_the_attention_only_where_one_fits() -> None:
    seen = infer_flags._Seen(32, "1,2", 1, (1,), True, True, True, True, 0, 0)
    assert seen.levels == 2
    assert infer_flags._size_from_attention(seen, {"attention_resolutions": "32"}) == 64
    assert infer_flags._size_from_attention(seen, {"attention_resolutions": "32,8"}) == 0  # of 64 or of 16 px
    assert infer_flags._size_from_attention(seen, {}) == 0
