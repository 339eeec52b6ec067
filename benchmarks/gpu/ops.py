"""`make bench-gpu PART=ops`: every implementation of every operator beside plain PyTorch, at the release's shapes.

    python -m benchmarks.gpu.ops --machine FILE --seconds 60 --json FILE --names 0 1 2    these cases, in this process

An implementation is compared with the reference in float64 first; one that is further from it than twice what plain
PyTorch gives at the same dtype is not timed. Before anything is measured several processes compile what Triton needs,
each a fraction of the cases.

Knows nothing about networks, nor which cases there are (`cases.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu import machine, process
from benchmarks.gpu.cases import PLAIN, Case, plan
from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.settings import Settings, chosen
from benchmarks.rows import Row, RowFile
from rcdm_fast import benchmarking
from rcdm_fast.precision import ieee_fp32

COMPILE_FRACTION = 0.4  # of the time that is left
EXACT_LIMIT = 1e-6  # relative L2, where plain PyTorch itself makes no error worth doubling


def run(settings: Settings, file: RowFile, shared: Row, machine_file: Path, deadline: Deadline) -> int:
    """All cases; the number of wrong implementations."""
    arguments = ["--machine", str(machine_file), *(["--rehearse"] if settings.device == "cpu" else [])]
    plans = list(plan(settings))
    names = [str(number) for number in range(len(plans))]
    compile_all(arguments, names, settings.workers, deadline.left_s * COMPILE_FRACTION)

    def label(name: str) -> Row:
        return {**shared, **plans[int(name)].labels, "name": "all"}

    return process.run_all("ops", arguments, names, lambda: deadline.left_s, file.put, label)


def compile_all(arguments: list[str], names: list[str], workers: int, limit_s: float) -> None:
    """Run every case once, untimed, shared among processes: Triton keeps on disk what it compiles."""
    fractions = [names[first::workers] for first in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        for fraction in filter(None, fractions):
            pool.submit(
                process.run_all, "ops", [*arguments, "--compile"], fraction, lambda: limit_s, _nothing, _no_label
            )


def _nothing(row: Row) -> None:
    """What is said while compiling is said again while measuring."""


def _no_label(name: str) -> Row:
    return {}


def measure(
    case: Case, device: torch.device, put: Callable[[Row], None], settings: Settings, bytes_per_s: float
) -> None:
    """Check and time a case; a wrong implementation, or one that cannot run, gets no time."""
    want = case.wanted()
    allowed = max(2 * benchmarking.relative_l2(case.candidates[PLAIN](), want), EXACT_LIMIT)
    runs: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    for name, compute in case.candidates.items():
        row = {**case.labels, "name": name}
        try:
            error = benchmarking.relative_l2(compute(), want)
            benchmarking.wait(device)
        except Exception as raised:  # an implementation is what is tried here: whatever it raises is its result
            put({**row, "why_not": f"cannot run: {' '.join(str(raised).split())[:300]}", "red": True})
            if not machine.answers(device):
                return
            continue
        errors[name] = error
        if error > allowed:
            why_not = f"wrong result: relative error {error:.2e}, allowed {allowed:.2e}"
            put({**row, "error": error, "why_not": why_not, "red": True})
        else:
            runs[name] = partial(_repeatedly, compute, settings.repeats)
    times = benchmarking.in_turn(runs, device, rounds=settings.rounds, warmup=1)
    for name, each in times.items():
        row = {**case.labels, "name": name, "error": errors[name], "bytes": case.bytes}
        row = benchmarking.row([time_ms / settings.repeats for time_ms in each], **row)
        row["of_copy_percent"] = 100 * case.bytes / (row["p50_ms"] * 1e-3) / bytes_per_s
        if PLAIN in times:
            row["of_plain"] = benchmarking.pair_ratio(times[PLAIN], each)
        put(row)


def _repeatedly(compute: Callable[[], Tensor], repeats: int) -> None:
    for _ in range(repeats):
        compute()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure (or only compile) the cases of these numbers; `process.BROKEN` when the device stopped answering."""
    parser = argparse.ArgumentParser(description="Some cases of PART=ops.")
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--compile", action="store_true", help="run each once")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--machine", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    deadline = Deadline.after(options.seconds)
    settings = chosen(options.rehearse)
    device = torch.device(settings.device)
    shared, ceilings = machine.read(options.machine)
    file = RowFile(options.json, shared, ("item", "name"))
    plans = list(plan(settings))
    for name in options.names:
        labels = {"item": name, **plans[int(name)].labels, **shared}
        if deadline.left_s < 1:
            file.put({**labels, "name": "all", "why_not": "no time left"})
            continue
        file.put({**labels, "name": "all", "begun": True})

        def put(row: Row, labels: Row = labels) -> None:
            file.put({**labels, **row})

        with torch.inference_mode(), ieee_fp32(device):
            case = plans[int(name)].make(device)
            if options.compile:
                _compile(case, device)
            else:
                measure(case, device, put, settings, ceilings.bytes_per_s)
        if not machine.answers(device):
            return process.BROKEN
        del case
    return 0


def _compile(case: Case, device: torch.device) -> None:
    for compute in case.candidates.values():
        try:
            compute()
            benchmarking.wait(device)
        except Exception:  # what it raises is told when it is measured
            return


if __name__ == "__main__":
    sys.exit(main())
