"""Rows of results: a file that is rewritten whenever a row is new or better known, and tables made from rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcdm_fast import provenance, storage

Row = dict[str, Any]


class RowFile:
    """A JSON file of rows under some facts that hold for all of them, and what made it; it is complete at every moment.

    A row is known by the values of `keys`; putting a row with the same ones again replaces it.
    """

    def __init__(self, path: Path, facts: Row, keys: Sequence[str]) -> None:
        storage.check_writable(path)
        self.path = path
        self.rows: list[Row] = []
        self._facts = facts
        self._made_by = provenance.made_by()
        self._keys = tuple(keys)

    def put(self, *rows: Row) -> None:
        """Add or replace rows, and write the file."""
        for row in rows:
            place = next((i for i, old in enumerate(self.rows) if self._key(old) == self._key(row)), None)
            if place is None:
                self.rows.append(row)
            else:
                self.rows[place] = row
        storage.write_json(self.path, {"facts": self._facts, "rows": self.rows, "made_by": self._made_by})

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in self._keys)


def table(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of text; `columns` are (heading, key, format), and a row with `why_not` says that instead of numbers."""
    cells = [[heading for heading, _, _ in columns]]
    notes = [""]
    for row in rows:
        cells.append([_cell(row, key, form) for _, key, form in columns])
        notes.append(str(row.get("why_not", "")))
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = []
    for line, note in zip(cells, notes, strict=True):
        text = "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append(f"{text}  {note}".rstrip())
    return lines


def markdown(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """The same as a Markdown table; rows without numbers are left out."""
    lines = ["| " + " | ".join(heading for heading, _, _ in columns) + " |"]
    lines.append("|" + "|".join("---" if i < 2 else "---:" for i in range(len(columns))) + "|")
    for row in rows:
        if "why_not" not in row:
            lines.append("| " + " | ".join(_cell(row, key, form) for _, key, form in columns) + " |")
    return lines


def _cell(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return "" if value is None else format(value, form)
