"""Encoders in files: ONNX graphs, our own safetensors, and weights that must not run code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from rcdm_fast import config as configs
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import EncoderError, build, native, weights
from rcdm_fast.encoders.small_resnet import SmallResNet
from tests import peak
from tests.encoder_checks import close, make_images
from tests.tolerances import ENCODER_ONNX_L2

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


class Exported(nn.Module):
    """Two outputs: [N,6] and [N,2]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projector = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.backbone(x)
        return h, self.projector(h)


def export(path: Path, batch: int, dynamic: bool) -> Exported:
    module = Exported().eval()
    torch.onnx.export(
        module,
        (torch.zeros(batch, 3, 16, 16),),
        path,
        input_names=["image"],
        output_names=["h", "z"],
        dynamic_shapes={"x": {0: torch.export.Dim("n")}} if dynamic else None,
        verbose=False,
    )
    return module


@pytest.mark.parametrize(("batch", "dynamic"), [(2, True), (2, False)])
def test_onnx_equals_torch(tmp_path: Path, batch: int, dynamic: bool) -> None:
    path = tmp_path / "encoder.onnx"
    module = export(path, batch, dynamic)
    images = make_images(16, count=5)
    with torch.inference_mode():
        h, z = module(((images + 1) / 2 - MEAN) / STD)
    options = "mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
    encoder = build(f"onnx:{path}?{options}")
    assert (encoder.config.image_size, encoder.dim) == (16, 6)
    assert close(encoder.encode(images), h, ENCODER_ONNX_L2)
    assert close(build(f"onnx:{path}?{options}&layer=z").encode(images), z, ENCODER_ONNX_L2)
    assert encoder.to("cpu") is encoder
    with pytest.raises(EncoderError, match="there are h, z"):
        build(f"onnx:{path}?layer=projector")
    with pytest.raises(EncoderError, match="16 px, not 32"):
        build(f"onnx:{path}?image_size=32")


