"""ONNX exports of the network and of encoders: the same numbers, any batch, and refusals that say why."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast import config as configs
from rcdm_fast import engines
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, ScheduleConfig
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.encoders import ImageEncoder, build
from rcdm_fast.engines import cache, onnx_runtime
from rcdm_fast.exporters import encoder as encoder_export
from rcdm_fast.exporters import onnx as exported
from rcdm_fast.exporters.encoder import export_encoder
from rcdm_fast.exporters.graph import NetworkGraph, truth
from rcdm_fast.exporters.onnx import ExportError, GraphError, export_network, read_info, run_onnxruntime
from rcdm_fast.exporting import find
from rcdm_fast.models import checkpoint
from rcdm_fast.version import __version__
from tests import small
from tests.exports import FEW_LAYERS
from tests.reference_weights import CASES, flags_path, state_dict
from tests.tolerances import ENCODER_ONNX_L2, FORWARD_L2, TRAJECTORY_L2

pytestmark = pytest.mark.usefixtures("shared_exports")

BUNDLED = ("cifar10-simclr-trunk", "cifar10-simclr-head", "cifar10-supervised")
SHORTER = (CASES[0], BUNDLED[0])  # what the short form of tests marked long has
MODELS = ["small", *(pytest.param(name, marks=pytest.mark.long(short=name in SHORTER)) for name in (*CASES, *BUNDLED))]
CPU = torch.device("cpu")


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def inputs(model: rcdm_fast.Model, count: int) -> dict[str, Tensor]:
    size, width = model.image_size, model.config.unet.representation_dim
    return {
        "sample": torch.randn(count, 3, size, size),
        "timestep": torch.randint(0, model.config.schedule.diffusion_steps - 1, (count,)),
        "fraction": torch.rand(count),
        "representation": torch.randn(count, width),
    }


def check_batches(model: rcdm_fast.Model, path: Path, counts: Any, tolerance: float = FORWARD_L2) -> None:
    run = run_onnxruntime(path)
    for count in counts:
        values = inputs(model, count)
        got = torch.from_numpy(run({name: value.numpy() for name, value in values.items()}))
        assert relative(got, truth(model.unet, model.config.schedule)(*values.values())) <= tolerance, count


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers_and_trajectories(name: str, tmp_path: Path) -> None:
    source: Any = name
    flags = None
    if name in CASES:
        source, flags = tmp_path / "checkpoint.pt", flags_path(name)
        torch.save(state_dict(name), source)
    if name == "small":
        network = small.network()
        config = ModelConfig(network.config, small.SCHEDULE, None, "small")
        source = checkpoint.save_model(tmp_path / "small.safetensors", config, network.state_dict())
    model = rcdm_fast.load(source, flags, device="cpu", engine="eager")
    (path,) = rcdm_fast.export(model, "onnx", tmp_path / "exported", encoder=False)
    check_batches(model, path, (1, 8))
    fast = rcdm_fast.load(source, flags, device="cpu", engine="onnxruntime", engine_file=path)
    h, noise = (
        torch.randn(2, model.config.unet.representation_dim),
        torch.randn(2, 1, 3, model.image_size, model.image_size),
    )
    got, want = (each.sample(h, per=1, steps=25, noise=noise) for each in (fast, model))
    assert relative(got, want) <= TRAJECTORY_L2


@pytest.fixture(scope="module")
def model() -> rcdm_fast.Model:
    return small.model()


@pytest.fixture(scope="module")
def path(model: rcdm_fast.Model, shared_exports: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = rcdm_fast.export(model, "onnx", tmp_path_factory.mktemp("small"), encoder=False)
    return path


def test_every_batch_size(model: rcdm_fast.Model, path: Path) -> None:
    check_batches(model, path, range(1, 34))


def test_rescaled_timesteps_are_base_timesteps_in_the_graph() -> None:
    schedule = ScheduleConfig(200, variance="learned_range", rescale_timesteps=True)
    model = rcdm_fast.Model.from_network(small.network(), schedule)
    values = inputs(model, 4).values()
    assert relative(NetworkGraph(model.unet, schedule)(*values), truth(model.unet, schedule)(*values)) <= FORWARD_L2


def test_the_file_is_one_that_every_runtime_takes(model: rcdm_fast.Model, path: Path) -> None:
    graph = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", exported.OPSET)]
    assert exported.OPSET == 20
    kinds = {node.op_type for node in graph.graph.node}
    assert "GroupNormalization" not in kinds
    assert "InstanceNormalization" in kinds
    assert [value.name for value in graph.graph.input] == ["sample", "timestep", "fraction", "representation"]
    assert [value.name for value in graph.graph.output] == ["eps"]
    info = read_info(path)
    assert info.config == model.config
    assert (info.precision, info.version, info.graph) == ("fp32", __version__, 2)


def _load(model: rcdm_fast.Model, path: Path) -> Engine:
    return engines.make("onnxruntime", model.unet, model.config, CPU, "fp32", path)


def test_files_of_something_else_are_refused(
    model: rcdm_fast.Model, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _load(model, path).name == "onnxruntime"
    foreign = tmp_path / "foreign.onnx"
    graph = onnx.load(path)
    del graph.metadata_props[:]
    onnx.save(graph, foreign)
    with pytest.raises(GraphError, match=r"foreign\.onnx: not exported by rcdm_fast"):
        _load(model, foreign)
    damaged = tmp_path / "damaged.onnx"
    for content in (path.read_bytes()[:-1000], b"not ONNX at all", b""):
        damaged.write_bytes(content)
        with pytest.raises(GraphError, match=r"damaged\.onnx"):
            _load(model, damaged)
    with pytest.raises(GraphError, match="no readable ONNX file"):
        _load(model, tmp_path / "absent.onnx")
    with pytest.raises(GraphError, match="another structure"):
        _load(small.model(use_scale_shift_norm=False), path)
    other = small.model()
    with torch.no_grad():
        other.unet.ssl_emb.bias[0] += 1e-3
    with pytest.raises(GraphError, match="other weights"):
        _load(other, path)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "99.0")
    with pytest.raises(GraphError, match=r"this is 99\.0; export again"):
        _load(model, path)


def test_metadata_that_nobody_understands(path: Path, tmp_path: Path) -> None:
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {**_properties(graph), "rcdm_fast.config": '{"unet": 3}'})
    onnx.save(graph, tmp_path / "odd.onnx")
    with pytest.raises(GraphError, match="its metadata is not understood"):
        read_info(tmp_path / "odd.onnx")


def _properties(graph: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in graph.metadata_props}


def test_a_failed_check_leaves_no_file(
    model: rcdm_fast.Model, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "_write", lambda target, *_: shutil.copy(path, target))
    assert rcdm_fast.export(model, "onnx", tmp_path / "good", encoder=False)[0].is_file()
    monkeypatch.setitem(exported.TOLERANCE, "fp32", 1e-12)
    with pytest.raises(ExportError, match=r"differ by .* \(relative L2\), allowed 1e-12"):
        rcdm_fast.export(model, "onnx", tmp_path / "bad", encoder=False)
    assert list((tmp_path / "bad").iterdir()) == []


def test_numbers_that_are_not_finite_fail_the_check() -> None:
    want = torch.ones(2, 3)
    exported.check_close(np.ones((2, 3), np.float32), want, 1e-5, "it")
    with pytest.raises(ExportError, match="differ by nan"):
        exported.check_close(np.full((2, 3), np.nan, np.float32), want, 1e-5, "it")
    with pytest.raises(ExportError, match=r"gives \[3, 2\], PyTorch \[2, 3\]"):
        exported.check_close(np.ones((3, 2), np.float32), want, 1e-5, "it")


def test_a_damaged_cache_entry_is_built_again(
    model: rcdm_fast.Model,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path))
    built = []

    def export(target: Path, *_: object) -> None:
        built.append(shutil.copy(path, target))

    monkeypatch.setattr(exported, "export_network", export)

    def cached() -> Path:
        engine: Any = engines.make("onnxruntime", model.unet, model.config, CPU, "fp32")
        (file,) = engine.files
        assert isinstance(file, Path)
        return file

    file = cached()
    assert cached() == file
    assert len(built) == 1
    file.write_bytes(path.read_bytes()[:5000])
    with caplog.at_level(logging.WARNING):
        assert cached().read_bytes() == path.read_bytes()
    assert "network.onnx is damaged; building it again" in caplog.text
    (file.parent / "entry.json").write_text("{}")
    assert cached().read_bytes() == path.read_bytes()
    assert len(built) == 3


def test_an_export_is_kept_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[dict[str, str]] = []

    def entry(_: str, key: dict[str, str], build: object) -> Path:
        keys.append(dict(key))
        return Path("kept")

    monkeypatch.setattr(cache, "entry", entry)
    network, other = small.network(channel_mult=(1,)), small.network(channel_mult=(1,))
    bias: Any = other.out[2].bias
    bias.data += 1
    config = ModelConfig(network.config, small.SCHEDULE)
    whole = dataclasses.replace(config, schedule=dataclasses.replace(small.SCHEDULE, diffusion_steps=500))
    for of, how, precision in (
        (network, config, "fp32"),
        (network, config, "bf16"),
        (other, config, "fp32"),
        (network, whole, "fp32"),
    ):
        onnx_runtime.network_file(of, how, precision)
    changes: tuple[tuple[Any, str, Any], ...] = (
        (exported, "OPSET", 21),
        (onnx_runtime, "GRAPH", 3),
        (torch, "__version__", "0.1"),
        (importlib.metadata, "version", lambda _: "0.0.1"),
    )
    for where, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            onnx_runtime.network_file(network, config, "fp32")
    assert len({str(sorted(key.items())) for key in keys}) == len(keys) == 8
    onnx_runtime.network_file(network, config, "fp32")
    assert keys[-1] == keys[0]


def test_large_weights_lie_in_a_file_beside_it(
    model: rcdm_fast.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "LARGEST_BYTES", 100_000)
    (path,) = rcdm_fast.export(model, "onnx", tmp_path, encoder=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["network.onnx", "network.onnx.data"]
    assert path.stat().st_size < (tmp_path / "network.onnx.data").stat().st_size
    check_batches(model, path, (3,))
    engine: Any = _load(model, path)
    assert len(engine.files) == 2


def test_missing_packages_are_named(model: rcdm_fast.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else real(name))
    with pytest.raises(ConfigError, match="not installed: onnxscript"):
        rcdm_fast.export(model, "onnx", tmp_path)
    with pytest.raises(ExportError, match=r'onnxscript \(pip install "\.\[onnx\]"'):
        export_network(tmp_path / "network.onnx", model.unet, model.config)
    with pytest.raises(ConfigError, match="onnxscript"):
        engines.make("onnxruntime", model.unet, model.config, CPU, "fp32")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_precisions() -> None:
    with pytest.raises(ConfigError, match="no export format called 'keras'"):
        find("keras", "fp32")
    with pytest.raises(ConfigError, match="onnx is not exported in 'int8'"):
        find("onnx", "int8")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.long
def test_reduced_precision(precision: str, tmp_path: Path) -> None:
    model = small.model(**FEW_LAYERS)
    if precision == "bf16":
        pytest.importorskip("openvino", reason="a bf16 file is checked with openvino")
    (path,) = rcdm_fast.export(model, "onnx", tmp_path / precision, precision=precision, encoder=False)
    graph = onnx.load(path)
    assert {value.type.tensor_type.elem_type for value in graph.graph.output} == {onnx.TensorProto.FLOAT}
    reduced = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    kernels = [value for value in graph.graph.initializer if len(value.dims) == 4]
    assert kernels
    assert {value.data_type for value in kernels} == {reduced}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(graph).graph.value_info
    }
    norms = [types[node.input[0]] for node in graph.graph.node if node.op_type == "InstanceNormalization"]
    assert set(norms) == {onnx.TensorProto.FLOAT}
    assert read_info(path).precision == precision
    assert path.stat().st_size < 0.75 * 4 * sum(tensor.numel() for tensor in model.unet.parameters())
    kinds = ("onnxruntime", "openvino") if importlib.util.find_spec("openvino") else ("onnxruntime",)
    for kind in kinds:  # they would compute in what the file has, and say fp32
        with pytest.raises(GraphError, match=f"exported in {precision}, asked for is fp32"):
            engines.make(kind, model.unet, model.config, torch.device("cpu"), "fp32", path)
    if precision == "fp16":
        check_batches(model, path, (2,), exported.TOLERANCE["fp16"])


def test_a_bf16_file_is_not_written_unchecked(
    model: rcdm_fast.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else real(name))
    with pytest.raises(ExportError, match="checked with openvino"):
        rcdm_fast.export(model, "onnx", tmp_path, precision="bf16", encoder=False)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_leaves_the_network_alone() -> None:
    network = small.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    NetworkGraph(network, small.SCHEDULE, "fp16")
    after = network.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, after[name]) for name, value in before.items())


class Layered(nn.Module):
    """Three layers, so that one in the middle can be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.stem(x)).relu().mean(dim=(2, 3)))
        return out


