"""`rcdm models` and `rcdm info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rcdm_fast.cli import common


def models() -> None:
    """List the models that can be named: bundled ones, and published ones that are downloaded when first used.

    Example: rcdm models
    """
    from rcdm_fast.models import zoo

    for name, known in zoo.model_names().items():
        where = "" if known.present else " (downloaded at first use)"
        common.say(f"{name:24s} {known.kind:10s} {known.about}{where}")


def info(
    json: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
) -> None:
    """Say what this installation has: versions, devices, native parts, runtimes, and why something is missing.

    Example: rcdm info
    """
    from rcdm_fast import info as report

    common.check_writable(json)
    facts = report.report()
    common.say("\n".join(report.lines(facts)))
    common.write_json(json, facts)
