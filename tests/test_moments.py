"""Norms that are given their moments: what the operators compute, in plain PyTorch, beside the norms that take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops import reference, reference_moments, schema_moments
from rcdm_fast.ops.schema import NormInputs

SIDE = 48  # 18 chunks


def image(channels: int, seed: int, dtype: torch.dtype = torch.float64, side: int = SIDE) -> Tensor:
    """Two images [2,channels,side,side], channels-last, whose mean is not zero."""
    made = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (made * 2 + 3).to(dtype).contiguous(memory_format=torch.channels_last)


def norm_inputs(skip: bool = False, film: int = 2, **changes: Any) -> NormInputs:
    """A norm of 12 channels, or of 12 beside 6, with FiLM of `film` numbers a channel, 0 for none."""
    channels = 18 if skip else 12
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.rand(2, channels, generator=generator).unbind(0)
    given: dict[str, Any] = {
        "x": image(12, 0),
        "skip": image(6, 1) if skip else None,
        "weight": weight + 0.5,
        "bias": bias,
        "film": torch.randn(3, film * channels, generator=generator) if film else None,
        "rows": torch.tensor([2, 0]) if film else None,
        "groups": 3,
        "eps": 1e-5,
        "silu": True,
        "resample": 0,
        "phases": False,
    }
    return NormInputs(**(given | changes))


def given_norm(inputs: NormInputs, before: Tensor | None) -> Tensor:
    """The norm by moments that the reference takes."""
    taken = None if inputs.skip is None else reference_moments.moments(inputs.skip)
    return reference_moments.film_group_norm_given(reference_moments.moments(inputs.x), taken, before, *inputs)


def test_moments_are_those_of_the_chunks() -> None:
    x = image(5, 3)
    mean, squares, pivot = reference_moments.moments(x).double().unbind(2)
    chunks = x.permute(0, 2, 3, 1).reshape(2, -1, schema_moments.CHUNK, 5)
    torch.testing.assert_close(mean + pivot, chunks.mean(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squares, chunks.var(2, correction=0) * schema_moments.CHUNK, rtol=1e-6, atol=0)


@pytest.mark.parametrize("film", [0, 1, 2])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("resample", [-1, 0, 1])
def test_a_norm_by_given_moments_is_the_norm(film: int, skip: bool, resample: int) -> None:
    inputs = norm_inputs(skip, film, resample=resample)
    torch.testing.assert_close(given_norm(inputs, None), reference.film_group_norm(*inputs), rtol=0, atol=2e-6)
    before = torch.linspace(-2, 2, inputs.weight.numel())
    expected = reference.film_group_norm_before(before, *inputs)
    torch.testing.assert_close(given_norm(inputs, before), expected, rtol=0, atol=2e-6)


def test_a_convolution_gives_the_moments_of_what_it_wrote() -> None:
    x, weight = image(4, 1, torch.bfloat16), torch.randn(12, 4, 3, 3, dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)
    out, taken = reference_moments.convolution_moments(x, weight)
    torch.testing.assert_close(out, F.conv2d(x.float(), weight.float(), padding=1).bfloat16(), rtol=0, atol=0)
    assert torch.equal(taken, reference_moments.moments(out))
    bias, add = torch.randn(12), image(12, 2, torch.bfloat16, SIDE // 2)
    out, taken = reference_moments.convolution_moments(x, weight, bias, add, 1)
    assert torch.equal(out, reference.convolution_residual(x, weight, bias, add, 1))
    assert torch.equal(taken, reference_moments.moments(out))
    left, right = image(3, 5, torch.bfloat16), image(6, 6, torch.bfloat16)
    of_left, of_right = torch.randn(12, 3, 1, 1).bfloat16(), torch.randn(12, 6, 1, 1).bfloat16()
    out, _ = reference_moments.convolution_moments(x, weight, bias, None, 0, left, of_left, right, of_right)
    sides = F.conv2d(left.float(), of_left.float()) + F.conv2d(right.float(), of_right.float())
    whole = F.conv2d(x.float(), weight.float(), padding=1) + sides + bias[:, None, None]
    torch.testing.assert_close(out.float(), whole, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-4)


@pytest.mark.parametrize(("height", "width", "chunks"), [(32, 32, 0), (64, 64, 32), (48, 48, 18), (50, 50, 0)])
def test_which_images_have_chunks(height: int, width: int, chunks: int) -> None:
    assert schema_moments.chunks_of(height, width) == chunks


def test_what_does_not_fit_is_refused() -> None:
    inputs = norm_inputs(True)._replace(x=image(12, 0, torch.float32), skip=image(6, 1, torch.float32))
    taken, of_skip = reference_moments.moments(inputs.x), reference_moments.moments(image(6, 1))
    out = reference.film_group_norm(*inputs)

    def norm(*given: Any, **changes: Any) -> None:
        reference_moments.film_group_norm_given_out(out, *given, *inputs._replace(**changes))

    norm(taken, of_skip, None)
    torch.testing.assert_close(out, reference.film_group_norm(*inputs), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="skip and its moments go together"):
        norm(taken, None, None)
    with pytest.raises(ValueError, match=r"moments must be float32 \[2, 18, 3, 12\]"):
        norm(of_skip, of_skip, None)
    with pytest.raises(ValueError, match=r"before must be float32 \[18\]"):
        norm(taken, of_skip, torch.zeros(12))
    x, weight = image(4, 1, side=50), image(4, 1, side=3)[:1].expand(4, -1, -1, -1)
    weight = weight.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="50 x 50 are not cut"):
        reference_moments.convolution_moments(x, weight)
    bias, side = torch.zeros(4), torch.zeros(4, 4, 1, 1, dtype=torch.float64)
    for wrong, match in (
        ((None, x, 0), "adds a bias, too"),
        ((bias, None, 1), "resample is a residual's"),
        ((bias, None, 0, None, None, x, side), "right comes after left"),
        ((bias, None, 0, x), "left and its weight go together"),
        ((bias, None, 0, x, side[:, :2]), "does not fit"),
        ((bias, None, 0, x, side.float()), "x's dtype"),
        ((bias, None, 0, x.contiguous(), side), "channels-last"),
    ):
        with pytest.raises(ValueError, match=match):
            reference_moments.convolution_moments(x, weight, *wrong)


def test_an_image_in_another_layout_has_no_moments() -> None:
    """A kernel would read it as if it were channels-last."""
    with pytest.raises(ValueError, match=r"moments: x must be \[N,C,H,W\] in channels-last memory"):
        torch.ops.rcdm_fast.moments(torch.randn(1, 8, 64, 32))
