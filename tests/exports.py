"""ONNX exports of the same network made once in a process: torch's exporter takes seven seconds for a small one.

Knows nothing of what becomes of a program: files, their metadata and their checks are made every time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rcdm_fast.exporters.graph import NetworkGraph

# For tests that need any network: half the layers of the small one, wide enough for weights to be most of its file.
FEW_LAYERS: dict[str, Any] = {"channel_mult": (1,), "num_channels": 64}

_PROGRAMS: dict[str, Any] = {}


def _key(graph: NetworkGraph, examples: Any, options: dict[str, Any]) -> str:
    """Whatever the exporter sees: class and settings of the graph, its tensors, example inputs and options."""
    digest = hashlib.sha256()
    own = {name: value for name, value in vars(type(graph)).items() if isinstance(value, str)}
    shapes = [(list(example.shape), example.dtype) for example in examples]
    digest.update(repr((type(graph), own, graph.network.config, str(graph), graph.dtype, shapes, options)).encode())
    for name, value in (*graph.named_parameters(), *graph.named_buffers()):
        digest.update(f"{name}{list(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """`torch.onnx.export` gives the program that it gave for an equal network; other modules are exported as ever."""
    real = torch.onnx.export

    def export(module: Any, examples: Any, **options: Any) -> Any:
        if not isinstance(module, NetworkGraph):
            return real(module, examples, **options)
        key = _key(module, examples, options)
        if key not in _PROGRAMS:
            _PROGRAMS[key] = real(module, examples, **options)
        return _PROGRAMS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export)
        yield
