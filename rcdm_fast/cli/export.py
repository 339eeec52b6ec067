"""`rcdm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rcdm_fast.cli import common

CALIBRATED = 32  # pictures of a folder that int8 is calibrated with


def export(
    model: Annotated[str, typer.Argument(help="Bundled or published name, file, folder or hub id.")],
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, tensorrt, diffusers or hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8, fp8, where the format has it.")] = "fp32",
    target: Annotated[
        str,
        typer.Option(help="tensorrt: GPU generations, as sm86,sm89,sm120. Default: the GPU here."),
    ] = "",
    batch: Annotated[str, typer.Option(help="tensorrt: pictures per evaluation, separated by commas.")] = "1",
    dynamic: Annotated[bool, typer.Option(help="tensorrt: one engine for all batches up to the largest.")] = False,
    with_encoder: Annotated[bool, typer.Option("--with-encoder/--no-encoder", help="Export the encoder too.")] = True,
    calibrate: Annotated[Path | None, typer.Option(help="int8: folder of pictures to calibrate with.")] = None,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
) -> None:
    """Write a model for another runtime or library, after checking its numbers against PyTorch.

    Example: rcdm export cifar10-simclr-trunk --to onnx --out exported
    """
    import rcdm_fast
    from rcdm_fast import images

    common.check_writable(out / "README.md")
    files = rcdm_fast.export(
        rcdm_fast.load(model, flags, encoder, device or "cpu", "eager", sha256=sha256),
        to,
        out,
        precision=precision,
        targets=tuple(filter(None, target.split(","))),
        batches=tuple(int(size) for size in batch.split(",")),
        dynamic=dynamic,
        encoder=with_encoder,
        calibrate=_spread(images.find(calibrate)) if calibrate is not None else None,
        progress=common.say,
    )
    for file in files:
        common.say(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


def _spread(files: list[Path]) -> list[Path]:
    """Files from all over a list, which may be sorted by class."""
    count = min(CALIBRATED, len(files))
    return [files[index * len(files) // count] for index in range(count)]
