"""The native operators of the backward pass against autograd in float64, on every instruction set of this processor.

python -m tests.test_ops_backward    a round of all of them, on the instruction set that RCDM_FAST_CPU_ISA names
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.ops import candidates, gradients, library, reference, schema, selection_backward
from tests import op_checks
from tests.op_checks import NormCase, widened
from tests.tolerances import OP_ERROR_FLOOR, OP_ERROR_RATIO

CHECKOUT = Path(__file__).resolve().parent.parent
DTYPES = schema.FLOAT_DTYPES
CASES = (
    NormCase(64, 32),
    NormCase(40, 8, height=9, width=11, skip=24, mean=30.0, batch=3),  # a group lies across x and skip
    NormCase(7, 7, film=1),
    NormCase(64, 32, height=8, width=6, film=1, resample=-1, skip=32),
    NormCase(96, 32, height=5, width=3, film=0, silu=False, resample=1),
    NormCase(12, 3, film=0, phases=True),
    NormCase(32, 32, height=34, width=40, phases=True, film=1, batch=1),
    NormCase(192, 32, height=32, width=32, film=1, batch=1),  # several tasks for an image, whose groups are no lines
)
CONVOLUTIONS = (  # batch, inputs, outputs, size, kernel, stride, padding
    (2, 33, 13, (9, 7), 3, 1, 1),
    (3, 5, 7, (6, 5), 3, 2, 1),
    (2, 16, 20, (4, 4), 1, 1, 0),
    (3, 20, 12, (5, 5), 2, 1, 1),
    (1, 8, 6, (40, 17), 3, 1, 0),
    (37, 3, 64, (4, 4), 3, 1, 1),  # stretches of several images, the last one shorter
    (2, 17, 25, (23, 29), 1, 1, 0),  # 1334 pixels, cut into rows of 58
)


def norm_gradients(case: NormCase, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(native, plain autograd in this dtype, autograd in float64) for every differentiable input."""
    inputs = case.inputs(dtype)
    leaves = [each.detach().requires_grad_() for each in inputs[:5] if each is not None]
    places = [i for i, each in enumerate(inputs[:5]) if each is not None]

    def differentiated(arguments: tuple[Any, ...], grad: Tensor) -> list[Tensor]:
        given = list(arguments)
        for i in places:
            given[i] = arguments[i].detach().requires_grad_()
        out = reference.film_group_norm(*given)
        return list(torch.autograd.grad(out, [given[i] for i in places], grad))

    grad = torch.randn(reference.film_group_norm(*inputs).shape).to(dtype, memory_format=torch.channels_last)
    got = torch.ops.rcdm_fast.film_group_norm_backward(grad, *inputs)
    film, rows = inputs[4], inputs[5]
    found = [got[i] for i in places if i < 4]
    if film is not None and rows is not None:
        found.append(torch.zeros_like(film).index_add_(0, rows, got[4]))
    assert len(found) == len(leaves)
    truths = differentiated(widened(inputs), grad.double())
    yield from zip(found, differentiated(inputs, grad), truths, strict=True)


def check_norm(case: NormCase, dtype: torch.dtype) -> None:
    """At most twice plain autograd's error, and the layouts of the inputs."""
    for got, plain, truth in norm_gradients(case, dtype):
        assert got.shape == truth.shape
        bar = OP_ERROR_RATIO * max(op_checks.error(plain, truth), OP_ERROR_FLOOR[dtype])
        assert op_checks.error(got, truth) <= bar
        assert got.ndim != 4 or schema.is_channels_last(got)


def check_attention(length: int, heads: int, width: int, new_order: bool, dtype: torch.dtype) -> None:
    """The same for attention; plain is what PyTorch's own attention gives."""
    qkv = (torch.randn(2, length, 3 * heads * width) * 1.5 + 0.3).to(dtype)
    grad = torch.randn(2, length, heads * width).to(dtype)
    got = torch.ops.rcdm_fast.attention_backward(grad, qkv, heads, new_order)
    truth, plain = (
        torch.autograd.grad(candidates.sdpa(each, heads, new_order), each, grad.to(each.dtype))[0]
        for each in (qkv.double().requires_grad_(), qkv.clone().requires_grad_())
    )
    if length == 1:  # a single share is 1 whatever q and k are: their gradients are zero
        q, k, _ = reference.split_heads(got, heads, new_order)
        assert float(q.abs().max()) == float(k.abs().max()) == 0.0
    op_checks.within_bar(got, plain, truth)


