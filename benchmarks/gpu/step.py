"""`make bench-gpu PART=step`: network evaluations of the published 128-px size, and of the smaller ones, on a GPU.

Batches are measured one after the other, each with all candidates in turn; a batch begins only while there is time.
The engine that compiles for minutes is measured in a process of its own with a time limit (`child.py`).

Knows nothing about rivals that have to be tuned (`tune.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks import bench_step, peers, timing, workload
from benchmarks.gpu import child
from benchmarks.gpu.machine import Ceilings, Deadline, peak_tflops
from benchmarks.peers import autocast
from benchmarks.rows import Row, RowFile
from benchmarks.timing import Candidate
from benchmarks.workload import Workload
from rcdm_fast import benchmarking, engines

GROUPS = (("release128", (1, 8, 64, 256)), ("s", (16, 256)), ("m", (4, 64)))
COMPILED_GROUPS = (("release128", 1), ("release128", 64))
SLOW_TO_BUILD = ("compiled",)
LARGEST_FP32_BATCH = 8  # plain fp32 without TF32 is there to compare with, not worth minutes
GROUP_S = 30.0  # timed rounds of one batch end after this
RESERVE_S = 20.0  # a batch begins only if so much is left
AUTOCAST = "PyTorch autocast"
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def run(device: torch.device, file: RowFile, shared: Row, deadline: Deadline) -> int:
    """All batches; the number of wrong candidates."""
    ceilings = Ceilings.measure(device)
    file.put(*({**row, **shared, "config": "ceilings"} for row in ceilings.rows))
    red = 0
    quick = [name for name in engines.ENGINES if name not in SLOW_TO_BUILD]
    slow = [name for name in engines.ENGINES if name in SLOW_TO_BUILD]
    reserved = 120.0 * len(slow) * len(COMPILED_GROUPS)
    for config, batches in GROUPS:
        model = workload.read_config(config)
        network = workload.make_network(model.unet).to(device)
        for batch in batches:
            if deadline.left_s - (reserved if config == "release128" else 0) < RESERVE_S:
                file.put({**shared, "config": config, "batch": batch, "why_not": "no time left"})
                continue
            work = workload.make(model, batch, device, network)
            candidates = rivals(work) + bench_step.engine_candidates(work, quick, ("bf16", "fp16"))
            red += measure_group(work, candidates, file, shared, ceilings, deadline)
            del work, candidates
            torch.cuda.empty_cache() if device.type == "cuda" else None
        if config == "release128":
            del network
            for name in slow:
                for _, batch in COMPILED_GROUPS:
                    limit_s = min(120.0, deadline.left_s - RESERVE_S)
                    red += child.run(
                        ["--config", config, "--batch", str(batch), "--engines", name], limit_s, file, shared
                    )
    return red


def rivals(work: Workload) -> list[Candidate]:
    """Plain PyTorch in fp32 (small batches) and under autocast in bf16 and fp16."""
    found = bench_step.peer_candidates(work, ["pytorch-eager-fp32"]) if work.batch <= LARGEST_FP32_BATCH else []
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found.append(Candidate(AUTOCAST, precision, False, partial(autocast.build, work, dtype), "channels-last"))
    return found


def measure_group(
    work: Workload,
    candidates: Sequence[Candidate],
    file: RowFile,
    shared: Row,
    ceilings: Ceilings,
    deadline: Deadline,
) -> int:
    """Check and time the candidates of one batch; the number of wrong ones."""
    shared = {**shared, "config": work.name, "batch": work.batch, "flop": work.flops}
    gate = timing.Gate(work)
    for candidate in candidates:
        if not candidate.why_not:
            timing.check(candidate, gate, work)
        file.put({**candidate.row(), **shared})

    def after_round(times: dict[str, list[float]]) -> None:
        for candidate in candidates:
            if candidate.key in times:
                file.put(_row(candidate, times, work, {**shared}, ceilings))

    limit = min(GROUP_S, deadline.left_s)
    timing.measure(candidates, work, rounds=30, deadline=Deadline.after(limit).end, after_round=after_round)
    return sum(candidate.red for candidate in candidates)


def _row(candidate: Candidate, times: dict[str, list[float]], work: Workload, shared: Row, ceilings: Ceilings) -> Row:
    row = {**candidate.row(times[candidate.key]), **shared}
    seconds = row["p50_ms"] * 1e-3
    rate = work.flops / seconds
    row["tflop_per_s"] = rate * 1e-12
    peak = peak_tflops(str(shared["device"]))
    if peak is not None and candidate.precision != "fp32":
        row["mfu_percent"] = 100 * rate * 1e-12 / peak
    if candidate.precision in ceilings.flop_per_s:
        row["of_gemm_percent"] = 100 * rate / ceilings.flop_per_s[candidate.precision]
    moved = workload.count_bytes(work.network.config, work.batch, ELEMENT_BYTES[candidate.precision])
    row |= {"bytes": moved, "of_copy_percent": 100 * moved / seconds / ceilings.bytes_per_s}
    for column, yardstick in (("of_autocast", f"{AUTOCAST} {candidate.precision}"), ("of_eager", peers.EAGER)):
        if yardstick in times:
            row[column] = benchmarking.pair_ratio(times[yardstick], times[candidate.key])
    for yardstick in times:
        if yardstick.startswith("torch.compile"):
            row["of_compile"] = benchmarking.pair_ratio(times[yardstick], times[candidate.key])
    return row
