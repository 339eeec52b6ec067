"""What Triton kernels of training compute, against fp64: gradients, biases and residuals.

In Triton's interpreter without a GPU, and on a GPU where there is one (`triton_cases.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast.ops import candidates, gradients, library, reference, selection_backward
from tests.triton_cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    Norm,
    both_lengths,
    computes,
    outside,
    passes_in_the_interpreter,
    patched_once,  # noqa: F401  (a fixture)
    poisoned,  # noqa: F401  (a fixture)
    ulp,
)

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import bias as bias_module
from rcdm_fast.kernels import film_group_norm_backward as norm_backward
from rcdm_fast.kernels import residual as residual_module
from rcdm_fast.precision import ieee_fp32
from rcdm_fast.training.convolution import convolution


@outside
@both_lengths
def test_in_the_interpreter(marked: str, short: bool) -> None:
    passes_in_the_interpreter(__file__, marked, short)


GRADIENTS = (
    Norm(64, 32),
    Norm(40, 8, skip=24, film=1),  # a group lies across x and skip
    Norm(7, 7, film=0),
    Norm(24, 4, skip=8, height=8, width=6, resample=-1),
    Norm(96, 32, resample=1, silu=False),
    Norm(12, 3, height=8, width=6, phases=True),
    Norm(48, 8, height=16, width=20, phases=True, film=1, images=1),
    Norm(64, 2, height=33, width=21, film=2, images=1),  # several steps over the pixels
)


@computes
@pytest.mark.parametrize(
    "case", [*GRADIENTS, *(dataclasses.replace(GRADIENTS[1], dtype=dtype) for dtype in DTYPES[1:])], ids=str
)
def test_gradient_of_film_group_norm(case: Norm) -> None:
    """Against the plain gradient in float64, which gradcheck has seen."""
    dtype = case.dtype
    inputs = case.inputs(mean=3.0)
    grad = torch.randn(reference.film_group_norm(*inputs).shape).to(DEVICE, dtype, memory_format=torch.channels_last)
    *got, of_rows = norm_backward.film_group_norm_backward(grad, *inputs)
    film, rows = inputs[4], inputs[5]
    got.append(None if film is None else torch.zeros_like(film).index_add_(0, rows, of_rows))
    wide: list[Any] = [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs]
    truths = gradients.film_group_norm(grad.double(), *wide)
    plains = gradients.film_group_norm(grad, *inputs)
    for ours, plain, truth in zip(got, plains, truths, strict=True):
        if truth is None or plain is None:
            assert ours is None or ours.numel() == 0
            continue
        assert ours is not None
        assert ours.dtype == plain.dtype
        assert ours.ndim != 4 or ours.is_contiguous(memory_format=torch.channels_last)
        error, limit = (float((each.double() - truth).norm() / truth.norm()) for each in (ours, plain))
        # 2^(y log2 e) carries the rounding of its argument, several steps where y is large: measured 4e-7 in sums.
        assert error <= 2 * max(limit, 2.5e-7) + ulp(ours.dtype)


@computes
def test_a_gpu_without_a_native_part_differentiates_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in Triton, down to the FiLM rows that several images share."""
    monkeypatch.setattr(
        selection_backward, "film_group_norm_backward", lambda device: norm_backward.film_group_norm_backward
    )
    monkeypatch.setattr(library, "has_native", lambda kind: False)
    monkeypatch.setattr(candidates, "triton_reason", lambda device: "")
    *tensors, rows, groups, eps, silu, resample, phases = Norm(40, 2, skip=24, film=2, images=3).inputs()
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = gradients.differentiable_film_group_norm(torch.device(DEVICE))(
        *leaves, rows, groups, eps, silu, resample, phases
    )
    grad = torch.randn(out.shape).to(DEVICE, memory_format=torch.channels_last)
    found = torch.autograd.grad(out, leaves, grad)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = reference.film_group_norm(*wide, rows, groups, eps, silu, resample, phases)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    for ours, truth in zip(found, torch.autograd.grad(want, wide, grad.double()), strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-5, rtol=2e-5)


BIASED = [(2, 64, 9, 7), (3, 24, 5, 5), (1, 3, 40, 31), (2, 300, 4, 4), (0, 8, 4, 4)]


@computes
@pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=pytest.mark.long), DTYPES[2]], ids=str)
@pytest.mark.parametrize("shape", BIASED, ids=str)
def test_biases_are_added_and_summed(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    def values() -> Tensor:
        return (torch.randn(shape) + 0.5).to(DEVICE, dtype, memory_format=torch.channels_last)

    out, add, bias = values(), values(), torch.randn(shape[1], device=DEVICE)
    step = torch.finfo(dtype).eps * (2 if INTERPRETED else 1)  # the interpreter truncates
    for other in (None, add, add.float().contiguous(memory_format=torch.channels_last)):
        whole = out.double() + bias.double()[:, None, None] + (0 if other is None else other.double())
        got = bias_module.add_(out.clone(memory_format=torch.preserve_format), bias, other)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), whole, atol=1e-6, rtol=step)
    sums = bias_module.sums(out)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), out.double().sum(dim=(0, 2, 3)), atol=1e-3, rtol=1e-6)
    assert torch.equal(sums, bias_module.sums(out))


