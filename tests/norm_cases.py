"""Inputs of film_group_norm that its implementations are tested with, and how exact a result has to be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcdm_fast.ops import reference, schema

DTYPES = schema.FLOAT_DTYPES
TABLE_ROWS = 5

Inputs = tuple[
    Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None, int, float, bool, int, bool
]  # film_group_norm's arguments in the schema's order


class NormCase(NamedTuple):
    """One call. `size` is that of the image that is normalized, after merging phases."""

    channels: int
    skip: int = 0
    groups: int = 32
    size: tuple[int, int] = (6, 10)
    batch: int = 2
    film: str = "none"  # or "scale" (and shift), or "add"
    silu: bool = True
    resample: int = 0
    phases: bool = False
    mean: float = 3.0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        default = NormCase(0)
        changed = [f"{name}={value}" for name, value in self._asdict().items() if value != getattr(default, name)]
        return ",".join(changed).replace(" ", "")


def layouts() -> list[NormCase]:
    """Cases that reach every way of cutting: fused and not, vectors and scalars, wide slabs, every option."""
    large = (50, 66)
    cases = [NormCase(32 * k) for k in (1, 2, 3, 4, 6, 8, 12, 13)]
    cases += [NormCase(32 * k, size=large, batch=1) for k in (1, 2, 3, 6, 8)]
    cases += [
        NormCase(20, skip=12, groups=4, film="scale"),  # a group straddles the boundary, channels are no whole vectors
        NormCase(24, skip=40, groups=4, size=large, film="scale", batch=1),  # the same with vectors
        NormCase(40, skip=24, groups=32, film="add", resample=1),
        NormCase(9, groups=3, film="add"),
        NormCase(5, groups=1, size=large, film="add", batch=1),
        NormCase(7, groups=7, size=(1, 1)),
        NormCase(1, groups=1, size=(1, 3), batch=1),
        NormCase(1100, groups=1, size=(2, 3), film="scale"),  # a slab wider than a block
        NormCase(602, groups=2, size=(2, 2), resample=-1, film="scale"),
        NormCase(2200, groups=1, size=(2, 32), film="add", resample=1, batch=1),
        NormCase(4400, groups=2, size=(4, 6), batch=1),  # wide columns of whole vectors
        NormCase(64, groups=64),
        NormCase(136, groups=136, size=large, batch=1, film="scale"),
        NormCase(64, size=(8, 12), resample=1, film="scale", silu=False),
        NormCase(64, size=(8, 12), resample=-1, film="scale"),
        NormCase(48, groups=16, size=(64, 66), resample=1, film="add", batch=1),
        NormCase(48, groups=16, size=(64, 66), resample=-1, film="add", batch=1),
        NormCase(10, groups=5, size=(64, 126), resample=-1, batch=1),
        NormCase(64, size=(8, 12), phases=True, film="scale"),
        NormCase(9, groups=3, size=(8, 2), phases=True, film="add"),
        NormCase(64, size=(64, 50), phases=True, film="scale", batch=1),
        NormCase(64, size=(16, 16), mean=200.0),
        NormCase(32, size=large, mean=200.0, batch=1),
    ]
    return cases


def make_inputs(case: NormCase, device: str = "cpu") -> Inputs:
    """Random inputs; drawn on the CPU, so that every device gets the same."""
    height, width = case.size
    total = case.channels + case.skip

    def activations(channels: int, rows: int, columns: int) -> Tensor:
        spread = torch.rand(channels, 1, 1) + 0.5
        drawn = (torch.randn(case.batch, channels, rows, columns) * spread + case.mean).to(case.dtype)
        return drawn.to(device).contiguous(memory_format=torch.channels_last)

    if case.phases:
        x = activations(4 * case.channels, height // 2 + 1, width // 2 + 1)
    else:
        x = activations(case.channels, height, width)
    skip = activations(case.skip, height, width) if case.skip else None
    weight, bias = (torch.randn(total).to(device) * 0.5 + shift for shift in (1.0, 0.0))
    film = rows = None
    if case.film != "none":
        columns = 2 * total if case.film == "scale" else total
        film = torch.randn(TABLE_ROWS, columns + 3).to(device)[:, 1 : columns + 1]  # rows apart, off alignment
        rows = torch.randint(0, TABLE_ROWS, (case.batch,)).to(device)
    return x, skip, weight, bias, film, rows, case.groups, 1e-5, case.silu, case.resample, case.phases


def doubled(inputs: Inputs) -> Inputs:
    """The same inputs in float64, for the truth."""
    x, skip, weight, bias, film, rows, *rest = inputs
    wide = [None if tensor is None else tensor.double() for tensor in (x, skip, weight, bias, film)]
    return (*wide, rows, *rest)  # type: ignore[return-value]


def error_bound(inputs: Inputs) -> tuple[Tensor, float]:
    """The truth in float64, and the largest error allowed: twice that of plain PyTorch, at least half a step.

    Plain PyTorch is the reference, which rounds once: its error at 16 bits is that of the rounding.
    """
    truth = reference.film_group_norm(*doubled(inputs)).double()
    plain = (reference.film_group_norm(*inputs).double() - truth).abs().max().item()
    scale = truth.abs().max().item()
    return truth, 2 * plain + scale * torch.finfo(torch.float32).eps
