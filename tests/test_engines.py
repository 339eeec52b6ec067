"""Engines: the same images as the plain network, equal bits in any batch, reasons instead of surprises."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast import engines
from rcdm_fast.config import ConfigError, ModelConfig, ScheduleConfig, Variance
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines import compiled, cuda_graphs, groups, native
from rcdm_fast.engines.backends import OneDnnBackend, TorchBackend
from rcdm_fast.engines.program import Program
from rcdm_fast.model import Model
from rcdm_fast.models.unet import AttentionBlock, UNet
from rcdm_fast.ops import library
from rcdm_fast.ops.selection import Choices
from tests import small
from tests.tolerances import ENGINE_FP32_L2

CPU = torch.device("cpu")
has_bf16 = not native.reasons_unavailable(CPU, "bf16")  # oneDNN has it on processors with AVX-512 or AMX
SCHEDULE = Schedule.make(ScheduleConfig(1000, variance="learned_range"), 4)
NETWORKS: dict[str, dict[str, object]] = {
    "convolutions resample": {},
    "pooling resamples": {"conv_resample": False},
    "blocks resample": {"resblock_updown": True, "image_size": 16, "channel_mult": (1, 2, 2), "num_res_blocks": 2},
    "added film": {"use_scale_shift_norm": False},
    "new order": {"use_new_attention_order": True, "num_heads": 2, "attention_resolutions": (8, 4)},
    "labels": {"representation_dim": 0, "num_classes": 3},
    "unconditional": {"representation_dim": 0, "learn_sigma": False},
}
MAPS: dict[str, object] = {"condition_map": (5, 3, 4), "representation_dim": 60}  # more of them: test_maps.py


def _batch(network: UNet, count: int, schedule: Schedule = SCHEDULE) -> conditioning.Batch:
    """Rows in another order than the images, one of them shared."""
    config = network.config
    h = torch.randn(4, config.representation_dim) if config.representation_dim else None
    label = torch.tensor([2, 0, 1]) if config.num_classes else None
    plan = conditioning.make_plan(network, schedule, h, label)
    return plan.batch(torch.arange(count) * 2 % len(plan.condition))


def _config(network: UNet) -> ModelConfig:
    variance: Variance = "learned_range" if network.config.learn_sigma else "fixed_large"
    return ModelConfig(network.config, dataclasses.replace(SCHEDULE.config, variance=variance))


def _images(network: UNet, count: int) -> Tensor:
    return torch.randn(count, 3, network.config.image_size, network.config.image_size)


def _error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_native_computes_the_network(name: str) -> None:
    network = small.network(**NETWORKS[name]).eval().requires_grad_(False)
    batch, x = _batch(network, 5), _images(network, 5)
    outputs = {}
    reduced = (("native", "bf16"), ("eager", "bf16")) if has_bf16 else ()
    for kind, precision in (("eager", "fp32"), ("native", "fp32"), *reduced):
        engine = engines.make(kind, network, _config(network), CPU, precision)
        outputs[kind, precision] = engine.bound(batch).predict(x, 2)
        assert outputs[kind, precision].dtype == torch.float32
        assert outputs[kind, precision].is_contiguous() or kind == "eager"
    truth = outputs["eager", "fp32"]
    assert _error(outputs["native", "fp32"], truth) <= ENGINE_FP32_L2
    if has_bf16:
        assert _error(outputs["native", "bf16"], truth) <= 1.05 * _error(outputs["eager", "bf16"], truth)


@pytest.mark.parametrize("name", ["blocks resample", "added film"])
def test_the_torch_backend_runs_the_same_program(name: str) -> None:
    """What runs on CUDA, here on the CPU; it measures operators where it is told to."""
    network = small.network(**NETWORKS[name]).eval().requires_grad_(False)
    batch, x = _batch(network, 3), _images(network, 3)
    backend = TorchBackend(torch.float32, CPU)
    program = Program(network, backend, torch.float32, CPU)
    film, rows = batch.film_rows(1)
    assert backend.choices.describe()["attention"] == "native (not measured)"
    with torch.inference_mode():
        want = network.denoise(x, batch.film(1))
        with backend.choices.measuring():
            assert _error(program.denoise(x, film, rows), want) <= ENGINE_FP32_L2
        assert _error(program.denoise(x, film, rows), want) <= ENGINE_FP32_L2
    times = backend.choices.times_ms("attention")
    assert {frozenset(each) for each in times.values()} == {frozenset({"native", "sdpa"})}
    blocks = sum(isinstance(module, AttentionBlock) for module in network.modules())
    assert len(times) == 1 < blocks  # one for every shape, not for every call
    said = backend.choices.describe()
    assert f"{blocks} calls (measured, all of them: " in said["attention"]
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    assert said["film_group_norm"].startswith(f"native {norms} calls (measured")
    assert Choices(CPU).describe()["attention"] == "native (not measured)"  # another engine's choices are its own


@pytest.mark.parametrize("precision", ["fp32", *(["bf16"] * has_bf16)])
def test_an_image_does_not_depend_on_its_batch(precision: str) -> None:
    network = small.network(**NETWORKS["blocks resample"]).eval().requires_grad_(False)
    engine = engines.make("native", network, _config(network), CPU, precision)
    batch, x = _batch(network, 9), _images(network, 9)
    bound = engine.bound(batch)
    whole = bound.predict(x, 3)
    for start, count in ((0, 1), (2, 5), (5, 4)):
        part = slice(start, start + count)
        assert torch.equal(engine.bind(batch.plan, batch.rows[part]).predict(x[part], 3), whole[part])
    assert torch.equal(bound.predict(x, 3), whole)  # what is bound stays bound


def test_steps_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small.network().eval().requires_grad_(False)
    torch.manual_seed(1)
    with_table = _batch(network, 5)
    monkeypatch.setattr(conditioning, "TABLE_LIMIT_BYTES", 0)
    torch.manual_seed(1)
    without = _batch(network, 5)
    assert without.plan.table is None
    x = _images(network, 5)
    engine = engines.make("native", network, _config(network), CPU, "fp32")
    assert torch.equal(engine.bound(without).predict(x, 1), engine.bound(with_table).predict(x, 1))


def test_auto_takes_the_fastest_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    model.engine = engines.make("auto", model.unet, model.config, CPU, "auto")
    assert model.engine.name == "native"
    assert "not eager: available, slower" in model.describe()
    monkeypatch.setattr(library, "has_native", lambda device: False)
    assert engines.choose(CPU, "fp32") == "eager"
    with pytest.raises(
        ConfigError, match=r"engine native cannot run here: no C\+\+ operators: .*\(compiled, .*: available"
    ):
        engines.make("native", model.unet, model.config, CPU, "fp32")


def test_the_table_has_every_engine() -> None:
    """Under its own name; one that runs exports takes a file, any other says that it takes none."""
    modules = [
        importlib.import_module(f"{engines.__name__}.{each.name}") for each in pkgutil.iter_modules(engines.__path__)
    ]
    found = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    kinds: set[Any] = {each for each in found if issubclass(each, Engine) and each is not Engine}
    assert sorted(kind.name for kind in kinds) == sorted(engines.SPECS)
    assert all((kind.bind, kind.bound) == (Engine.bind, Engine.bound) for kind in kinds)  # where batches are checked
    assert engines.ENGINES == tuple(engines.SPECS)
    takes = {kind.name: "file" in inspect.signature(kind).parameters for kind in kinds}
    network = small.network()
    for name, spec in engines.SPECS.items():
        assert spec.exported == takes[name]
        assert set(spec.emulated) <= set(spec.calibrated) <= set(engines.CALIBRATED)
        if not spec.exported and not engines.reasons_unavailable(name, CPU, "fp32"):
            with pytest.raises(ConfigError, match=f"engine {name} runs the model itself, not a file"):
                engines.make(name, network, _config(network), CPU, "fp32", "network.onnx")


def test_reasons() -> None:
    assert native.reasons_unavailable(CPU, "fp16") == ["fp16 runs on CUDA only (use bf16)"]
    assert native.reasons_unavailable(torch.device("mps"), "fp32") == ["there are no native operators for mps"]
    assert engines.choose(CPU, "fp16") == "eager"
    if not torch.cuda.is_available():
        for name in engines.ENGINES:
            wanted = "OpenVINO runs on the CPU here" if name == "openvino" else "this PyTorch sees no CUDA device"
            assert wanted in engines.reasons_unavailable(name, torch.device("cuda"), "fp16")
        with pytest.raises(ConfigError, match=r"no engine can run fp16 on cuda \(native, .*: this PyTorch sees no"):
            engines.choose(torch.device("cuda"), "fp16")
    with pytest.raises(ConfigError, match="no engine called 'warp'; known: native, compiled, eager"):
        engines.reasons_unavailable("warp", CPU, "fp32")
    with pytest.raises(ConfigError, match="no engine called 'warp'; known: auto, native, compiled, eager"):
        engines.make("warp", small.network(), _config(small.network()), CPU, "fp32")


@pytest.mark.parametrize("kind", ["native", "eager"])
def test_a_nan_is_reported_with_its_layer(kind: str) -> None:
    model = small.model()
    layer = dict(model.unet.named_modules())["middle_block.0.in_layers.2"]
    assert isinstance(layer, torch.nn.Conv2d)
    layer.weight.data[3, 2, 1, 1] = float("nan")
    model.engine = engines.make(kind, model.unet, model.config, CPU, "fp32")
    with pytest.raises(
        SamplingError, match=r"not finite: first in layer middle_block\.0\S*, at step 2 \(fp32, " + kind
    ):
        model.sample(torch.randn(2, small.DIM), per=1, steps=3)


def test_wrong_use(shared_exports: None) -> None:
    network = small.network().eval()
    able = [kind for kind in engines.ENGINES if not engines.reasons_unavailable(kind, CPU, "fp32")]
    assert {"native", "compiled", "eager", "onnxruntime", "openvino"} <= set(able)
    bound = engines.make("eager", network, _config(network), CPU, "fp32").bound(_batch(network, 3))
    for ask in (bound.predict, bound.first_nonfinite):
        with pytest.raises(ValueError, match="2 images, bound was a batch of 3"):
            ask(_images(network, 2), 0)


@pytest.mark.skipif(has_bf16, reason="this processor has bf16")
def test_a_processor_without_bf16_is_told_so() -> None:
    network = small.network()
    assert native.reasons_unavailable(CPU, "bf16") == ["oneDNN has no bf16 on this processor"]
    with pytest.raises(ConfigError, match="no bf16 on this processor"):
        engines.make("native", network, _config(network), CPU, "bf16")
    assert engines.make("auto", network, _config(network), CPU, "auto").precision == "fp32"


def test_warmup_and_buffers() -> None:
    network = small.network().eval().requires_grad_(False)
    engine = native.NativeEngine(network, CPU, "bf16" if has_bf16 else "fp32")
    engine.warmup((1, 3))
    for count in (3, 2, 3):
        assert engine.bound(_batch(network, count)).predict(_images(network, count), 0).shape == (count, 6, 8, 8)
    backend = engine._backend
    assert isinstance(backend, OneDnnBackend)
    # of the last batch alone; in fp32 images run in groups of four
    assert {shape[0] for shape in backend._buffers} == {3 if has_bf16 else 4}


def test_groups_and_buckets() -> None:
    assert [groups.group_size(size, size) for size in (8, 32, 64, 128)] == [4, 4, 1, 1]
    x = torch.randn(6, 1, 32, 32)
    seen: list[int] = []

    def run(part: Tensor, own: Tensor) -> Tensor:
        seen.append(len(part))
        return part * own[:, None, None, None]

    rows = torch.arange(6.0)
    assert torch.equal(groups.in_groups(run, x, rows), x * rows[:, None, None, None])
    assert seen == [4, 4]
    assert [cuda_graphs.bucket_for(size) for size in (1, 3, 8, 33, 512, 700)] == [1, 4, 8, 48, 512, 700]


@pytest.mark.parametrize("changes", [NETWORKS["blocks resample"], MAPS], ids=["blocks resample", "maps"])
def test_the_program_is_one_graph_for_the_compiler(changes: dict[str, object]) -> None:
    """No graph break, our operators in the graph; the compiler's own code generation is a long test."""
    from torch._dynamo.testing import CompileCounterWithBackend

    network = small.network(**changes).eval().requires_grad_(False)
    module = compiled._Module(network, torch.float32, CPU).eval()
    counter = CompileCounterWithBackend("eager")
    batch, x = _batch(network, 3), _images(network, 3)
    with torch.no_grad():
        got = torch.compile(module, fullgraph=True, backend=counter)(x, *batch.film_rows(0))
        want = network.denoise(x, batch.film(0))
    assert _error(got, want) <= ENGINE_FP32_L2
    assert counter.frame_count == 1
    called = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    assert any("film_group_norm" in target for target in called)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", *(["bf16"] * has_bf16)])
