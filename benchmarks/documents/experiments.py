"""Tables of a report, and class accuracies of encoders, as documents show them.

Texts only; which results they are made of is said in `results.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.documents.models import interval
from benchmarks.documents.speed import Found


def table(
    found: Found, experiment: str, name: str, columns: Sequence[str] = (), form: str = ".2f", heads: Sequence[str] = ()
) -> str:
    """A table of an experiment in a report.

    Args:
        found: what `rcdm report` wrote.
        experiment, name: which.
        columns: of the table, in this order; all if none are given.
        form: of numbers.
        heads: what the columns are called, where not as in the report.

    Raises:
        ValueError: no such table or column.
    """
    tables = {each["name"]: each for each in found["experiments"][experiment]["tables"]}
    if name not in tables:
        raise ValueError(f"{experiment} has no table {name!r}, but {', '.join(tables)}")
    all_columns = tables[name]["columns"]
    places = [all_columns.index(column) for column in columns or all_columns]
    titles = list(heads or columns or all_columns)
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---|" * (len(titles) - 1)]
    for row in tables[name]["rows"]:
        lines.append("| " + " | ".join(_cell(row[place], form) for place in places) + " |")
    return "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    if isinstance(value, dict):
        return interval(value, form)
    return f"{value:{form}}" if isinstance(value, float) else str(value)


def sentences(found: Found, experiment: str) -> str:
    """What an experiment found, a line for each claim: what it says with all claims counted (Holm)."""
    return "\n".join(f"* {each['sentence']}" for each in found["experiments"][experiment]["findings"])


def command(found: Found) -> str:
    """What made a report, as it was typed."""
    return f"`{found['made_by']['command']}`"


def accuracies(*found: Found) -> str:
    """kNN and linear-probe accuracies of an encoder's layers, in percent."""
    lines = ["| layer | dimensions | kNN, % | linear probe, % |", "|---|---:|---|---|"]
    for each in found:
        values = (interval(each["accuracy"][kind], ".1f", 100) for kind in ("knn", "linear"))
        lines.append(f"| {each['layer']} | {each['dim']} | {' | '.join(values)} |")
    return "\n".join(lines)


def accuracy(found: Found, kind: str) -> str:
    """One of them, without its interval."""
    return f"{100 * found['accuracy'][kind]['value']:.1f} %"
