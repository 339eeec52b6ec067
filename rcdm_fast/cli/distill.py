"""`rcdm distill`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common
from rcdm_fast.cli.training import Changes, Minutes, changed, pausing, run_folder

if TYPE_CHECKING:
    from rcdm_fast.training.distill import Judged


def distill(
    model: common.ModelArgument,
    out: Annotated[Path, common.out("Run folder (resumed if unfinished).")],
    data: Annotated[str | None, common.data("Whose representations are drawn, for models that take one")] = None,
    nfe: Annotated[int, typer.Option(help="Network evaluations that the student has, 2 to 5.")] = 4,
    name: Annotated[str | None, typer.Option(help="Name of the student. Default: the run folder's.")] = None,
    encoder: common.EncoderSpec = None,
    change: Changes = None,
    minutes: Minutes = None,
    seed: common.Seed = 0,
    sha256: common.Sha256 = None,
    device: common.Device = None,
) -> None:
    """Train a student that needs few evaluations.

    It makes the model's images from the same noise. The same command resumes it. The student is a model file like any
    other, for exactly so many evaluations (--steps 4 for 4). How near it is to its teacher is said at the end, beside
    the teacher's own solvers in as few. --set changes how: trajectories (in all), batch_size, learning_rate, between
    (the teacher's timesteps between two of the student's), placement and other fields of `DistillConfig`.

    Example: rcdm distill cifar10-simclr-trunk --data cifar10/train --nfe 4 --out runs/student
    """
    from rcdm_fast.config import from_dict
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.devices import best
    from rcdm_fast.models import checkpoint
    from rcdm_fast.training import trust
    from rcdm_fast.training.distill import DistillConfig
    from rcdm_fast.training.distill import distill as run

    name = name or Path(os.path.abspath(out)).name  # of "." it is that of the folder here
    run_folder(name, out, data)
    device = best(device)
    values: dict[str, Any] = {"name": name, "model": model, "nfe": nfe, "seed": seed}
    trusted: list[str] = []
    if encoder is not None:
        built, trusted = trust.built(encoder, out, device)
        values["encoder"] = dataclasses.asdict(built.config)
    said = {"name": "--name", "model": "MODEL", "nfe": "--nfe", "encoder": "--encoder"}
    if seed:
        said["seed"] = "--seed"
    settings = from_dict(DistillConfig, changed(values, change or [], said), "options")
    size = checkpoint.load_model(model, None, sha256)[0].unet.image_size
    images = None if data is None else open_data(data, size)
    common.report(f"{settings.steps} steps of {settings.batch_size} trajectories")
    with common.ProgressBar(settings.steps) as progress, pausing():
        path, judged = run(settings, images, out, device, progress, trusted, minutes)
    common.report("\n".join(_table(judged)))
    call = f"rcdm_fast.load({str(path)!r}).sample(h, steps={nfe})"
    common.report(f"{path}: finished; draw with it in {nfe} steps: {call}")


def _table(judged: Judged) -> list[str]:
    """Lines for a reader."""
    rows = {"the student": judged.distance, **judged.teacher_distances}
    lines = ["distance to the teacher's images from noise that was not learned from, and its own in as few evaluations"]
    lines += [f"  {name:14s}{each.value:.3g} [{each.low:.3g}, {each.high:.3g}]" for name, each in rows.items()]
    return [*lines, f"variance at a fixed representation: {judged.variance:.3g} of the teacher's"]