@computes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("resample", [-1, 0, 1])
def test_a_residual_is_added_with_a_bias(resample: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, wide in (((2, 40, 6, 10), False), ((3, 3, 4, 2), True), ((0, 8, 4, 4), False)):
        monkeypatch.setattr(residual_module, "WIDE_ELEMENTS", 1 if wide else 2**31)
        n, channels, height, width = shape
        size = {-1: (2 * height, 2 * width), 0: (height, width), 1: (height // 2, width // 2)}[resample]
        out, add = (
            torch.randn(n, channels, *each).to(DEVICE, dtype, memory_format=torch.channels_last)
            for each in ((height, width), size)
        )
        bias = torch.randn(channels, device=DEVICE)
        truth = out.double()
        reference.add_residual(truth, bias, add.double(), resample)
        residual_module.add_residual(out, bias, add, resample)
        step = torch.finfo(dtype).eps * (2 if INTERPRETED else 1)  # the interpreter truncates
        torch.testing.assert_close(out.double(), truth, atol=1e-6, rtol=step)


@computes
def test_sums_of_several_steps_and_wide_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_module, "MOST_CHUNKS", 3)
    monkeypatch.setattr(bias_module, "WIDE_ELEMENTS", 1)
    out = torch.randn(3, 64, 17, 13).to(DEVICE, memory_format=torch.channels_last)
    torch.testing.assert_close(bias_module.sums(out).double(), out.double().sum(dim=(0, 2, 3)), atol=1e-4, rtol=1e-5)
    got = bias_module.add_(out.clone(memory_format=torch.preserve_format), torch.ones(64, device=DEVICE), out)
    torch.testing.assert_close(got, 2 * out + 1)


@computes
def test_a_convolution_of_training_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with a residual and without, frozen and not."""
    monkeypatch.setattr(selection_backward, "bias_kernels", lambda device: bias_module)
    monkeypatch.setattr(selection_backward, "weight_gradient", lambda x, weight: None)
    x = torch.randn(2, 16, 6, 6, device=DEVICE, requires_grad=True)
    weight = torch.randn(12, 16, 3, 3, device=DEVICE, requires_grad=True)
    bias = torch.randn(12, device=DEVICE, requires_grad=True)
    add = torch.randn(2, 12, 6, 6, device=DEVICE, requires_grad=True)
    want = torch.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    grad = torch.randn(want.shape, device=DEVICE)
    truths = torch.autograd.grad(want, (x, weight, bias), grad.double())
    with ieee_fp32(DEVICE):  # cuDNN would multiply in TF32
        for residual in (None, add):
            got = convolution(x, weight, bias, padding=1, add=residual)
            torch.testing.assert_close(got.double(), want + (0 if residual is None else residual), atol=1e-4, rtol=1e-4)
            for ours, truth in zip(torch.autograd.grad(got, (x, weight, bias), grad), truths, strict=True):
                torch.testing.assert_close(ours.double(), truth.double(), atol=1e-4, rtol=1e-4)
        got = convolution(x, weight, bias, padding=1, add=add)
        (of_add,) = torch.autograd.grad(got, (add,), grad, retain_graph=True)
        assert torch.equal(of_add, grad)
        wider = torch.cat([grad, grad], dim=1).contiguous(memory_format=torch.channels_last)
        (of_bias,) = torch.autograd.grad(got, (bias,), wider[:, :12])  # every second run of memory
        torch.testing.assert_close(of_bias.double(), truths[2].double(), atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="channels-last"):
            bias_module.sums(wider[:, :12])
        frozen = convolution(x.detach(), weight.detach(), bias, padding=1)
        (alone,) = torch.autograd.grad(frozen, (bias,), grad)
        torch.testing.assert_close(alone.double(), truths[2].double(), atol=1e-4, rtol=1e-4)
        without = convolution(x, weight.detach(), None, padding=1)
        (of_x,) = torch.autograd.grad(without, (x,), grad)
        torch.testing.assert_close(of_x.double(), truths[0].double(), atol=1e-4, rtol=1e-4)


@computes
def test_an_images_gradients_do_not_depend_on_its_batch() -> None:
    x, skip, weight, bias, film, rows, *others = Norm(40, 2, skip=24, images=3).inputs()
    grad = torch.randn(3, 64, 9, 7).to(DEVICE, memory_format=torch.channels_last)
    run = norm_backward.film_group_norm_backward
    whole = run(grad, x, skip, weight, bias, film, rows, *others)
    alone = run(grad[1:2], x[1:2], skip[1:2], weight, bias, film, rows[1:2], *others)
    assert all(torch.equal(whole[i][1:2], alone[i]) for i in (0, 1, 4))
