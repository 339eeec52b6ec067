"""A model for another runtime or library: `rcdm_fast.export`, and the formats there are.

To add a format: a module of `export` (see `exporters/job.py`), and its name here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from rcdm_fast import arguments, host
from rcdm_fast.config import ConfigError
from rcdm_fast.data.inputs import Images
from rcdm_fast.exporters.job import Format, Job
from rcdm_fast.model import Model
from rcdm_fast.training import masks

FORMATS = ("onnx", "openvino", "tensorrt", "diffusers", "hub", "fp8")


def _module(name: str) -> Format:
    from rcdm_fast.exporters import diffusers, fp8, hub_folder, onnx_folder, openvino, tensorrt

    formats: tuple[Format, ...] = (onnx_folder, openvino, tensorrt, diffusers, hub_folder, fp8)
    return dict(zip(FORMATS, formats, strict=True))[name]


def find(name: str, precision: str) -> Format:
    """A format that can be written here in a precision, or in the first one that it has for "auto".

    Raises:
        ConfigError: unknown, without that precision, or without its packages.
    """
    if name not in FORMATS:
        raise ConfigError(f"no export format called {name!r}; known: {', '.join(FORMATS)}")
    module = _module(name)
    if precision not in ("auto", *module.PRECISIONS):
        raise ConfigError(f"{name} is not exported in {precision!r}; known: {', '.join(module.PRECISIONS)}")
    missing = module.missing_packages()
    if missing:
        raise ConfigError(f"exporting to {name} needs packages that are not installed: {', '.join(missing)}")
    return module


@host.guarded(random=True)
def export(
    model: Model,
    to: str,
    out: str | os.PathLike[str],
    *,
    precision: str = "auto",
    targets: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    dynamic: bool = False,
    encoder: bool = True,
    calibrate: Images | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a model for another runtime or library, after checking its numbers against PyTorch.

    Args:
        model: as `rcdm_fast.load` gives it; on any device.
        to: "onnx", "openvino", "tensorrt", "diffusers", "hub", or "fp8": scales for our own engines.
        out: the folder to write.
        precision: "fp32", "fp16", "bf16" or "int8", as far as the format has it; "auto" is fp32, and fp8 of "fp8".
        targets: GPU generations such as "sm89" for TensorRT; the GPU that is there if left out.
        batches: images per evaluation that TensorRT builds for.
        dynamic: one TensorRT engine for all batches up to the largest, instead of one for each.
        encoder: export the encoder too, where there is one and the format takes it.
        calibrate: images whose representations int8 and fp8 are calibrated with.
        progress: takes one line at a time about what is being done.

    Returns:
        The files written.

    Raises:
        ConfigError: no model, unknown format, or a precision that it does not have, or packages that are missing; what
            only TensorRT is built for, of another format.
        ExportError: the exported numbers are wrong; nothing is left at `out`.
        StorageError: `out` cannot be written.
    """
    model, form = arguments.loaded(model), find(to, precision)
    built = {"targets": bool(targets), "batches": tuple(batches) != (1,), "dynamic": dynamic}
    if to != "tensorrt" and any(built.values()):
        asked = " and ".join(name for name, given in built.items() if given)
        raise ConfigError(f"{asked}: only tensorrt is built for certain GPUs and batches; what {to} writes takes any")
    named = model._saved_config() if encoder and to == "hub" else model.config  # its file names the encoder
    job = Job(
        model.unet,
        named,
        model.encoder if encoder and to == "onnx" else None,  # other formats have none: it is not even built
        form.PRECISIONS[0] if precision == "auto" else precision,
        tuple(targets),
        tuple(batches),
        dynamic,
        representations=None if calibrate is None else _calibrating(model, calibrate),
        report=progress or (lambda _: None),
    )
    return form.write(Path(out), job)


def _calibrating(model: Model, images: Images) -> Tensor:
    """What scales are measured with; of masked codes half with parts hidden, as the model may be asked."""
    h, parts = model.encode(images).flatten(1), masks.parts_of(model.encoder)
    return masks.hidden(h, parts, 0) if parts else h
