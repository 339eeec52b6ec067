"""`make bench-gpu PART=ops`: every implementation of every operator beside plain PyTorch, at the release's shapes.

    python -m benchmarks.gpu.ops --machine FILE --seconds 60 --json FILE --names 0 1 2    these cases, in this process

An implementation is compared with the reference in float64 first; one that is further from it than twice what plain
PyTorch gives at the same dtype is not timed. Before anything is measured several processes compile what Triton needs,
each a fraction of the cases.

Knows nothing about networks; the shapes are those of the published 128-px size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import machine, process
from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.settings import Settings, chosen
from benchmarks.rows import Row, RowFile
from rcdm_fast import benchmarking, ops
from rcdm_fast.models.condition_map import resized, weights
from rcdm_fast.ops import reference, selection
from rcdm_fast.precision import ieee_fp32

HEADS = 4
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COMPILE_FRACTION = 0.4  # of the time that is left
PLAIN = "plain PyTorch"
EXACT_LIMIT = 1e-6  # relative L2, where plain PyTorch itself makes no error worth doubling


@dataclass(frozen=True)
class Case:
    """An operator at a shape.

    Attributes:
        operator, shape, precision: what it is called in rows.
        candidates: ways to compute it, plain PyTorch among them; each gives the result.
        wanted: the result in float64.
        bytes: read and written at least.
    """

    operator: str
    shape: str
    precision: str
    candidates: dict[str, Callable[[], Tensor]]
    wanted: Callable[[], Tensor]
    bytes: int

    @property
    def labels(self) -> Row:
        """What its rows are known by."""
        return {"operator": self.operator, "shape": self.shape, "precision": self.precision}


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


@dataclass(frozen=True)
class Plan:
    """A case that is not made yet: what it is called, and how it is made on a device."""

    labels: Row
    make: Callable[[torch.device], Case]


def plan(settings: Settings) -> Iterator[Plan]:
    """All cases, without a tensor; in the same order in every process."""
    for batch in settings.op_batches:
        for precision in DTYPES:
            for channels, side in settings.norm_shapes:
                for name, mode in (("", 0), (" skip", 0), (" up", 1), (" down", -1)):
                    shape = (batch, channels, side, side)
                    yield _planned(f"film_group_norm{name}", shape, precision, partial(_norm_case, name, mode))
                if precision != "fp32":
                    shape = (batch, channels, side, side)
                    yield _planned("convolution_residual", shape, precision, _convolution_case)
                yield _planned("map_film", (batch, channels, side, side), precision, _map_case)
            for width, side in settings.attention_shapes:
                yield _planned("attention", (batch, side * side, 3 * width), precision, _attention_case)
        image = (batch, *settings.image)
        yield _planned("solver_step", image, "fp32", _solver_case)


Random = Callable[..., Tensor]


def _planned(
    operator: str, shape: tuple[int, ...], precision: str, make: Callable[[Tensor, str, Random], Case]
) -> Plan:
    def made(device: torch.device) -> Case:
        generator = torch.Generator().manual_seed(0)

        def random(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return (torch.randn(size, generator=generator) * 0.6 + 0.1).to(device, dtype)

        return make(random(*shape, dtype=DTYPES[precision]), precision, random)

    return Plan({"operator": operator, "shape": str(list(shape)), "precision": precision}, made)


def _norm_case(name: str, mode: int, x: Tensor, precision: str, random: Random) -> Case:
    x = x.contiguous(memory_format=torch.channels_last)
    skip = x.roll(1, 2).contiguous(memory_format=torch.channels_last) if name == " skip" else None
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    weight, bias, film = random(channels) + 1, random(channels), random(len(x), 2 * channels)
    rows = torch.arange(len(x), device=x.device)
    arguments = (x, skip, weight, bias, film, rows, 32, 1e-5, True, mode, False)
    side = x.shape[2] * 2 if mode == 1 else x.shape[2] // 2 if mode == -1 else x.shape[2]
    out = torch.empty((len(x), channels, side, side), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def candidate(write: Callable[..., None]) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            write(out, *arguments)
            return out

        return compute

    found: dict[str, Callable[[], Tensor]] = {PLAIN: lambda: _plain_norm(x, skip, weight, bias, film, mode)}
    for label, write in selection.film_group_norm_candidates(x.device).items():
        if label != "reference":
            found[label] = candidate(write)

    def wanted() -> Tensor:
        wide = [part.double() if isinstance(part, Tensor) and part.is_floating_point() else part for part in arguments]
        return reference.film_group_norm(*wide)

    moved = (x.numel() + (0 if skip is None else skip.numel()) + out.numel()) * x.element_size()
    return Case(f"film_group_norm{name}", str(list(x.shape)), precision, found, wanted, moved)


def _plain_norm(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor, film: Tensor, mode: int) -> Tensor:
    """What the network does when plain PyTorch runs it at this dtype."""
    h = x if skip is None else torch.cat([x, skip], dim=1)
    h = F.group_norm(h, 32, weight.to(h.dtype), bias.to(h.dtype), 1e-5)
    scale, shift = film.to(h.dtype)[:, :, None, None].chunk(2, dim=1)
    h = F.silu(h * (1 + scale) + shift)
    if mode == 1:
        return F.interpolate(h, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(h, 2) if mode == -1 else h


def _attention_case(qkv: Tensor, precision: str, random: Random) -> Case:
    def candidate(attend: Any) -> Callable[[], Tensor]:
        return lambda: attend(qkv, HEADS, False)

    # Its fused attention is what plain PyTorch runs here.
    names = {"sdpa": PLAIN}
    found = {
        names.get(name, name): candidate(each) for name, each in selection.attention_candidates(qkv.device).items()
    }
    found.setdefault(PLAIN, candidate(reference.attention))
    moved = qkv.numel() // 3 * 4 * qkv.element_size()
    wanted = lambda: reference.attention(qkv.double(), HEADS, False)  # noqa: E731
    return Case("attention", str(list(qkv.shape)), precision, found, wanted, moved)


def _convolution_case(x: Tensor, precision: str, random: Random) -> Case:
    """The convolution that ends a block of as many channels, with its residual."""
    channels, few = x.shape[1], len(x) * x.shape[2] * x.shape[3] <= selection.FEW
    x = x.contiguous(memory_format=torch.channels_last)
    weight = random(channels, channels, 3, 3, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    bias, add = random(channels), x.roll(1, 2).contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], Tensor]] = {
        PLAIN: lambda: F.conv2d(x, weight, bias.to(x.dtype), padding=1) + add,
        **{
            name: partial(each, x, weight, bias, add, 0)
            for name, each in selection.convolution_residual_candidates(x.device, x.dtype, few).items()
        },
    }
    wide = x.double(), weight.double(), bias, add.double(), 0
    moved = (3 * x.numel() + weight.numel()) * x.element_size()
    return Case(
        "convolution_residual",
        str(list(x.shape)),
        precision,
        found,
        lambda: reference.convolution_residual(*wide),
        moved,
    )


def _map_case(x: Tensor, precision: str, random: Random) -> Case:
    """Films of a map of 8 x 8, one for each image."""
    x = x.contiguous(memory_format=torch.channels_last)
    film, rows = random(len(x), 2 * x.shape[1], 8, 8), torch.arange(len(x), device=x.device)
    down, across = (weights(8, side, torch.float32, x.device) for side in x.shape[2:])

    def candidate(run: Callable[..., None]) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            out = x.clone(memory_format=torch.preserve_format)
            run(out, film, rows, down, across)
            return out

        return compute

    def plain() -> Tensor:
        scale, shift = resized(film, x.shape[-1]).to(x.dtype).chunk(2, dim=1)
        return F.silu(x * (1 + scale) + shift)

    ours = {name: run for name, run in selection.map_film_candidates(x.device).items() if name != "reference"}
    found = {PLAIN: plain, **{name: candidate(run) for name, run in ours.items()}}
    return Case(
        "map_film", str(list(x.shape)), precision, found, lambda: _whole_map(x, film, rows, down, across),
        2 * x.numel() * x.element_size(),
    )  # fmt: skip


def _whole_map(x: Tensor, *films: Tensor) -> Tensor:
    out = x.double().contiguous(memory_format=torch.channels_last)
    reference.map_film(out, *films)
    return out


def _solver_case(x: Tensor, precision: str, random: Random) -> Case:
    output = random(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    numbers = (1.2, -0.7, 1.0, 0.8, 0.3)

    def library() -> Tensor:
        a, b, bound, c, d = numbers
        return ops.solver_step(x, output, x_to_x0=a, output_to_x0=b, bound=bound, x0_to_next=c, x_to_next=d)[0]

    def plain(x: Tensor, output: Tensor) -> Tensor:
        return reference.solver_step(x, output, [], [], *numbers)[0]

    found: dict[str, Callable[[], Tensor]] = {PLAIN: lambda: plain(x, output)}
    found["library"] = library
    return Case(
        "solver_step", str(list(x.shape)), "fp32", found, lambda: plain(x.double(), output.double()), x.numel() * 16
    )


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
