"""`rcdm models` and `rcdm info`."""

from __future__ import annotations

from typing import Annotated

import typer

from rcdm_fast.cli import common


def models() -> None:
    """List the models that can be named.

    Bundled ones, and published ones that are downloaded when first used.

    Example: rcdm models
    """
    from rcdm_fast.models import zoo

    for name, known in zoo.model_names().items():
        where = "" if known.present else " (downloaded at first use)"
        common.report(f"{name:24s} {known.kind:10s} {known.about}{where}")


def info(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Also what runs this model here, and why others do not."),
    ] = None,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Say what this installation has, and why not more.

    Versions, devices, native parts, runtimes; with --model also the engine that runs it, and why others do not.

    Example: rcdm info --model cifar10-simclr-wide
    """
    import rcdm_fast
    from rcdm_fast import info as report

    common.check_writable(json)
    facts = report.report()
    common.report("\n".join(report.lines(facts)))
    if model is not None:
        described = rcdm_fast.load(model, device=device).describe()
        common.report(f"\n{described}")
        facts = {**facts, "model": described.splitlines()}
    common.write_json(json, facts)
