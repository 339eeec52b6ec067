"""TensorRT and onnxruntime on GPUs made of the CPU's memory: their device, their stream, what they keep and refuse."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from rcdm_fast import engines
from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.engine import Bound
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines import onnx_runtime
from rcdm_fast.engines.onnx_runtime import OnnxRuntimeEngine
from rcdm_fast.engines.tensorrt_runtime import TensorRTEngine
from rcdm_fast.exporters import onnx, tensorrt
from rcdm_fast.exporters.graph import OUTPUT
from tests import small
from tests.exports import FEW_LAYERS
from tests.fake_cuda import CudaTensor, Machine, fake_cuda

SCHEDULE = Schedule.make(ScheduleConfig(1000, variance="learned_range"), 4)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with fake_cuda(2) as found:
        yield found


def _bound(engine: TensorRTEngine, device: str, count: int) -> Bound:
    network = small.network().eval().requires_grad_(False).to(device)
    h = torch.arange(4 * small.DIM, dtype=torch.float32).view(4, small.DIM).to(device)
    return engine.bind(conditioning.make_plan(network, SCHEDULE, h, None), torch.arange(count) % 4)


def _memory(address: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    values = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(values).reshape(shape)


class Context:
    """A plan's context: its output is the first number of each representation, everywhere."""

    refuses = ""

    def __init__(self, machine: Machine, size: int) -> None:
        self.machine, self.size = machine, size
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran: list[tuple[int, int]] = []  # current device, stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.refuses != f"shape of {name}"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.refuses != name

    def execute_async_v3(self, stream: int) -> bool:
        self.ran.append((self.machine.current_device(), stream))
        size, _, height, width = self.shapes["sample"]
        assert {shape[0] for shape in self.shapes.values()} == {self.size} == {size}
        h = _memory(self.addresses["representation"], (size, small.DIM))
        _memory(self.addresses[OUTPUT], (size, 6, height, width))[:] = h[:, :1, None, None]
        return self.refuses != "run"


class Logger:
    """TensorRT's, which says nothing here."""

    ERROR = 2


class Runtime:
    """TensorRT's, which loads nothing here."""

    def __init__(self, logger: object) -> None: ...


class Library:
    """What the engine asks of TensorRT itself."""

    __name__, __version__ = "tensorrt", "11.0"
    ILogger, Runtime = Logger, Runtime


@pytest.fixture
def contexts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> dict[int, Context]:
    made: dict[int, Context] = {}

    class Engine:
        def __init__(self, size: int) -> None:
            self.size = size

        def create_execution_context(self) -> Context | None:
            made[self.size] = Context(machine, self.size)
            return None if Context.refuses == "start" else made[self.size]

    monkeypatch.setattr(tensorrt, "library", lambda: Library)
    monkeypatch.setattr(TensorRTEngine, "_built", lambda self, size: Engine(size))
    return made


def _tensorrt(device: str) -> TensorRTEngine:
    return TensorRTEngine(small.network(), small.model().config, torch.device(device), "fp16")


@pytest.mark.parametrize("device", ["cuda:1", "cuda"])
def test_tensorrt_runs_on_its_own_gpu_and_stream(machine: Machine, contexts: dict[int, Context], device: str) -> None:
    torch.cuda.set_device(1)
    engine = _tensorrt(device)
    torch.cuda.set_device(0)
    bound = _bound(engine, "cuda:1", 3)
    x = torch.randn(3, 3, 8, 8).to("cuda:1")
    with machine.no_waiting():
        out = bound.predict(x, 1)
    assert isinstance(out, CudaTensor)
    assert str(out.device) == "cuda:1"
    assert torch.equal(out.numbers, torch.tensor([0.0, 6.0, 12.0])[:, None, None, None].expand(3, 6, 8, 8))
    ((where, stream),) = contexts[4].ran
    assert where == 1
    assert stream != 0  # the default stream would be waited for
    torchs, own = torch.cuda.current_stream("cuda:1"), engine._stream
    assert torchs in own.waited_for  # type: ignore[attr-defined]
    assert own in torchs.waited_for  # type: ignore[attr-defined]