def test_onnx_metadata_and_channels_last(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "means",
        [info("x", onnx.TensorProto.FLOAT, ["n", 8, 8, 3])],
        [info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    convention = EncoderConfig("onnx:elsewhere", image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    onnx.helper.set_model_props(model, {native.METADATA_KEY: configs.to_json(convention)})
    path = tmp_path / "means.onnx"
    onnx.save(model, path)
    encoder = build(f"onnx:{path}")
    assert encoder.config == dataclasses.replace(convention, source=f"onnx:{path}", dim=3)
    images = make_images(8)
    assert close(encoder.encode(images), (images.mean((2, 3)) + 1) / 2)
    path.write_bytes(path.read_bytes().replace(b"elsewhere", b"elsewher\xf6"))
    with pytest.raises(EncoderError, match=r"means\.onnx: its metadata cannot be read"):
        build(f"onnx:{path}")


def test_onnx_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no such file"):
        build("onnx:/nothing/here.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(EncoderError, match="cannot open"):
        build(f"onnx:{tmp_path}/broken.onnx")


def test_native_and_bundled_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape: dict[str, Any] = {"stem": 4, "widths": [4, 8], "blocks": [1, 1], "projector": [6, 5]}
    network = SmallResNet(**shape).eval()
    path = tmp_path / "tiny-encoder.safetensors"
    native.save(path, network, EncoderConfig("module", image_size=32, architecture=shape), {})
    images = make_images(32)
    encoder = build(f"file:{path}")
    assert encoder.dim == 8
    assert close(encoder.encode(images), network.backbone(images))
    monkeypatch.setattr(native, "BUNDLED", tmp_path)
    assert native.bundled() == ["tiny"]
    bundled = build("bundled:tiny?layer=projector")
    assert (bundled.config.source, bundled.dim) == ("bundled:tiny", 5)
    assert close(bundled.encode(images), network(images))
    assert build(bundled.config).config == bundled.config
    with pytest.raises(ConfigError, match="there are tiny"):
        build("bundled:large")


def test_matrices_are_stored_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"stem": 4, "widths": [4], "blocks": [1], "projector": [6, 5], "activation": "gelu"}
    network, path = SmallResNet(**shape).eval(), tmp_path / "tiny.safetensors"
    config = EncoderConfig("module", layer="projector", image_size=8, architecture=shape)
    native.save(path, network, config, {"epochs": 3}, torch.bfloat16)
    stored = storage.read_tensors(path)
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.bfloat16}
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim < 2} == {torch.float32}
    assert json.loads(storage.read_metadata(path)["rcdm_fast.info"]) == {"epochs": 3}
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim > 1:
                value.copy_(value.bfloat16())
        images = make_images(8)
        h = network.backbone(images)
        first, norm, _, last = network.projector
        hidden = norm(first(h))
        by_hand = last(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
    assert close(build(f"file:{path}").encode(images), by_hand)


class Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


def test_weights_files_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(1), "hook": Runs()}, path)
    with pytest.raises(EncoderError, match=r"system, which could run code"):
        weights.read_pickle(path)
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "history": np.arange(3)}
    torch.save({"model": {"weight": torch.ones(1)}, **beside}, path)
    assert torch.equal(weights.read(path)["weight"], torch.ones(1))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EncoderError, match=r"weights\.pt"):
        weights.read(path)
    torch.save([1, 2], path)
    with pytest.raises(EncoderError, match="no state dict"):
        weights.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"stem": 10**9},
        {"blocks": [10**9, 1]},
        {"widths": [4, 10**9]},
        {"widths": [8192, 8192]},  # within the limits, and not what the file holds
        {"widths": [4] * 10**4, "blocks": [1] * 10**4},
        {"projector": [10**9]},
        {"projector": []},
        {"blocks": [True, 1]},
        {"widths": "48"},
        {"widths": {"a": 1}},
        {"stem": 4.0},
        {"depth": 3},
        {"activation": ["relu"]},
    ],
)
def test_numbers_of_an_architecture_are_checked_before_it_is_built(change: dict[str, Any], tmp_path: Path) -> None:
    shape: dict[str, Any] = {"stem": 4, "widths": [4, 8], "blocks": [1, 1], "projector": [6, 5]}
    path = tmp_path / "tiny.safetensors"
    config = EncoderConfig("module", image_size=32, architecture={**shape, **change})
    native.save(path, SmallResNet(**shape), config, {})
    before, started = peak.begin(), time.monotonic()
    with pytest.raises(ConfigError, match=r"tiny\.safetensors"):
        build(f"file:{path}")
    assert peak.bytes_held() - before < 200e6
    assert time.monotonic() - started < 20


def test_reading_an_encoder_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    build("bundled:cifar10-simclr")
    assert torch.equal(torch.get_rng_state(), before)


def test_graphs_of_an_enormous_batch_are_refused(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [info("x", onnx.TensorProto.FLOAT, [10**9, 3, 8, 8])],
        [info("y", onnx.TensorProto.FLOAT, [10**9, 3, 8, 8])],
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=9), tmp_path / "same.onnx")
    with pytest.raises(EncoderError, match="1000000000 images at once"):
        build(f"onnx:{tmp_path}/same.onnx")


@pytest.mark.parametrize("content", [b"", b"PK\3\4x", b"\x80\x02]q\x00" + b"(" * 5000, bytes(300), b"\x80\x02c" * 99])
def test_weights_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=r"weights\.pt"):
        build(f"timm:test_resnet?weights={path}")


def test_an_archive_that_claims_more_than_it_is(tmp_path: Path) -> None:
    """Of a few bytes that become many when they are unpacked, which `torch.save` never writes."""
    path = tmp_path / "weights.pt"
    torch.save(torch.zeros(10), path)
    assert torch.equal(weights.read_pickle(path), torch.zeros(10))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/version", bytes(10_000_000))
    with pytest.raises(EncoderError, match=r"weights\.pt: not a readable.*version claims 10000000 bytes"):
        weights.read_pickle(path)
