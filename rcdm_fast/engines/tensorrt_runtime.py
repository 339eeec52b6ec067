"""The TensorRT engine: plans of the exported network, one for each batch bucket, on the GPU that is here.

A plan is built when its bucket is first needed and kept in the cache, keyed by weights, precision, batch, library
version and device; the last few are kept in memory, since each has weights of its own. A plan that the user gives is
checked by its description first; one with other weights is refitted if it can be. Inputs and outputs are torch's own
memory; plans run on a stream of the engine's, which TensorRT wants, after what torch has queued and before what it
queues next.

Knows nothing about solvers; of conditioning it takes timesteps and representations, FiLM rows come from the graph.
"""

from __future__ import annotations

import importlib.metadata
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import devices
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.engines import cache
from rcdm_fast.engines.onnx_runtime import graph_inputs, network_file
from rcdm_fast.exporters import onnx, plan_file, tensorrt
from rcdm_fast.exporters.graph import GRAPH, OUTPUT, input_names, weights_hash
from rcdm_fast.exporters.onnx import GraphError
from rcdm_fast.exporters.plan_file import PlanHeader
from rcdm_fast.models.unet import UNet

FILE = "network.plan"
LARGEST_BUCKET = 256
KEPT = 3  # plans in memory


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why TensorRT cannot run on a device in a precision; empty if it can."""
    if device.type != "cuda":
        return [f"TensorRT does not run on {device.type}"]
    if not torch.cuda.is_available():
        return ["this PyTorch sees no CUDA device"]
    missing = tensorrt.missing_packages()
    if missing:
        return [f"not installed: {', '.join(missing)}"]
    if precision not in tensorrt.PRECISIONS:
        return [f"TensorRT plans are not built in {precision}"]
    try:
        with torch.cuda.device(device):
            tensorrt.check_targets(())
    except ConfigError as error:
        return [str(error)]
    return []


def bucket(size: int) -> int:
    """The batch that a plan is built for: the next power of two, at most `LARGEST_BUCKET`.

    Raises:
        ConfigError: a batch that is larger.
    """
    if size > LARGEST_BUCKET:
        raise ConfigError(f"a batch of {size} images is larger than TensorRT plans are built for ({LARGEST_BUCKET})")
    return 1 << (size - 1).bit_length()


class TensorRTEngine(Engine):
    """See `rcdm_fast.diffusion.engine.Engine`.

    Args:
        network, config, device, precision: as of `engines.make`.
        file: a plan of `rcdm export --to tensorrt` to run instead of the cache's.
    """

    name = "tensorrt"

    def __init__(
        self, network: UNet, config: ModelConfig, device: torch.device, precision: str, file: Path | None = None
    ) -> None:
        self.precision = precision
        self.device = devices.placed(device)
        self.files: tuple[Path, ...] = ()
        self._network = network
        self._config = config
        self._trt = tensorrt.library()
        self._logger = tensorrt.make_logger(self._trt)
        with devices.current(self.device):
            self._runtime = self._trt.Runtime(self._logger)  # lives as long as the engines that it loads
            self._stream = torch.cuda.Stream(self.device)
        self._names = input_names(config.unet)
        self._contexts: OrderedDict[int, Any] = OrderedDict()  # bucket -> execution context
        self._given: tuple[PlanHeader, Any] | None = None
        if file is not None:
            with devices.current(self.device):
                self._given = self._from_file(file)

    def _from_file(self, file: Path) -> tuple[PlanHeader, Any]:
        header, plan = plan_file.read(file)
        header.check_network(self._config, self.precision, str(file))
        refit = header.needs_refit(weights_hash(self._network, self._config.schedule), str(file))
        header.check_target(self._trt.__name__, self._trt.__version__, tensorrt.current_target(), str(file))
        engine = self._deserialize(plan, str(file))
        if refit:
            tensorrt.refit(engine, network_file(self._network, self._config, self.precision))
        self.files = (file, plan_file.described_in(file))
        return header, engine

    def prepare(self, batch: Batch) -> None:
        self._context(len(batch))

    @torch.inference_mode()
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        with devices.current(self.device):
            size, context = self._context(len(x))
            values = [_padded(value, size) for value in graph_inputs(batch, x, k)]
            shape = (size, self._config.unet.out_channels, *x.shape[2:])
            out = torch.empty(shape, dtype=torch.float32, device=self.device)
            for name, value in zip(self._names, values, strict=True):
                if not context.set_input_shape(name, tuple(value.shape)):
                    raise RuntimeError(f"TensorRT does not take {name} of shape {list(value.shape)}")
                _bind(context, name, value)
            _bind(context, OUTPUT, out)
            torchs = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(torchs)
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT could not run the plan")
            torchs.wait_stream(self._stream)
            return out[: len(x)]

    def _context(self, batch_size: int) -> tuple[int, Any]:
        """The batch to run, and the context that runs it."""
        if self._given is not None:
            header, engine = self._given
            size = header.batch_for(batch_size, str(self.files[0]))
            make: Callable[[], Any] = lambda: engine  # noqa: E731
            key = 0
        else:
            key = size = bucket(batch_size)
            make = lambda: self._built(size)  # noqa: E731
        if key not in self._contexts:
            with devices.current(self.device):
                while len(self._contexts) >= KEPT:
                    self._stream.synchronize()  # it may be running
                    self._contexts.popitem(last=False)
                self._contexts[key] = self._started(make(), size)
        self._contexts.move_to_end(key)
        return size, self._contexts[key]

    def _started(self, engine: Any, size: int) -> Any:
        context = engine.create_execution_context()
        if context is None:
            why = self._logger.last or "it does not say why"
            raise RuntimeError(f"TensorRT cannot start the plan for {size} images: {why}")
        return context

    def _built(self, size: int) -> Any:
        targets = tensorrt.check_targets(())
        profile = (size, size, size)
        header = tensorrt.describe(self._network, self._config, self.precision, profile, targets)

        def build(folder: Path) -> None:
            graph = network_file(self._network, self._config, self.precision)
            plan_file.write(folder / FILE, header, tensorrt.build(graph, self._config, profile, targets))

        key = {
            "weights": header.weights,
            "config": repr(self._config),
            "precision": self.precision,
            "batch": str(size),
            "library": f"{header.library} {header.library_version}",
            "device": f"{torch.cuda.get_device_name(self.device)} {targets[0]}",
            "rcdm_fast": importlib.metadata.version("rcdm_fast"),
            "opset": str(onnx.OPSET),
            "graph": str(GRAPH),
            "float32": "ieee",
            "plan": plan_file.FORMAT,
        }
        file = cache.entry("tensorrt", key, build) / FILE
        self.files = (*(known for known in self.files if known != file), file)
        _, plan = plan_file.read(file)
        return self._deserialize(plan, str(file))

    def _deserialize(self, plan: bytes, where: str) -> Any:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise GraphError(f"{where}: TensorRT cannot load the plan: {self._logger.last or 'it does not say why'}")
        return engine

    def describe(self) -> str:
        return f"{self._trt.__name__} {self._trt.__version__}, {self.precision}, on {self.device}"


def _bind(context: Any, name: str, value: Tensor) -> None:
    if not context.set_tensor_address(name, value.data_ptr()):
        raise RuntimeError(f"TensorRT does not take the memory of {name}")


def _padded(value: Tensor, size: int) -> Tensor:
    """The same rows and zeros up to a bucket's size."""
    missing = size - len(value)
    return value if not missing else F.pad(value, (*[0, 0] * (value.dim() - 1), 0, missing)).contiguous()
