"""Norms that are given their moments, and what takes these: the CUDA kernels on the CPU, as in test_cuda_on_host.py.

Errors are at most twice plain PyTorch's at the same dtype, both against float64.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from rcdm_fast.ops import reference
from rcdm_fast.ops.schema_moments import CHUNK, chunks_of
from tests.cuda_on_host import launchers
from tests.cuda_on_host.launchers import Launchers
from tests.moments_cases import EPS, GIVEN, WIDTHS, before_resampling, check_moments, image, taken, within
from tests.norm_cases import DTYPES, Inputs, NormCase, doubled, layouts, make_inputs

pytestmark = [
    pytest.mark.long,  # a minute, half of it for the compiler
    pytest.mark.skipif(bool(launchers.missing()), reason=launchers.missing()),
]


@pytest.fixture(scope="module")
def kernels(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, compiled for the CPU."""
    return launchers.compile_launchers(checkout, tmp_path_factory.mktemp("moments_on_host"))


@pytest.fixture(scope="module")
def host(kernels: Path) -> Launchers:
    return Launchers(kernels)


@pytest.fixture(scope="module")
def watched(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Launchers:
    """Those that this file is about, with every access followed (cuda_on_host/shadow.h)."""
    names = ("film_group_norm", "film_group_norm_given", "residual")
    sources = [checkout / f"csrc/cuda/{name}.cu" for name in names]
    folder = tmp_path_factory.mktemp("watched_moments")
    return Launchers(launchers.compile_launchers(checkout, folder, shadow=True, sources=sources), names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", WIDTHS)
def test_moments(host: Launchers, channels: int, dtype: torch.dtype) -> None:
    for size, mean, offset in (((32, 36), 200.0, 0), ((64, 18), -7.0, 1)):
        x = image(channels, size, dtype, mean)
        got = host.moments(x, offset=offset)
        assert host.launches == 1
        check_moments(got, x)
        assert torch.equal(got[:1], host.moments(x[:1], offset=offset))


def test_moments_of_numbers_far_from_zero(host: Launchers) -> None:
    x = image(32, (48, 48), torch.float32, 1e5)
    got = host.moments(x)
    chunks = x.double().permute(0, 2, 3, 1).reshape(2, -1, CHUNK, 32)
    torch.testing.assert_close(got[:, :, 1].double(), chunks.var(2, correction=0) * CHUNK, rtol=1e-5, atol=0)
    mean = got[:, :, 0].double() + got[:, :, 2].double()
    torch.testing.assert_close(mean, chunks.mean(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("resample", [-1, 0, 1])
def test_add_residual(host: Launchers, channels: int, dtype: torch.dtype, resample: int) -> None:
    for size, offset in (((32, 36), 0), ((64, 18), 1), ((6, 10), 0), ((34, 30), 0)):
        add = image(channels, before_resampling(size, resample), dtype, -1.0)
        out, bias = image(channels, size, dtype), torch.randn(channels)
        truth, plain = out.double(), out.clone()
        reference.add_residual(truth, bias, add.double(), resample)
        reference.add_residual(plain, bias, add, resample)
        got, _ = host.residual(out, bias, add, resample, take=False, offset=offset)
        assert host.launches == 1
        within(got, plain, truth)
        alone, _ = host.residual(out[1:], bias, add[1:], resample, take=False, offset=offset)
        assert torch.equal(got[1:], alone)
        if chunks_of(*size):
            same, taken = host.residual(out, bias, add, resample, take=True, offset=offset)
            assert taken is not None
            assert torch.equal(same, got)
            check_moments(taken, got)
            assert torch.equal(taken, host.moments(got, offset=offset))


def test_odd_images_take_residuals(host: Launchers) -> None:
    for size in ((5, 7), (1, 1), (33, 31)):
        for resample in (-1, 0):
            add = image(40, before_resampling(size, resample), torch.float16)
            out, bias = image(40, size, torch.float16), torch.randn(40)
            want = out.clone()
            reference.add_residual(want, bias, add, resample)
            got, _ = host.residual(out, bias, add, resample, take=False)
            torch.testing.assert_close(got, want, rtol=0, atol=2**-7)


def check_given(host: Launchers, case: NormCase, with_before: bool, offset: int = 0) -> None:
    inputs = make_inputs(case)
    before = torch.randn(case.channels + case.skip) * 2 - 1 if with_before else None
    moments, skip_moments = taken(inputs)
    got = host.film_group_norm_given(moments, skip_moments, before, *inputs, offset=offset)
    assert host.launches == 2
    norm = reference.film_group_norm if before is None else partial(reference.film_group_norm_before, before)
    within(got, norm(*inputs), norm(*doubled(inputs)).double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_before", [False, True])
@pytest.mark.parametrize("case", GIVEN, ids=str)
def test_a_norm_by_given_moments(host: Launchers, case: NormCase, with_before: bool, dtype: torch.dtype) -> None:
    check_given(host, case._replace(dtype=dtype), with_before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_offset_views_take_the_scalar_path(host: Launchers, dtype: torch.dtype) -> None:
    for case in GIVEN[1:4]:
        check_given(host, case._replace(dtype=dtype), True, offset=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", layouts()[::2], ids=str)
def test_a_number_per_channel_before_the_norm(host: Launchers, case: NormCase, dtype: torch.dtype) -> None:
    inputs = make_inputs(case._replace(dtype=dtype))
    before = torch.randn(case.channels + case.skip) * 2 - 1
    got = host.film_group_norm(*inputs, before=before)
    plain, truth = (reference.film_group_norm_before(before, *each) for each in (inputs, doubled(inputs)))
    within(got, plain, truth.double())
    assert torch.equal(host.film_group_norm(*inputs, before=0 * before), host.film_group_norm(*inputs))


def test_any_pixel_may_be_the_pivot(host: Launchers) -> None:
    case = NormCase(24, skip=40, groups=4, size=(48, 48), film="add", mean=30.0)
    inputs = make_inputs(case)
    first, of_skip = taken(inputs)
    other = first.clone()
    other[:, :, 2] = inputs[0].permute(0, 2, 3, 1).reshape(2, -1, CHUNK, 24)[:, :, 77]
    other[:, :, 0] += first[:, :, 2] - other[:, :, 2]
    want, got = (host.film_group_norm_given(each, of_skip, None, *inputs) for each in (first, other))
    torch.testing.assert_close(got, want, rtol=0, atol=4e-6)


def test_large_means_and_large_numbers_before_cost_no_digits(host: Launchers) -> None:
    """Plain PyTorch does lose some: it rounds x + before."""
    case = NormCase(48, skip=16, size=(48, 48), mean=3000.0, film="scale", silu=False)
    inputs = make_inputs(case)
    before = torch.full((64,), 777.7)
    truth = reference.film_group_norm_before(before, *doubled(inputs)).double()
    got = host.film_group_norm_given(*taken(inputs), before, *inputs)
    assert (got.double() - truth).abs().max() <= 8 * EPS * truth.abs().max()


def test_large_fp16_activations_do_not_overflow(host: Launchers) -> None:
    inputs = make_inputs(NormCase(64, size=(48, 48), dtype=torch.float16))
    x = torch.where(inputs[0] > 3, 6e4, -6e4).to(torch.float16)
    assert host.film_group_norm_given(host.moments(x), None, None, x, *inputs[1:]).isfinite().all()


@pytest.mark.parametrize("film", ["scale", "add"])
def test_a_row_out_of_range_gives_nan_for_its_image_alone(host: Launchers, film: str) -> None:
    inputs = make_inputs(NormCase(32, size=(48, 48), batch=3, film=film))
    given = (*taken(inputs), torch.randn(32))
    want = host.film_group_norm_given(*given, *inputs)
    assert inputs[5] is not None
    for bad in (-1, 5, 2**40):
        rows = torch.tensor([inputs[5][0], bad, inputs[5][2]])
        got = host.film_group_norm_given(*given, *inputs[:5], rows, *inputs[6:])
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])


def test_order_of_threads_does_not_matter(host: Launchers) -> None:
    inputs = make_inputs(NormCase(24, skip=40, groups=4, size=(48, 48), film="scale"))
    found = []
    for backwards in (False, True):
        host.run_backwards(backwards)
        try:
            moments = host.moments(inputs[0])
            found.append((moments, host.film_group_norm_given(moments, taken(inputs)[1], None, *inputs)))
        finally:
            host.run_backwards(False)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("side", "channels", "skip"), [(128, 256, 0), (64, 256, 256)])
def test_the_published_size(host: Launchers, side: int, channels: int, skip: int) -> None:
    """One image and two, from the residual to the norm."""
    inputs = make_inputs(NormCase(channels, skip=skip, size=(side, side), film="scale", dtype=torch.bfloat16))
    x, rows = inputs[0], inputs[5]
    assert rows is not None
    bias, add = torch.randn(channels), image(channels, (side, side), torch.bfloat16)
    results = []
    for n in (2, 1):
        out, moments = host.residual(x[:n], bias, add[:n], 0, take=True)
        assert moments is not None
        of_skip = None if inputs[1] is None else inputs[1][:n]
        now: Inputs = (out, of_skip, *inputs[2:5], rows[:n].clone(), *inputs[6:])
        skip_moments = None if of_skip is None else host.moments(of_skip)
        got = host.film_group_norm_given(moments, skip_moments, None, *now)
        within(got, reference.film_group_norm(*now), reference.film_group_norm(*doubled(now)).double())
        results.append((out, moments, got))
    for two, one in zip(*results, strict=True):
        assert torch.equal(two[:1], one)


def test_no_thread_depends_on_timing(watched: Launchers) -> None:
    for case in (GIVEN[2], GIVEN[3], GIVEN[6]):
        check_given(watched, case, True)
    for channels, resample in ((72, -1), (24, 0), (13, 1)):
        sizes = (32, 36), before_resampling((32, 36), resample)
        out, add = (image(channels, size, torch.bfloat16, batch=1) for size in sizes)
        watched.residual(out, torch.randn(channels), add, resample, take=True)


# Those of every other file are tried in test_cuda_on_host.py.
BARRIERS = {"film_group_norm_given.cu": 1, "residual.cu": 2}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=pytest.mark.long(short=number == 0))
        for name, count in BARRIERS.items()
        for number in range(count)
    ],
)
def test_a_missing_barrier_is_found(checkout: Path, tmp_path: Path, name: str, number: int) -> None:
    watched = launchers.without_barrier(checkout, tmp_path, name, number, (Path(name).stem,))
    tries: list[Callable[[], object]] = [partial(check_given, watched, GIVEN[2], False)]
    if name == "residual.cu":
        tries = [partial(watched.moments, image(24, (32, 36), torch.float32, batch=1))]
    launchers.assert_race_is_found(tries)


OPERATORS = """
import ctypes, sys, torch
from rcdm_fast.ops import reference, reference_moments
from rcdm_fast.ops.schema import NormInputs
from tests.norm_cases import NormCase, make_inputs
torch.ops.load_library(sys.argv[1])
kernels = ctypes.CDLL(sys.argv[2])
number = lambda name: ctypes.c_int.in_dll(kernels, "cuda_on_host_" + name)
number("streams").value, number("device").value = 1000, 3  # streams are looked at; another device is the current one
ops, check = torch.ops.rcdm_fast, torch.library.opcheck
skipping = dict(test_utils=("test_schema", "test_faketensor"))
launches = number("launches")

def started(count, operator, *arguments):
    before = launches.value
    result = operator(*arguments)
    assert launches.value - before == count, (operator, launches.value - before)
    return result

case = NormCase(24, skip=40, groups=4, size=(48, 48), film="scale", dtype=torch.bfloat16)
inputs = make_inputs(case)
x, skip = inputs[:2]
before = torch.randn(64)
moments, of_skip = started(1, ops.moments, x), started(1, ops.moments, skip)
for got, image in ((moments, x), (of_skip, skip)):
    torch.testing.assert_close(got, reference_moments.moments(image), rtol=1e-5, atol=1e-5)
for number_before in (None, before):
    out = torch.full((2, 64, 48, 48), float("nan"), dtype=x.dtype).to(memory_format=torch.channels_last)
    started(2, ops.film_group_norm_given_out, out, moments, of_skip, number_before, *inputs)
    want = torch.empty_like(out)
    reference_moments.film_group_norm_given_out(want, moments, of_skip, number_before, *inputs)
    torch.testing.assert_close(out, want)
    check(ops.film_group_norm_given_out.default, (out, moments, of_skip, number_before, *inputs), **skipping)
started(1, ops.film_group_norm_before_out, out, before, *inputs)
torch.testing.assert_close(out, reference.film_group_norm_before(before, *inputs))
check(ops.film_group_norm_before_out.default, (out, before, *inputs), **skipping)
bias, add = torch.randn(24), torch.randn(2, 24, 24, 24).to(x.dtype, memory_format=torch.channels_last)
got, same, want = x.clone(), x.clone(), x.clone()
started(1, ops.add_residual, got, bias, add, 1)
taken = started(1, ops.add_residual_moments, same, bias, add, 1)
reference.add_residual(want, bias, add, 1)
torch.testing.assert_close(got, want)
assert torch.equal(got, same) and torch.equal(taken, ops.moments(got))
check(ops.add_residual.default, (got, bias, add, 1), **skipping)
check(ops.add_residual_moments.default, (got, bias, add, 1), **skipping)
check(ops.moments.default, (x,), **skipping)

empty = (x[:0], skip[:0], *inputs[2:5], inputs[5][:0], *inputs[6:])
assert started(0, ops.moments, x[:0]).shape == (0, 18, 3, 24)
started(0, ops.film_group_norm_given_out, out[:0], moments[:0], of_skip[:0], before, *empty)
assert started(0, ops.add_residual_moments, x[:0], bias, add[:0], 1).shape == (0, 18, 3, 24)

def refuses(message, operator, *arguments):
    try:
        operator(*arguments)
    except RuntimeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"accepted: {message}")

def image(*shape):
    return torch.zeros(shape, dtype=x.dtype).to(memory_format=torch.channels_last)

def given(out_=out, moments_=moments, of_skip_=of_skip, before_=before, **changes):
    return out_, moments_, of_skip_, before_, *NormInputs(*inputs)._replace(**changes)

norm = ops.film_group_norm_given_out
refuses("skip and its moments go together", norm, *given(of_skip_=None))
refuses("moments must be float32 [2,18,3,24]", norm, *given(moments_=of_skip))
refuses("moments must be float32 [2,18,3,24]", norm, *given(moments_=moments.double()))
refuses("skip_moments must be float32 [2,18,3,40]", norm, *given(of_skip_=moments))
refuses("before must be float32 [64]", norm, *given(before_=before[1:]))
refuses("out must be [2,64,48,48]", norm, *given(out_=x))
refuses("32 x 32 are not cut into chunks of 128", norm, image(2, 64, 32, 32), moments, of_skip, before,
        *given(x=image(2, 24, 32, 32), skip=image(2, 40, 32, 32))[4:])
parts = dict(x=image(2, 64, 48, 48), skip=None, weight=before[:16], bias=before[:16], film=None, rows=None)
refuses("nobody takes moments of phases", norm, image(2, 16, 94, 94), moments, None, None,
        *given(**parts, phases=True)[4:])
refuses("before must be float32 [64]", ops.film_group_norm_before_out, out, before.double(), *inputs)
refuses("50 x 50 are not cut into chunks of 128", ops.moments, image(2, 8, 50, 50))
refuses("x must be [N,C,H,W] in channels-last", ops.moments, torch.zeros(2, 8, 48, 48))
refuses("expected float32, bfloat16 or float16", ops.moments, image(2, 8, 48, 48).double())
for operator in (ops.add_residual, ops.add_residual_moments):
    refuses("add does not fit out", operator, x, bias, add, 0)
    refuses("bias must be float32 [24]", operator, x, bias[1:], add, 1)
    refuses("of the dtype", operator, x, bias, add.float(), 1)
    refuses("resample must be", operator, x, bias, add, 2)
    refuses("out must be [N,C,H,W] in channels-last", operator, x.contiguous(), bias, add, 1)
    refuses("5 x 4 is no upsampled size", operator, image(2, 24, 5, 4), bias, add, 1)
assert number("device").value == 3
"""


def test_host_code_and_registration(checkout: Path, tmp_path: Path, kernels: Path) -> None:
    library = launchers.compile_operators(checkout, tmp_path, kernels)
    command = [sys.executable, "-c", OPERATORS, str(library), str(kernels)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
