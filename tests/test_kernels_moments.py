"""Moments taken by what writes an image, and norms that are given them: what Triton computes, against fp64.

In Triton's interpreter without a GPU, and on a GPU where there is one (`triton_cases.py`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import convolution as convolution_module
from rcdm_fast.kernels import film_group_norm as norm_module
from rcdm_fast.kernels import residual as residual_module
from rcdm_fast.ops import reference, reference_moments
from tests.triton_cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    Norm,
    both_lengths,
    compare,
    computes,
    outside,
    passes_in_the_interpreter,
    patched_once,  # noqa: F401  (a fixture)
    poisoned,  # noqa: F401  (a fixture)
)

SUMMED = DTYPES[:2] if INTERPRETED else DTYPES  # the interpreter multiplies matrices of bfloat16 as integers
HEIGHT, WIDTH = 36, 32  # nine chunks
SIDES = {-1: (2 * HEIGHT, 2 * WIDTH), 0: (HEIGHT, WIDTH), 1: (HEIGHT // 2, WIDTH // 2)}


@outside
@both_lengths
def test_in_the_interpreter(marked: str, short: bool) -> None:
    passes_in_the_interpreter(__file__, marked, short)


def image(channels: int, height: int, width: int, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    """Two images, channels-last."""
    made = torch.randn(2, channels, height, width) + mean
    return made.to(DEVICE, dtype, memory_format=torch.channels_last)


def same_moments(taken: Tensor, written: Tensor) -> None:
    """They are those of the numbers that were written, to float32's rounding, and the pivot is one of them."""
    mean, squares, pivot = taken.double().unbind(2)
    own_mean, own_squares, own_pivot = reference_moments.moments(written.double()).double().unbind(2)
    torch.testing.assert_close(pivot, own_pivot, rtol=1e-7, atol=0)
    torch.testing.assert_close(mean, own_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares, own_squares, rtol=1e-5, atol=1e-5)


@computes
@pytest.mark.parametrize(
    ("resample", "dtype"), [(0, DTYPES[0]), (1, DTYPES[1]), pytest.param(-1, DTYPES[2], marks=pytest.mark.long)]
)
def test_residuals_with_moments(resample: int, dtype: torch.dtype) -> None:
    for channels in (5, 96):
        out, add = image(channels, HEIGHT, WIDTH, dtype, 20.0), image(channels, *SIDES[resample], dtype)
        bias = torch.randn(channels).to(DEVICE)
        plain, before = out.clone(memory_format=torch.preserve_format), out.clone(memory_format=torch.preserve_format)
        residual_module.add_residual(plain, bias, add, resample)
        taken = residual_module.add_residual_moments(out, bias, add, resample)
        assert torch.equal(out, plain)
        same_moments(taken, out)
        same_moments(residual_module.moments(before), before)


@computes
@pytest.mark.parametrize("dtype", [SUMMED[1], pytest.param(SUMMED[0], marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize(
    ("inner", "outer", "resample"),
    [(3, 40, None), (8, 24, 0), *(pytest.param(16, *each, marks=pytest.mark.long) for each in ((72, 1), (8, -1)))],
)
def test_convolutions_with_moments(
    inner: int, outer: int, resample: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as without moments; the moments are those of what was written."""
    monkeypatch.setattr(convolution_module, "COLUMNS", 32)  # several tiles of channels
    x, weight = image(inner, HEIGHT, WIDTH, dtype), torch.randn(outer, inner, 3, 3) / inner
    weight = weight.to(DEVICE, dtype, memory_format=torch.channels_last)
    bias, add = torch.randn(outer).to(DEVICE) * 9, image(outer, *SIDES[resample or 0], dtype, 5.0)
    if resample is None:
        out, taken = convolution_module.convolution_moments(x, weight)
        nothing, none = torch.zeros(outer, device=DEVICE), torch.zeros_like(out)
        plain = convolution_module.convolution_residual(x, weight, nothing, none, 0, 1)
    else:
        out, taken = convolution_module.convolution_moments(x, weight, bias, add, resample)
        plain = convolution_module.convolution_residual(x, weight, bias, add, resample, 1)
    assert torch.equal(out, plain)
    same_moments(taken, out)


@computes
@pytest.mark.parametrize("dtype", [SUMMED[1], pytest.param(SUMMED[0], marks=pytest.mark.long)], ids=str)
@pytest.mark.parametrize("sides", [1, 2])
def test_products_of_other_images_are_part_of_the_sum(sides: int, dtype: torch.dtype) -> None:
    """No farther from fp64 than twice PyTorch's own."""
    x, weight = image(8, HEIGHT, WIDTH, dtype), torch.randn(24, 8, 3, 3).to(DEVICE, dtype)
    given: list[Any] = [None] * 4
    for side, channels in enumerate((40, 5)[:sides]):
        given[2 * side] = image(channels, HEIGHT, WIDTH, dtype, 2.0)
        given[2 * side + 1] = torch.randn(24, channels, 1, 1).to(DEVICE, dtype)
    weight, bias = weight.contiguous(memory_format=torch.channels_last), torch.randn(24).to(DEVICE)
    out, taken = convolution_module.convolution_moments(x, weight, bias, None, 0, *given)
    wide = [None if each is None else each.double() for each in given]
    truth, _ = reference_moments.convolution_moments(x.double(), weight.double(), bias, None, 0, *wide)
    plain, _ = reference_moments.convolution_moments(x, weight, bias, None, 0, *given)
    compare(out, plain, truth)
    same_moments(taken, out)


def given(inputs: list[Any], before: Tensor | None, moments: Any) -> Tensor:
    """The norm, by moments of x and skip that `moments` takes."""
    x, skip = inputs[:2]
    taken = moments(x), None if skip is None else moments(skip)
    out = torch.empty_like(reference.film_group_norm(*inputs))
    norm_module.film_group_norm_given_out(out, *taken, before, *inputs)
    return out


@computes
@pytest.mark.parametrize(
    ("case", "bias_missing"),
    [
        (Norm(40, 4, skip=56), True),  # a group on both sides of the border
        (Norm(24, 3, film=1, silu=False, dtype=torch.float16), False),
        (Norm(8, 2, skip=8, resample=-1, dtype=torch.bfloat16), False),
        pytest.param(Norm(16, 8, film=0, resample=1), True, marks=pytest.mark.long),
        pytest.param(Norm(24, 3, film=1, resample=-1), True, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_norms_by_given_moments(case: Norm, bias_missing: bool) -> None:
    """No farther from fp64 than a norm that takes its moments itself."""
    case = Norm(**(case.__dict__ | {"height": HEIGHT, "width": WIDTH}))
    inputs = case.inputs()
    before = torch.randn(case.channels + case.skip, device=DEVICE) * 5 if bias_missing else None
    wide = [v.double() if isinstance(v, Tensor) and v.dtype == case.dtype else v for v in inputs]
    whole = torch.zeros(case.channels + case.skip, device=DEVICE) if before is None else before
    truth = reference.film_group_norm_before(whole.double(), *wide)
    plain = reference.film_group_norm_before(whole, *inputs)
    compare(given(inputs, before, residual_module.moments), plain, truth)


@computes
def test_an_image_has_the_same_bits_in_any_batch() -> None:
    inputs = Norm(16, 4, skip=16, height=HEIGHT, width=WIDTH, images=2, dtype=torch.float16).inputs()
    alone = [*(each[1:] for each in inputs[:2]), *inputs[2:5], inputs[5][1:], *inputs[6:]]
    both = [given(each, None, residual_module.moments) for each in (inputs, alone)]
    assert torch.equal(both[0][1:], both[1])
