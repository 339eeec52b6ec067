"""What is to be exported, and what is asked of a format.

A format is a module of this package with ``PRECISIONS`` and ``write(out, job) -> list of files``, and a reason for not
being available in ``missing_packages()``.

Knows nothing about the formats themselves (`rcdm_fast.exporting` lists them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rcdm_fast.config import ModelConfig
from rcdm_fast.encoders import Encoder
from rcdm_fast.models.unet import UNet


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        network: the model's, on any device; never changed.
        config: the model's.
        encoder: what makes representations; None leaves it out.
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", as far as a format has it.
        targets: GPU generations such as "sm89", for formats that compile for one; empty: the GPU that is there.
        batches: images per evaluation that a compiled format is made for.
        dynamic: one file for all batches up to the largest of `batches`, where a format has the choice.
        representations: float32 [R,D] of real images, to calibrate int8 and fp8 with; None where it is not needed.
        report: takes one line about progress.
    """

    network: UNet
    config: ModelConfig
    encoder: Encoder | None = None
    precision: str = "fp32"
    targets: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    dynamic: bool = False
    representations: Tensor | None = None
    report: Callable[[str], None] = field(default=lambda _: None)


class Format(Protocol):
    """What a format's module offers."""

    @property
    def PRECISIONS(self) -> tuple[str, ...]:  # noqa: N802 # a module's constant
        """What it is written in, the usual one first."""

    def missing_packages(self) -> list[str]:
        """Packages that are not installed."""

    def write(self, out: Path, job: Job) -> list[Path]:
        """Export; the files written."""