@pytest.mark.parametrize("changes", [{}, pytest.param(MAPS, marks=pytest.mark.long(short=False))], ids=["", "maps"])
def test_compiled(changes: dict[str, object], precision: str, short: bool) -> None:
    if short and has_bf16 and precision == "fp32":
        pytest.skip("left out of the short form")
    network = small.network(**changes).eval().requires_grad_(False)
    batch, x = _batch(network, 5), _images(network, 5)
    outputs = []
    for kind in ("eager", "native", "compiled"):
        engine = engines.make(kind, network, _config(network), CPU, "fp32" if kind == "eager" else precision)
        outputs.append(engine.bound(batch).predict(x, 1))
    bar = ENGINE_FP32_L2 if precision == "fp32" else 1.5 * _error(outputs[1], outputs[0])
    assert _error(outputs[2], outputs[0]) <= bar


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("changes", [NETWORKS["blocks resample"], MAPS], ids=["blocks resample", "maps"])
def test_native_on_cuda(changes: dict[str, object], precision: str) -> None:
    device = torch.device("cuda")
    network = small.network(**changes).eval().requires_grad_(False)
    batch, x = _batch(network, 5), _images(network, 5)
    truth = network.denoise(x, batch.film(2))
    engine = native.NativeEngine(network, device, precision)
    moved = {
        field.name: copy.deepcopy(value).to(device) if isinstance(value, Tensor | torch.nn.Module) else value
        for field in dataclasses.fields(batch.plan)
        for value in [getattr(batch.plan, field.name)]
    }
    there = conditioning.ConditioningPlan(**moved)  # type: ignore[arg-type]
    for count in (5, 2, 5):
        got = engine.bind(there, batch.rows[:count]).predict(x[:count].to(device), 2).cpu()
        assert _error(got, truth[:count]) <= {"fp32": 1e-3, "bf16": 3e-2, "fp16": 5e-3}[precision]
    assert "2 captured" in engine.describe()


