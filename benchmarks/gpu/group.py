"""One batch of a network: candidates checked and timed one after the other, in this process.

    python -m benchmarks.gpu.group --config s --batch 16 --machine FILE --seconds 60 --json FILE --names native-bf16

A candidate is timed in turn with the rivals that stay (`--beside`, or those of its precision), and is gone before the
next one is built: only two or three networks lie in memory at a time. Rows are written as they are known. When the
device does not answer any more the process ends; `process.run_all` goes on with the rest in a new one.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import peers, roofline, timing, workload
from benchmarks.gpu import candidates, machine
from benchmarks.gpu.machine import Ceilings, Deadline, peak_tflops
from benchmarks.gpu.process import BROKEN
from benchmarks.gpu.settings import Settings, chosen
from benchmarks.rows import Row, RowFile
from benchmarks.timing import Candidate
from benchmarks.workload import Workload
from rcdm_fast import benchmarking

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
RESERVE_S = 5.0  # a candidate is begun only if so much is left
KEYS = ("name", "precision", "part", "item")


class Group:
    """The candidates of one batch."""

    def __init__(self, work: Workload, file: RowFile, shared: Row, ceilings: Ceilings, settings: Settings) -> None:
        self._work, self._file, self._ceilings, self._settings = work, file, ceilings, settings
        self._shared = {**shared, "config": work.name, "batch": work.batch, "flop": work.flops}
        self._gate = timing.Gate(work, timing.OUR_FACTOR["cuda"])  # in a rehearsal too
        self._stay: dict[str, Candidate] = {}

    def stay(self, name: str) -> Candidate:
        """A rival that stays for all candidates it is timed with."""
        if name not in self._stay:
            candidate = self._stay[name] = candidates.make(name, self._work)
            self._check(candidate)
            self._put(name, candidate, {})
        return self._stay[name]

    def measure(self, name: str, beside: Sequence[str], deadline: Deadline) -> None:
        """Check and time one candidate, beside rivals; its row is written, and theirs."""
        candidate = candidates.make(name, self._work)
        row = {"item": name, "begun": True, "name": candidate.name, "precision": candidate.precision, **self._shared}
        self._file.put(row)
        self._stay = {other: kept for other, kept in self._stay.items() if other in beside}
        if name in beside:
            candidate = self.stay(name)
        rivals = {other: self.stay(other) for other in beside if other != name}
        if name not in beside:
            self._check(candidate)
        timed = {name: candidate, **rivals}

        def after_round(times: dict[str, list[float]]) -> None:
            for each, one in timed.items():
                self._put(each, one, times)

        if candidate.evaluate is not None:
            limit = Deadline.after(min(self._settings.group_s, deadline.left_s))
            rounds = self._settings.rounds
            timing.measure(list(timed.values()), self._work, rounds=rounds, deadline=limit.end, after_round=after_round)
        if candidate.why_not:
            self._put(name, candidate, {})

    def _check(self, candidate: Candidate) -> None:
        if not candidate.why_not:
            timing.check(candidate, self._gate, self._work)

    def _put(self, name: str, candidate: Candidate, times: dict[str, list[float]]) -> None:
        row = {**candidate.row(times.get(candidate.key, ())), **self._shared, "item": name}
        if candidate.key in times and "p50_ms" in row:
            row |= self._rates(candidate, times, row["p50_ms"] * 1e-3)
        self._file.put(row)

    def _rates(self, candidate: Candidate, times: dict[str, list[float]], seconds: float) -> Row:
        work, row = self._work, Row()
        rate = work.flops / seconds
        row["tflop_per_s"] = rate * 1e-12
        peak = peak_tflops(str(self._shared["device"]))
        if peak is not None and candidate.precision != "fp32":
            row["mfu_percent"] = 100 * rate * 1e-12 / peak
        if candidate.precision in self._ceilings.flop_per_s:
            row["of_gemm_percent"] = 100 * rate / self._ceilings.flop_per_s[candidate.precision]
        moved = workload.count_bytes(work.network.config, work.batch, ELEMENT_BYTES[candidate.precision])
        row |= {"bytes": moved, "of_copy_percent": 100 * moved / seconds / self._ceilings.bytes_per_s}
        row |= self._modeled(candidate)
        yardsticks = {f"{candidates.AUTOCAST} {candidate.precision}": "of_autocast", peers.EAGER: "of_eager"}
        for key, each in times.items():
            column = "of_compile" if key.startswith("torch.compile") else yardsticks.get(key)
            if column:
                row[column] = benchmarking.pair_ratio(each, times[candidate.key])
        return row

    def _modeled(self, candidate: Candidate) -> Row:
        """What the roofline says of this candidate, where it knows both the way to run and the GPU."""
        way = "native" if candidate.name == "rcdm_fast native" else candidate.name.split()[0]
        device = roofline.device_named(self._settings.modeled or str(self._shared["device"]))
        if candidate.precision == "fp32" or way not in roofline.WAYS or device is None:
            return {}
        rows = roofline.predict(self._work.network.config, self._work.batch, device)
        return next({"modeled_ms": row["ms"]} for row in rows if row["name"] == way)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the names; the exit status is `process.BROKEN` when the device stopped answering."""
    parser = argparse.ArgumentParser(description="One batch of PART=step or PART=tune.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--beside", nargs="*", help="rivals that all are timed with; default: of their precision")
    parser.add_argument("--part", default="", help="what the rows belong to beside the batch")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--machine", type=Path, required=True, help="what benchmarks.gpu.machine wrote")
    parser.add_argument("--seconds", type=float, required=True, help="after which nothing more is begun")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    deadline = Deadline.after(options.seconds)
    settings = chosen(options.rehearse)
    device = torch.device(settings.device)
    facts, ceilings = machine.read(options.machine)
    shared = {**facts, **({"part": options.part} if options.part else {})}
    file = RowFile(options.json, facts, KEYS)
    group = Group(
        workload.make(workload.read_config(options.config), options.batch, device), file, shared, ceilings, settings
    )
    for name in options.names:
        if deadline.left_s < RESERVE_S:
            file.put({"item": name, **_labels(name), **shared, "config": options.config, "batch": options.batch})
            continue
        beside = candidates.beside(name) if options.beside is None else options.beside
        try:
            group.measure(name, beside, deadline)
        except RuntimeError as error:  # what a device answers once it is broken, wherever it is asked
            print(error, file=sys.stderr)
            if machine.answers(device):
                raise
        if not machine.answers(device):
            return BROKEN
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


def _labels(name: str) -> Row:
    return {"name": name, "precision": name.rsplit("-", 1)[1], "why_not": "no time left"}


if __name__ == "__main__":
    sys.exit(main())
