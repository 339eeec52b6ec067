"""A plot of what guidance does, from what `rcdm evaluate --guidance W --json` wrote for several W.

    python benchmarks/plot_guidance.py benchmarks/results/guidance_wide_h100.json docs/guidance.svg

The file holds {W: what evaluate measured}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcdm_fast.analysis import charts
from rcdm_fast.analysis.result import Table
from rcdm_fast.metrics.intervals import Interval


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Fractions, and quantities as multiples of those without guidance."""

    def interval(value: dict[str, float], unit: float = 1.0) -> Interval:
        return Interval(value["value"] / unit, value["low"] / unit, value["high"] / unit)

    def frechet(row: dict[str, Any]) -> float:
        return float(row["distribution"]["frechet_distance"])

    first = found["1"]
    rows = []
    for strength in sorted(found, key=float):
        row = found[strength]
        ratio = frechet(row) / frechet(first)
        rows.append(
            (
                float(strength),
                interval(row["mrr"]),
                interval(row["recognized"]["samples"]),
                interval(row["variance"], first["variance"]["value"]),
                interval(row["distance"], row["nearest"]),
                Interval(ratio, ratio, ratio),
            )
        )
    columns = (
        "guidance",
        "MRR of the source",
        "class read off samples",
        "variance over samples / that at 1",
        "squared distance to h / of the nearest image",
        "Fréchet distance / that at 1",
    )
    return Table("guidance", "Guidance against what samples keep", columns, tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Plot what guidance does.")
    parser.add_argument("measured", type=Path)
    parser.add_argument("plot", type=Path)
    given = parser.parse_args(arguments)
    given.plot.write_text(charts.panels([table(json.loads(given.measured.read_text()))]))


if __name__ == "__main__":
    main()
