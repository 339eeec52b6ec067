"""OpenVINO files (IR) of the network, in float32 and in int8.

bf16 needs no file of its own: the runtime computes a float32 file in bf16 where the processor can. int8 is
post-training quantisation by NNCF, calibrated on real trajectories; what it quantises is reduced, from everything to
the inner 3x3 convolutions, until the pictures of representations that it was not calibrated on are close enough.

Knows nothing about running a file (`engines/openvino_runtime.py`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Callable
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
DIGEST = "weights_file"  # SHA-256 of the .bin, which OpenVINO takes as it is
INT8_PSNR_DB = 29.0  # of the final pictures against float32, 25 steps
HELD_OUT = 4  # every fourth representation is kept for the check

# What is quantised. Products of attention and the first and last convolution cost 6 to 8 dB and gain no time.
SCOPES = ("convolutions but the first and the last", "3x3 convolutions but the first and the last")


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
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise GraphError(f"{path}: OpenVINO cannot read it ({text}); export it again") from error
    if model.has_rt_info([INFO, DIGEST]):
        weights = path.with_suffix(".bin")
        if str(model.get_rt_info([INFO, DIGEST]).value) != _digest(weights):
            raise GraphError(f"{weights}: damaged (its checksum differs); export it again")
    return model


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _runner(model: Any, names: tuple[str, ...], hint: str = "f32") -> Callable[..., Tensor]:
    """A function that evaluates a network on the CPU."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(compiled(feeds)[0].copy())

    return run


def _check(model: Any, job: Job) -> None:
    truth = NetworkGraph(job.network, job.config.schedule)
    run = _runner(model, input_names(job.config.unet))
    for batch in onnx.CHECKED_BATCHES:
        inputs = example_inputs(job.config.unet, job.config.schedule, batch, torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            want = truth(*inputs)
        got = run(*inputs)
        onnx.check_close(got.numpy(), want, onnx.TOLERANCE["fp32"], f"{FILE}, batch {batch}")


def _quantise(model: Any, job: Job) -> Any:
    if importlib.util.find_spec("nncf") is None:
        raise ConfigError("int8 needs nncf, which is not installed (pip install 'rcdm_fast[openvino]')")
    if job.representations is None or len(job.representations) < HELD_OUT:
        raise ConfigError(
            "int8 is calibrated on trajectories of real representations: give at least "
            f"{HELD_OUT} pictures (--calibrate FOLDER, or calibrate=... in Python)"
        )
    h = job.representations.cpu().float()
    held = torch.arange(len(h)) % HELD_OUT == HELD_OUT - 1
    names = input_names(job.config.unet)
    truth = NetworkGraph(job.network, job.config.schedule)
    job.say(f"drawing {len(h)} trajectories to calibrate with and to check")
    _, used = calibration.collect(truth, job.config, h[~held])
    want = calibration.draw(truth, job.config, h[held])
    found = []
    for what in SCOPES:
        quantised = _quantised(model, used, names, what)
        got = calibration.draw(_runner(quantised, names, "bf16"), job.config, h[held])
        error = float((got.clamp(-1, 1) - want.clamp(-1, 1)).double().square().mean())
        psnr_db = 10 * math.log10(4 / max(error, 1e-30))
        job.say(f"int8, {what}: PSNR {psnr_db:.1f} dB")
        if psnr_db >= INT8_PSNR_DB:
            return quantised
        found.append(f"{what}: {psnr_db:.1f} dB")
    raise ExportError(f"int8 changes the pictures too much (PSNR below {INT8_PSNR_DB:g} dB): {'; '.join(found)}")


def _quantised(model: Any, used: tuple[Tensor, ...], names: tuple[str, ...], what: str) -> Any:
    import nncf

    nodes = model.get_ordered_ops()
    convolutions = [node for node in nodes if node.get_type_name() == "Convolution"]
    kept = [convolutions[0], convolutions[-1]]
    if what.startswith("3x3"):
        kept += [node for node in convolutions if list(node.input(1).get_partial_shape().to_shape())[-1] != 3]
    others = sorted({node.get_type_name() for node in nodes} - {"Convolution", "Constant", "Parameter", "Result"})
    ignored = nncf.IgnoredScope(types=others, names=sorted({node.get_friendly_name() for node in kept}), validate=False)
    items = [
        {name: value[index : index + 1].numpy() for name, value in zip(names, used, strict=True)}
        for index in range(len(used[1]))
    ]
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(items),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(items),
            ignored_scope=ignored,
        )
    finally:
        log.setLevel(level)
