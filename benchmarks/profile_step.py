"""Where the time of one native network evaluation goes on the CPU, beside two floors: operations and bytes.

    python benchmarks/profile_step.py --config s --rounds 10

Every call of a convolution, norm or attention is timed in place, with the operations it does (phase convolutions, and
those after Winograd, count the products that they take) and the bytes it must move: inputs, weights and result once.
The floors are those sums over the ceilings measured in the same run: the best rate of any convolution here, and a copy.
Timing costs about 1 %.

Knows the backend's protocol, nothing about the network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import timing, workload
from rcdm_fast import ops, storage
from rcdm_fast.engines.backends import OneDnnBackend
from rcdm_fast.engines.program import Convolution, Program
from rcdm_fast.ops import winograd
from rcdm_fast.ops.schema import NormInputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Recorder:
    """Milliseconds, operations and bytes per kind of call."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = defaultdict(float)
        self.flop: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)

    def run(self, kind: str, call: Callable[[], Tensor], flop: Callable[[Tensor], int], *read: Tensor | None) -> Tensor:
        """Time a call; what it reads and returns counts as moved once."""
        start = time.perf_counter()
        out = call()
        self.ms[kind] += (time.perf_counter() - start) * 1e3
        self.flop[kind] += flop(out)
        self.bytes[kind] += sum(each.numel() * each.element_size() for each in (out, *read) if each is not None)
        self.calls[kind] += 1
        return out


class RecordingBackend(OneDnnBackend):
    """The native engine's backend, noting every call in `recorder`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.recorder = Recorder()

    def convolution(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Convolution:
        made = super().convolution(weight, bias, stride, padding)
        return self._noted(made, weight, winograd.serves(weight, stride, padding, self._dtype, weight.device))

    def upsampling(self, weight: Tensor, bias: Tensor | None) -> Convolution | None:
        made = super().upsampling(weight, bias)
        return None if made is None else self._noted(made, weight, True)

    def _noted(self, inner: Convolution, weight: Tensor, ours: bool) -> Convolution:
        """`ours`: after Winograd."""
        kind = f"convolution {weight.shape[2]}x{weight.shape[3]}"
        per_pixel = 2 * weight.shape[1] * weight.shape[2] * weight.shape[3] // (4 if ours else 1)
        stored = weight.detach().to(self._dtype)

        def call(x: Tensor, add: Tensor | None = None, overwrite: bool = False) -> Tensor:
            run = lambda: inner(x, add, overwrite)  # noqa: E731
            return self.recorder.run(kind, run, lambda out: per_pixel * out.numel(), x, stored, add)

        return call

    def norm(self, inputs: NormInputs) -> Tensor:
        run = lambda: super(RecordingBackend, self).norm(inputs)  # noqa: E731
        return self.recorder.run("norm, FiLM, SiLU", run, lambda _: 0, inputs.x, inputs.skip)

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        run = lambda: super(RecordingBackend, self).attention(qkv, heads, new_order)  # noqa: E731
        length = qkv.shape[1]
        return self.recorder.run("attention", run, lambda out: 4 * length * out.numel(), qkv)


def profile(name: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    """One row per kind of call, then the whole evaluation; medians over the rounds."""
    work = workload.make(workload.read_config(name))
    dtype = DTYPES[precision]
    backend = RecordingBackend(dtype)
    ops.load()
    program = Program(work.network, backend, dtype, work.device)
    film, rows = work.plan(work.timed).batch(torch.arange(work.batch)).film_rows(work.timed.k)
    recorders, whole_ms = [], []
    with torch.inference_mode():
        for index in range(rounds + 2):
            backend.recorder = Recorder()
            start = time.perf_counter()
            program.denoise(work.timed.x, film, rows)
            if index >= 2:
                whole_ms.append((time.perf_counter() - start) * 1e3)
                recorders.append(backend.recorder)
    last = recorders[-1]
    found: list[dict[str, Any]] = [
        {
            "kind": kind,
            "calls": last.calls[kind],
            "ms": statistics.median(recorder.ms[kind] for recorder in recorders),
            "gflop": last.flop[kind] * 1e-9,
            "mbyte": last.bytes[kind] * 1e-6,
        }
        for kind in last.ms
    ]
    total = statistics.median(whole_ms)
    rest = total - sum(statistics.median(recorder.ms[kind] for recorder in recorders) for kind in last.ms)
    found.append({"kind": "everything else", "calls": 0, "ms": rest})
    return [*found, {"kind": "whole evaluation", "calls": 0, "ms": total, "flop_as_written": work.flops * 1e-9}]


def peak_gflop_per_s(precision: str) -> float:
    """The best rate that a convolution reaches here: 3x3, 512 channels, 8x8 pixels, prepacked."""
    dtype, size = DTYPES[precision], 8
    backend = OneDnnBackend(dtype)
    conv = backend.convolution(torch.randn(512, 512, 3, 3), torch.zeros(512), 1, 0)
    x = torch.randn(16, 512, size + 2, size + 2).to(dtype).to(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(12):
            start = time.perf_counter()
            out = conv(x)
            best = min(best, time.perf_counter() - start)
    return 2 * 9 * 512 * out.numel() / best * 1e-9


def main() -> int:
    """Print the table; write it with the ceilings as JSON if asked to."""
    parser = argparse.ArgumentParser(description="Where the time of a native network evaluation goes.")
    parser.add_argument("--config", default="s")
    parser.add_argument("--precision", default="bf16", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = profile(options.config, options.precision, options.rounds)
    copy = next(row["bytes_per_s"] for row in timing.ceilings(torch.device("cpu")) if "bytes_per_s" in row) * 1e-9
    peak = peak_gflop_per_s(options.precision)
    print(f"{options.config}, {options.precision}, {torch.get_num_threads()} threads, {ops.instruction_set()}")
    print(f"ceilings: {peak:.0f} GFLOP/s (best convolution), {copy:.1f} GB/s (copy)")
    print(f"{'':<20}{'calls':>6}{'ms':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'MB':>8}{'floor: operations':>19}{'bytes':>8}")
    for row in found:
        gflop, mbyte = row.get("gflop", 0.0), row.get("mbyte", 0.0)
        row |= {"operations_floor_ms": gflop / peak * 1e3, "bytes_floor_ms": mbyte / copy}
        if row["kind"] == "whole evaluation":
            row["operations_floor_ms"] = sum(each["operations_floor_ms"] for each in found[:-1])
            row["bytes_floor_ms"] = sum(each["bytes_floor_ms"] for each in found[:-1])
            gflop = sum(each.get("gflop", 0.0) for each in found[:-1])
            mbyte = sum(each.get("mbyte", 0.0) for each in found[:-1])
        print(
            f"{row['kind']:<20}{row['calls']:>6}{row['ms']:>9.2f}{gflop:>8.2f}{gflop / row['ms'] * 1e3:>9.0f}"
            f"{mbyte:>8.0f}{row['operations_floor_ms']:>19.2f}{row['bytes_floor_ms']:>8.2f}"
        )
    if options.json:
        ceilings = {"gflop_per_s": peak, "copy_gbyte_per_s": copy}
        storage.write_json(options.json, {"config": options.config, "ceilings": ceilings, "rows": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
