"""The benchmarks of one GPU, in four parts that need nobody to watch them and no network.

    python benchmarks/bench_gpu.py build|ops|step|tune

build: the extension and the tests marked gpu; ops: operators beside plain PyTorch; step: network evaluations, the
published 128-px size first; tune: torch.compile with max-autotune as the rival. Each part is done in under eight
minutes on one H100 and writes its rows as they are measured to bench_gpu_PART.json in $OUT, or in out/.

Knows nothing about what a part does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu import build, machine, ops, step, tune
from benchmarks.gpu.machine import Deadline
from benchmarks.rows import RowFile, table
from rcdm_fast import benchmarking

PARTS = {"build": build.run, "ops": ops.run, "step": step.run, "tune": tune.run}
LIMIT_S = 450.0
KEYS = {
    "build": ("name",),
    "ops": ("operator", "shape", "precision", "name"),
    "step": ("config", "batch", "name", "precision", "part"),
    "tune": ("config", "batch", "name", "precision", "part"),
}
STEP_COLUMNS = (
    ("config", "config", "s"),
    ("", "name", "s"),
    ("precision", "precision", "s"),
    ("batch", "batch", "d"),
    ("ms (p50)", "p50_ms", ".2f"),
    ("TFLOP/s", "tflop_per_s", ".0f"),
    ("MFU %", "mfu_percent", ".1f"),
    ("% of GEMM", "of_gemm_percent", ".0f"),
    ("% of copy", "of_copy_percent", ".0f"),
    ("rel. error", "error", ".1e"),
    ("ready s", "ready_s", ".1f"),
    ("memory", "memory_bytes", ",d"),
    ("x autocast", "of_autocast", ".2f"),
    ("x compile", "of_compile", ".2f"),
)
COLUMNS = {
    "build": (("", "name", "s"), ("s", "seconds", ".0f"), ("status", "status", "d")),
    "ops": (
        ("operator", "operator", "s"),
        ("", "name", "s"),
        ("shape", "shape", "s"),
        ("precision", "precision", "s"),
        ("ms (p50)", "p50_ms", ".4f"),
        ("% of copy", "of_copy_percent", ".0f"),
        ("rel. error", "error", ".1e"),
        ("x plain", "of_plain", ".2f"),
    ),
    "step": STEP_COLUMNS,
    "tune": STEP_COLUMNS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; the exit status is 1 if something failed or was wrong, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description="Benchmarks of one GPU.")
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "out"), help="folder for the rows")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds after which nothing more is begun")
    options = parser.parse_args(arguments)
    reason = machine.reason_missing()
    if reason:
        print(f"bench_gpu: {reason}", file=sys.stderr)
        return 2
    deadline = Deadline(time.monotonic() + options.limit)
    device = torch.device("cuda")
    shared = benchmarking.facts(device)
    part = options.part
    file = RowFile(options.out / f"bench_gpu_{part}.json", shared, KEYS[part])
    wrong = PARTS[part](device, file, shared, deadline)
    print("\n".join(table(file.rows, COLUMNS[part])))
    print(f"{file.path}: {len(file.rows)} rows")
    if wrong:
        print(f"bench_gpu: {part}: {wrong} failed or wrong, see above", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
