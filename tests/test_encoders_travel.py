"""Encoders in other processes: pickled, copied, sent to workers."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import Encoder, EncoderError, build
from tests.encoder_checks import make_images


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Means of colors, as ONNX."""
    path = tmp_path_factory.mktemp("graph") / "means.onnx"
    made = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def encode(encoder: Encoder, images: Tensor) -> Tensor:
    os.chdir("/")  # a worker may stand elsewhere
    return encoder.encode(images).numpy()  # type: ignore[return-value]


SPECS = [
    "bundled:cifar10-simclr",
    "timm:test_vit?pooling=mean",
    "timm:test_resnet?layer=layer1&pooling=mean",
    "torchvision:resnet18?image_size=32&layer=layer1&pooling=mean",
]


@pytest.mark.parametrize("spec", [*SPECS, "onnx"])
def test_pickled_and_copied(spec: str, graph: Path) -> None:
    encoder = build(f"onnx:{graph}" if spec == "onnx" else spec)
    images = make_images(24)
    expected = encoder.encode(images)
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert other.config == encoder.config
        assert torch.equal(other.encode(images), expected)


def test_a_module_that_is_given_travels_too() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = build(network, config=EncoderConfig("module", image_size=8))
    images = make_images(24)
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).encode(images), encoder.encode(images))


def test_spawned_workers_open_the_graph_again(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(graph.parent)
    encoder = build(f"onnx:{graph.name}")
    images = make_images(24)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(encode, (encoder, images))
    assert np.array_equal(found, encoder.encode(images).numpy())


def test_a_graph_that_is_gone_is_named(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.onnx"
    path.write_bytes(graph.read_bytes())
    sent = pickle.dumps(build(f"onnx:{path}"))
    path.unlink()
    with pytest.raises(EncoderError, match=r"copy\.onnx: no such file"):
        pickle.loads(sent)
