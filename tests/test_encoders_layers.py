"""Any layer of any network: one call of several, every pooling, tensors inside an ONNX graph, and what there is."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders import EncoderError, ImageEncoder, build, inside, layers
from rcdm_fast.exporters.encoder import export_encoder
from rcdm_fast.exporters.onnx import ExportError
from tests import small
from tests.encoder_checks import close, make_images
from tests.tolerances import ENCODER_ONNX_L2

SMALL = EncoderConfig("module", image_size=8)


class Repeats(nn.Module):
    """One layer used twice, under two names, and a head that only takes what training gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.act = nn.Softplus()
        self.alias = self.act
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        one = self.act(self.first(x))
        two = self.alias(one.flatten(2).transpose(1, 2))
        if not self.training:
            raise RuntimeError("a head that does not work here")
        seen: Tensor = two
        return seen


def test_calls_of_one_layer_are_told_apart() -> None:
    network, images = Repeats().train(), make_images(8)
    one = network.act(network.first(images))
    for name in ("act", "alias"):
        first = build(network, config=SMALL, layer=f"{name}#1", pooling="mean")
        assert close(first.encode(images), one.mean((2, 3)).detach())
        tokens = build(network, config=SMALL, layer=f"{name}#2", pooling="max").encode(images)
        assert close(tokens, network.act(one.flatten(2)).amax(2).detach())
        with pytest.raises(EncoderError, match=f"called 2 times .*{name}#1 to {name}#2"):
            build(network, config=SMALL, layer=name, pooling="mean")
    assert network.training
    assert not network.act._forward_hooks
    once = build(network, config=SMALL, layer="first", pooling="flatten")  # the head fails behind it: nothing to it
    assert close(once.encode(images), network.first(images).flatten(1).detach())
    twice = nn.Sequential(relu := nn.ReLU(), nn.Flatten(), relu)
    assert close(build(twice, config=SMALL, layer="0#2").encode(images), images.relu().flatten(1))
    with pytest.raises(EncoderError, match="2 times for an image, there is no call 3"):
        build(twice, config=SMALL, layer="0#3", pooling="mean")
    with pytest.raises(EncoderError, match=r"no layer 'acts' .* act"):
        build(network, config=SMALL, layer="acts")


@pytest.mark.parametrize("call", [1, 2])
def test_the_first_pass_answers_as_every_other_does(call: int) -> None:
    network, x = nn.Sequential(layer := nn.Linear(3, 3), nn.ReLU(), layer), torch.randn(2, 3)
    output = layers.LayerOutput(network, "0", call)
    known = layer(x) if call == 1 else network(x)
    assert torch.equal(output(x), known)
    assert torch.equal(output(x), known)


def test_a_layer_that_is_written_over_answers_with_what_it_gave(tmp_path: Path) -> None:
    """ReLU in place behind a convolution, as torchvision's networks have it; a whole pass is run once, and exported."""
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten()), make_images(8)
    given = network[0](x).mean((2, 3)).detach()
    config = EncoderConfig("module", layer="0", pooling="mean", layout="nchw", image_size=8, dim=4)
    encoder = build(network, config=config)  # its first pass is this one, as nothing has to be found out before
    assert close(encoder.encode(x), given)
    assert close(encoder.encode(x), given)
    pooled = build(network, config=config, pooling=lambda out: out.mean((2, 3)))
    assert close(pooled.encode(x), given)
    path = export_encoder(tmp_path / "cut.onnx", encoder)
    assert close(build(f"onnx:{path}").encode(x), given)


