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


def findings(found: Found, experiment: str = "") -> str:
    """Every sentence of an experiment, with the numbers that decide it, or else with all that was measured.

    Of a report the experiment is named; what `rcdm analyze` wrote is of one.
    """
    lines = []
    for each in (found["experiments"][experiment] if experiment else found)["findings"]:
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


def depth(found: Found) -> str:
    """Of each representation what of the decoder's conditioning it explains, and by property slope and readout."""
    explained = {row["representation"]: row["explained"] for row in _lines(found, "budget")}
    heads, cells = ["explains"], {name: [f"{100 * value:.0f} %"] for name, value in explained.items()}
    for row in _lines(found, "depth"):
        of = row["property"]
        heads += [f"{of}: slope", f"{of}: readout"] if f"{of}: slope" not in heads else []
        best = row["R^2 of the better readout"]
        cells[row["representation"]] += [interval(row["slope"], ".2f"), "" if best is None else interval(best, ".2f")]
    lines = [f"| representation | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())])


def positions(found: Found) -> str:
    """How far samples follow kept positions of a map, by how many positions away, and their part of the film there."""
    kept = next(each for each in found["tables"] if each["name"] == "kept")
    lines = [f"| {' | '.join(kept['columns'])} |", "|---" * len(kept["columns"]) + "|"]
    for ring, *cells in kept["rows"]:
        shown = ["" if each is None else _number(each) for each in cells]
        lines.append(f"| {ring} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _number(cell: Any) -> str:
    return interval(cell, ".2f") if isinstance(cell, dict) else f"{cell:.2f}"


def _lines(found: Found, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a table that `rcdm analyze` wrote, by their columns."""
    (table,) = (each for each in found["tables"] if each["name"] == name)
    for row in table["rows"]:
        yield dict(zip(table["columns"], row, strict=True))


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
