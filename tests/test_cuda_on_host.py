"""The logic of the CUDA kernels without a GPU: the same source, compiled for the CPU, against the reference.

Covers indices, barriers, shared memory, the cutting into blocks and the arithmetic. What only a GPU shows (its own
rounding, speed, streams) is in test_ops_cuda.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rcdm_fast.ops import reference
from tests.cuda_on_host import launchers
from tests.cuda_on_host.launchers import Launchers
from tests.norm_cases import DTYPES, NormCase, error_bound, layouts, make_inputs

pytestmark = pytest.mark.skipif(bool(launchers.missing()), reason=launchers.missing())


@pytest.fixture(scope="module")
def host(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Launchers:
    """The kernels, compiled for the CPU."""
    return Launchers(launchers.compile_launchers(checkout, tmp_path_factory.mktemp("cuda_on_host")))


def _check(host: Launchers, case: NormCase, offset: int = 0) -> None:
    inputs = make_inputs(case)
    got = host.film_group_norm(*inputs, offset=offset)
    truth, bound = error_bound(inputs)
    error = (got.double() - truth).abs().max().item()
    assert error <= bound, f"{case}: error {error:.3g}, allowed {bound:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", layouts(), ids=str)
def test_film_group_norm(host: Launchers, case: NormCase, dtype: torch.dtype) -> None:
    _check(host, case._replace(dtype=dtype))


@pytest.mark.parametrize("case", layouts()[::3], ids=str)
def test_order_of_threads_does_not_matter(host: Launchers, case: NormCase) -> None:
    inputs = make_inputs(case)
    forwards = host.film_group_norm(*inputs)
    host.run_backwards(True)
    try:
        backwards = host.film_group_norm(*inputs)
    finally:
        host.run_backwards(False)
    assert torch.equal(forwards, backwards)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [6, 66])
def test_offset_views_take_the_scalar_path(host: Launchers, size: int, dtype: torch.dtype) -> None:
    _check(host, NormCase(channels=32, skip=32, size=(size, size), film="scale", dtype=dtype), offset=1)


def test_small_pictures_take_one_launch_and_large_ones_two(host: Launchers) -> None:
    for size, channels, launches in ((4, 1024, 1), (8, 1024, 1), (16, 512, 1), (32, 256, 1), (64, 64, 2)):
        _check(host, NormCase(channels=channels, size=(size, size), dtype=torch.bfloat16))
        assert host.launches == launches


@pytest.mark.parametrize("size", [(5, 7), (70, 64)])
def test_a_picture_does_not_depend_on_its_batch(host: Launchers, size: tuple[int, int]) -> None:
    inputs = make_inputs(NormCase(channels=64, size=size, batch=3, film="scale", dtype=torch.bfloat16))
    x, rows = inputs[0], inputs[5]
    assert rows is not None
    together = host.film_group_norm(*inputs)
    for n in range(3):
        alone = host.film_group_norm(x[n : n + 1], *inputs[1:5], rows[n : n + 1].clone(), *inputs[6:])
        assert torch.equal(together[n : n + 1], alone)


@pytest.mark.parametrize("film", ["scale", "add"])
@pytest.mark.parametrize("size", [(5, 7), (70, 64)])
def test_a_row_out_of_range_gives_nan_for_its_picture_alone(
    host: Launchers, film: str, size: tuple[int, int]
) -> None:
    inputs = make_inputs(NormCase(channels=32, size=size, batch=3, film=film))
    want = host.film_group_norm(*inputs)
    for bad in (-1, 5, 2**40):
        rows = torch.tensor([inputs[5][0], bad, inputs[5][2]]) if inputs[5] is not None else None
        got = host.film_group_norm(*inputs[:5], rows, *inputs[6:])
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])


def test_large_fp16_activations_do_not_overflow(host: Launchers) -> None:
    for size in (8, 66):
        inputs = list(make_inputs(NormCase(channels=64, size=(size, size), dtype=torch.float16)))
        inputs[0] = torch.where(inputs[0] > 2.5, 6e4, -6e4).to(torch.float16)
        assert host.film_group_norm(*inputs).isfinite().all()  # type: ignore[arg-type]


STEPS = {
    "nchw": lambda n, c, h, w: torch.randn(n, c, h, w),
    "channels_last_with_variance": lambda n, c, h, w: torch.randn(n, h, w, 2 * c).permute(0, 3, 1, 2),
    "strided": lambda n, c, h, w: torch.randn(n, c + 1, 2 * h, 3 * w)[:, :, ::2, ::3],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", STEPS)
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 33, 31), (2, 1, 5, 12), (2, 4, 40, 36)])
@pytest.mark.parametrize("terms", [0, 1, 3, 8])
def test_solver_step(
    host: Launchers, shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype, terms: int
) -> None:
    x, output = torch.randn(shape) + 0.3, STEPS[layout](*shape).to(dtype)
    listed, weights = [torch.randn(shape) for _ in range(terms)], [0.1 * k - 0.3 for k in range(terms)]
    numbers = (1.3, -0.7, 0.9, 0.8, 0.25)
    wanted = reference.solver_step(x.double(), output, listed, weights, *numbers)
    for offset in (0, 1):
        for got, want in zip(host.solver_step(x, output, listed, weights, numbers, offset), wanted, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)


def test_solver_step_keeps_nan_and_clips_nothing_at_infinity(host: Launchers) -> None:
    x = torch.tensor([float("nan"), 5.0, -7.0, float("inf")]).view(1, 1, 1, 4)
    output = torch.zeros(1, 1, 1, 4)
    for bound, want in ((float("inf"), [5.0, -7.0, float("inf")]), (1.0, [1.0, -1.0, 1.0])):
        _, x0 = host.solver_step(x, output, [], [], (1.0, 1.0, bound, 1.0, 0.0))
        assert x0[0, 0, 0, 0].isnan()
        assert x0[0, 0, 0, 1:].tolist() == want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 4096, 4097, 10007])
@pytest.mark.parametrize("offset", [0, 1])
def test_pictures_to_uint8(host: Launchers, count: int, dtype: torch.dtype, offset: int) -> None:
    x = (torch.randn(count) * 0.8 + 0.1).to(dtype)
    assert torch.equal(host.pictures_to_uint8(x, offset), reference.pictures_to_uint8(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number(host: Launchers, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    assert torch.equal(host.pictures_to_uint8(x), reference.pictures_to_uint8(x))