IMAGENET = EncoderConfig("module", image_size=12, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "changes",
    [{"normalize": True, "channel_order": "bgr"}, {"layer": "norm", "pooling": "mean"}],
    ids=["normalized", "layer inside"],
)
def test_encoders(changes: dict[str, Any], tmp_path: Path) -> None:
    encoder = ImageEncoder(Layered(), dataclasses.replace(IMAGENET, **changes))
    path = export_encoder(tmp_path / "encoder.onnx", encoder)
    assert all(module.training for module in encoder.network.modules())  # type: ignore[attr-defined]
    again = build(f"onnx:{path}")
    assert again.dim == encoder.dim
    for count, size in ((1, 12), (4, 12), (7, 30)):
        images = small.make_images(count, size=size)
        assert relative(again.encode(images), encoder.encode(images)) <= ENCODER_ONNX_L2
    graph = onnx.load(path)
    if "layer" in changes:
        assert not any("head" in value.name for value in graph.graph.initializer)
    assert configs.from_json(EncoderConfig, _properties(graph)["rcdm_fast.encoder"]).mean == (0.5, 0.5, 0.5)
    copied = export_encoder(tmp_path / "copied.onnx", again)
    assert relative(build(f"onnx:{copied}").encode(images), encoder.encode(images)) <= ENCODER_ONNX_L2


