"""OpenVINO files (IR) of the network, in float32 and in int8.

bf16 needs no file of its own: the runtime computes a float32 file in bf16 where the processor can. int8 is
post-training quantisation by NNCF, calibrated on real trajectories; what it quantises is reduced, from everything to
the inner 3x3 convolutions, until the error on trajectories that it was not calibrated on is small enough.

Knows nothing about running a file (`engines/openvino_runtime.py`).
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.export import calibration, onnx
from rcdm_fast.export.graph import NetworkGraph, example_inputs, input_names
from rcdm_fast.export.job import Job
from rcdm_fast.export.onnx import ExportError, GraphError, GraphInfo, graph_info
from rcdm_fast.storage import StorageError

PRECISIONS = ("fp32", "int8")
FILE = "network.xml"
INFO = "rcdm_fast"
INT8_TOLERANCE = 0.02  # relative L2 error of eps over whole trajectories; about twice that of bf16
CALIBRATED, HELD_OUT = 3, 4  # every fourth representation is kept for the check

# What stays in floating point, from nothing to all but the inner 3x3 convolutions; names are of ONNX nodes.
SCOPES: dict[str, dict[str, list[str]]] = {
    "everything": {},
    "all but attention and embeddings": {"types": ["MatMul"]},
    "all but these, the first and the last convolution": {"types": ["MatMul"], "ends": ["first", "last"]},
    "nothing but convolutions inside blocks": {"types": ["MatMul", "Add", "Multiply"], "ends": ["first", "last"]},
}


def missing_packages() -> list[str]:
    """Packages that are not installed."""
    there = importlib.util.find_spec("openvino") is not None
    return ([] if there else ["openvino (pip install 'rcdm_fast[openvino]')"]) + onnx.missing_packages()


def write(out: Path, job: Job) -> list[Path]:
    """Write ``network.xml`` and ``network.bin``, with a dynamic batch, after comparing them with PyTorch.

    Raises:
        ConfigError: int8 without NNCF, or without representations to calibrate with.
        ExportError: numbers that are wrong, or int8 that drifts too far whatever stays in floating point.
        StorageError: the files cannot be written.
    """
    import openvino

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".openvino.", dir=out) as folder:
            place = Path(folder)
            job.say("network: exporting and checking")
            graph = onnx.export_network(place / "network.onnx", job.network, job.config, check=False)
            model = openvino.Core().read_model(graph)
            _check(model, job)
            if job.precision == "int8":
                model = _quantise(model, job)
            info = graph_info(job.network, job.config, job.precision)
            for key, value in info.as_metadata().items():
                model.set_rt_info(value, [INFO, key.removeprefix(onnx.PREFIX)])
            openvino.save_model(model, place / FILE, compress_to_fp16=False)
            names = (FILE.replace(".xml", ".bin"), FILE)  # weights before the graph that needs them
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
    keys = ("version", "precision", "weights", "config")
    found = {key: str(model.get_rt_info([INFO, key]).value) for key in keys if model.has_rt_info([INFO, key])}
    return GraphInfo.from_metadata({onnx.PREFIX + key: value for key, value in found.items()}, where)


def read_model(path: Path) -> Any:
    """An IR or ONNX file as OpenVINO has it.

    Raises:
        GraphError: unreadable.
    """
    import openvino

    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise GraphError(f"{path}: OpenVINO cannot read it ({text}); export it again") from error


def _run(model: Any, inputs: tuple[Tensor, ...], names: tuple[str, ...]) -> Tensor:
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    parts = [
        compiled({name: value.numpy() for name, value in zip(names, part, strict=True)})[0]
        for part in zip(*(value.split(16) for value in inputs), strict=True)
    ]
    return torch.cat([torch.from_numpy(part.copy()) for part in parts])


def _check(model: Any, job: Job) -> None:
    truth = NetworkGraph(job.network, job.config.schedule)
    for batch in onnx.CHECKED_BATCHES:
        inputs = example_inputs(job.config.unet, job.config.schedule, batch, torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            want = truth(*inputs)
        got = _run(model, inputs, input_names(job.config.unet))
        onnx.check_close(got.numpy(), want, onnx.TOLERANCE["fp32"], f"{FILE}, batch {batch}")


def _quantise(model: Any, job: Job) -> Any:
    if importlib.util.find_spec("nncf") is None:
        raise ConfigError("int8 needs nncf, which is not installed (pip install 'rcdm_fast[openvino]')")
    if job.representations is None or len(job.representations) < HELD_OUT:
        raise ConfigError(
            "int8 is calibrated on trajectories of real representations: give at least "
            f"{HELD_OUT} pictures (--calibrate FOLDER, or calibrate=... in Python)"
        )
    job.say(f"drawing {len(job.representations)} trajectories to calibrate with")
    seen = calibration.collect(job.network, job.config, job.representations)
    held = torch.arange(len(seen[1])) % len(job.representations) % HELD_OUT == CALIBRATED
    used, kept = (tuple(value[mask] for value in seen) for mask in (~held, held))
    names = input_names(job.config.unet)
    truth = NetworkGraph(job.network, job.config.schedule)
    with torch.inference_mode():
        want = torch.cat([truth(*part) for part in zip(*(value.split(16) for value in kept), strict=True)])
    errors = []
    for what, scope in SCOPES.items():
        quantised = _quantised(model, used, names, scope)
        got = _run(quantised, kept, names)
        error = float((got.double() - want.double()).norm() / want.double().norm())
        job.say(f"int8, {what}: relative error {error:.1e}")
        if error <= INT8_TOLERANCE:
            return quantised
        errors.append(f"{what}: {error:.1e}")
    raise ExportError(f"int8 drifts by more than {INT8_TOLERANCE:g} (relative L2): {'; '.join(errors)}")


def _quantised(model: Any, used: tuple[Tensor, ...], names: tuple[str, ...], scope: dict[str, list[str]]) -> Any:
    import logging

    import nncf

    convolutions = [
        node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"
    ]
    ends = {"first": convolutions[0], "last": convolutions[-1]}
    ignored = nncf.IgnoredScope(
        types=scope.get("types", []), names=[ends[end] for end in scope.get("ends", [])], validate=False
    )
    items = [
        {name: value[index : index + 1].numpy() for name, value in zip(names, used, strict=True)}
        for index in range(len(used[1]))
    ]
    level = logging.getLogger("nncf").level
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(items),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(items),
            ignored_scope=ignored,
        )
    finally:
        logging.getLogger("nncf").setLevel(level)
