"""Spec strings and configurations as descriptions of an encoder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import build, sources


def test_spec_strings() -> None:
    known = {"timm": {"weights"}, "onnx": set()}
    text = "timm:a/b.c?weights=/x y/50%25.pt&layer=l.3&mean=0.5&std=1,2,3&normalize=yes&image_size=96"
    source, fields = sources.parse(text, known)
    assert (source.family, source.name, source.options) == ("timm", "a/b.c", {"weights": "/x y/50%.pt"})
    assert fields == {
        "layer": "l.3",
        "mean": (0.5, 0.5, 0.5),
        "std": (1.0, 2.0, 3.0),
        "normalize": True,
        "image_size": 96,
    }
    assert sources.parse(str(source), known) == (source, {})


@pytest.mark.parametrize(
    "text",
    ["resnet50", "timn:resnet50", "timm:", "timm:x?color=1", "timm:x?mean=1,2", "timm:x?normalize=2", "timm:x?layer="],
)
def test_specs_that_name_nothing(text: str) -> None:
    with pytest.raises(ConfigError):
        build(text)


def test_configurations_that_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given in Python"):
        build(EncoderConfig("module"))
    with pytest.raises(ConfigError, match="belong into the fields"):
        build(EncoderConfig("timm:resnet18?layer=layer3"))
    with pytest.raises(ConfigError, match="no bundled encoder"):
        build("bundled:nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(OSError, match=r"broken\.safetensors"):
        build(f"file:{tmp_path}/broken.safetensors")


def test_names_that_are_no_utf8_come_back_and_half_characters_are_escaped() -> None:
    name = os.fsdecode(b"a/caf\xe9 1?&.onnx")
    source = sources.Source("onnx", name, {"weights": name})
    again, _ = sources.parse(str(source), {"onnx": frozenset({"weights"})})
    assert (again.name, again.options["weights"]) == (name, name)
    assert "%5Cud898" in str(sources.Source("file", "\ud898.pt", {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer": "trunk.3", "pooling": "mean", "layout": "nchw"},
        {"image_size": 96, "resize": "squash", "resize_to": 100, "interpolation": "bicubic", "rounding": "torchvision"},
        {"mean": (0.1, 0.2, 0.3), "std": (0.25, 0.25, 0.25), "channel_order": "bgr", "normalize": True},
        {"image_size": 64, "resize_to": 60, "border": "black"},
    ],
)
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet18?weights=/a b/50%25.pt"])
def test_a_spelled_convention_is_the_same_convention(name: str, changes: dict[str, Any]) -> None:
    """Also of a family whose own images are usually seen otherwise."""
    config = EncoderConfig(name, **changes)
    source, fields = sources.parse(sources.spelled(config, "trust"), {"timm": {"weights", "trust"}})
    assert source.options.pop("trust") == "1"  # type: ignore[attr-defined]
    assert str(source) == name
    unusual = EncoderConfig(
        "timm:other", image_size=7, resize_to=8, interpolation="area", mean=(0.0,) * 3, std=(3.0,) * 3
    )
    assert dataclasses.replace(unusual, source=name, **fields) == config


def test_an_option_is_given_once() -> None:
    with pytest.raises(ConfigError, match="image_size is given twice"):
        build("timm:resnet18?size=64&image_size=96")
