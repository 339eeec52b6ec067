"""Candidates that are checked first and then timed in turn, and the ceilings of the machine they run on.

A candidate whose result is wrong is red: no time is measured for it, its row says why, and the benchmark fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.workload import Inputs, Workload
from rcdm_fast import benchmarking
from rcdm_fast.benchmarking import FP32_LIMIT, relative_l2
from rcdm_fast.precision import ieee_fp32, without_bf16

Evaluate = Callable[[Inputs], Tensor]  # -> float32 [N,3 or 6,H,W]
RIVAL_FACTOR = 2.0  # a rival's bf16 error may be so many times autocast's
# And ours. On the CPU a convolution adds bias and residual before it rounds, and our error is below autocast's. cuDNN
# rounds first, as autocast does, and what is left between the two is chance: where CUDA's rounding is emulated, ours is
# 3.4 % smaller on one batch of `s` and 0.05 % larger on another (tests/test_rounding.py).
OUR_FACTOR = {"cpu": 1.0, "cuda": 1.1}
INT8_LIMIT = 0.1  # of a rival in int8, calibrated on made-up inputs: shows that it computes the same network
REFERENCE_CHUNK = 16  # images; the reference is not timed, it only has to fit into memory


@dataclass
class Candidate:
    """A way to evaluate the network.

    Attributes:
        name, precision: what it is called in rows.
        ours: whether it is an engine of the library.
        build: makes it ready; what it returns evaluates a batch.
        note: what a reader of the row should know.
    """

    name: str
    precision: str
    ours: bool
    build: Callable[[], Evaluate]
    note: str = ""
    evaluate: Evaluate | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    why_not: str = ""
    red: bool = False

    @property
    def key(self) -> str:
        """Name in the tables of times."""
        return f"{self.name} {self.precision}"

    def row(self, times_ms: Sequence[float] = ()) -> dict[str, Any]:
        """What is known so far."""
        row = {"name": self.name, "precision": self.precision, "ours": self.ours, **self.numbers}
        if self.note:
            row["note"] = self.note
        if self.why_not:
            return row | {"why_not": self.why_not, "red": self.red}
        return benchmarking.row(times_ms, **row) if times_ms else row


class Gate:
    """Decides from the errors on two different batches whether a candidate may be timed."""

    def __init__(self, workload: Workload, our_factor: float | None = None) -> None:
        self._workload = workload
        self._our_factor = OUR_FACTOR[workload.device.type] if our_factor is None else our_factor
        self._wanted: list[tuple[Inputs, Tensor]] = []
        self._autocast: dict[str, float] = {}

    def limit(self, candidate: Candidate) -> float:
        """The largest relative L2 error to plain PyTorch in fp32 with which a candidate is timed."""
        if candidate.precision == "fp32":
            return FP32_LIMIT
        if candidate.precision == "int8":
            return INT8_LIMIT
        if candidate.precision not in self._autocast:
            self._autocast[candidate.precision] = self.error(self._evaluate_autocast(candidate.precision))
        factor = self._our_factor if candidate.ours else RIVAL_FACTOR
        return self._autocast[candidate.precision] * factor

    def error(self, evaluate: Evaluate) -> float:
        """The larger of the relative L2 errors on the two batches."""
        if not self._wanted:
            for inputs in (self._workload.timed, self._workload.other):
                self._wanted.append((inputs, self._plain(inputs)))
        return max(relative_l2(evaluate(inputs), want) for inputs, want in self._wanted)

    @torch.inference_mode()
    def _plain(self, inputs: Inputs) -> Tensor:
        with ieee_fp32(inputs.x.device):
            return _in_chunks(self._workload, inputs)

    def _evaluate_autocast(self, precision: str) -> Evaluate:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]

        @torch.inference_mode()
        def evaluate(inputs: Inputs) -> Tensor:
            with torch.autocast(inputs.x.device.type, dtype):
                return _in_chunks(self._workload, inputs).float()

        return evaluate


def _in_chunks(workload: Workload, inputs: Inputs) -> Tensor:
    parts = zip(*(value.split(REFERENCE_CHUNK) for value in (inputs.x, inputs.t, inputs.h)), strict=True)
    return torch.cat([workload.network(*part) for part in parts])


def check(candidate: Candidate, gate: Gate, workload: Workload) -> None:
    """Build a candidate, warm it up and compare it; afterwards it is ready to be timed, or says why not.

    On a GPU `memory_bytes` is the most that it needed beside what was there before, its own weights included. A
    candidate is foreign code: whatever it raises, also only for the second batch, is what its row says.
    """
    try:
        limit = gate.limit(candidate)
    except RuntimeError as error:
        candidate.why_not = f"nothing to compare it with: {_one_line(error)}"
        return
    try:
        evaluate = _made_ready(candidate, workload)
        distance = gate.error(evaluate)
    except Exception as error:
        candidate.why_not, candidate.red = f"cannot be built or run: {_one_line(error)}", candidate.ours
        return
    candidate.numbers |= {"error": distance, "error_limit": limit}
    if distance > limit:
        candidate.why_not, candidate.red = f"wrong result: relative error {distance:.2e}, allowed {limit:.2e}", True
    else:
        candidate.evaluate = evaluate


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _made_ready(candidate: Candidate, workload: Workload) -> Evaluate:
    device = workload.device
    before_bytes = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before_bytes = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    evaluate = candidate.build()
    evaluate(workload.timed)
    benchmarking.wait(device)
    candidate.numbers["ready_s"] = time.perf_counter() - start
    if device.type == "cuda":
        candidate.numbers["memory_bytes"] = torch.cuda.max_memory_allocated(device) - before_bytes
    return evaluate


def measure(
    candidates: Sequence[Candidate],
    workload: Workload,
    *,
    rounds: int,
    warmup: int = 2,
    deadline: float | None = None,
    after_round: Callable[[dict[str, list[float]]], None] | None = None,
) -> dict[str, list[float]]:
    """Times of all candidates that passed their check, in turn; key -> milliseconds.

    One that raises while it is timed gets no times, and says so; the others go on.
    """
    ready = {each.key: each for each in candidates if each.evaluate is not None}

    def sound(times: dict[str, list[float]]) -> dict[str, list[float]]:
        return {key: each for key, each in times.items() if ready[key].evaluate is not None}

    times = benchmarking.in_turn(
        {key: partial(_run_once, candidate, workload.timed) for key, candidate in ready.items()},
        workload.device,
        rounds=rounds,
        warmup=warmup,
        settle_s=0.02 if workload.device.type == "cpu" else 0.0,
        deadline=deadline,
        after_round=None if after_round is None else lambda times: after_round(sound(times)),
    )
    return sound(times)


def _run_once(candidate: Candidate, inputs: Inputs) -> None:
    if candidate.evaluate is None:
        return
    try:
        candidate.evaluate(inputs)
    except Exception as error:
        candidate.evaluate = None
        candidate.why_not, candidate.red = f"fails when it is timed: {_one_line(error)}", candidate.ours


def ceilings(device: torch.device, size: int = 4096, rounds: int = 5) -> list[dict[str, Any]]:
    """What the machine can do at most: matrix products [size,size] per precision, and copying; one row each."""
    with ieee_fp32(device):
        return _ceilings(device, size, rounds)


def _ceilings(device: torch.device, size: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    precisions = {"fp32": torch.float32}
    if not without_bf16(device):  # without instructions for it one product takes minutes
        precisions["bf16"] = torch.bfloat16
    if device.type == "cuda":
        precisions["fp16"] = torch.float16
    with torch.inference_mode():
        for precision, dtype in precisions.items():
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            run = {"gemm": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}
            times_ms = benchmarking.in_turn(run, device, rounds=rounds, warmup=1)["gemm"]
            row = benchmarking.row(times_ms, name=f"GEMM {size}", precision=precision)
            rows.append(row | {"gflop_per_s": 2 * size**3 / row["p50_ms"] * 1e-6})
        # Far more than any cache holds, at the size that is meant for measuring.
        elements = (2**28 if device.type == "cuda" else 2**26) * size**2 // 4096**2
        source = torch.ones(elements, device=device)
        target = torch.empty_like(source)
        times_ms = benchmarking.in_turn({"copy": lambda: target.copy_(source)}, device, rounds=rounds, warmup=1)["copy"]
        row = benchmarking.row(times_ms, name="copy", precision="")
        rows.append(row | {"bytes_per_s": 2 * 4 * elements / (row["p50_ms"] * 1e-3)})
    return rows
