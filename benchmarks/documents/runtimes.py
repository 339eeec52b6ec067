"""What other runtimes and precisions change, for the documentation, from what `rcdm compare` wrote. Texts only."""

from __future__ import annotations

import re

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


FP8_LOSS = 0.02  # of MRR, at most


def fp8(*found: Found) -> str:
    """A row for each model: what fp8 does to images and to ranks, and whether that is little enough."""
    lines = [
        "| model | samples of a source | MRR, fp32 | MRR, fp8 | change | PSNR, dB | layers | gate |",
        "|---|---:|---|---|---|---:|---|---|",
    ]
    for each in found:
        reference, row = each["rows"]
        per = re.search(r"--per (\d+)", each["made_by"]["command"])
        layers = re.search(r"\((?:emulated, [^:]*: )?([^()]*3x3 convolutions in fp8[^()]*)\)", row["runs"])
        if per is None or layers is None or row["precision"] != "fp8":
            raise ValueError(f"no comparison of fp8: {row['engine']} {row['precision']}, {row['runs']}")
        gate = "passed" if row["mrr_change"]["value"] >= -FP8_LOSS else "failed"
        change = interval(row["mrr_change"], "+.1f", 100, " %")
        ranks = " | ".join(interval(one["mrr"], ".3f") for one in (reference, row))
        name = each["made_by"]["models"][0]["name"]
        lines.append(f"| `{name}` | {per[1]} | {ranks} | {change} | {row['psnr_db']:.1f} | {layers[1]} | {gate} |")
    return "\n".join(lines)
