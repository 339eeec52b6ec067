"""Spec strings and configurations as descriptions of an encoder."""

from __future__ import annotations

import os
from pathlib import Path

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
