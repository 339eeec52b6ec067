"""The OpenVINO engine: the exported network on the CPU in float32, bf16 or int8.

float32 and bf16 run the ONNX file that is kept in the cache; int8 runs an export that was calibrated before. Shapes are
static, which is several times faster than dynamic ones: one compiled network for every batch size, the last few kept in
memory, all of them in the cache. An image may differ with its batch by rounding.

Knows nothing about solvers; of conditioning it takes timesteps and representations, FiLM rows come from the graph.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.doors import door
from rcdm_fast.engines import cache
from rcdm_fast.engines.onnx_runtime import check_timesteps, graph_inputs, network_file
from rcdm_fast.exporters import openvino as exported
from rcdm_fast.exporters.graph import GRAPH, input_names
from rcdm_fast.exporters.onnx import GraphError, check_belongs, check_precision, read_info
from rcdm_fast.exporters.openvino_core import core
from rcdm_fast.exporters.openvino_int8 import floating_hint
from rcdm_fast.models.unet import UNet

INT8_NEEDS = (
    "int8 needs a calibrated export: rcdm export MODEL --to openvino --precision int8 --data IMAGES --out DIR, then "
    "precision='int8=DIR/network.xml' (in commands --precision int8=DIR/network.xml)"
)
HINTS = {"fp32": "f32", "bf16": "bf16"}
BLOB = "compiled.blob"
KEPT = 4  # compiled batch sizes


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why OpenVINO cannot run on a device in a precision; empty if it can."""
    if device.type != "cpu":
        return ["OpenVINO runs on the CPU here"]
    missing = exported.missing_packages()
    if missing:
        return [f"not installed: {', '.join(missing)}"]
    if precision not in (*HINTS, "int8"):
        return [f"OpenVINO has no {precision} on the CPU (use bf16)"]
    if precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return ["OpenVINO has no bf16 on this processor"]
    return []


class OpenVINOEngine(Engine):
    """See `rcdm_fast.diffusion.engine.Engine`.

    Args:
        network, config, device, precision: as of `engines.make`.
        file: an exported ``network.xml`` (or ``.onnx``) instead of the cache's; int8 needs one.
    """

    name = "openvino"

    def __init__(
        self, network: UNet, config: ModelConfig, device: torch.device, precision: str, file: Path | None = None
    ) -> None:
        self.precision = precision
        self.device = device
        self._size = config.unet.image_size
        if file is None and precision == "int8":
            raise ConfigError(INT8_NEEDS)
        self._graph, given = GRAPH, file is not None
        file = file if file is not None else network_file(network, config, "fp32")
        self._model, self._file = exported.read_model(file), file
        if given:
            info = read_info(file) if file.suffix == ".onnx" else exported.read_info(self._model, str(file))
            check_belongs(info, network, config, str(file))
            rounded_later = ("fp32",) if precision == "bf16" else ()
            check_precision(info, precision, *rounded_later, asked=precision, where=str(file))
            self._graph = info.graph
        self._names = input_names(config.unet, self._graph)
        exported.check_inputs(self._model, self._names, str(file))
        weights = file.with_suffix(".bin")
        self.files: tuple[Path, ...] = (file, weights) if weights.exists() else (file,)
        digests = tuple(hashlib.sha256(each.read_bytes()).hexdigest() for each in self.files)
        self._digest = " ".join(digests)
        self.digests = digests if precision == "int8" else ()
        self._requests: OrderedDict[int, Any] = OrderedDict()

    def prepare(self, batch: Batch) -> None:
        check_timesteps(batch, self._graph, self._file)
        with self._running():
            self._request(len(batch))

    @torch.inference_mode()
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        values = graph_inputs(batch, x, k, self._graph)
        feeds = {name: value.numpy() for name, value in zip(self._names, values, strict=True)}
        with self._running():
            return torch.from_numpy(self._request(len(x)).infer(feeds, share_inputs=True)[0])

    def _running(self) -> AbstractContextManager[None]:
        """What OpenVINO raises of a graph that it could read."""
        return door(GraphError, f"{self._file}: OpenVINO cannot run it; export it again", memory=False)

    def _request(self, batch_size: int) -> Any:
        if batch_size not in self._requests:
            self._requests[batch_size] = self._compiled(batch_size)
            while len(self._requests) > KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(batch_size)
        return self._requests[batch_size]

    def _compiled(self, batch_size: int) -> Any:
        import openvino

        model = self._model.clone()
        shapes = {}
        for port in model.inputs:
            rest = [dimension.get_length() for dimension in list(port.partial_shape)[1:]]
            shapes[port] = openvino.PartialShape([batch_size, *rest])
        model.reshape(shapes)
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS.get(self.precision) or floating_hint(),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.precision == "fp32":
            settings["SNIPPETS_MODE"] = "DISABLE"  # with them float32 loses digits
        runtime = core()
        key = {
            "files": self._digest,
            "batch": str(batch_size),
            "settings": repr(sorted(settings.items())),
            "openvino": openvino.__version__,
            "processor": runtime.get_property("CPU", "FULL_DEVICE_NAME"),
        }

        def build(folder: Path) -> None:
            (folder / BLOB).write_bytes(runtime.compile_model(model, "CPU", settings).export_model().getvalue())

        # Not OpenVINO's own cache: it runs a damaged entry without a word.
        blob = (cache.entry("openvino", key, build) / BLOB).read_bytes()
        return runtime.import_model(blob, "CPU", settings).create_infer_request()

    def describe(self) -> str:
        import openvino

        kept = exported.kept_in_words(self._model)
        what = f"{self.precision} ({kept})" if kept else self.precision
        if self.digests:
            what += f", file {self.digests[0][:12]}"  # it has the checksum of the weights beside it
        return f"OpenVINO {openvino.__version__.split('-')[0]}, {what}, on {self.device}"