def test_pooling_by_a_function_of_ones_own(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"map": x, "other": x.mean((2, 3))}

    images = make_images(8)
    encoder = build(Named(), config=SMALL, pooling=lambda out: out["map"].std((2, 3)))
    assert (encoder.config.pooling, encoder.dim) == ("function", 3)
    assert close(encoder.encode(images), images.std((2, 3)))
    with pytest.raises(EncoderError, match="needs the function that pools"):
        build(Named(), config=encoder.config)
    with pytest.raises(EncoderError, match=r"gives \[1, 3, 64\]"):
        build(Named(), config=SMALL, pooling=lambda out: out["map"].flatten(2))
    with pytest.raises(ConfigError, match="pooling"):
        build(Named(), config=SMALL, pooling="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="are for modules and functions"):
        build("bundled:cifar10-simclr", layer="backbone")


def test_what_images_a_module_takes() -> None:
    import timm

    named = build("timm:test_vit")
    model = timm.create_model("test_vit", num_classes=0)
    told = build(model).config
    assert (told.image_size, told.mean, told.resize_to) == (
        named.config.image_size, named.config.mean, named.config.resize_to,
    )  # fmt: skip
    assert told.source == "module"
    with pytest.raises(EncoderError, match="nothing tells what images Repeats takes"):
        build(Repeats())


def test_a_model_file_remembers_what_its_module_takes(tmp_path: Path) -> None:
    model = small.model()
    assert model.encoder is not None
    path = rcdm_fast.save_model(tmp_path / "m.safetensors", model.config, model.unet.state_dict())
    images = make_images(11)
    loaded = rcdm_fast.load(path, encoder=small.MeanColor())
    assert loaded.encoder is not None
    assert loaded.encoder.config == model.encoder.config
    assert torch.equal(loaded.encode(images), model.encode(images))
    other = EncoderConfig("module", image_size=16)
    assert rcdm_fast.load(path, encoder=small.MeanColor(), convention=other).encoder.config.image_size == 16  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Conv2d]:
    """A convolution, its mean in an If, and a second output that nothing inside needs."""
    path, conv = tmp_path_factory.mktemp("onnx") / "encoder.onnx", nn.Conv2d(3, 6, 3, 2).requires_grad_(False)
    node, info = helper.make_node, helper.make_tensor_value_info
    branches = [
        helper.make_graph([node(kind, ["relu"], [kind])], kind, [], [info(kind, TensorProto.FLOAT, None)])
        for kind in ("GlobalAveragePool", "GlobalMaxPool")
    ]
    nodes = [
        node("Conv", ["x", "w", "b"], ["conv"], "first", strides=[2, 2]),
        node("Relu", ["conv"], ["relu"], "act"),
        node("If", ["yes"], ["pooled"], "pool", then_branch=branches[0], else_branch=branches[1]),
        node("Flatten", ["pooled"], ["h"], "flat"),
        node("Mul", ["h", "two"], ["z"], "scale"),
    ]
    assert conv.bias is not None
    values = {"w": conv.weight.numpy(), "b": conv.bias.numpy(), "two": np.float32(2), "yes": np.array(True)}
    model = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [info("h", TensorProto.FLOAT, ["n", 6]), info("z", TensorProto.FLOAT, ["n", 6])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path, conv


def test_tensors_inside_a_graph_are_layers(graph: tuple[Path, nn.Conv2d], tmp_path: Path) -> None:
    path, conv = graph
    images = make_images(16, count=5)
    spec = f"onnx:{path}?mean=0.5&std=0.5"
    encoder = build(f"{spec}&layer=conv&pooling=mean")
    assert isinstance(encoder, ImageEncoder)
    assert close(encoder.encode(images), conv(images).mean((2, 3)), ENCODER_ONNX_L2)
    pooled = build(f"{spec}&layer=pooled").encode(images)  # what a branch reads is kept
    assert close(pooled, conv(images).relu().mean((2, 3)), ENCODER_ONNX_L2)
    cut = onnx.load_from_string(encoder.network._cut)  # type: ignore[attr-defined]
    assert [node.op_type for node in cut.graph.node] == ["Conv"]
    assert {each.name for each in cut.graph.initializer} == {"w", "b"}
    for each in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(each.encode(images), encoder.encode(images))
    shapes = {each.name: each.shape for each in inside.layers_of(encoder)}
    assert shapes == {"conv": (1, 6, 7, 7), "relu": (1, 6, 7, 7), "pooled": (1, 6, 1, 1), "h": (1, 6), "z": (1, 6)}
    by_node = build(f"{spec}&layer=first&pooling=mean")
    assert torch.equal(by_node.encode(images), encoder.encode(images))
    with pytest.raises(EncoderError, match="there are h, z, and inside it, for example, pooled"):
        build(f"{spec}&layer=poled")
    with pytest.raises(ExportError, match="is cut inside the graph"):
        export_encoder(tmp_path / "again.onnx", encoder)


def test_the_command_looks_into_an_encoder(
    graph: tuple[Path, nn.Conv2d], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers = tmp_path / "seen.png", tmp_path / "numbers.json"
    words = ["bundled:cifar10-simclr?layer=projector&resize=squash", "--out", str(out), "--json", str(numbers)]
    assert main(["encoders", *words]) == 0
    text = capsys.readouterr().out
    found = json.loads(numbers.read_text())
    assert found["dim"] == 128
    assert found["convention"]["resize"] == {"value": "squash", "from": "the specification"}
    assert found["convention"]["image_size"]["from"] == "the encoder's file"
    layers = {each["name"]: each["shape"] for each in found["layers"]}
    assert layers["backbone"] == [1, 192]
    assert layers["projector"] == [1, 128]
    for name, shape in layers.items():
        assert name in text
        assert str(shape) in text
    with Image.open(out) as sheet:
        assert sheet.width > 448
        assert len(sheet.getcolors(100_000) or ()) > 20
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    assert main(["encoders", f"onnx:{graph[0]}", str(tmp_path / "red.png"), "--out", str(out)]) == 0
    assert "images in [-1,1] if those do not say" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.getpixel((340, 150)) == (255, 0, 0)
    assert main(["encoders", "bundled:cifar10-simclr?layer=projektor"]) == 2
    assert "projector" in capsys.readouterr().err


def test_layers_of_a_network_that_is_training() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).train()
    encoder = build(network, config=SMALL)
    assert isinstance(encoder, ImageEncoder)
    before = copy.deepcopy(network.state_dict())
    found = {each.name: (each.shape, each.kind) for each in inside.layers_of(encoder)}
    assert found["2"] == ((1, 4, 6, 6), "ReLU")
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    shared = nn.Sequential(relu := nn.ReLU(), nn.Flatten(), relu)
    of_two = build(shared, config=SMALL)
    assert isinstance(of_two, ImageEncoder)
    assert [each.name for each in inside.layers_of(of_two)] == ["0#1", "1", "0#2"]
    function = build(lambda x: x.mean((2, 3)), config=SMALL)
    assert isinstance(function, ImageEncoder)
    assert inside.layers_of(function) == []
    oracle = build("oracle:shapes?factors=x,y&count=4")  # refuses images that are none of its world's
    assert isinstance(oracle, ImageEncoder)
    assert inside.layers_of(oracle) == []


def test_layers_before_a_head_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.first(x).mean((2, 3)))
            return out

    encoder = build(Headed(), config=SMALL, layer="first", pooling="mean")
    assert isinstance(encoder, ImageEncoder)
    assert [each.name for each in inside.layers_of(encoder)] == ["first"]
    assert "the network fails behind layer first" in caplog.text
    broken = ImageEncoder(nn.Sequential(nn.Conv2d(1, 2, 3)), dataclasses.replace(SMALL, dim=2))
    with pytest.raises(EncoderError, match="fails on an image"):
        inside.layers_of(broken)


def test_an_image_is_shown_to_be_resized_to_the_view_unless_it_is_otherwise() -> None:
    cases: list[tuple[dict[str, Any], str]] = [({}, "32"), ({"resize_to": 40}, "40")]
    for changes, wanted in cases:
        config = EncoderConfig("bundled:some", image_size=32, **changes)
        rows = {name: (text, origin) for name, text, origin in inside.convention(config, {"std": (0.5, 0.5, 0.5)})}
        assert rows["resize_to"] == (wanted, "the encoder's file")
        assert rows["std"] == ("0.5, 0.5, 0.5", "the specification")
