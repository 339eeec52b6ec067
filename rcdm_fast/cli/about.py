"""`rcdm models` and `rcdm info`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rcdm_fast.cli import common


def models(json: common.JsonFile = None) -> None:
    """List the models that can be named.

    Bundled ones, and published ones that are downloaded when first used.

    Example: rcdm models --json models.json
    """
    from rcdm_fast.models import zoo

    common.check_writable(json)
    found = zoo.model_names()
    for name, known in found.items():
        mark = "" if known.present else " *"
        common.report(f"{name:20s} {known.kind:10s} {known.about}{mark}")
    if not all(known.present for known in found.values()):
        common.report("\n* downloaded at first use")
    for license, kind in {known.license: known.kind for known in found.values() if known.license}.items():
        common.report(f"weights of {kind} models: {license}")
    common.write_json(json, [dataclasses.asdict(known) for known in found.values()])


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
