"""Networks in other runtimes are asked between whole timesteps, too, and files of before say that they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import rcdm_fast
from rcdm_fast import engines
from rcdm_fast.config import ConfigError, ScheduleConfig
from rcdm_fast.diffusion.conditioning import make_plan
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.exporters.graph import NetworkGraph, timestep_inputs
from rcdm_fast.exporters.onnx import TOLERANCE, GraphError, read_info
from tests import small
from tests.tolerances import FORWARD_L2

pytestmark = pytest.mark.usefixtures("shared_exports")

CPU = torch.device("cpu")
TIMES: Any = (0.25, 412, 412.7, 998.999)
EXPORTED = [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]


@pytest.fixture(scope="module")
def model() -> rcdm_fast.Model:
    return small.model()


@pytest.fixture(scope="module")
def path(model: rcdm_fast.Model, shared_exports: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = rcdm_fast.export(model, "onnx", tmp_path_factory.mktemp("now"), encoder=False)
    return path


@pytest.fixture(scope="module")
def older(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as it was before fractions: without that input, and without a word on its version."""
    graph = onnx.load(path)
    (fraction,) = (given for given in graph.graph.input if given.name == "fraction")
    graph.graph.input.remove(fraction)
    graph.graph.initializer.append(onnx.helper.make_tensor("fraction", onnx.TensorProto.FLOAT, [1], [0.0]))
    said = {entry.key: entry.value for entry in graph.metadata_props}
    del said["rcdm_fast.graph"], graph.metadata_props[:]
    onnx.helper.set_model_props(graph, said)
    older = tmp_path_factory.mktemp("older") / "network.onnx"
    onnx.save(graph, older)
    return older


def _answers(model: rcdm_fast.Model, name: str, precision: str, file: Path | None, times: Any) -> list[Tensor]:
    """What an engine says of two images at each of these timesteps."""
    if engines.reasons_unavailable(name, CPU, precision):  # type: ignore[arg-type]
        pytest.skip(f"{name} has no {precision} here")
    engine = engines.make(name, model.unet, model.config, CPU, precision, file)
    h, x = torch.randn(2, small.DIM, generator=_seeded()), torch.randn(2, 3, 8, 8, generator=_seeded())
    plan = make_plan(model.unet, Schedule(model.config.schedule, times), h, None)
    bound = engine.bind(plan, torch.tensor([1, 0]))
    return [bound.predict(x, k) for k in range(len(times))]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _truths(model: rcdm_fast.Model, times: Any) -> list[Tensor]:
    h, x = torch.randn(2, small.DIM, generator=_seeded()), torch.randn(2, 3, 8, 8, generator=_seeded())
    with torch.inference_mode():
        return [model.unet(x, torch.full((2,), float(t)), h[[1, 0]]) for t in times]


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(("name", "precision"), [("eager", "fp32"), ("native", "fp32"), *EXPORTED])
def test_engines_are_asked_between_timesteps(
    model: rcdm_fast.Model, path: Path, name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path))
    file = path if (name, precision) in EXPORTED else None
    tolerance = FORWARD_L2 if precision == "fp32" else TOLERANCE["bf16"]
    wants = _truths(model, TIMES)
    assert _relative(wants[1], wants[2]) > 1.5 * tolerance  # or nothing would be told apart
    for got, want in zip(_answers(model, name, precision, file, TIMES), wants, strict=True):
        assert _relative(got, want) <= tolerance


@pytest.mark.parametrize(("name", "precision"), EXPORTED[:2])
def test_files_of_before_know_whole_timesteps(
    model: rcdm_fast.Model, older: Path, name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path))
    assert read_info(older).graph == 1
    times: Any = (0, 412, 999)
    for got, want in zip(_answers(model, name, precision, older, times), _truths(model, times), strict=True):
        assert _relative(got, want) <= FORWARD_L2
    with pytest.raises(ConfigError, match=r"network\.onnx: .* whole timesteps only, asked for is t = 0\.25; export it"):
        _answers(model, name, precision, older, TIMES)


def test_a_graph_of_a_version_to_come_is_refused(path: Path, tmp_path: Path) -> None:
    graph = onnx.load(path)
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert said["rcdm_fast.graph"] == "2"
    onnx.helper.set_model_props(graph, {**said, "rcdm_fast.graph": "3"})
    onnx.save(graph, tmp_path / "later.onnx")
    with pytest.raises(GraphError, match=r"later\.onnx: its graph is of version 3, known: 1, 2"):
        read_info(tmp_path / "later.onnx")


class _SixteenBits(TorchDispatchMode):
    """A runtime that keeps every float of the graph in bf16, its inputs included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map(self._rounded, func(*tree_map(self._rounded, args), **(kwargs or {})))

    @staticmethod
    def _rounded(value: Any) -> Any:
        exact = not isinstance(value, Tensor) or value.dtype != torch.float32
        return value if exact else value.view(torch.int32).add(0x8000).bitwise_and(-0x10000).view(torch.float32)


@pytest.mark.parametrize("schedule", [ScheduleConfig(), ScheduleConfig(200, rescale_timesteps=True)])
def test_sinusoids_are_those_of_the_timestep_in_16_bits_too(schedule: ScheduleConfig) -> None:
    graph, steps = NetworkGraph(small.network(), schedule), schedule.diffusion_steps
    t = torch.rand(500, generator=_seeded(), dtype=torch.float64) * (steps - 1)
    t[0] = steps - 1
    seen = t * (1000 / steps if schedule.rescale_timesteps else 1)
    half = graph.network.config.num_channels // 2
    angles = seen[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    want = torch.cat([angles.cos(), angles.sin()], dim=1)
    parts = tuple(torch.cat(each) for each in zip(*(timestep_inputs(float(one), 1) for one in t), strict=True))
    assert float((graph.sinusoids_at(*parts) - want).abs().max()) <= 6e-5  # the table's own: float32 of up to 1000
    with _SixteenBits():  # type: ignore[no-untyped-call]
        rough = graph.sinusoids_at(*parts)
    assert 1e-3 < float((rough - want).abs().max()) <= 2e-2
