"""Tables of numbers with intervals as inline SVG: a line per row, or curves where the first column counts.

Knows nothing about pages; a chart says everything that its table says, no more.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeGuard

from rcdm_fast.analysis.result import Cell, Table
from rcdm_fast.metrics.intervals import Interval

WIDTH = 400  # units of the view box; about a phone's width in pixels, and the page scales it
_ROW, _RIGHT = 22, 16
_SMALL = 240  # units of a small chart's view box, about its width in pixels
_LETTER = 7.0  # units that a letter takes at most on average
_LONGEST, _LONGEST_NAME = 27, 50  # letters of a row's label, of a column's name
_COLORS = (
    "#0b6e99", "#c2571a", "#4a7d2c", "#8a3b8f", "#7a6a00", "#444",
    "#d4358b", "#12a39a", "#a4161a", "#5b5bd6", "#c79a00", "#9a9a9a",
)  # fmt: skip
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of the view box."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / (self.high - self.low)
        return round(self.start + fraction * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range, about `count` of them."""
        raw = (self.high - self.low) / count
        step = 10 ** math.floor(math.log10(raw))
        step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def chart(table: Table) -> str:
    """SVG of the table's intervals, or "" where there are none, or of several units."""
    columns = [number for number in range(table.label + 1, len(table.columns)) if _intervals(table, number)]
    if not columns or not table.one_unit:
        return ""
    numeric = all(isinstance(row[0], int | float) and not isinstance(row[0], bool) for row in table.rows)
    return _curves(table, columns) if numeric and len(table.rows) > 2 else _lines(table, columns)


STYLE = (
    "<style>text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.zero{stroke:#888}svg{background:#fff}</style>"
    '<rect width="100%" height="100%" fill="#fff"/>'
)


def panels(tables: Sequence[Table], width: int = 800) -> str:
    """An SVG file with the charts of several tables below each other, each under its title.

    Args:
        tables: with intervals; those without a chart are left out.
        width: of the image, in pixels.
    """
    parts, top = [], 0.0
    for each in tables:
        drawn = chart(each)
        if not drawn:
            continue
        height = float(drawn.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()[1])
        if len(tables) > 1:
            for line in textwrap.wrap(each.title, int((WIDTH - 16) / _LETTER)):
                parts.append(f'<text x="8" y="{top + 20:.0f}" font-weight="bold">{escape(line)}</text>')
                top += 18
            top += 8
        parts.append(drawn.replace("<svg ", f'<svg y="{top:.0f}" width="{WIDTH}" height="{height:.0f}" ', 1))
        top += height + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{width}">'
    return f"{head}{STYLE}{''.join(parts)}</svg>\n"


def _intervals(table: Table, column: int) -> list[Interval]:
    found = [row[column] for row in table.rows]
    return [cell for cell in found if _drawn(cell)]


def _drawn(cell: Cell) -> TypeGuard[Interval]:
    """Whether a cell has a place on an axis: a value that has no interval is a dot."""
    return isinstance(cell, Interval) and math.isfinite(cell.value) and not math.isnan(cell.low + cell.value)


def _ends(cell: Interval) -> tuple[float, float]:
    return (cell.low, cell.high) if cell.known else (cell.value, cell.value)


def _span(intervals: Sequence[Interval]) -> tuple[float, float]:
    """From the lowest to the highest end; zero belongs to it if it is near, and there is always some width."""
    low, high = min(_ends(cell)[0] for cell in intervals), max(_ends(cell)[1] for cell in intervals)
    low, high = min(low, 0.0) if low < 0.5 * high else low, max(high, 0.0) if high > 0.5 * low else high
    pad = 0.04 * (high - low) or max(1e-9, 0.1 * abs(high))
    return low - pad, high + pad


def _lines(table: Table, columns: Sequence[int]) -> str:
    """Rows under each other, a dot and a whisker per column. Columns share the axis, so they need one unit."""
    everything = [cell for column in columns for cell in _intervals(table, column)]
    names = [str(row[table.label]) for row in table.rows]
    labels = [shortened(name) for name in names]
    start = 24 + _LETTER * max(map(len, labels))
    axis = Axis(*_span(everything), start, WIDTH - _RIGHT)
    legend, top = _legend(table, columns)
    height = top + len(table.rows) * len(columns) * _ROW * 0.7 + len(table.rows) * 8 + 24
    body = [legend, *_vertical(axis, top, height - 20)]
    y = top + 8.0
    for name, label, row in zip(names, labels, table.rows, strict=True):
        middle = y + (len(columns) - 1) * _ROW * 0.35
        body.append(f'<text x="{start - 8:.1f}" y="{middle + 4:.1f}" text-anchor="end">{_hover(name, label)}</text>')
        for column in columns:
            cell = row[column]
            if _drawn(cell):
                color, _ = _look(column)
                low, high = _ends(cell)
                line = f'<line x1="{axis(low)}" x2="{axis(high)}" y1="{y:.1f}" y2="{y:.1f}"'
                body.append(f'{line} stroke="{color}" stroke-width="2"/>')
                body.append(f'<circle cx="{axis(cell.value)}" cy="{y:.1f}" r="4" fill="{color}"/>')
            y += _ROW * 0.7
        y += 8
    return _svg(table, height, body)


def _hover(name: str, label: str) -> str:
    """A label, with the whole name where one points at it."""
    return escape(label) if name == label else f"<title>{escape(name)}</title>{escape(label)}"


