"""What is to be exported, and the formats there are; a format's module is imported when it is used.

A format is a module of this package with ``PRECISIONS`` and ``write(out, job) -> list of files``, and a reason for not
being available in ``missing_packages()``.

Knows nothing about the formats themselves.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from torch import Tensor

from rcdm_fast import host
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.encoders import Encoder
from rcdm_fast.inputs import Pictures
from rcdm_fast.unet import UNet

if TYPE_CHECKING:
    from rcdm_fast.pipeline import Model

FORMATS = {
    "onnx": "rcdm_fast.export.onnx_folder",
    "openvino": "rcdm_fast.export.openvino",
    "tensorrt": "rcdm_fast.export.tensorrt",
    "diffusers": "rcdm_fast.export.diffusers",
    "hub": "rcdm_fast.export.hub_folder",
}


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        network: the model's, on any device; never changed.
        config: the model's.
        encoder: what makes representations; None leaves it out.
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", as far as a format has it.
        targets: GPU generations such as "sm89", for formats that compile for one; empty: the GPU that is there.
        batches: pictures per evaluation that a compiled format is made for.
        dynamic: one file for all batches up to the largest of `batches`, where a format has the choice.
        representations: float32 [R,D] of real pictures, to calibrate int8 with; None where it is not needed.
        say: takes one line about progress.
    """

    network: UNet
    config: ModelConfig
    encoder: Encoder | None = None
    precision: str = "fp32"
    targets: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    dynamic: bool = False
    representations: Tensor | None = None
    say: Callable[[str], None] = field(default=lambda _: None)


class Format(Protocol):
    """What a format's module offers."""

    PRECISIONS: tuple[str, ...]

    def missing_packages(self) -> list[str]:
        """Packages that are not installed."""

    def write(self, out: Path, job: Job) -> list[Path]:
        """Export; the files written."""


def find(name: str, precision: str) -> Format:
    """A format that can be written here in a precision.

    Raises:
        ConfigError: unknown, without that precision, or without its packages.
    """
    if name not in FORMATS:
        raise ConfigError(f"no export format called {name!r}; known: {', '.join(FORMATS)}")
    module = cast(Format, importlib.import_module(FORMATS[name]))
    if precision not in module.PRECISIONS:
        raise ConfigError(f"{name} is not exported in {precision!r}; known: {', '.join(module.PRECISIONS)}")
    missing = module.missing_packages()
    if missing:
        raise ConfigError(f"exporting to {name} needs packages that are not installed: {', '.join(missing)}")
    return module


class ExportMethods:
    """Methods of `Model`."""

    @host.guarded(random=True)
    def export(
        self,
        to: str,
        out: str | os.PathLike[str],
        *,
        precision: str = "fp32",
        targets: Sequence[str] = (),
        batches: Sequence[int] = (1,),
        dynamic: bool = False,
        encoder: bool = True,
        calibrate: Pictures | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Path]:
        """Write the model for another runtime or library, after checking its numbers against PyTorch.

        Args:
            to: "onnx", "openvino", "tensorrt", "diffusers" or "hub".
            out: the folder to write.
            precision: "fp32", "fp16", "bf16", "int8" or "fp8", as far as the format has it.
            targets: GPU generations such as "sm89" for TensorRT; the GPU that is there if left out.
            batches: pictures per evaluation that TensorRT builds for.
            dynamic: one TensorRT engine for all batches up to the largest, instead of one for each.
            encoder: export the encoder too, where there is one and the format takes it.
            calibrate: pictures whose representations int8 is calibrated with.
            progress: takes one line at a time about what is being done.

        Returns:
            The files written.

        Raises:
            ConfigError: unknown format, or a precision that it does not have, or packages that are missing.
            ExportError: the exported numbers are wrong; nothing is left at `out`.
            StorageError: `out` cannot be written.
        """
        form = find(to, precision)
        model = cast("Model", self)
        job = Job(
            model.unet,
            model.config,
            model.encoder if encoder else None,
            precision,
            tuple(targets),
            tuple(batches),
            dynamic,
            representations=None if calibrate is None else model.encode(calibrate),
            say=progress or (lambda _: None),
        )
        return form.write(Path(out), job)
