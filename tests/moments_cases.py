"""What implementations of moments, of what adds residuals, and of norms by given moments are tested with."""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.ops import reference_moments
from rcdm_fast.ops.schema_moments import CHUNK
from tests import op_checks
from tests.norm_cases import Inputs, NormCase

EPS = torch.finfo(torch.float32).eps

# Whole blocks of vectors, of few and of very few; two unequal slabs; single numbers.
WIDTHS = (64, 24, 8, 72, 13, 1)

# A group reaches over the border between x and skip, with vectors and without; wide and narrow groups; every option.
GIVEN = [
    NormCase(64, size=(48, 48)),
    NormCase(24, skip=40, groups=4, size=(48, 48), film="scale"),
    NormCase(20, skip=12, groups=4, size=(32, 36), film="scale"),
    NormCase(40, skip=24, groups=32, size=(64, 34), film="add", resample=1),
    NormCase(64, skip=64, groups=32, size=(36, 32), film="scale", resample=-1, silu=False),
    NormCase(9, groups=3, size=(32, 36), film="add", batch=3),
    NormCase(300, groups=1, size=(36, 32), film="scale", batch=1),
    NormCase(136, groups=136, size=(32, 36), batch=1),
    NormCase(64, size=(64, 34), resample=1, film="scale", batch=1),
    NormCase(10, groups=5, size=(64, 126), resample=-1, batch=1),
    NormCase(32, skip=32, size=(48, 48), mean=200.0, film="add"),
]


def image(channels: int, size: tuple[int, int], dtype: torch.dtype, mean: float = 3.0, batch: int = 2) -> Tensor:
    """[batch,channels,*size], channels-last; every channel has a spread of its own."""
    drawn = torch.randn(batch, channels, *size) * (torch.rand(channels, 1, 1) + 0.5) + mean
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def before_resampling(size: tuple[int, int], resample: int) -> tuple[int, int]:
    """Of what is added to an image of that size."""
    height, width = size
    return {-1: (2 * height, 2 * width), 0: size, 1: (height // 2, width // 2)}[resample]


def within(got: Tensor, plain: Tensor, truth: Tensor) -> None:
    """At most twice the error of `plain`, and a step of float32, as `norm_cases.error_bound`."""
    error, allowed, scale = (each.double().abs().max().item() for each in (got - truth, plain - truth, truth))
    assert error <= 2 * allowed + scale * EPS, f"error {error:.3g}, plain {allowed:.3g}, scale {scale:.3g}"


def check_moments(got: Tensor, of: Tensor) -> None:
    """Against float64; what counts is how far numbers lie apart, not how large they are."""
    chunks = of.double().permute(0, 2, 3, 1).reshape(len(of), -1, CHUNK, of.shape[1])
    mean, squares, pivot = got.unbind(2)
    plain_mean, plain_squares, plain_pivot = reference_moments.moments(of).unbind(2)
    assert (pivot.double()[:, :, None] == chunks).any(2).all()  # it is one of the pixels
    op_checks.within_bar(mean, plain_mean + (plain_pivot - pivot), chunks.mean(2) - pivot.double())
    op_checks.within_bar(squares, plain_squares, chunks.var(2, correction=0) * CHUNK)


def taken(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """The moments of x and skip by the reference."""
    x, skip = inputs[:2]
    return reference_moments.moments(x), None if skip is None else reference_moments.moments(skip)
