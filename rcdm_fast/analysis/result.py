"""What an experiment found: tables, sentences with the numbers behind them, and images.

One type for all experiments, so that the command line, the report and notebooks show them alike. Knows nothing about
how anything was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from rcdm_fast.analysis import rules
from rcdm_fast.metrics.intervals import Interval

Cell = str | int | float | bool | None | Interval


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    Attributes:
        name: short and unique in its experiment, for the JSON: "recovered".
        title: for readers.
        columns: heads, the first one over the names of the rows; units in brackets.
        rows: as many cells each.
        note: how to read it, what chance would give.
        one_unit: whether all intervals can be drawn on one axis.
        label: the column that names the rows of a chart.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    one_unit: bool = True
    label: int = 0

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.name}: {len(self.columns)} columns, but a row has {len(wrong[0])} cells")


@dataclass(frozen=True)
class Finding:
    """One sentence that the numbers bear out, or not.

    Attributes:
        claim: what the paper says, or what one would expect.
        holds: True or False where the interval decides, None where it is inconclusive.
        measured: the sentence with numbers, as it stands in the report.
        group, subject: of a claim that is made of several things: what is said, and of which ("hue"), so that an
            overview can put them together; "" for one that stands alone.
        p: of the verdict, by itself, where a rule gives one (`rules.py`): below 0.05 if it is decided.
        adjusted: the same for all claims of a report together, by Holm's method; at 0.05 and above nothing is decided.
        otherwise: the sentence that is true where the claim does not hold ("the representation drops hue"), if there is
            a better one than "not so: ".
        numbers: what decides, by name and on one axis; a page draws it beside the claim.
    """

    claim: str
    holds: bool | None
    measured: str
    group: str = ""
    subject: str = ""
    p: float | None = None
    adjusted: float | None = None
    otherwise: str = ""
    numbers: tuple[tuple[str, Interval], ...] = ()

    @property
    def sentence(self) -> str:
        """What was found, as a sentence for readers, with the numbers that decide."""
        if self.holds is None:
            said = f"inconclusive: {self.claim}"
        else:
            said = self.claim if self.holds else self.otherwise or f"not so: {self.claim}"
        decide = "; ".join(f"{name} {cell_text(number)}" for name, number in self.numbers)
        if said.partition(" ")[0].rstrip(":").isalpha():  # a name such as cifar10-head is written as it is
            said = said[:1].upper() + said[1:]
        return said + (f" ({decide})." if decide else ".")


@dataclass(frozen=True)
class Analysis:
    """The result of one experiment.

    Attributes:
        name: of the experiment, as in `rcdm analyze NAME`.
        title: for readers.
        model: name or file of the model.
        settings: everything that has to be repeated to get the same numbers: seeds, steps, counts, fingerprint.
        tables, findings: see their types.
        figures: images by name; captions under the same names in `captions`.
        method: how it was measured, in a few sentences, with the source.
        heads: a few small images for the top of a page, each a photograph with samples beside it.
    """

    name: str
    title: str
    model: str
    settings: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, Image.Image] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    heads: tuple[Image.Image, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything but the images, as plain JSON values.

        An interval is {"value", "low", "high"}, the ends None where there is none.
        """
        return {
            "name": self.name,
            "title": self.title,
            "model": self.model,
            "settings": dict(self.settings),
            "tables": [_table(table) for table in self.tables],
            "findings": [_finding(finding) for finding in self.findings],
            "figures": {name: self.captions.get(name, "") for name in self.figures},
            "method": self.method,
            "rules": rules.VERSION,
        }

    def as_text(self) -> str:
        """The tables and findings for a terminal."""
        lines = [self.title]
        for table in self.tables:
            lines += ["", table.title, *text_table(table)]
            lines += [table.note] if table.note else []
        for finding in self.findings:
            verdict = {True: "holds", False: "does not hold", None: "inconclusive"}[finding.holds]
            lines += ["", f"{finding.claim}: {verdict}. {finding.measured}"]
        return "\n".join(lines)


def text_table(table: Table) -> list[str]:
    """The table in columns of equal width, the first one to the left."""
    rows = [table.columns, *(tuple(map(cell_text, row)) for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    return ["  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if not column else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]


def cell_text(cell: Cell) -> str:
    """A cell for readers: three digits, an interval in brackets, yes and no."""
    if isinstance(cell, Interval):
        return cell.text()
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return "" if cell is None else str(cell)


def _table(table: Table) -> dict[str, Any]:
    rows = [[_plain(cell) if isinstance(cell, Interval) else cell for cell in row] for row in table.rows]
    return {**dataclasses.asdict(table), "rows": rows}


def _finding(finding: Finding) -> dict[str, Any]:
    numbers = {name: _plain(number) for name, number in finding.numbers}
    return {**dataclasses.asdict(finding), "numbers": numbers, "sentence": finding.sentence}


def _plain(found: Interval) -> dict[str, float | None]:
    ends = (found.low, found.high) if found.known else (None, None)
    return {"value": found.value, "low": ends[0], "high": ends[1]}
