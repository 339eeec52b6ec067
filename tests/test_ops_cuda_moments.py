"""Moments, residuals and norms by given moments in C++ on a GPU: exact enough, independent of the batch, in graphs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from rcdm_fast.ops import library, reference, reference_moments
from rcdm_fast.ops.schema_moments import chunks_of
from tests.moments_cases import GIVEN, WIDTHS, before_resampling, check_moments, image, taken, within
from tests.norm_cases import DTYPES, Inputs, NormCase, doubled, layouts, make_inputs

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
OPS = torch.ops.rcdm_fast


@pytest.fixture(scope="module", autouse=True)
def _native() -> None:
    (part,) = (part for part in library.describe() if part.name == "cuda")
    if not part.loaded:
        pytest.skip(f"the CUDA part is missing: {part.reason}")


def given(inputs: Inputs, before: Tensor | None) -> Tensor:
    """The norm in memory that was poisoned before, by moments that the kernels take."""
    moments = [None if each is None else OPS.moments(each) for each in inputs[:2]]
    out = torch.full_like(reference.film_group_norm(*inputs), float("nan"))
    OPS.film_group_norm_given_out(out, *moments, before, *inputs)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_before", [False, True])
@pytest.mark.parametrize("case", [*GIVEN, NormCase(256, skip=256, size=(128, 128), film="scale")], ids=str)
def test_a_norm_by_given_moments(case: NormCase, with_before: bool, dtype: torch.dtype) -> None:
    inputs = make_inputs(case._replace(dtype=dtype), DEVICE)
    before = torch.randn(case.channels + case.skip).to(DEVICE) * 2 if with_before else None
    norm = reference.film_group_norm if before is None else partial(reference.film_group_norm_before, before)
    within(given(inputs, before), norm(*inputs), norm(*doubled(inputs)).double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", layouts()[::2], ids=str)
def test_a_number_per_channel_before_the_norm(case: NormCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(case._replace(dtype=dtype), DEVICE)
    before = torch.randn(case.channels + case.skip).to(DEVICE) * 2 - 1
    plain, truth = (reference.film_group_norm_before(before, *each) for each in (inputs, doubled(inputs)))
    out = torch.full_like(plain, float("nan"))
    OPS.film_group_norm_before_out(out, before, *inputs)
    within(out, plain, truth.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [*WIDTHS, 256])
@pytest.mark.parametrize("resample", [-1, 0, 1])
def test_add_residual(channels: int, resample: int, dtype: torch.dtype) -> None:
    for size in ((64, 64), (32, 36), (6, 10), (34, 30)):
        add = image(channels, before_resampling(size, resample), dtype, -1.0).to(DEVICE)
        out, bias = image(channels, size, dtype).to(DEVICE), torch.randn(channels).to(DEVICE)
        truth, plain, got, same = out.double(), out.clone(), out.clone(), out.clone()
        reference.add_residual(truth, bias, add.double(), resample)
        reference.add_residual(plain, bias, add, resample)
        OPS.add_residual(got, bias, add, resample)
        within(got, plain, truth)
        if chunks_of(*size):
            moments = OPS.add_residual_moments(same, bias, add, resample)
            assert torch.equal(same, got)
            torch.testing.assert_close(moments, OPS.moments(got), rtol=1e-5, atol=1e-5)
            alone = out[1:].clone()
            assert torch.equal(moments[1:], OPS.add_residual_moments(alone, bias, add[1:], resample))
            check_moments(moments.cpu(), got.cpu())


def test_registration() -> None:
    inputs = make_inputs(GIVEN[1], DEVICE)
    moments, skip_moments = taken(inputs)
    out, before = reference.film_group_norm(*inputs), torch.randn(64).to(DEVICE)
    x = inputs[0]
    add, bias = x.clone(), before[:24].contiguous()
    for operator, arguments in (
        (OPS.moments, (x,)),
        (OPS.add_residual, (x.clone(), bias, add, 0)),
        (OPS.add_residual_moments, (x.clone(), bias, add, 0)),
        (OPS.film_group_norm_before_out, (out, before, *inputs)),
        (OPS.film_group_norm_given_out, (out, moments, skip_moments, before, *inputs)),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_in_a_cuda_graph() -> None:
    inputs = make_inputs(NormCase(64, size=(64, 64), film="scale", dtype=torch.bfloat16), DEVICE)
    residual = image(64, (64, 64), torch.bfloat16).to(DEVICE)
    x, bias = inputs[0], torch.randn(64).to(DEVICE)
    first, out = x.clone(), torch.empty_like(x)

    def step() -> None:
        x.copy_(first)
        moments = OPS.add_residual_moments(x, bias, residual, 0)
        OPS.film_group_norm_given_out(out, moments, None, None, *inputs)

    step()
    want = out.clone()
    wanted = reference_moments.moments(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, want)
    torch.testing.assert_close(OPS.moments(x), wanted, rtol=1e-4, atol=1e-4)