def small(numbers: Sequence[tuple[str, Interval]]) -> str:
    """SVG of a few numbers on one axis that goes through 0, each under its name; "" without any that can be drawn."""
    drawn = [(name, cell) for name, cell in numbers if _drawn(cell)]
    if not drawn:
        return ""
    ends = [end for _, cell in drawn for end in _ends(cell)]
    low, high = min(0.0, *ends), max(1.0 if max(ends) < 1 else 0.0, *ends)
    pad = 0.04 * (high - low)
    axis, bottom = Axis(low - pad, high + pad, 8, _SMALL - 8), 30.0 * len(drawn) + 2
    body = _vertical(axis, 4, bottom, 3)
    for number, (name, cell) in enumerate(drawn):
        y, (color, _), (left, right) = 30.0 * number + 22, _look(number + 1), _ends(cell)
        body.append(f'<text x="8" y="{y - 9:g}">{_hover(name, shortened(name, 30))}</text>')
        body.append(f'<line x1="{axis(left)}" x2="{axis(right)}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        body.append(f'<circle cx="{axis(cell.value)}" cy="{y}" r="4" fill="{color}"/>')
    label = escape("; ".join(f"{name} {cell.text()}" for name, cell in drawn), quote=True)
    size = f'viewBox="0 0 {_SMALL} {bottom + 18:g}"'
    return f'<svg class="small" {size} role="img" aria-label="{label}">{"".join(body)}</svg>'


def shortened(label: str, longest: int = _LONGEST) -> str:
    """A name of at most `longest` letters: its beginning and its end where it has more."""
    return label if len(label) <= longest else f"{label[: longest - 9]}…{label[-8:]}"


def _curves(table: Table, columns: Sequence[int]) -> str:
    """One curve with its band per column over the first column."""
    legend, top = _legend(table, columns)
    height = top + 250.0
    x_values = [float(row[0]) for row in table.rows if isinstance(row[0], int | float)]
    across = Axis(min(x_values), max(x_values), 60, WIDTH - _RIGHT)
    everything = [cell for column in columns for cell in _intervals(table, column)]
    up = Axis(*_span(everything), height - 44, top + 6)
    body = [legend]
    for tick in up.ticks():
        body.append(f'<line class="grid" x1="60" x2="{WIDTH - _RIGHT}" y1="{up(tick)}" y2="{up(tick)}"/>')
        body.append(f'<text x="54" y="{up(tick) + 4}" text-anchor="end">{tick:g}</text>')
    for tick in across.ticks(6):
        body.append(f'<text x="{across(tick)}" y="{height - 26}" text-anchor="middle">{tick:g}</text>')
    middle = (60 + WIDTH - _RIGHT) / 2
    body.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{escape(table.columns[0])}</text>')
    for column in columns:
        points = [(x, row[column]) for x, row in zip(x_values, table.rows, strict=True)]
        known = sorted((x, cell) for x, cell in points if _drawn(cell))
        color, dash = _look(column)
        upper = [f"{across(x)},{up(_ends(cell)[1])}" for x, cell in known]
        lower = [f"{across(x)},{up(_ends(cell)[0])}" for x, cell in reversed(known)]
        body.append(f'<polygon points="{" ".join(upper + lower)}" fill="{color}" opacity="0.15"/>')
        line = " ".join(f"{across(x)},{up(cell.value)}" for x, cell in known)
        body.append(
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        body += [f'<circle cx="{across(x)}" cy="{up(cell.value)}" r="3" fill="{color}"/>' for x, cell in known]
    return _svg(table, height, body)


def _look(column: int) -> tuple[str, str]:
    """Color and dashes of a column, the same in every table that has these columns."""
    place = column - 1
    return _COLORS[place % len(_COLORS)], _DASHES[(place + place // len(_COLORS)) % len(_DASHES)]


def _vertical(axis: Axis, top: float, bottom: float, ticks: int = 5) -> list[str]:
    body = []
    for tick in axis.ticks(ticks):
        kind = "zero" if tick == 0 else "grid"
        body.append(f'<line class="{kind}" x1="{axis(tick)}" x2="{axis(tick)}" y1="{top}" y2="{bottom:.1f}"/>')
        body.append(f'<text x="{axis(tick)}" y="{bottom + 15:.1f}" text-anchor="middle">{tick:g}</text>')
    return body


def _legend(table: Table, columns: Sequence[int]) -> tuple[str, float]:
    """Names of the columns, in as many lines as they need, and where the chart may begin."""
    if len(columns) == 1:
        return f'<text x="8" y="18">{escape(shortened(table.columns[columns[0]], _LONGEST_NAME))}</text>', 30.0
    parts, x, y = [], 8.0, 18.0
    for column in columns:
        name = shortened(table.columns[column], _LONGEST_NAME)
        color, _ = _look(column)
        width = 26 + _LETTER * len(name)
        if x > 8 and x + width > WIDTH:
            x, y = 8.0, y + 18
        parts.append(f'<circle cx="{x + 5:.1f}" cy="{y - 4:.1f}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 14:.1f}" y="{y:.1f}">{escape(name)}</text>')
        x += width
    return "".join(parts), y + 12


def _svg(table: Table, height: float, body: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(table.title, quote=True)}">'
    return head + "".join(body) + "</svg>"
