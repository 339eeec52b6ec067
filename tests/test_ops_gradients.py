"""Gradients of the operators: gradcheck in float64, and the operators themselves beside plain PyTorch's autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.ops import gradients, reference
from tests.op_checks import NormCase
from tests.tolerances import OP_ERROR_FLOOR, OP_ERROR_RATIO

NORMS = (
    NormCase(8, 4, height=4, width=6, batch=2),
    NormCase(12, 3, height=3, width=5, skip=4, batch=2),
    NormCase(8, 2, height=4, width=2, film=1, resample=-1, batch=3),
    NormCase(8, 8, height=3, width=2, film=0, silu=False, resample=1, batch=2),
    NormCase(4, 2, height=4, width=6, phases=True, batch=2),
    NormCase(4, 2, height=4, width=2, phases=True, film=1, resample=0, batch=2),
)
LARGE = (
    NormCase(64, 32),
    NormCase(96, 32, height=7, width=9, skip=32, mean=30.0),
    NormCase(64, 32, film=1, resample=-1),
    NormCase(32, 32, film=0, silu=False, resample=1),
    NormCase(32, 32, phases=True),
)


class Paired(torch.autograd.Function):
    """A reference and the gradient that is registered for the operator, in any dtype."""

    @staticmethod
    def forward(context: Any, run: Callable[..., Tensor], backward: Callable[..., Any], *inputs: Any) -> Tensor:
        context.run, context.inputs = backward, inputs
        return run(*inputs)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> Any:
        found = context.run(grads[0], *context.inputs)
        given = found if isinstance(found, tuple) else (found,)
        return (None, None, *given, *[None] * (len(context.inputs) - len(given)))


@pytest.mark.parametrize("case", NORMS, ids=str)
def test_gradcheck_of_film_group_norm(case: NormCase) -> None:
    x, skip, weight, bias, film, rows, *others = case.inputs(torch.float32)
    wide = [None if each is None else each.double().requires_grad_() for each in (x, skip, weight, bias, film)]

    def run(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        x, skip, weight, bias, film = (None if each is None else next(given) for each in wide)
        return Paired.apply(  # type: ignore[no-any-return]
            reference.film_group_norm, _norm, x, skip, weight, bias, film, rows, *others
        )

    assert torch.autograd.gradcheck(run, [each for each in wide if each is not None])


def _norm(grad: Tensor, *inputs: Any) -> tuple[Any, ...]:
    found = gradients.film_group_norm(grad, *inputs)
    return (*found, *[None] * 6)


@pytest.mark.parametrize("new_order", [False, True])
def test_gradcheck_of_attention(new_order: bool) -> None:
    qkv = torch.randn(2, 5, 3 * 6, dtype=torch.float64, requires_grad=True)

    def run(qkv: Tensor) -> Tensor:
        return Paired.apply(reference.attention, gradients.attention, qkv, 2, new_order)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, [qkv])


@pytest.mark.parametrize("bound", [0.7, math.inf])
def test_gradcheck_of_solver_step(bound: float) -> None:
    x, output, term = (torch.randn(2, c, 3, 4, dtype=torch.float64, requires_grad=True) for c in (3, 6, 3))
    numbers = (1.3, -0.4, bound, 0.6, 0.2)

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, output: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
            context.save_for_backward(x, output)
            return reference.solver_step(x, output, [term], [0.9], *numbers)

        @staticmethod
        def backward(context: Any, *grads: Tensor) -> Any:
            x, output = context.saved_tensors
            of_x, of_output, (of_term,) = gradients.solver_step((grads[0], grads[1]), x, output, [0.9], *numbers)
            return of_x, of_output, of_term

    assert torch.autograd.gradcheck(Step.apply, [x, output, term])


def _gradients(result: Tensor, weights: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((result.double() * weights).sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_film_group_norm_beside_plain_autograd(case: NormCase, dtype: torch.dtype) -> None:
    """The operator's gradients are at most twice as far from float64 as those of PyTorch's own operations."""
    x, skip, weight, bias, film, rows, *others = case.inputs(dtype)
    leaves = [None if each is None else each.detach().requires_grad_() for each in (x, skip, weight, bias, film)]
    groups, eps, silu, resample, phases = others
    first, second, gamma, beta, table = leaves
    assert first is not None
    assert gamma is not None
    assert beta is not None
    got = ops.film_group_norm(
        first, gamma, beta, skip=second, film=table, rows=rows, groups=groups, eps=eps, silu=silu,
        resample={-1: "down", 0: "none", 1: "up"}[resample], phases=phases,  # type: ignore[arg-type]
    )  # fmt: skip
    weights = torch.randn(got.shape, dtype=torch.float64)
    given = [each for each in leaves if each is not None]
    ours = _gradients(got, weights, given)
    plain = _gradients(reference.film_group_norm(first, second, gamma, beta, table, rows, *others), weights, given)
    wide = [None if each is None else each.detach().double().requires_grad_() for each in leaves]
    exact = reference.film_group_norm(*wide, rows, *others)
    want = _gradients(exact, weights, [each for each in wide if each is not None])
    for a, b, truth in zip(ours, plain, want, strict=True):
        error, limit = (float((each.double() - truth).norm() / truth.norm()) for each in (a, b))
        assert error <= OP_ERROR_RATIO * limit + OP_ERROR_FLOOR[dtype]


def test_attention_beside_plain_autograd() -> None:
    qkv = torch.randn(2, 17, 96, requires_grad=True)
    weights = torch.randn(2, 17, 32, dtype=torch.float64)
    (ours,) = _gradients(ops.attention(qkv, 4), weights, [qkv])
    (plain,) = _gradients(reference.attention(qkv, 4, False), weights, [qkv])
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_gradients_are_traced_and_compiled() -> None:
    check = torch.library.opcheck
    for case in (NORMS[1], NORMS[2], NORMS[4]):
        x, skip, weight, bias, film, rows, *others = case.inputs(torch.float32)
        leaves = [None if each is None else each.clone().requires_grad_() for each in (x, skip, weight, bias)]
        table = None if film is None else film.contiguous().requires_grad_()
        check(torch.ops.rcdm_fast.film_group_norm.default, (*leaves, table, rows, *others))
    check(torch.ops.rcdm_fast.attention.default, (torch.randn(2, 9, 96, requires_grad=True), 4, True))
    x, given = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 6, 4, 5, requires_grad=True)
    numbers = (1.3, -0.4, 0.7, 0.6, 0.2)
    check(torch.ops.rcdm_fast.solver_step.default, (x, given, [torch.randn(2, 3, 4, 5)], [0.5], *numbers))


def test_what_has_no_gradient_says_so() -> None:
    x = torch.randn(1, 32, 4, 4).to(memory_format=torch.channels_last)
    weight = torch.ones(32, requires_grad=True)
    with pytest.raises(ValueError, match="written to out has no gradient"):
        ops.film_group_norm(x, weight, torch.zeros(32), out=torch.empty_like(x))
    with torch.no_grad():
        assert not ops.film_group_norm(x, weight, torch.zeros(32)).requires_grad
