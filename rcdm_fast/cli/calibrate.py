"""`rcdm calibrate`: how often verdicts are wrong where the truth is known.

Knows nothing about how (`analysis/calibrate.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rcdm_fast.cli import common
from rcdm_fast.diffusion.sampling_config import SamplingConfig

DECODER = "shapes-oracle"
READER = "shapes-reader"


def calibrate(
    decoders: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Models of masked codes of a world, each by its name, or as LABEL=FILE. Default: {DECODER}.",
            metavar="[DECODER]...",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few cells and few samples of each: minutes.")] = False,
    reader: Annotated[
        str, typer.Option(help="What reads factors off samples: a bundled reader, or the file of one.")
    ] = READER,
    steps: Annotated[str | None, common.usual(common.Steps)] = None,
    solver: Annotated[str | None, common.usual(common.SolverName)] = None,
    seed: common.Seed = SamplingConfig.seed,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Other setting, as --set sources=512 --set fraction=1; repeatable."),
    ] = None,
    max_wrong: Annotated[
        int | None,
        typer.Option("--max-wrong", help="Fail if a decoder has more cells called the opposite of what they are."),
    ] = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    json: common.JsonFile = None,
) -> None:
    """Measure how often verdicts are wrong in a known world.

    Decoders draw samples from what oracles say that keep known factors of a world; the rule behind kept and dropped
    judges every factor, and its verdicts are counted beside the truth.

    Example: rcdm calibrate --quick --json calibration.json
    """
    import hashlib

    from rcdm_fast import provenance
    from rcdm_fast.analysis.calibrate import QUICK, CalibrateConfig
    from rcdm_fast.analysis.calibrate import calibrate as run
    from rcdm_fast.analysis.result import text_table
    from rcdm_fast.cli.training import changed
    from rcdm_fast.config import ConfigError, from_dict
    from rcdm_fast.encoders import factor_reader, read_code

    common.check_writable(json)
    common.check_alone(precision, (decoders or [])[1:])
    values = dict(QUICK) if quick else {}
    given = {"steps": common.whole_number(steps), "solver": solver, "seed": seed}
    values |= {key: value for key, value in given.items() if value is not None}
    settings = from_dict(CalibrateConfig, changed(values, change or []), "calibrate")
    source = read_code.file_of(reader)
    read, about = factor_reader.load(source)
    models = {}
    for text in decoders or [DECODER]:
        label, equals, file = (text, "", "") if os.path.exists(text) else text.partition("=")  # a path may have one
        if label in models:
            raise ConfigError(f"{label} names two decoders: give each a LABEL of its own, as {label}2={file or text}")
        models[label] = common.open_model(file if equals else text, None, None, device, engine, precision)
    read.to(next(iter(models.values())).device)
    with common.ProgressBar(1) as progress:
        found = run(models, read, settings, lambda done, total: progress(done, total, 0.0))
    for table in found.tables():
        common.report("\n".join([f"\n{table.title}", *text_table(table)]))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    reading = {"name": Path(reader).stem, "sha256": digest, "scores": about.get("scores")}
    made_by = provenance.made_by(list(models.values()))
    common.write_json(json, {"reader": reading, **found.as_json(), "made_by": made_by})
    worst = max(each.wrong for each in found.judgments)
    if max_wrong is not None and worst > max_wrong:
        raise RuntimeError(f"{worst} cells are called the opposite of what they are; {max_wrong} allowed")
