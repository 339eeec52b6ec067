"""`rcdm report`: the experiments of one model, and of others beside it, as one HTML page.

Knows nothing about experiments (`analysis/`) or pages (`report/`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rcdm_fast.analysis.registry import EXPERIMENTS
from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import INVERSIONS, SamplingConfig


def report(
    model: common.ModelArgument,
    out: Annotated[Path, common.out("The page (.html); the numbers go to .json beside it.")],
    photos: Annotated[str | None, typer.Option(help="Photographs to draw samples of, as --data takes.")] = None,
    data: Annotated[str | None, common.data("Images like those the model knows")] = None,
    train_data: common.TrainData = None,
    photograph: common.Photograph = None,
    against: common.Against = None,
    against_encoder: common.AgainstEncoder = None,
    experiments: Annotated[str, typer.Option(help="Which, as invariance,layers; all: whatever can be run.")] = "all",
    sources: Annotated[int, typer.Option(help="Source images of every experiment; 0: its default.")] = 0,
    steps: Annotated[str | None, common.usual(common.Steps)] = None,
    solver: Annotated[str | None, common.usual(common.SolverName)] = None,
    seed: common.Seed = SamplingConfig.seed,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    methods: Annotated[
        bool, typer.Option("--methods", help="Print a paragraph for the methods of a paper, too.")
    ] = False,
) -> None:
    """Measure what a representation keeps, and write a page.

    It has findings, images, charts, tables and settings.

    Example: rcdm report cifar10-simclr-trunk --data cifar10/test --against cifar10-simclr-head --out report.html
    """
    from rcdm_fast.analysis import registry
    from rcdm_fast.analysis.shared import Shared
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data import world as worlds
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.report import build

    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out}: a report is an .html file")
    named = common.with_encoders(against or (), against_encoder or (), "--against")
    if photos is None and data is None:
        raise ConfigError("a report needs images: photographs with --photos, a set of images with --data, or both")
    if photograph is not None and data is None:
        raise ConfigError("--photograph is about the paths of --data, which is not given")
    common.check_writable(out, out.with_suffix(".json"))
    common.check_alone(precision, against or [])
    names = list(EXPERIMENTS) if experiments == "all" else [name.strip() for name in experiments.split(",")]
    found = {name: registry.find(name) for name in names}
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    others = common.open_others(named, device, engine, precision)
    shown = open_data(photos, loaded.image_size) if photos is not None else None
    known = open_data(data, loaded.image_size) if data is not None else None
    if known is not None and photograph is not None:
        known = known.cut_from(photograph)
    training = open_data(train_data, loaded.image_size) if train_data is not None else None
    tasks, left_out, shared = [], {}, Shared()
    for name, experiment in found.items():
        missing = experiment.lacks(
            data=known is not None,
            photos=shown is not None,
            against=bool(others),
            maps=bool(loaded.config.unet.condition_map),
            world=known is not None and worlds.behind(known.paths) is not None,
        )
        if missing:
            left_out[name] = missing
        else:
            led_back = name == "invert" and solver not in INVERSIONS  # it stays with its own solver
            chosen = {"steps": common.whole_number(steps), "solver": None if led_back else solver}
            settings = {"seed": seed, **{key: value for key, value in chosen.items() if value is not None}}
            if sources and name != "photos":
                settings["sources"] = sources
            compared = others if experiment.compares else ()
            learned = training if experiment.takes_training else None
            job = registry.Job(loaded, known, shown, compared, settings, shared=shared, training=learned)
            tasks.append(build.Task(name, job))
    title = f"What the representation of {loaded.config.name or model} keeps"
    images = [f"{len(each)} {what}" for each, what in ((known, "images"), (shown, "photographs")) if each is not None]
    about = ", ".join([" and ".join(images), *([] if steps is None else [f"{steps} steps"]), f"seed {seed}"])
    report = common.report
    page = build.build(
        tasks,
        out,
        title=title,
        about=f"Measured on {about}. Intervals are 95 % intervals.",
        left_out=left_out,
        note=report,
        methods=report if methods else None,
        progress=common.parts,
    )
    report(f"{page}: finished; numbers in {page.with_suffix('.json')}")