def check_convolution(shape: tuple[int, int, int, tuple[int, int], int, int, int], dtype: torch.dtype) -> None:
    """Gradients of weight and bias, float32 from any dtype: what is rounded is the inputs."""
    batch, inputs, outputs, size, kernel, stride, padding = shape
    x = (torch.randn(batch, inputs, *size) + 1).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(outputs, inputs, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    out = torch.conv2d(x.double(), weight, bias, stride, padding)
    grad = torch.randn(out.shape).to(dtype, memory_format=torch.channels_last)
    truths = torch.autograd.grad(out, (weight, bias), grad.double())
    got = torch.ops.rcdm_fast.convolution_weight_gradient(grad, x, kernel, stride, padding)
    for ours, truth in zip(got, truths, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == truth.shape
        assert op_checks.error(ours, truth) < 5e-7
    assert schema.is_channels_last(got[0])


def quick_round() -> None:
    """All of it, for every dtype."""
    for dtype in DTYPES:
        for case in CASES:
            check_norm(case, dtype)
        for length, width, order in itertools.product((1, 17, 70), (7, 32, 40), (False, True)):
            check_attention(length, 2, width, order, dtype)
        for shape in CONVOLUTIONS:
            check_convolution(shape, dtype)


pytestmark = pytest.mark.skipif(not library.has_native("cpu"), reason="the native part was not built")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_film_group_norm(case: NormCase, dtype: torch.dtype) -> None:
    check_norm(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "width"), [(1, 32), (17, 7), (70, 40), (256, 32)])
def test_attention(length: int, width: int, dtype: torch.dtype) -> None:
    for new_order in (False, True):
        check_attention(length, 2, width, new_order, dtype)


def test_a_head_wider_than_what_is_summed_at_a_time_comes_to_an_end() -> None:
    check_attention(3, 1, 4104, False, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution_weight_gradient(
    shape: tuple[int, int, int, tuple[int, int], int, int, int], dtype: torch.dtype
) -> None:
    check_convolution(shape, dtype)


def test_sums_depend_neither_on_the_batch_nor_on_threads() -> None:
    """An image's gradients have the same bits alone; sums over images have them for any number of threads."""
    case = NormCase(96, 32, height=8, width=6, skip=32, film=1, batch=5)
    x, skip, weight, bias, film, rows, *others = case.inputs(torch.float32)
    grad = torch.randn(5, 96, 8, 6).to(memory_format=torch.channels_last)
    assert skip is not None
    assert rows is not None
    run = torch.ops.rcdm_fast.film_group_norm_backward
    whole = run(grad, x, skip, weight, bias, film, rows, *others)
    alone = run(grad[2:3], x[2:3], skip[2:3], weight, bias, film, rows[2:3], *others)
    for i in (0, 1, 4):
        assert torch.equal(whole[i][2:3], alone[i])
    qkv, of_heads = torch.randn(3, 40, 96), torch.randn(3, 40, 32)
    attend = torch.ops.rcdm_fast.attention_backward
    assert torch.equal(attend(of_heads, qkv, 4, False)[1:2], attend(of_heads[1:2], qkv[1:2], 4, False))
    wide, of_wide = (torch.randn(4, c, 9, 9).to(memory_format=torch.channels_last) for c in (40, 30))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(
                (*run(grad, x, skip, weight, bias, film, rows, *others),
                 *torch.ops.rcdm_fast.convolution_weight_gradient(of_wide, wide, 3, 1, 1))
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_what_is_dropped_of_a_phase_has_no_gradient() -> None:
    case = NormCase(4, 2, height=6, width=4, phases=True, batch=1)
    x, *others = case.inputs(torch.float32)
    grad = torch.ones(1, 4, 6, 4).to(memory_format=torch.channels_last)
    (of_x, *_) = torch.ops.rcdm_fast.film_group_norm_backward(grad, x, *others)
    parts = of_x.unflatten(1, (2, 2, 4))
    used = torch.zeros(2, 2, 4, 3, dtype=torch.bool)
    for i, j in itertools.product((0, 1), repeat=2):
        used[i, j, i : i + 3, j : j + 2] = True
    assert torch.equal(parts[0].abs().amax(dim=2) > 0, used)


@pytest.mark.parametrize("dtype", DTYPES)
def test_registration(dtype: torch.dtype) -> None:
    check = torch.library.opcheck
    for case in (CASES[1], CASES[5]):
        inputs = case.inputs(dtype)
        grad = torch.randn(reference.film_group_norm(*inputs).shape).to(dtype, memory_format=torch.channels_last)
        check(torch.ops.rcdm_fast.film_group_norm_backward.default, (grad, *inputs), test_utils=["test_faketensor"])
    qkv = torch.randn(2, 9, 96).to(dtype)
    check(torch.ops.rcdm_fast.attention_backward.default, (qkv[..., :32].contiguous(), qkv, 4, True),
          test_utils=["test_faketensor"])  # fmt: skip
    x = torch.randn(2, 9, 5, 5).to(dtype, memory_format=torch.channels_last)
    check(torch.ops.rcdm_fast.convolution_weight_gradient.default, (x, x, 3, 1, 1), test_utils=["test_faketensor"])


def test_empty_batches_have_gradients() -> None:
    x, *others = NormCase(8, 4, batch=0).inputs(torch.float32)
    grad = torch.empty_like(x)
    of_x, _, of_weight, of_bias, _ = torch.ops.rcdm_fast.film_group_norm_backward(grad, x, *others)
    assert of_x.shape == x.shape
    assert not of_weight.any()
    assert not of_bias.any()
    of_kernel, of_bias = torch.ops.rcdm_fast.convolution_weight_gradient(grad, x, 3, 1, 1)
    assert of_kernel.shape == (8, 8, 3, 3)
    assert not of_kernel.any()
    assert not of_bias.any()
    assert torch.ops.rcdm_fast.attention_backward(torch.empty(0, 4, 8), torch.empty(0, 4, 24), 2, False).shape[0] == 0


def test_errors() -> None:
    x = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="grad does not fit the result"):
        torch.ops.rcdm_fast.film_group_norm_backward(
            x, x, None, torch.ones(8), torch.ones(8), None, None, 4, 1e-5, True, 1, False
        )
    with pytest.raises(RuntimeError, match="grad does not fit x"):
        torch.ops.rcdm_fast.convolution_weight_gradient(x, x, 3, 2, 1)
    with pytest.raises(RuntimeError, match="channels-last"):
        torch.ops.rcdm_fast.convolution_weight_gradient(x.contiguous(), x, 3, 1, 1)
    with pytest.raises(RuntimeError, match="padding"):
        torch.ops.rcdm_fast.convolution_weight_gradient(x, x, 1, 1, 1)
    with pytest.raises(RuntimeError, match="grad does not fit"):
        torch.ops.rcdm_fast.attention_backward(torch.randn(1, 4, 9), torch.randn(1, 4, 24), 2, False)


def test_the_native_gradients_are_the_ones_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there is nothing native, plain PyTorch's do, to the same numbers."""
    x = torch.randn(2, 32, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    qkv = torch.randn(2, 9, 96, requires_grad=True)

    def both() -> tuple[Tensor, ...]:
        norm = ops.film_group_norm(x, torch.ones(32), torch.zeros(32)).square().sum()
        return torch.autograd.grad(norm + ops.attention(qkv, 4).square().sum(), (x, qkv))

    def refuse(*_: Any) -> Any:
        raise AssertionError("plain PyTorch ran")

    with monkeypatch.context() as patched:
        patched.setattr(gradients, "film_group_norm", refuse)
        patched.setattr(gradients, "attention", refuse)
        native = both()
    monkeypatch.setattr(selection_backward, "film_group_norm_backward", lambda device: None)
    monkeypatch.setattr(selection_backward, "attention_backward", lambda device: None)
    for ours, plain in zip(native, both(), strict=True):
        assert op_checks.error(ours, plain.double()) < OP_ERROR_RATIO * 1e-6 + OP_ERROR_FLOOR[torch.float32]


def test_who_computes_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ on the CPU, Triton on a GPU where it is installed, else plain PyTorch."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    if library.has_native("cpu"):
        assert selection_backward.film_group_norm_backward(cpu) is torch.ops.rcdm_fast.film_group_norm_backward
        assert selection_backward.attention_backward(cpu) is torch.ops.rcdm_fast.attention_backward
    if not candidates.triton_reason(gpu):
        from rcdm_fast.kernels import film_group_norm_backward as kernels

        assert selection_backward.film_group_norm_backward(gpu) is kernels.film_group_norm_backward
    assert selection_backward.attention_backward(gpu) is None
    monkeypatch.setattr(library, "has_native", lambda _: False)
    monkeypatch.setattr(selection_backward, "triton_reason", lambda _: "triton is not installed")
    for device in (cpu, gpu):
        assert selection_backward.film_group_norm_backward(device) is None
        assert selection_backward.attention_backward(device) is None