def test_onnx_files_that_leave_work_to_others_are_refused(tmp_path: Path) -> None:
    path = export_encoder(tmp_path / "encoder.onnx", ImageEncoder(Layered(), IMAGENET))
    with pytest.raises(ExportError, match=r"normalizes outside .* and divides by the L2 norm outside .*--no-encoder"):
        export_encoder(tmp_path / "new.onnx", build(f"onnx:{path}?mean=0.1&normalize=1"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder.onnx"]


def _pooled_colors(path: Path, shape: list[Any], nodes: list[Any], outputs: dict[str, list[Any]], kind: int) -> Path:
    """An ONNX file made by hand."""
    made = [onnx.helper.make_tensor_value_info(name, kind, each) for name, each in outputs.items()]
    graph = onnx.helper.make_graph(nodes, "g", [onnx.helper.make_tensor_value_info("x", kind, shape)], made)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, str(path))
    return path


POOL = onnx.helper.make_node("GlobalAveragePool", ["x"], ["p"], name="pool")
FLAT = onnx.helper.make_node("Flatten", ["p"], ["y"])
LAST = [
    onnx.helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
    onnx.helper.make_node("GlobalAveragePool", ["t"], ["p"]),
    FLAT,
]
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
ANY: list[Any] = ["n", 3, 8, 8]
FOREIGN: dict[str, tuple[Any, ...]] = {
    "": ("", ANY, [POOL, FLAT], {"y": ["n", 3]}, FLOAT),
    "reorders colors outside": ("?channel_order=bgr", ANY, [POOL, FLAT], {"y": ["n", 3]}, FLOAT),
    "normalizes outside": ("?std=0.1", ANY, [POOL, FLAT], {"y": ["n", 3]}, FLOAT),
    "pools outside": ("?pooling=flatten", ANY, [POOL, FLAT], {"y": ["n", 3]}, FLOAT),
    "divides by the L2 norm outside": ("?normalize=1", ANY, [POOL, FLAT], {"y": ["n", 3]}, FLOAT),
    "has a fixed batch": ("", [2, 3, 8, 8], [POOL, FLAT], {"y": [2, 3]}, FLOAT),
    "takes its colors last": ("", ["n", 8, 8, 3], LAST, {"y": ["n", 3]}, FLOAT),
    "is cut inside": ("?layer=pool", ANY, [POOL, FLAT], {"y": ["n", 3]}, FLOAT),
    "has several outputs": ("", ANY, [POOL, FLAT], {"y": ["n", 3], "p": ["n", 3, 1, 1]}, FLOAT),
    "is not float32": ("", ANY, [POOL, FLAT], {"y": ["n", 3]}, HALF),
    "does not give": ("", ANY, [POOL], {"p": ["n", 3, 1, 1]}, FLOAT),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_an_onnx_file_is_copied_if_it_does_all_by_itself(fault: str, tmp_path: Path) -> None:
    options, *graph = FOREIGN[fault]
    encoder = build(f"onnx:{_pooled_colors(tmp_path / 'theirs.onnx', *graph)}{options}")
    if fault:
        with pytest.raises(ExportError, match=rf"because it {fault}[^;]*; leave the encoder out") as refused:
            export_encoder(tmp_path / "copy.onnx", encoder)
        assert " and " not in str(refused.value).replace("mean and std", "")
        return
    copy = export_encoder(tmp_path / "copy.onnx", encoder)
    images = small.make_images(3)
    torch.testing.assert_close(build(f"onnx:{copy}").encode(images), images.mean(dim=(2, 3)))
    assert _properties(onnx.load(copy))["author"] == "somebody"


class Undecided(nn.Module):
    """What it computes depends on the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) if float(x.sum()) > 0 else x.amax(dim=(2, 3))


class Random(nn.Module):
    """Other numbers every time."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.mean(dim=(2, 3))
        return h + torch.rand_like(h)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (ImageEncoder(Undecided(), IMAGENET), "module: cannot be exported"),
        (ImageEncoder(lambda x: x.mean(dim=(2, 3)), IMAGENET), "a Python function"),
    ],
    ids=["control flow", "function"],
)
def test_encoders_that_cannot_be_exported(encoder: ImageEncoder, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"{message}.*--no-encoder"):
        export_encoder(tmp_path / "encoder.onnx", encoder)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="str: only encoders made by rcdm_fast"):
        export_encoder(tmp_path / "encoder.onnx", "no encoder")  # type: ignore[arg-type]


