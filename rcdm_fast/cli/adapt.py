"""`rcdm adapt`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.cli.training import Data


def adapt(
    model: Annotated[
        str, typer.Argument(help="Model whose decoder is kept: name, file, folder or hub id.", show_default=False)
    ],
    encoder: Annotated[str, typer.Option("--encoder", help="The new encoder, such as timm:resnet18.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Run folder (resumed if unfinished).")],
    name: Annotated[str | None, typer.Option(help="Name of the adapted model. Default: the run folder's.")] = None,
    old_encoder: Annotated[
        str | None, typer.Option(help="Encoder that MODEL was trained with, if its file does not tell.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps after the closed form.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of updates of the decoder's layers; 0: none.")] = None,
    updated: Annotated[str | None, typer.Option(help="Layers with such an update: film or all.")] = None,
    seed: common.Seed = 0,
    sha256: common.Sha256 = None,
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
) -> None:
    """Give a trained model another encoder: the decoder stays, the map into it is learned in minutes.

    Example: rcdm adapt cifar10-simclr-trunk --encoder bundled:cifar10-supervised --data cifar10/train --out runs/new
    """
    from rcdm_fast import encoders
    from rcdm_fast.config import from_dict
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.models import checkpoint
    from rcdm_fast.training.adapt import AdaptConfig
    from rcdm_fast.training.adapt import adapt as run

    values: dict[str, Any] = {"name": name or out.name, "model": model, "seed": seed}
    trusted = []
    for key, spec in (("encoder", encoder), ("old_encoder", old_encoder)):
        if spec is not None:
            values[key] = dataclasses.asdict(encoders.build(spec, device).config)
            trusted += [values[key]["source"]] if encoders.trusts(spec) else []
    given = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "rank": rank,
        "updated": updated,
    }
    values.update({key: value for key, value in given.items() if value is not None})
    settings = from_dict(AdaptConfig, values, "options")
    pictures = open_data(data, checkpoint.load_model(model, None, sha256)[0].unet.image_size)
    common.say(f"{len(pictures)} pictures, {settings.steps} steps of {settings.batch_size}")
    with common.ProgressBar(settings.steps) as progress:
        path = run(settings, pictures, out, device, progress, trusted)
    common.say(f"{path}: finished; load it with rcdm_fast.load({str(path)!r})")
