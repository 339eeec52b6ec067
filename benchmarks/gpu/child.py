"""One batch measured in a process of its own, with a time limit: for what compiles for minutes, and might never end.

The parent (`run`) starts it, waits no longer than the limit, and takes over the rows that it has written by then.

Knows nothing about which batches are worth it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.rows import Row, RowFile

ROOT = Path(__file__).resolve().parents[2]


def run(arguments: Sequence[str], limit_s: float, file: RowFile, shared: Row) -> int:
    """Run `main` with these arguments in a new process; the number of wrong candidates."""
    options = _parse([*arguments, "--json", "unused"])
    labels = {**shared, "config": options.config, "batch": options.batch}
    what = "torch.compile max-autotune" if options.tuned else " ".join(options.engines)
    if limit_s < 10:
        file.put({**labels, "name": what, "precision": "bf16", "why_not": "no time left"})
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.gpu.child", *arguments, "--json", str(path)]
        why_not = ""
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=limit_s, capture_output=True, text=True)
            if done.returncode:
                why_not = " ".join(done.stderr.split())[-300:]
        except subprocess.TimeoutExpired:
            why_not = f"not done within {limit_s:.0f} s"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    file.put(*rows)
    if why_not:
        file.put({**labels, "name": what, "precision": "bf16", "part": "process", "why_not": why_not})
    return sum(bool(row.get("red")) for row in rows)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One batch of PART=step or PART=tune.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--engines", nargs="*", default=[])
    parser.add_argument("--tuned", action="store_true", help="torch.compile with max-autotune")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the batch in this process; rows go to the file as they are known."""
    from benchmarks import bench_step, workload
    from benchmarks.gpu import step, tune
    from benchmarks.gpu.machine import Ceilings, Deadline
    from rcdm_fast import benchmarking

    options = _parse(arguments)
    device = torch.device(options.device)
    shared = benchmarking.facts(device)
    file = RowFile(options.json, shared, ("config", "batch", "name", "precision"))
    work = workload.make(workload.read_config(options.config), options.batch, device)
    candidates = [rival for rival in step.rivals(work) if rival.precision == "bf16"]
    candidates += bench_step.engine_candidates(work, options.engines, ("bf16",))
    candidates += [tune.candidate(work)] if options.tuned else []
    step.measure_group(work, candidates, file, shared, Ceilings.measure(device), Deadline.after(120))
    return 0


if __name__ == "__main__":
    sys.exit(main())
