"""Measuring in a process of its own: with a time limit, and without harm to what is measured afterwards.

An illegal memory access ends everything that a process can do with a GPU, a compiler may never end, and memory that was
taken is given back for certain only at the end. So nothing is measured in the process that writes the results.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
BROKEN = 3  # exit status of a process whose GPU does not answer any more
SHORTEST_S = 10.0  # starting takes longer


@dataclass(frozen=True)
class Ended:
    """What a process has left behind: rows, and why it did not come to its end (empty if it did)."""

    rows: list[Row]
    why_not: str


def run(module: str, arguments: Sequence[str], limit_s: float) -> Ended:
    """Run a module of benchmarks/gpu with these arguments, `--seconds` and `--json`, for no longer than the limit."""
    if limit_s < SHORTEST_S:
        return Ended([], "no time left")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.gpu.{module}", *arguments]
        command += ["--seconds", f"{limit_s - SHORTEST_S / 2:.0f}", "--json", str(path)]
        why_not = ""
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=limit_s, capture_output=True, text=True, check=False)
            if done.returncode:
                said = " ".join(done.stderr.split())[-300:]
                why_not = f"its process ended with status {done.returncode}: {said}"
        except subprocess.TimeoutExpired:
            why_not = f"not done within {limit_s:.0f} s"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return Ended(rows, why_not)


def run_all(
    module: str,
    arguments: Sequence[str],
    names: Sequence[str],
    left_s: Callable[[], float],
    put: Callable[[Row], None],
    label: Callable[[str], Row],
) -> int:
    """Measure every name; what breaks or outlives one process is told, and the rest goes on in a new one.

    Args:
        module, arguments: as for `run`; the names that are left are added behind ``--names``.
        names: what to measure. Rows of the process say in `item` which of them they belong to; one that only says that
            measuring has begun has `begun`.
        left_s: seconds that are left.
        put: takes every row.
        label: what a row without numbers says about a name.

    Returns:
        How many rows are red.
    """
    left = list(names)
    red = 0
    while left:
        ended = run(module, [*arguments, "--names", *left], left_s())
        finished = [row for row in ended.rows if not row.get("begun")]
        begun = [row for row in ended.rows if row.get("begun")]
        for row in finished:
            put({key: value for key, value in row.items() if key != "item"})
            red += bool(row.get("red"))
        done = {row["item"] for row in finished if row.get("item") in left}
        culprits = {row["item"] for row in begun} - done if ended.why_not else set()
        for name in culprits:
            put({**label(name), "why_not": ended.why_not})
        remaining = [name for name in left if name not in done | culprits]
        if not ended.why_not or len(remaining) == len(left):  # nothing got any further: it would not the next time
            for name in remaining:
                put({**label(name), "why_not": ended.why_not or "not measured"})
            break
        left = remaining
    return red
