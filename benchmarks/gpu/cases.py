"""The cases of `make bench-gpu PART=ops`: every operator at the release's shapes, with all its implementations.

Knows nothing about how they are measured (`ops.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.settings import Settings
from benchmarks.rows import Row
from rcdm_fast import ops
from rcdm_fast.models.condition_map import resized, weights
from rcdm_fast.ops import candidates, reference, reference_moments, schema_moments

HEADS = 4
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PLAIN = "plain PyTorch"


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
                if schema_moments.chunks_of(side, side):
                    shape = (batch, channels, side, side)
                    yield _planned("film_group_norm_given", shape, precision, _given_case)
                    if precision != "fp32":
                        yield _planned("convolution_moments", shape, precision, _projecting_case)
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
    for label, write in candidates.film_group_norm_candidates(x.device).items():
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
        names.get(name, name): candidate(each) for name, each in candidates.attention_candidates(qkv.device).items()
    }
    found.setdefault(PLAIN, candidate(reference.attention))
    moved = qkv.numel() // 3 * 4 * qkv.element_size()
    wanted = lambda: reference.attention(qkv.double(), HEADS, False)  # noqa: E731
    return Case("attention", str(list(qkv.shape)), precision, found, wanted, moved)


def _convolution_case(x: Tensor, precision: str, random: Random) -> Case:
    """The convolution that ends a block of as many channels, with its residual."""
    channels, few = x.shape[1], len(x) * x.shape[2] * x.shape[3] <= candidates.FEW
    x = x.contiguous(memory_format=torch.channels_last)
    weight = random(channels, channels, 3, 3, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    bias, add = random(channels), x.roll(1, 2).contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], Tensor]] = {
        PLAIN: lambda: F.conv2d(x, weight, bias.to(x.dtype), padding=1) + add,
        **{
            name: partial(each, x, weight, bias, add, 0)
            for name, each in candidates.convolution_residual_candidates(x.device, x.dtype, few).items()
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


def _projecting_case(x: Tensor, precision: str, random: Random) -> Case:
    """The convolution that ends a block which projects what it reads, as many channels, and takes moments."""
    channels = x.shape[1]
    x = x.contiguous(memory_format=torch.channels_last)
    left = x.roll(1, 2).contiguous(memory_format=torch.channels_last)
    weight = random(channels, channels, 3, 3, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    side_weight, bias = random(channels, channels, 1, 1, dtype=x.dtype), random(channels)
    arguments = x, weight, bias, None, 0, left, side_weight, None, None

    def candidate(run: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        return lambda: run(*arguments)[0]

    def plain() -> Tensor:
        return F.conv2d(x, weight, bias.to(x.dtype), padding=1) + F.conv2d(left, side_weight)

    ours = candidates.convolution_moments_candidates(x.device, x.dtype)
    found = {PLAIN: plain, **{name: candidate(run) for name, run in ours.items()}}
    wide = x.double(), weight.double(), bias, None, 0, 1, left.double(), side_weight.double()
    moved = (3 * x.numel() + weight.numel() + side_weight.numel()) * x.element_size()
    wanted = lambda: reference.convolution_residual(*wide)  # noqa: E731
    return Case("convolution_moments", str(list(x.shape)), precision, found, wanted, moved)


def _given_case(x: Tensor, precision: str, random: Random) -> Case:
    """A norm of which somebody took the moments."""
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, film = random(x.shape[1]) + 1, random(x.shape[1]), random(len(x), 2 * x.shape[1])
    rows, out = torch.arange(len(x), device=x.device), torch.empty_like(x)
    arguments = (x, None, weight, bias, film, rows, 32, 1e-5, True, 0, False)
    moments = reference_moments.moments(x)

    def candidate(write: Callable[..., None]) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            write(out, moments, None, None, *arguments)
            return out

        return compute

    ours = candidates.film_group_norm_given_candidates(x.device)
    found: dict[str, Callable[[], Tensor]] = {PLAIN: lambda: _plain_norm(x, None, weight, bias, film, 0)}
    found |= {name: candidate(write) for name, write in ours.items() if name != "reference" or len(ours) == 1}
    wide = [each.double() if isinstance(each, Tensor) and each.is_floating_point() else each for each in arguments]
    wanted = lambda: reference.film_group_norm(*wide)  # noqa: E731
    return Case("film_group_norm_given", str(list(x.shape)), precision, found, wanted, 2 * x.numel() * x.element_size())


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

    ours = {name: run for name, run in candidates.map_film_candidates(x.device).items() if name != "reference"}
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
