"""What other runtimes and precisions change, for the documentation, from what `rcdm compare` wrote. Texts only."""

from __future__ import annotations

from benchmarks.documents.models import interval
from benchmarks.documents.speed import Found


def drift(found: Found) -> str:
    """A row for each engine and precision; the first is what the others are held against."""
    lines = [
        "| engine | precision | largest error of a step | error of the trajectory | PSNR, dB |",
        "|---|---|---:|---:|---:|",
    ]
    for row in found["rows"][1:]:
        psnr = "equal" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        errors = f"{max(row['step_errors']):.1e} | {row['path_errors'][-1]:.1e}"
        lines.append(f"| `{row['engine']}` | {row['precision']} | {errors} | {psnr} |")
    return "\n".join(lines)


def int8(found: Found) -> str:
    """What rounding to 8 bits does to images and to ranks."""
    (row,) = (row for row in found["rows"] if row["precision"] == "int8")
    change = interval(row["mrr_change"], "+.1f", 100, " %")
    return f"a PSNR of {row['psnr_db']:.1f} dB, and the MRR of the source changes by {change}"
