"""`rcdm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rcdm_fast.cli import common

CALIBRATED = 32  # images that int8 and fp8 are calibrated with


def export(
    model: common.ModelArgument,
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, tensorrt, diffusers, hub or fp8.")],
    out: Annotated[Path, common.out("Folder to write.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8, where the format has it.")] = "auto",
    target: Annotated[
        str,
        typer.Option(help="tensorrt: GPU generations, as sm86,sm89,sm120. Default: the GPU here."),
    ] = "",
    batch_size: Annotated[
        str, typer.Option("--batch-size", help="tensorrt: images per network evaluation, separated by commas.")
    ] = "1",
    dynamic: Annotated[bool, typer.Option(help="tensorrt: one engine for all batches up to the largest.")] = False,
    with_encoder: Annotated[bool, typer.Option("--with-encoder/--no-encoder", help="Export the encoder too.")] = True,
    data: Annotated[str | None, common.data("int8, fp8: images to calibrate with")] = None,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
) -> None:
    """Write a model for another runtime or library, or for fp8.

    Its numbers are checked against PyTorch before.

    Example: rcdm export cifar10-simclr-trunk --to onnx --out exported
    """
    import rcdm_fast
    from rcdm_fast.data.image_set import evenly
    from rcdm_fast.data.sources import open_data

    sizes = _sizes(batch_size)
    common.check_writable(out / "README.md")
    loaded = rcdm_fast.load(model, flags, encoder, device, "eager", sha256=sha256)
    known = None
    if data is not None:
        found = open_data(data, loaded.image_size)
        chosen = evenly(min(CALIBRATED, len(found)), len(found))  # the data may be sorted by class
        own = loaded.encoder
        known = found.floats(chosen) if own is None else found.seen(chosen, own)
    files = rcdm_fast.export(
        loaded,
        to,
        out,
        precision=precision,
        targets=tuple(filter(None, map(str.strip, target.split(",")))),
        batches=sizes,
        dynamic=dynamic,
        encoder=with_encoder,
        calibrate=known,
        progress=common.report,
    )
    for file in files:
        common.report(f"{file}  {file.stat().st_size / 1e6:.1f} MB")


def _sizes(text: str) -> tuple[int, ...]:
    """Batch sizes with commas between. Raises `ConfigError`."""
    from rcdm_fast.config import ConfigError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--batch-size takes whole numbers separated by commas, such as 1,8; got {text!r}")
    return tuple(map(int, parts))
