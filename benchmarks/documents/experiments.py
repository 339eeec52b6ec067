"""What experiments found on the bundled models, as documents show it, from what `rcdm report` wrote. Texts only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.documents.models import interval
from benchmarks.documents.speed import Found

_SLOPE, _EXPLAINED = "slope ", "R^2 "


def command(found: Found) -> str:
    """What was run."""
    return f"`{found['made_by']['command']}`"


def findings(found: Found, experiment: str) -> str:
    """Every sentence of an experiment, with the numbers that decide it, or else with all that was measured."""
    lines = []
    for each in found["experiments"][experiment]["findings"]:
        said = each["sentence"]
        lines.append(f"* {said}" if each["numbers"] else f"* {said.rstrip('.')}: {each['measured'].rstrip('.')}.")
    return "\n".join(lines)


def slopes(found: Found) -> str:
    """How far samples of every model follow a change, and its own verdict, before all are corrected together."""
    cells: dict[str, dict[str, str]] = {}
    for row in _rows(found, "side-by-side"):
        for name, value in row.items():
            if name.startswith(_SLOPE):
                model = name.removeprefix(_SLOPE)
                said = f"{interval(value, '.2f')} {row[model]}"
                cells.setdefault(f"{row['property']} ({row['augmentation']})", {})[model] = said
    return _table("samples follow", cells)


def readouts(found: Found) -> str:
    """What a linear readout of h explains of the same changes."""
    cells: dict[str, dict[str, str]] = {}
    for row in _rows(found, "readouts"):
        for name, value in row.items():
            if row["readout"] == "linear" and name.startswith(_EXPLAINED):
                model = name.removeprefix(_EXPLAINED)
                cells.setdefault(f"{row['property']} ({row['augmentation']})", {})[model] = interval(value, ".2f")
    return _table("R^2 of a linear readout", cells)


def _rows(found: Found, start: str) -> Iterator[dict[str, Any]]:
    """Rows of the tables that compare the first model with each of the others, by their columns."""
    for table in found["experiments"]["layers"]["tables"]:
        if table["name"].startswith(start):
            for row in table["rows"]:
                yield dict(zip(table["columns"], row, strict=True))


def _table(what: str, cells: dict[str, dict[str, str]]) -> str:
    """A row for each property, a column for each model."""
    models = list(dict.fromkeys(model for row in cells.values() for model in row))
    lines = [f"| {what} | " + " | ".join(f"`{model}`" for model in models) + " |", "|---|" + "---|" * len(models)]
    lines += [f"| {name} | " + " | ".join(row.get(model, "") for model in models) + " |" for name, row in cells.items()]
    return "\n".join(lines)
