"""`make bench-gpu PART=ops`: every implementation of every operator beside plain PyTorch, at the release's shapes.

An implementation is compared with the reference in float64 first; one that is further from it than twice what plain
PyTorch gives at the same dtype is not timed.

Knows nothing about networks; the shapes are those of the published 128-px size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.machine import Ceilings, Deadline
from benchmarks.rows import Row, RowFile
from rcdm_fast import benchmarking, ops
from rcdm_fast.ops import reference, selection

BATCHES = (1, 8, 64)
NORM_SHAPES = ((256, 128), (256, 64), (512, 32), (768, 16), (1024, 8))  # channels, side
ATTENTION_SHAPES = ((512, 32), (768, 16), (1024, 8))
HEADS = 4
PICTURE = (3, 128, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
REPEATS = 20  # calls per timed run: one alone is too short for the clock
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


def run(
    device: torch.device, file: RowFile, shared: Row, deadline: Deadline, batches: tuple[int, ...] = BATCHES
) -> int:
    """All cases; the number of wrong implementations."""
    ceilings = Ceilings.measure(device)
    file.put(*({**row, **shared, "operator": "ceilings"} for row in ceilings.rows))
    red = 0
    with torch.inference_mode():
        for case in cases(device, batches):
            if deadline.left_s < 5:
                file.put({**_labels(case), **shared, "name": "all", "why_not": "no time left"})
                continue
            red += measure(case, device, file, shared, ceilings)
    return red


def measure(case: Case, device: torch.device, file: RowFile, shared: Row, ceilings: Ceilings) -> int:
    """Check and time a case; the number of wrong implementations."""
    want = case.wanted()
    allowed = max(2 * benchmarking.relative_l2(case.candidates[PLAIN](), want), EXACT_LIMIT)
    runs: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    red = 0
    for name, compute in case.candidates.items():
        errors[name] = error = benchmarking.relative_l2(compute(), want)
        if error > allowed:
            red += 1
            why_not = f"wrong result: relative error {error:.2e}, allowed {allowed:.2e}"
            file.put({**_labels(case), **shared, "name": name, "error": error, "why_not": why_not, "red": True})
        else:
            runs[name] = partial(_repeatedly, compute)
    times = benchmarking.in_turn(runs, device, rounds=20, warmup=1)
    for name, each in times.items():
        row = {**_labels(case), **shared, "name": name, "error": errors[name], "bytes": case.bytes}
        row = benchmarking.row([time_ms / REPEATS for time_ms in each], **row)
        row["of_copy_percent"] = 100 * case.bytes / (row["p50_ms"] * 1e-3) / ceilings.bytes_per_s
        if PLAIN in times:
            row["of_plain"] = benchmarking.pair_ratio(times[PLAIN], each)
        file.put(row)
    return red


def _repeatedly(compute: Callable[[], Tensor]) -> None:
    for _ in range(REPEATS):
        compute()


def _labels(case: Case) -> Row:
    return {"operator": case.operator, "shape": case.shape, "precision": case.precision}


def cases(device: torch.device, batches: tuple[int, ...]) -> Iterator[Case]:
    """One after the other, so that the memory of one is free before the next."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.6 + 0.1).to(device, dtype)

    for batch in batches:
        for precision, dtype in DTYPES.items():
            for channels, side in NORM_SHAPES:
                x = random(batch, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
                skip = x.roll(1, 2).contiguous(memory_format=torch.channels_last)
                for name, other, mode in (("", None, 0), (" skip", skip, 0), (" up", None, 1), (" down", None, -1)):
                    yield _norm_case(name, x, other, mode, precision, random)
            for channels, side in ATTENTION_SHAPES:
                yield _attention_case(random(batch, side * side, 3 * channels, dtype=dtype), precision)
        yield _picture_case(random(batch, *PICTURE))
        yield _solver_case(random(batch, *PICTURE), random(batch, 6, *PICTURE[1:]))


def _norm_case(
    name: str, x: Tensor, skip: Tensor | None, mode: int, precision: str, random: Callable[..., Tensor]
) -> Case:
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
        return reference.film_group_norm(*wide)  # type: ignore[arg-type]

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


def _attention_case(qkv: Tensor, precision: str) -> Case:
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


def _picture_case(x: Tensor) -> Case:
    found: dict[str, Callable[[], Tensor]] = {PLAIN: lambda: reference.pictures_to_uint8(x)}
    found["library"] = lambda: ops.pictures_to_uint8(x)
    return Case(
        "pictures_to_uint8", str(list(x.shape)), "fp32", found, lambda: reference.pictures_to_uint8(x), x.numel() * 5
    )


def _solver_case(x: Tensor, output: Tensor) -> Case:
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
