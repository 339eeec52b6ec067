"""What solvers do to samples against network evaluations, as one SVG: a panel per quantity, a curve per solver.

Knows nothing about how it was measured (`solver_quality.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rcdm_fast.analysis import charts
from rcdm_fast.analysis.result import Cell, Table
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.solver_quality import Quality

PANELS: tuple[tuple[str, Callable[[Quality], Interval | None]], ...] = (
    ("relative distance from where the flow leads", lambda row: row.error),
    ("MRR of the source", lambda row: row.mrr),
    ("variance over samples / that of the first row", lambda row: row.variance),
    ("Fréchet distance", lambda row: None if row.frechet is None else Interval(*[row.frechet] * 3)),
)


def svg(rows: Sequence[Quality]) -> str:
    """A file's content. A solver whose steps lie in several ways has a curve for each."""
    tables = [table(rows, title, of) for title, of in PANELS]
    return charts.panels([each for each in tables if each is not None])


def table(rows: Sequence[Quality], title: str, of: Callable[[Quality], Interval | None]) -> Table | None:
    """A quantity: a row per number of evaluations, a column per solver; None where nothing was measured of it."""
    known = [(way(row), row.nfe, value) for row in rows if (value := of(row)) is not None]
    ways = list(dict.fromkeys(map(way, rows)))  # of all, so that a solver looks the same in every panel
    cells = {(name, nfe): value for name, nfe, value in known}
    body: list[tuple[Cell, ...]] = [
        (nfe, *(cells.get((name, nfe)) for name in ways)) for nfe in sorted({nfe for _, nfe, _ in known})
    ]
    return Table(title, title, ("network evaluations", *ways), tuple(body)) if body else None


def way(row: Quality) -> str:
    """A solver and, if its steps lie elsewhere than by default, where."""
    placement = row.steps.rstrip("0123456789")
    if "," in row.steps:
        placement = row.steps
    return f"{row.solver} {placement}".strip()