def test_rows_without_a_table_are_those_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where images share a representation, and where a batch has some of them only, in any order."""
    network = small.network().eval().requires_grad_(False)
    h = torch.randn(5, small.DIM, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([4, 1, 4, 2])
    table = conditioning.make_plan(network, SCHEDULE, h, None)
    monkeypatch.setattr(conditioning, "TABLE_LIMIT_BYTES", 0)
    without = conditioning.make_plan(network, SCHEDULE, h, None)
    assert (table.table is None, without.table is None) == (False, True)
    for k in range(3):
        known = table.table[k][rows] if table.table is not None else None
        torch.testing.assert_close(without.batch(rows).film(k), known)


@pytest.mark.parametrize("kind", ["eager", "native"])
def test_weights_that_are_changed_later_are_an_error_or_drawn_with(kind: str) -> None:
    """An engine that has packed them would draw with old and new ones together."""
    model = small.quick_model()
    h = torch.randn(1, small.DIM)
    model.engine = engines.make(kind, model.unet, model.config, CPU, "fp32")
    before = model.sample(h, per=1, steps=2)
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.mul_(1.1)
    if kind == "native":
        with pytest.raises(ConfigError, match="weights were changed after engine native had prepared them"):
            model.sample(h, per=1, steps=2)
        model = copy.copy(model)
    after = model.sample(h, per=1, steps=2)
    plain = Model.from_network(model.unet, small.SCHEDULE).sample(h, per=1, steps=2)
    assert float((after - plain).norm() / plain.norm()) < ENGINE_FP32_L2
    assert float((after - before).norm() / before.norm()) > 100 * ENGINE_FP32_L2