def test_tensorrt_keeps_a_few_plans(machine: Machine, contexts: dict[int, Context]) -> None:
    engine = _tensorrt("cuda:0")
    for count in (1, 2, 1, 4, 8, 1):
        assert len(_bound(engine, "cuda:0", count).predict(torch.randn(count, 3, 8, 8).to("cuda:0"), 0)) == count
    assert list(engine._contexts) == [4, 8, 1]
    assert len(contexts[1].ran) == 3  # used in between, never dropped


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("sample", "does not take the memory of sample"),
        (OUTPUT, f"does not take the memory of {OUTPUT}"),
        ("shape of sample", r"does not take sample of shape \[1, 3, 8, 8\]"),
        ("run", "could not run the plan"),
        ("start", "cannot start the plan for 1 images: it does not say why"),
    ],
)
def test_what_tensorrt_refuses_is_an_error(
    machine: Machine, contexts: dict[int, Context], monkeypatch: pytest.MonkeyPatch, refused: str, message: str
) -> None:
    monkeypatch.setattr(Context, "refuses", refused)
    engine = _tensorrt("cuda:0")
    x = torch.randn(1, 3, 8, 8).to("cuda:0")
    with pytest.raises(RuntimeError, match=message):
        _bound(engine, "cuda:0", 1).predict(x, 0)


class Session:
    """onnxruntime's, on a GPU; `bf16` says whether it has kernels for it."""

    bf16 = True
    made: list[list[Any]] = []  # noqa: RUF012

    def __init__(self, model: str | bytes, options: object, providers: list[Any]) -> None:
        if isinstance(model, bytes) and not self.bf16:
            raise ValueError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no Conv(11)")
        self.made.append(providers)
        self._names = [each if isinstance(each, str) else each[0] for each in providers]

    def get_providers(self) -> list[str]:
        return self._names


@pytest.fixture
def sessions(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Any]]]:
    providers = [onnx_runtime.TENSORRT, onnx_runtime.CUDA, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnx_runtime, "network_file", lambda *_: Path("network.onnx"))
    monkeypatch.setattr(Session, "made", [])
    onnx_runtime._without_bf16.cache_clear()
    yield Session.made
    onnx_runtime._without_bf16.cache_clear()


def test_onnxruntime_takes_the_current_gpu_and_computes_in_float32(sessions: list[list[Any]]) -> None:
    torch.cuda.set_device(1)
    engine = engines.make("onnxruntime", small.network(), small.model().config, torch.device("cuda"), "fp32")
    assert isinstance(engine, OnnxRuntimeEngine)
    assert str(engine.device) == "cuda:1"
    (providers,) = sessions
    name, settings = providers[0]
    assert name == onnx_runtime.CUDA
    assert settings["device_id"] == "1"
    assert settings["use_tf32"] == "0"


def test_onnxruntime_is_asked_whether_it_has_bf16(sessions: list[list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:1")
    assert engines.reasons_unavailable("onnxruntime", device, "bf16") == []
    assert engines.reasons_unavailable("onnxruntime-tensorrt", device, "bf16") == []
    asked = [(name, settings["device_id"]) for ((name, settings),) in sessions]
    assert asked == [(onnx_runtime.CUDA, "1"), (onnx_runtime.TENSORRT, "1")]
    onnx_runtime._without_bf16.cache_clear()
    monkeypatch.setattr(Session, "bf16", False)
    (reason,) = engines.reasons_unavailable("onnxruntime", device, "bf16")
    assert reason.startswith(f"this onnxruntime has no bf16 convolutions in {onnx_runtime.CUDA} (")
    assert "NOT_IMPLEMENTED" in reason
    assert engines.reasons_unavailable("onnxruntime", device, "fp16") == []


def test_onnxruntimes_tensorrt_has_no_float32(sessions: list[list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    (reason,) = engines.reasons_unavailable("onnxruntime-tensorrt", device, "fp32")
    assert "computes float32 in TF32 unless NVIDIA_TF32_OVERRIDE=0" in reason
    assert engines.reasons_unavailable("onnxruntime-tensorrt", device, "fp16") == []
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert engines.reasons_unavailable("onnxruntime-tensorrt", device, "fp32") == []


@pytest.mark.long
def test_a_plan_is_built_without_tf32(shared_exports: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder allows it unless it is told not to."""
    library = pytest.importorskip("tensorrt_rtx")
    cleared: list[object] = []
    clear_flag = library.IBuilderConfig.clear_flag

    def clear(self: object, flag: object) -> None:
        cleared.append(flag)
        clear_flag(self, flag)

    monkeypatch.setattr(library.IBuilderConfig, "clear_flag", clear)
    monkeypatch.setattr(tensorrt, "library", lambda: library)
    network, config = small.network(**FEW_LAYERS), small.model(**FEW_LAYERS).config
    graph = onnx.export_network(tmp_path / "network.onnx", network, config, "fp32", check=False)
    assert len(tensorrt.build(graph, config, (1, 1, 1), ("sm89",))) > 0
    assert cleared == [library.BuilderFlag.TF32]
