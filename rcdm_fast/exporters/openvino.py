"""OpenVINO files (IR) of the network, in float32 and in int8 (`openvino_int8.py`).

bf16 needs no file of its own: the runtime computes a float32 file in bf16 where the processor can.

Knows nothing about running a file (`engines/openvino_runtime.py`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from rcdm_fast.doors import door, printable, regular
from rcdm_fast.errors import install
from rcdm_fast.exporters import onnx, openvino_int8
from rcdm_fast.exporters.graph import example_inputs, input_names, truth
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import GraphError, GraphInfo, graph_info
from rcdm_fast.exporters.openvino_core import core
from rcdm_fast.exporters.openvino_int8 import runner
from rcdm_fast.storage import StorageError

PRECISIONS = ("fp32", "int8")
FILE = "network.xml"
INFO = "rcdm_fast"
DIGEST = "weights_file"  # SHA-256 of the .bin, which OpenVINO takes as it is
KEPT = "kept"  # what int8 leaves in floating point


def missing_packages() -> list[str]:
    """Packages that are not installed."""
    there = importlib.util.find_spec("openvino") is not None
    return ([] if there else [f"openvino ({install('openvino')})"]) + onnx.missing_packages()


def write(out: Path, job: Job) -> list[Path]:
    """Write ``network.xml`` and ``network.bin``, with a dynamic batch, after comparing them with PyTorch.

    Raises:
        ConfigError: int8 without NNCF, or without representations to calibrate with.
        ExportError: numbers that are wrong, or int8 that drifts too far (see `openvino_int8.quantize`).
        StorageError: the files cannot be written.
    """
    import openvino

    if job.precision == "int8":
        openvino_int8.check(job)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".openvino.", dir=out) as folder:
            place = Path(folder)
            job.report("network: exporting and checking")
            graph = onnx.export_network(place / "network.onnx", job.network, job.config, check=False)
            model = core().read_model(graph)
            _check(model, job)
            if job.precision == "int8":
                found = openvino_int8.quantize(model, graph, job)
                model = found.model
                model.set_rt_info(found.kept_in_words(), [INFO, KEPT])
            info = graph_info(job.network, job.config, job.precision)
            for key, value in info.as_metadata().items():
                model.set_rt_info(value, [INFO, key.removeprefix(onnx.PREFIX)])
            openvino.save_model(model, place / FILE, compress_to_fp16=False)
            names = (FILE.replace(".xml", ".bin"), FILE)  # weights before the graph that needs them
            model.set_rt_info(_digest(place / names[0]), [INFO, DIGEST])
            openvino.save_model(model, place / FILE, compress_to_fp16=False)
            for name in names:
                os.replace(place / name, out / name)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error
    return [out / name for name in names]


def read_info(model: Any, where: str) -> GraphInfo:
    """What a file says about itself.

    Raises:
        GraphError: not exported by rcdm_fast.
    """
    if not model.has_rt_info([INFO]):
        raise GraphError(f"{where}: not exported by rcdm_fast")
    keys = ("version", "precision", "weights", "config", "graph")
    with door(onnx.GraphError, f"{where}: what it says about itself cannot be read; export it again"):
        found = {key: str(model.get_rt_info([INFO, key]).value) for key in keys if model.has_rt_info([INFO, key])}
    return GraphInfo.from_metadata({onnx.PREFIX + key: value for key, value in found.items()}, where)


def kept_in_words(model: Any) -> str:
    """Which layers of an int8 file are in floating point; "" where it does not say."""
    return str(model.get_rt_info([INFO, KEPT]).value) if model.has_rt_info([INFO, KEPT]) else ""


def read_model(path: Path) -> Any:
    """An IR or ONNX file as OpenVINO has it.

    Raises:
        GraphError: unreadable.
    """
    runtime, weights = core(), path.with_suffix(".bin")
    with door(GraphError, f"{path}: OpenVINO cannot read it; export it again"):
        for file in (path, weights):
            if file.exists():
                regular(file)
        model = runtime.read_model(path)
        digest = str(model.get_rt_info([INFO, DIGEST]).value) if model.has_rt_info([INFO, DIGEST]) else None
        if digest is not None and digest != _digest(weights):
            raise GraphError(f"{weights}: damaged (its checksum differs); export it again")
    return model


def check_inputs(model: Any, names: tuple[str, ...], where: str) -> None:
    """Whether a graph takes what a network of its kind is given.

    Raises:
        GraphError: it has other inputs.
    """
    with door(GraphError, f"{where}: its inputs cannot be read; export it again"):
        found = sorted(port.get_any_name() for port in model.inputs)
        if found != sorted(names):
            raise GraphError(f"{where}: damaged (its inputs are {printable(', '.join(found))}); export it again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(model: Any, job: Job) -> None:
    network = truth(job.network, job.config.schedule)
    run = runner(model, input_names(job.config.unet))
    for batch in onnx.CHECKED_BATCHES:
        inputs = example_inputs(job.config.unet, job.config.schedule, batch, torch.Generator().manual_seed(batch))
        onnx.check_close(run(*inputs).numpy(), network(*inputs), onnx.TOLERANCE["fp32"], f"{FILE}, batch {batch}")
