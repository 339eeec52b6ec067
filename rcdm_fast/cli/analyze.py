"""`rcdm analyze`: an experiment's tables on the terminal, its figures and numbers in a folder.

Knows nothing about single experiments (`analysis/registry.py` lists them).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rcdm_fast.analysis.registry import EXPERIMENTS
from rcdm_fast.cli import common

if TYPE_CHECKING:
    from rcdm_fast.analysis.result import Analysis

Known = Annotated[str, typer.Argument(help=f"Experiment: {', '.join(EXPERIMENTS)}.", show_default=False)]


def analyze(
    name: Known,
    model: Annotated[
        str, typer.Argument(help="Bundled or published name, file, folder or hub id.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for figures (PNG) and NAME.json.")],
    data: Annotated[str | None, typer.Option("--data", help="Pictures, as for rcdm train.")] = None,
    photos: Annotated[
        str | None, typer.Option("--photos", help="Photographs that need not be like the data, for photos, unfamiliar.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Another model, for experiments that compare; repeatable.")
    ] = None,
    sources: Annotated[int | None, typer.Option(help="Source pictures.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each representation.")] = None,
    steps: Annotated[str | None, typer.Option(help="Network evaluations, as in rcdm sample.")] = None,
    solver: Annotated[str | None, typer.Option("--solver", help="As in rcdm sample.")] = None,
    seed: common.Seed = 0,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Other setting of the experiment, as --set 'augmentations=[\"hue\"]'; repeatable."),
    ] = None,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    sha256: common.Sha256 = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
) -> None:
    """Run one of the paper's experiments: numbers with intervals, findings, figures.

    Example: rcdm analyze layers cifar10-simclr-trunk --against cifar10-simclr-head --data cifar10/test --out found
    """
    import rcdm_fast
    from rcdm_fast.analysis import registry
    from rcdm_fast.cli.training import changed
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.sources import open_data

    experiment = registry.find(name)
    missing = experiment.lacks(data=data is not None, photos=photos is not None, against=bool(against))
    if against and not experiment.compares:
        missing = "takes no --against"
    if photos is not None and not (experiment.needs_photos or experiment.takes_photos):
        missing = "takes no --photos"
    if missing:
        raise ConfigError(f"the experiment {name} {missing}")
    given = {
        "sources": sources,
        "samples": samples,
        "steps": common.whole_number(steps),
        "solver": solver,
        "seed": seed,
    }
    settings = changed({key: value for key, value in given.items() if value is not None}, change or [])
    common.check_writable(out / f"{name}.json")
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    others = tuple(rcdm_fast.load(other, None, None, device, engine, precision) for other in against or ())
    pictures = open_data(data, loaded.image_size) if data is not None else None
    shown = open_data(photos, loaded.image_size) if photos is not None else None
    with common.ProgressBar(1) as progress:
        job = registry.Job(
            loaded, pictures, shown, others, settings, progress=lambda done, total: progress(done, total, 0.0)
        )
        found = experiment.run(job)
    try:
        for path in write(found, out):
            common.say(str(path))
    finally:
        common.say("\n" + found.as_text())


def write(found: Analysis, folder: Path) -> list[Path]:
    """NAME.json and a NAME-FIGURE.png for each chart and figure; returns the files."""
    from rcdm_fast import outputs

    paths = [folder / f"{found.name}.json"]
    common.write_json(paths[0], found.as_json())
    for figure, picture in (*found.charts.items(), *found.figures.items()):
        paths.append(folder / f"{found.name}-{figure}.png")
        outputs.save_picture(picture, paths[-1])
    return paths
