"""The benchmarks of one GPU, in four parts that need nobody to watch them and no network.

    python benchmarks/bench_gpu.py build|ops|step|tune [--batches 1 64] [--rehearse]

build: the tests marked gpu; ops: operators beside plain PyTorch; step: network evaluations, the published 128-px size
first, and trajectories of small batches; tune: torch.compile with max-autotune as the rival, on the batches that are
named. Every part builds the native code first, and measures nothing without it. A part is done in nine minutes at most,
and writes its rows as they are measured to bench_gpu_PART.json in $OUT, or in out/. `--rehearse` goes the same way on
the CPU, at sizes of nothing.

Knows nothing about what a part does. This process measures nothing itself (benchmarks/gpu/process.py says why).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu import build, machine, ops, process, step, tune
from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.settings import Settings, chosen
from benchmarks.rows import Row, RowFile, table

PARTS = {"build": build.run, "ops": ops.run, "step": step.run, "tune": tune.run}
LIMIT_S = 540.0  # a command may have ten minutes
MACHINE_S = 120.0  # facts and ceilings
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
    ("ms, modeled", "modeled_ms", ".2f"),
    ("TFLOP/s", "tflop_per_s", ".0f"),
    ("MFU %", "mfu_percent", ".1f"),
    ("% of GEMM", "of_gemm_percent", ".0f"),
    ("% of copy", "of_copy_percent", ".0f"),
    ("rel. error", "error", ".1e"),
    ("ready s", "ready_s", ".1f"),
    ("memory", "memory_bytes", ",d"),
    ("x autocast", "of_autocast", ".2f"),
    ("x compile", "of_compile", ".2f"),
    ("x one by one", "of_steps", ".2f"),
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
    parser.add_argument("--batches", type=int, nargs="+", default=[], help="of PART tune, in this order")
    parser.add_argument("--rehearse", action="store_true", help="the same way on the CPU, at sizes of nothing")
    options = parser.parse_args(arguments)
    settings = chosen(options.rehearse)
    if options.rehearse:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes to come: there is nothing to share
    reason = "" if options.rehearse else machine.reason_missing()
    if reason:
        print(f"bench_gpu: {reason}", file=sys.stderr)
        return 2
    deadline = Deadline(time.monotonic() + options.limit)
    with tempfile.TemporaryDirectory() as folder:
        return _run(options, settings, deadline, Path(folder) / "machine.json")


def _run(options: argparse.Namespace, settings: Settings, deadline: Deadline, machine_file: Path) -> int:
    part = options.part
    built = _build(settings, deadline)
    facts, ceilings, why_not = _facts(settings, deadline, machine_file)
    file = RowFile(options.out / f"bench_gpu_{part}.json", facts, KEYS[part])
    file.put(*([{**facts, **built}] if part == "build" or built["status"] else []))
    if why_not:
        file.put({**facts, "name": "machine", "why_not": why_not})
    wrong = int(bool(built["status"] or why_not))
    if not wrong:
        if part != "build":
            file.put(*({**row, **facts, "operator": "ceilings", "config": "ceilings"} for row in ceilings))
        more: dict[str, Any] = {"batches": tuple(options.batches)} if part == "tune" and options.batches else {}
        wrong = PARTS[part](settings, file, facts, machine_file, deadline, **more)
    print("\n".join(table(file.rows, COLUMNS[part])))
    print(f"{file.path}: {len(file.rows)} rows")
    if wrong:
        print(f"bench_gpu: {part}: {wrong} failed or wrong, see above", file=sys.stderr)
    return int(bool(wrong))


def _build(settings: Settings, deadline: Deadline) -> Row:
    """The native parts, built for the GPU that is here; a rehearsal takes the CPU's that are there."""
    if settings.device == "cpu":
        return build.execute("build", ["-c", build.LOADED, "cpu"], deadline.left_s)
    major, minor = torch.cuda.get_device_capability()
    return build.native(deadline.left_s, env={"RCDM_FAST_CUDA_ARCHS": f"{major}{minor}"})


def _facts(settings: Settings, deadline: Deadline, path: Path) -> tuple[Row, list[Row], str]:
    """Facts of the machine, rows of its ceilings, and why there are none."""
    arguments = ["--keep", str(path), *(["--rehearse"] if settings.device == "cpu" else [])]
    ended = process.run("machine", arguments, min(MACHINE_S, deadline.left_s))
    if ended.why_not or not path.exists():
        return {}, [], ended.why_not or "the machine could not be measured"
    return json.loads(path.read_text(encoding="utf-8"))["facts"], ended.rows, ""


if __name__ == "__main__":
    sys.exit(main())
