"""`rcdm adapt`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.cli.training import Changes, Minutes, changed, pausing, run_folder


def adapt(
    model: common.ModelArgument,
    data: Annotated[str, common.data("Training images")],
    out: Annotated[Path, common.out("Run folder (resumed if unfinished).")],
    encoder: Annotated[str | None, typer.Option("--encoder", help="The new encoder, such as timm:resnet18.")] = None,
    representations: common.Representations = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapted model. Default: the run folder's.")] = None,
    old_encoder: Annotated[
        str | None, typer.Option(help="Encoder that MODEL was trained with, if its file does not name it.")
    ] = None,
    change: Changes = None,
    minutes: Minutes = None,
    trust_repo: common.Trust = False,
    seed: common.Seed = 0,
    sha256: common.Sha256 = None,
    device: common.Device = None,
) -> None:
    """Give a trained model another encoder; its decoder stays.

    The map into the decoder is learned in minutes. --set changes how: steps (of the optimizer, after the closed form),
    batch_size, learning_rate, rank (of updates of the decoder's layers; 0: none), lora_targets (film or all) and other
    fields of `AdaptConfig`.

    Example: rcdm adapt cifar10-simclr-trunk --encoder bundled:cifar10-supervised --data cifar10/train --out runs/new
    """
    from rcdm_fast.config import ConfigError, from_dict
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.devices import best
    from rcdm_fast.models import checkpoint
    from rcdm_fast.training import trust
    from rcdm_fast.training.adapt import AdaptConfig
    from rcdm_fast.training.adapt import adapt as run

    common.check_one(encoder, representations)
    if encoder is None and representations is None:
        raise ConfigError("no new encoder: give one with --encoder, or its --representations of the images")
    name = name or Path(os.path.abspath(out)).name  # of "." it is that of the folder here
    run_folder(name, out, data)
    device = best(device)
    values: dict[str, Any] = {"name": name, "model": model, "seed": seed}
    trusted: list[str] = []
    for key, spec in (("encoder", encoder), ("old_encoder", old_encoder)):
        if spec is not None:
            built, allowed = trust.built(spec, out, device, trust_repo and key == "encoder")
            values[key] = dataclasses.asdict(built.config)
            trusted += allowed
    said = {"name": "--name", "model": "MODEL", "encoder": "--encoder", "old_encoder": "--old-encoder"}
    if seed:
        said["seed"] = "--seed"
    settings = from_dict(AdaptConfig, changed(values, change or [], said), "options")
    images = open_data(data, checkpoint.load_model(model, None, sha256)[0].unet.image_size)
    h = common.aligned(representations, images)
    common.report(f"{len(images)} images, {settings.steps} steps of {settings.batch_size}")
    with common.ProgressBar(settings.steps) as progress, pausing():
        path = run(settings, images, out, device, progress, trusted, h=h, minutes=minutes)
    common.report(f"{path}: finished; load it with rcdm_fast.load({str(path)!r})")
