"""Encoders in an ONNX file: ``onnx:PATH``, run by onnxruntime.

Does not know how images are resized or representations pooled (`base.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import config as configs
from rcdm_fast.config import EncoderConfig
from rcdm_fast.doors import door, printable
from rcdm_fast.encoders import onnx_graph
from rcdm_fast.encoders.base import Network
from rcdm_fast.encoders.errors import EncoderError, need, reason
from rcdm_fast.encoders.native import METADATA_KEY
from rcdm_fast.encoders.sources import Source

OPTIONS: frozenset[str] = frozenset()
MAX_BATCH = 1024  # images in a graph of fixed batch, which are made for every call
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxNetwork:
    """One output of an ONNX graph as a function of images; a pickled or copied one opens its file again.

    Args:
        path: the file.
        output: name of an output, of a tensor inside the graph or of a node that gives it (the graph is cut there:
            nothing behind it is computed); ``backbone`` means the first output unless one has that name.

    Raises:
        EncoderError: onnxruntime is missing, the file is no ONNX graph, it does not take one batch of images, or has
            nothing of that name.
    """

    def __init__(self, path: str, output: str = "backbone") -> None:
        self.path, where = path, printable(path)
        self._file = str(Path(path).absolute())  # of a copy in a process with another working folder
        self._device = torch.device("cpu")
        self._cut: bytes | None = None
        self._session = self._open()
        inputs, outputs = self._session.get_inputs(), [item.name for item in self._session.get_outputs()]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in DTYPES:
            found = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise EncoderError(f"{where}: expected one input of images [N,3,H,W], the graph has {printable(found)}")
        self._input: str = inputs[0].name
        self._dtype = DTYPES[inputs[0].type]
        shape = inputs[0].shape
        self.channels_last = shape[1] != 3 and shape[3] == 3
        height, width = shape[1:3] if self.channels_last else shape[2:4]
        if isinstance(height, int) and isinstance(width, int) and height != width:
            raise EncoderError(f"{where}: takes images of {height}x{width} pixels; only square ones are supported")
        self.batch: int | None = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        if self.batch is not None and self.batch > MAX_BATCH:
            raise EncoderError(f"{where}: takes {self.batch} images at once; at most {MAX_BATCH} are supported")
        self.image_size: int | None = height if isinstance(height, int) and height > 0 else None
        if output == "backbone" and output not in outputs:
            output = outputs[0]
        if output not in outputs:
            output, self._cut = onnx_graph.cut(self._file, output, where, outputs)
            self._session = self._open()
        self._output = output

    @property
    def is_cut(self) -> bool:
        """Whether it is a tensor inside the graph of the file."""
        return self._cut is not None

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that can be named as a layer, with its shape for one image, in order. Raises `EncoderError`."""
        names, whole = onnx_graph.opened(self._file, printable(self.path))
        session = self._made(whole)
        size = self.image_size or 224
        shape = (self.batch or 1, size, size, 3) if self.channels_last else (self.batch or 1, 3, size, size)
        with door(EncoderError, f"{printable(self.path)}: fails on an image"):
            found = session.run(names, {self._input: np.zeros(shape, self._dtype)})
        return {name: tuple(each.shape) for name, each in zip(names, found, strict=True) if hasattr(each, "shape")}

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text stored in the file."""
        with door(EncoderError, f"{printable(self.path)}: its metadata cannot be read"):
            return dict(self._session.get_modelmeta().custom_metadata_map)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._session = self._open()

    def to(self, device: torch.device) -> OnnxNetwork:
        """Run on another device. Raises `EncoderError` if this onnxruntime cannot."""
        if device != self._device:
            before, self._device = self._device, device
            try:
                self._session = self._open()
            except EncoderError:
                self._device = before
                raise
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Float [N,3,s,s] -> the output, on the images' device. A graph of fixed batch is fed padded batches."""
        array = np.ascontiguousarray(x.detach().cpu().numpy().astype(self._dtype, copy=False))
        if self.channels_last:
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        count, size = len(array), self.batch or len(array)
        parts = []
        for start in range(0, count, size):
            chunk = array[start : start + size]
            if len(chunk) < size:
                chunk = np.concatenate([chunk, np.zeros_like(array[:1]).repeat(size - len(chunk), axis=0)])
            parts.append(self._session.run([self._output], {self._input: chunk})[0])
        return torch.from_numpy(np.concatenate(parts)[:count]).to(x.device)

    def _open(self) -> Any:
        return self._made(self._cut)

    def _made(self, graph: bytes | None) -> Any:
        """A session of a graph in memory, or of the file."""
        runtime = need("onnxruntime", "onnx")
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._device.type == "cuda":
            if "CUDAExecutionProvider" not in runtime.get_available_providers():
                raise EncoderError(f"{printable(self.path)}: this onnxruntime has no CUDA: pip install onnxruntime-gpu")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": self._device.index or 0}))
        elif self._device.type != "cpu":
            raise EncoderError(f"{printable(self.path)}: onnxruntime runs on cpu or cuda here, not {self._device}")
        if not os.path.isfile(self._file):
            raise EncoderError(f"{printable(self.path)}: no such file")
        try:
            return runtime.InferenceSession(self._file if graph is None else graph, providers=providers)
        except Exception as error:
            raise EncoderError(f"{printable(self.path)}: onnxruntime cannot open it ({reason(error)})") from error


def load(source: Source, fields: Mapping[str, Any]) -> Network:
    """An ONNX graph; ``layer`` chooses one of its outputs, or a tensor inside it.

    The convention is read from the file's metadata if rcdm_fast wrote it there; otherwise the image size comes from
    the graph and images stay in [-1,1] unless mean and std are given.

    Raises:
        EncoderError: see `OnnxNetwork`.
        ConfigError: metadata that describe no encoder.
    """
    network = OnnxNetwork(source.name, fields.get("layer", "backbone"))
    stored = network.metadata.get(METADATA_KEY)
    if stored:
        convention = configs.from_json(EncoderConfig, stored, source.name)
    else:
        convention = EncoderConfig(str(source), image_size=network.image_size or 224)
    asked = fields.get("image_size", convention.image_size)
    if network.image_size not in (None, asked):
        raise EncoderError(f"{source.shown}: the graph takes images of {network.image_size} px, not {asked}")
    return Network(network, convention, forward=network)
