"""`rcdm analyze`: an experiment's tables on the terminal, its figures and numbers in a folder.

Knows nothing about single experiments (`analysis/registry.py` lists them).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.analysis.registry import EXPERIMENTS
from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from rcdm_fast.analysis.adapted import Wanted
    from rcdm_fast.analysis.result import Analysis

Known = Annotated[str, typer.Argument(help=f"{', '.join(EXPERIMENTS)}.", metavar="EXPERIMENT", show_default=False)]


def analyze(
    model: common.ModelArgument,
    name: Known,
    out: Annotated[Path, common.out("Folder for figures (PNG) and EXPERIMENT.json.")] = Path("found"),
    data: Annotated[str | None, common.data("Images like those the model knows")] = None,
    photos: Annotated[
        str | None,
        typer.Option(
            "--photos",
            help="Photographs that need not be like the data, as --data takes; shown in the figure of depth.",
        ),
    ] = None,
    train_data: common.TrainData = None,
    photograph: common.Photograph = None,
    against: common.Against = None,
    against_encoder: common.AgainstEncoder = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="For the experiment layers: layers of the model's encoder, or of each of --encoders, apart by commas; "
            "the decoder is adapted to each.",
        ),
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            help="For the experiment layers: encoders that the decoder is adapted to; repeatable, or apart by commas."
        ),
    ] = None,
    sources: Annotated[int | None, typer.Option(help="Source images. Default: the experiment's.")] = None,
    per: Annotated[int | None, common.usual(common.Per)] = None,
    steps: Annotated[str | None, common.usual(common.Steps)] = None,
    solver: Annotated[str | None, common.usual(common.SolverName)] = None,
    seed: common.Seed = SamplingConfig.seed,
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
    """Run one of the paper's experiments.

    Numbers with intervals and findings are shown, figures, charts and numbers written.

    Example: rcdm analyze cifar10-simclr-wide layers --layers backbone.3,backbone.5 --data cifar10/test --out found
    """
    from rcdm_fast import folders, provenance
    from rcdm_fast.analysis import registry
    from rcdm_fast.cli.training import changed
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data.sources import open_data

    experiment = registry.find(name)
    compared = common.with_encoders(against or (), against_encoder or (), "--against")
    deep = layers is not None or bool(encoders)
    missing = experiment.lacks(data=data is not None, photos=photos is not None, against=bool(against), wanted=deep)
    missing = (
        experiment.leaves_out(
            photos=photos is not None, training=train_data is not None, against=bool(against), wanted=deep
        )
        or missing
    )
    if photograph is not None and data is None:
        missing = "is given no --data, whose paths --photograph is about"
    if missing:
        raise ConfigError(f"the experiment {name} {missing}")
    given = {
        "sources": sources,
        "per": per,
        "steps": common.whole_number(steps),
        "solver": solver,
        "seed": seed,
    }
    settings = changed({key: value for key, value in given.items() if value is not None}, change or [])
    for each in (data, photos, train_data):
        folders.check_outside(out, each)
    common.check_writable(out / f"{name}.json")
    common.check_alone(precision, against or [])
    loaded = common.open_model(model, flags, encoder, device, engine, precision, sha256)
    others = common.open_others(compared, device, engine, precision)
    images = open_data(data, loaded.image_size) if data is not None else None
    shown = open_data(photos, loaded.image_size) if photos is not None else None
    if images is not None and photograph is not None:
        images = images.cut_from(photograph)
    wanted = _wanted(model, out, layers, encoders or []) if deep else None
    training = open_data(train_data, loaded.image_size) if train_data is not None else None
    with common.ProgressBar(1) as progress:
        job = registry.Job(
            loaded,
            images,
            shown,
            others,
            settings,
            lambda done, total: progress(done, total, 0.0),
            training=training,
            wanted=wanted,
        )
        found = experiment.run(job)
    try:
        made_by = provenance.made_by([loaded, *others], {"data": images, "photos": shown})
        for path in write(found, out, made_by):
            common.report(str(path))
    finally:
        common.report("\n" + found.as_text())


def _wanted(model: str, out: Path, layers: str | None, encoders: list[str]) -> Wanted:
    """What the decoder is adapted to; adapted decoders are kept beside the results."""
    from rcdm_fast.analysis import adapted
    from rcdm_fast.config import ConfigError

    named = () if layers is None else tuple(each.strip() for each in layers.split(","))
    if not all(named):
        raise ConfigError(f"--layers {layers}: a name is empty")
    specs = tuple(spec.strip() for text in encoders for spec in adapted.split_encoders(text))
    return adapted.Wanted(model, out / "adapted", named, specs)


def write(found: Analysis, folder: Path, made_by: Mapping[str, Any]) -> list[Path]:
    """NAME.json with what made it, NAME-FIGURE.png and, where tables have charts, NAME-charts.svg; the files."""
    from rcdm_fast import outputs, storage
    from rcdm_fast.analysis import charts

    paths = [folder / f"{found.name}.json"]
    common.write_json(paths[0], {**found.as_json(), "made_by": dict(made_by)})
    for figure, image in found.figures.items():
        paths.append(folder / f"{found.name}-{figure}.png")
        outputs.write_image(image, paths[-1])
    if any(map(charts.chart, found.tables)):
        paths.append(folder / f"{found.name}-charts.svg")
        outputs.keep(paths[-1], lambda file: storage.write_text(file, charts.panels(found.tables)))
    return paths
