"""The onnxruntime engine: the exported ONNX network, on the CPU or by CUDA or TensorRT execution providers.

The file is exported once and kept in the cache. On a GPU inputs and outputs are bound to torch's memory, so that
nothing passes through the host between steps, and fp32 is float32, not TF32. An image may differ with its batch by
rounding.

Knows nothing about solvers; of conditioning it takes timesteps and representations, FiLM rows come from the graph.
"""

from __future__ import annotations

import functools
import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast import devices, storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.doors import door
from rcdm_fast.engines import cache
from rcdm_fast.errors import install
from rcdm_fast.exporters import onnx as exported
from rcdm_fast.exporters.graph import GRAPH, OUTPUT, input_names, timestep_inputs, weights_hash
from rcdm_fast.models.unet import UNet

FILE = "network.onnx"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {"cpu": ("CPUExecutionProvider",), "cuda": (CUDA, "CPUExecutionProvider")}


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why onnxruntime cannot run on a device in a precision; empty if it can."""
    reasons = _absent(device)
    if not reasons and device.type == "cpu" and precision != "fp32":
        return [f"onnxruntime has no {precision} kernels for the CPU (use fp32, or native or openvino in bf16)"]
    if not reasons and device.type == "cuda" and precision == "bf16":
        return _without_bf16(CUDA, devices.placed(device).index)
    return reasons


def _absent(device: torch.device) -> list[str]:
    missing = exported.missing_packages()
    if missing:
        return [f"not installed: {', '.join(missing)} ({install('onnx')})"]
    if device.type not in PROVIDERS:
        return [f"onnxruntime has no provider for {device.type} here"]
    if device.type == "cuda" and not torch.cuda.is_available():
        return ["this PyTorch sees no CUDA device"]
    import onnxruntime

    wanted = PROVIDERS[device.type][0]
    if wanted not in onnxruntime.get_available_providers():
        return [f"this onnxruntime has no {wanted} ({install('onnxruntime-gpu')}); its engines: cpu"]
    return []


def tensorrt_reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """The same for onnxruntime's TensorRT provider."""
    if device.type != "cuda":
        return [f"TensorRT does not run on {device.type}"]
    reasons = _absent(device)
    if reasons:
        return reasons
    import onnxruntime

    if TENSORRT not in onnxruntime.get_available_providers():
        return [f"this onnxruntime has no {TENSORRT}"]
    if precision == "fp32" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        return [f"{TENSORRT} computes float32 in TF32 unless NVIDIA_TF32_OVERRIDE=0 is in the environment"]
    return _without_bf16(TENSORRT, devices.placed(device).index) if precision == "bf16" else []


@functools.cache
def _without_bf16(provider: str, index: int) -> list[str]:
    """Why a provider cannot compute in bf16; empty if it can. It depends on the version, so it is asked."""
    import onnxruntime
    from onnx import TensorProto, helper

    kind = TensorProto.BFLOAT16
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("MatMul", ["c", "c"], ["y"])]
    x, w, y = (
        helper.make_tensor_value_info(name, kind, [1, 8, 1, 1] if name != "w" else [8, 8, 1, 1]) for name in "xwy"
    )
    opset = [helper.make_opsetid("", exported.OPSET)]
    model = helper.make_model(helper.make_graph(nodes, "bf16", [x, w], [y]), opset_imports=opset, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[(provider, {"device_id": str(index)})]
        )
    except Exception as error:  # onnxruntime's own classes
        return [f"this onnxruntime has no bf16 convolutions in {provider} ({' '.join(str(error).split())[:200]})"]
    return []


def network_file(network: UNet, config: ModelConfig, precision: str) -> Path:
    """The exported network in the cache, written there if need be."""
    key = {
        "weights": weights_hash(network, config.schedule),
        "config": repr(config),
        "precision": precision,
        "opset": str(exported.OPSET),
        "graph": str(GRAPH),
        "rcdm_fast": exported.graph_info(network, config, precision).version,
        "torch": torch.__version__,
    }

    def build(folder: Path) -> None:
        exported.export_network(folder / FILE, network, config, precision)

    return cache.entry("onnx", key, build) / FILE


