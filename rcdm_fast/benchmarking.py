"""Measuring: runs timed in turn, what they were timed on, and how fast a model draws images end to end.

Things that are compared are run one after the other, round after round, so that whatever else the machine does meets
all of them alike; a claim about two of them is the median over the rounds of their ratio in one round.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rcdm_fast import info

Run = Callable[[], object]

FP32_LIMIT = 1e-4  # relative L2 of an fp32 network evaluation to plain PyTorch; different orders of summation give 1e-6


@dataclass(frozen=True)
class Times:
    """Percentiles of the wall-clock time of one run."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    runs: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Times:
        """Of at least one run; `ValueError` for none."""
        if not times_ms:
            raise ValueError("no run was timed")
        p20, p50, p80 = (float(np.percentile(times_ms, q)) for q in (20, 50, 80))
        return cls(p20, p50, p80, len(times_ms))


def pair_ratio(slower_ms: Sequence[float], faster_ms: Sequence[float]) -> float:
    """How many times as fast the second is: the median over the rounds of first / second in the same round.

    Raises:
        ValueError: the two were not measured in the same rounds, or in none.
    """
    if len(slower_ms) != len(faster_ms) or not slower_ms:
        raise ValueError(f"rounds do not pair: {len(slower_ms)} and {len(faster_ms)}")
    return statistics.median(a / b for a, b in zip(slower_ms, faster_ms, strict=True))


def relative_l2(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want| in float64; infinity where `got` is not finite or has another shape."""
    if got.shape != want.shape or not bool(got.isfinite().all()):
        return float("inf")
    expected = want.double()
    return float((got.to(want.device).double() - expected).norm() / expected.norm())


def psnr_db(got: torch.Tensor, want: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1,1], in decibels; inf if they are equal."""
    error = float((got.clamp(-1, 1).double() - want.clamp(-1, 1).double()).square().mean())
    return 10 * math.log10(4 / error) if error > 0 else math.inf


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_ms(run: Run, device: torch.device) -> float:
    """One run in milliseconds: between two events of the stream on a GPU, wall-clock time elsewhere."""
    wait(device)
    if device.type == "cuda":
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        wait(device)
        return float(before.elapsed_time(after))
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def in_turn(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    rounds: int,
    warmup: int = 0,
    settle_s: float = 0.0,
    deadline: float | None = None,
    after_round: Callable[[dict[str, list[float]]], None] | None = None,
) -> dict[str, list[float]]:
    """Time every run once in every round; name -> milliseconds, one number per round.

    Args:
        runs: what to time.
        device: where they run.
        rounds: how often, at least once.
        warmup: untimed runs of each before the first round.
        settle_s: pause before each timed run, in which idle threads of the one before go to sleep.
        deadline: `time.monotonic()` after which no further round begins.
        after_round: sees all times so far after every round.
    """
    names = list(runs)
    for name in names:
        for _ in range(warmup):
            runs[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(max(1, rounds)):
        if round_number and deadline is not None and time.monotonic() > deadline:
            break
        for name in _order(names, round_number):
            time.sleep(settle_s)
            times[name].append(time_ms(runs[name], device))
        if after_round is not None:
            after_round(times)
    return times


def _order(names: list[str], round_number: int) -> list[str]:
    """Another one begins in every round, and every second round runs backwards: no two always follow each other."""
    start = round_number % max(1, len(names))
    turned = names[start:] + names[:start]
    return turned[::-1] if round_number % 2 else turned


def facts(device: torch.device) -> dict[str, Any]:
    """What a row of numbers has to say about where they come from; plain data."""
    report = info.report()
    machine = report["machine"]
    is_cuda = device.type == "cuda"
    found = {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"{machine['cpu']}, {machine['cores']} cores",
        "cpu": machine["cpu"],
        "cpu_features": machine["cpu_features"],
        "instruction_set": report["instruction_set"],
        "system": machine["system"],
        "versions": {**report["versions"], **_runtime_versions(report)},
        "threads": torch.get_num_threads(),
        "allocator": os.environ.get("LD_PRELOAD", "default") + f", THP={os.environ.get('THP_MEM_ALLOC_ENABLE', '0')}",
    }
    if is_cuda:
        major, minor = torch.cuda.get_device_capability(device)
        found |= {"capability": f"{major}.{minor}", "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def _runtime_versions(report: dict[str, Any]) -> dict[str, str]:
    wanted = ("onnxruntime", "openvino", "triton")
    return {name: report["runtimes"][name]["version"] for name in wanted if report["runtimes"][name]["version"]}


def row(times_ms: Sequence[float], **numbers: Any) -> dict[str, Any]:
    """The numbers of a row with the percentiles of its times."""
    return {**numbers, **asdict(Times.of(times_ms))}