def test_an_encoder_whose_numbers_are_wrong_gets_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differ by"):
        export_encoder(tmp_path / "encoder.onnx", ImageEncoder(Random(), IMAGENET))
    assert list(tmp_path.iterdir()) == []
    assert encoder_export.TOLERANCE <= ENCODER_ONNX_L2


@pytest.mark.parametrize("changes", [{"version": "0.1.0\n" * 1000}, {"weights": "\n" * 12}], ids=["version", "weights"])
def test_what_a_file_says_of_itself_is_repeated_in_one_line(model: rcdm_fast.Model, changes: dict[str, str]) -> None:
    info = dataclasses.replace(exported.graph_info(model.unet, model.config, "fp32"), **changes)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"^a\.onnx: exported ") as raised:
        exported.check_belongs(info, model.unet, model.config, "a.onnx")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("fails", [False, True])
def test_loggers_of_the_exporter_are_left_as_they_were(fails: bool) -> None:
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for level, name in enumerate(names, 11):
            logging.getLogger(name).setLevel(level)
        with contextlib.suppress(KeyError), exported._quiet():
            assert {logging.getLogger(name).level for name in names} == {logging.ERROR}
            if fails:
                raise KeyError
        assert [logging.getLogger(name).level for name in names] == [11, 12, 13]
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def test_tensorrt_plans_of_onnxruntime_belong_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider tells them apart by names of file and nodes: other weights of one structure had the same plan."""
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []

    class Session:
        def __init__(self, file: str, options: Any, providers: list[Any]) -> None:
            asked.append(dict(providers[0][1])["trt_engine_cache_path"])

        def get_providers(self) -> list[str]:
            return [onnx_runtime.TENSORRT, onnx_runtime.CUDA, "CPUExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    for folder, graph, data in (("a", b"x", b"1"), ("b", b"x", b"2"), ("c", b"y", b"1"), ("d", b"x", b"1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "network.onnx").write_bytes(graph)
        (tmp_path / folder / "network.onnx.data").write_bytes(data)
        onnx_runtime._session(tmp_path / folder / "network.onnx", torch.device("cuda:0"), tensorrt=True)
    assert len(set(asked)) == 3
    assert asked[0] == asked[3]
    assert all(path.startswith(str(tmp_path / "cache")) for path in asked)