class OnnxRuntimeEngine(Engine):
    """See `rcdm_fast.diffusion.engine.Engine`.

    Args:
        network, config, device, precision: as of `engines.make`.
        file: an exported network to use instead of the cache's; `GraphError` if it is not this model's, or not in this
            precision.
    """

    name = "onnxruntime"
    _tensorrt = False

    def __init__(
        self, network: UNet, config: ModelConfig, device: torch.device, precision: str, file: Path | None = None
    ) -> None:
        self.precision = precision
        self.device = devices.placed(device)
        self._graph = GRAPH
        if file is None:
            file = network_file(network, config, precision)
        else:
            info = exported.read_info(file)
            exported.check_belongs(info, network, config, str(file))
            exported.check_precision(info, precision, asked=precision, where=str(file))
            self._graph = info.graph
        self._names = input_names(config.unet, self._graph)
        self._session = _session(file, self.device, self._tensorrt)
        self._file = file
        self.files = tuple(sorted(file.parent.glob(f"{file.name}*")))
        self._channels = config.unet.out_channels

    def prepare(self, batch: Batch) -> None:
        check_timesteps(batch, self._graph, self._file)

    @torch.inference_mode()
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        values = graph_inputs(batch, x, k, self._graph)
        if self.device.type == "cpu":
            feeds = {name: value.numpy() for name, value in zip(self._names, values, strict=True)}
            with self._running():
                return torch.from_numpy(self._session.run([OUTPUT], feeds)[0])
        with devices.current(self.device), self._running():
            return self._bound(values)

    def _running(self) -> AbstractContextManager[None]:
        """What onnxruntime raises of a graph that it could open."""
        return door(exported.GraphError, f"{self._file}: onnxruntime cannot run it; export it again", memory=False)

    def _bound(self, values: tuple[Tensor, ...]) -> Tensor:
        """Run on torch's own memory: what torch queued is finished before, and this before it returns."""
        n, _, height, width = values[0].shape
        out = torch.empty((n, self._channels, height, width), dtype=torch.float32, device=self.device)
        binding = self._session.io_binding()
        index = self.device.index
        for name, value in zip(self._names, values, strict=True):
            kind = "int64" if value.dtype == torch.int64 else "float32"
            binding.bind_input(name, "cuda", index, _numpy_type(kind), tuple(value.shape), value.data_ptr())
        binding.bind_output(OUTPUT, "cuda", index, _numpy_type("float32"), tuple(out.shape), out.data_ptr())
        torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return out

    def describe(self) -> str:
        import onnxruntime

        providers = ", ".join(self._session.get_providers())
        return f"onnxruntime {onnxruntime.__version__} ({providers}), {self.precision}, on {self.device}"


class OnnxRuntimeTensorRTEngine(OnnxRuntimeEngine):
    """The same with onnxruntime's TensorRT provider, which builds a plan for every new batch size and keeps it."""

    name = "onnxruntime-tensorrt"
    _tensorrt = True


def check_timesteps(batch: Batch, graph: int, file: Path) -> None:
    """`ConfigError` if a graph of before is to be asked at a timestep between two whole ones."""
    between = [t for t in batch.plan.timesteps if t != int(t)]
    if graph < 2 and between:
        raise ConfigError(
            f"{file}: exported when graphs knew whole timesteps only, asked for is t = {between[0]:g}; export it again"
        )


def graph_inputs(batch: Batch, x: Tensor, k: int, graph: int = GRAPH) -> tuple[Tensor, ...]:
    """The inputs of an exported graph of some version, for a batch at kept step k, contiguous, on x's device."""
    timestep, fraction = timestep_inputs(batch.plan.timesteps[k], len(x), x.device)
    values = (x.float().contiguous(), timestep, *((fraction,) if graph > 1 else ()))
    given = batch.given
    return values if given is None else (*values, given.to(x.device).contiguous())


def _numpy_type(kind: str) -> Any:
    import numpy as np

    return np.dtype(kind).type


def _plans_of(file: Path) -> Path:
    """Where the provider keeps plans of this very file: it calls them after names of file and nodes, not weights."""
    parts = sorted(file.parent.glob(f"{file.name}*"))  # weights beside it, too
    digest = hashlib.sha256("".join(storage.sha256(each) for each in parts).encode()).hexdigest()
    return cache.folder() / "ort-tensorrt" / digest[:24]


def _session(file: Path, device: torch.device, tensorrt: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = list(PROVIDERS[device.type])
    if device.type == "cuda":
        settings = {"device_id": str(device.index)}
        providers[0] = (CUDA, {**settings, "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"})
        if tensorrt:
            kept = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(_plans_of(file))}
            providers.insert(0, (TENSORRT, {**settings, **kept}))
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime's own classes
        raise ConfigError(f"onnxruntime cannot open {file}: {' '.join(str(error).split())[:300]}") from error
    wanted = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    absent = [name for name in wanted if name not in session.get_providers()]
    if absent:  # onnxruntime itself only warns, and goes on without
        running = ", ".join(session.get_providers())
        raise ConfigError(
            f"onnxruntime could not load {', '.join(absent)} (its libraries are missing or of another CUDA version); "
            f"it would run on {running}. Use engine='native', or device='cpu'"
        )
    return session
