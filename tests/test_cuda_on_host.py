"""The logic of the CUDA kernels without a GPU: the same source, compiled for the CPU, against the reference.

Covers indices, barriers, shared memory, the cutting into blocks and the arithmetic. What only a GPU shows (its own
rounding, speed) is in test_ops_cuda.py.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.launches import one_kernel
from rcdm_fast.ops import reference
from tests import op_checks
from tests.cuda_on_host import launchers
from tests.cuda_on_host.launchers import Launchers
from tests.norm_cases import DTYPES, Inputs, NormCase, error_bound, layouts, make_inputs

pytestmark = [
    pytest.mark.long,  # a minute, half of it for the compiler
    pytest.mark.skipif(bool(launchers.missing()), reason=launchers.missing()),
]


@pytest.fixture(scope="module")
def kernels(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, compiled for the CPU."""
    return launchers.compile_launchers(checkout, tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture(scope="module")
def host(kernels: Path) -> Launchers:
    return Launchers(kernels)


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


def test_shared_memory_beyond_the_default_is_asked_for_once_on_every_device(host: Launchers) -> None:
    """What a launch asks for holds for the launches of other threads too: an amount that varied would fail theirs."""
    inputs = make_inputs(NormCase(channels=64, size=(32, 64), batch=1, dtype=torch.bfloat16))
    device, calls = host.number("device"), host.number("attributes")
    asked = []
    try:
        for device.value in (0, 0, 1, 0, 1):
            before = calls.value
            host.film_group_norm(*inputs)
            assert host.launches == 1  # fused: the slab lies in shared memory
            asked.append(calls.value - before)
    finally:
        device.value = 0
    assert asked == [1, 0, 1, 0, 0]


def test_small_images_take_one_launch_and_large_ones_two(host: Launchers) -> None:
    for size, channels, launches in ((4, 1024, 1), (8, 1024, 1), (16, 512, 1), (32, 256, 1), (64, 64, 2)):
        _check(host, NormCase(channels=channels, size=(size, size), dtype=torch.bfloat16))
        assert host.launches == launches


@pytest.mark.parametrize("size", [(5, 7), (70, 64)])
def test_an_image_does_not_depend_on_its_batch(host: Launchers, size: tuple[int, int]) -> None:
    inputs = make_inputs(NormCase(channels=64, size=size, batch=3, film="scale", dtype=torch.bfloat16))
    x, rows = inputs[0], inputs[5]
    assert rows is not None
    together = host.film_group_norm(*inputs)
    for n in range(3):
        alone: Inputs = (x[n : n + 1], *inputs[1:5], rows[n : n + 1].clone(), *inputs[6:])
        assert torch.equal(together[n : n + 1], host.film_group_norm(*alone))


@pytest.mark.parametrize("film", ["scale", "add"])
@pytest.mark.parametrize("size", [(5, 7), (70, 64)])
def test_a_row_out_of_range_gives_nan_for_its_image_alone(host: Launchers, film: str, size: tuple[int, int]) -> None:
    inputs = make_inputs(NormCase(channels=32, size=size, batch=3, film=film))
    want = host.film_group_norm(*inputs)
    for bad in (-1, 5, 2**40):
        rows = torch.tensor([inputs[5][0], bad, inputs[5][2]]) if inputs[5] is not None else None
        got = host.film_group_norm(*inputs[:5], rows, *inputs[6:])
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])


def test_large_fp16_activations_do_not_overflow(host: Launchers) -> None:
    for size in (8, 66):
        inputs = make_inputs(NormCase(channels=64, size=(size, size), dtype=torch.float16))
        x = torch.where(inputs[0] > 3, 6e4, -6e4).to(torch.float16)
        assert host.film_group_norm(x, *inputs[1:]).isfinite().all()


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


FILMS = [  # images, channels, their height and width, the map's
    (3, 16, 8, 8, 8, 8),
    (2, 264, 5, 40, 3, 5),  # two blocks share a line
    (2, 64, 4, 4, 20, 30),  # smaller than the map, whose blended lines leave room for a part of the channels
    (2, 13, 5, 7, 1, 1),
    (2, 3, 1, 1, 6, 6),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", FILMS, ids=str)
def test_map_film(host: Launchers, shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    given = op_checks.map_film_inputs(*shape, dtype=dtype)
    want, plain = op_checks.map_film_by_hand(*given), given[0].clone()
    reference.map_film(plain, *given[1:])
    for offset in (0, 1):
        got = host.map_film(*given, offset=offset)
        assert host.launches == 1
        assert op_checks.error(got, want) <= 2 * op_checks.error(plain, want) + 1e-7
    for image in range(shape[0]):
        alone = host.map_film(given[0][image : image + 1], given[1], given[2][image : image + 1].clone(), *given[3:])
        assert torch.equal(alone[0], got[image])


def test_a_map_out_of_range_gives_nan_for_its_image_alone(host: Launchers) -> None:
    x, film, rows, down, across = op_checks.map_film_inputs(3, 24, 6, 6, 4, 4)
    want = host.map_film(x, film, rows, down, across)
    for bad in (-1, 4, 2**40):
        got = host.map_film(x, film, torch.tensor([rows[0], bad, rows[2]]), down, across)
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])


OPERATORS = """
import ctypes, sys, torch
from benchmarks import launches
from rcdm_fast.ops import reference
from tests import op_checks
from tests.norm_cases import NormCase, error_bound, layouts, make_inputs
torch.ops.load_library(sys.argv[1])
kernels = ctypes.CDLL(sys.argv[2])
number = lambda name: ctypes.c_int.in_dll(kernels, "cuda_on_host_" + name)
number("streams").value, number("device").value = 1000, 3  # streams are looked at; another device is the current one
ops, check = torch.ops.rcdm_fast, torch.library.opcheck
skipping = dict(test_utils=("test_schema", "test_faketensor"))
for case in layouts()[::2]:
    inputs = make_inputs(case)
    truth, bound = error_bound(inputs)
    out = torch.full_like(truth, float("nan"), dtype=case.dtype)
    ops.film_group_norm_out(out, *inputs)
    assert (out.double() - truth).abs().max() <= bound, case
    assert torch.equal(out, ops.film_group_norm(*inputs)), case
    if truth.numel() < 10000:
        check(ops.film_group_norm.default, inputs, **skipping)
        check(ops.film_group_norm_out.default, (out, *inputs), **skipping)
empty = list(make_inputs(NormCase(64, film="scale")))
empty[0], empty[5] = empty[0][:0], empty[5][:0]
assert ops.film_group_norm(*empty).shape == (0, 64, 6, 10)

x, output = torch.randn(2, 3, 8, 9), torch.randn(2, 6, 8, 9).bfloat16().contiguous(memory_format=torch.channels_last)
for count in (0, 1, 8):
    arguments = (x, output, [torch.randn_like(x) for _ in range(count)], [0.1] * count, 1.3, -0.7, 0.9, 0.8, 0.25)
    for got, want in zip(ops.solver_step(*arguments), reference.solver_step(*arguments)):
        torch.testing.assert_close(got, want)
    check(ops.solver_step.default, arguments, **skipping)
assert ops.solver_step(x[:0], output[:0], [], [], 1.0, 1.0, 1.0, 1.0, 1.0)[0].shape == (0, 3, 8, 9)

maps = op_checks.map_film_inputs(3, 24, 6, 7, 4, 5, dtype=torch.bfloat16)
want, plain, got = op_checks.map_film_by_hand(*maps), maps[0].clone(), maps[0].clone()
reference.map_film(plain, *maps[1:])
ops.map_film(got, *maps[1:])
assert op_checks.error(got, want) <= 2 * op_checks.error(plain, want)
check(ops.map_film.default, maps, **skipping)
ops.map_film(maps[0][:0], maps[1], maps[2][:0], *maps[3:])

def refuses(message, operator, *arguments):
    try:
        operator(*arguments)
    except RuntimeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"accepted: {message}")

good = list(make_inputs(NormCase(64, skip=32, film="scale")))
def norm(**changes):
    names = ("x", "skip", "weight", "bias", "film", "rows", "groups", "eps", "silu", "resample", "phases")
    return [changes.get(name, value) for name, value in zip(names, good)]
for message, changes in (
    ("x must be [N,C,H,W] in channels-last", dict(x=good[0].contiguous())),
    ("expected float32, bfloat16 or float16", dict(x=good[0].double(), skip=None)),
    ("skip must have the dtype", dict(skip=good[1].half())),
    ("skip does not fit", dict(skip=good[1][:1])),
    ("do not form 7 groups", dict(groups=7)),
    ("weight must be float32 [96]", dict(weight=good[2].half())),
    ("bias must be float32 [96]", dict(bias=good[3][:-1])),
    ("film and rows go together", dict(rows=None)),
    ("film must be float32", dict(film=good[4][:, :-1])),
    ("rows must be int64 [2]", dict(rows=good[5].int())),
    ("resample must be", dict(resample=2)),
    ("phases go with neither", dict(phases=True)),
):
    if message.startswith("expected"):
        changes.update(weight=good[2][:64], bias=good[3][:64], film=None, rows=None)
    refuses(message, ops.film_group_norm, *norm(**changes))
refuses("out must be [2,96,6,10]", ops.film_group_norm_out, good[0].clone(), *good)
x_, film, rows, down, across = maps
for message, arguments in (
    ("x must be [N,C,H,W] in channels-last", (x_.contiguous(), film, rows, down, across)),
    ("expected float32, bfloat16 or float16", (x_.double(), film, rows, down, across)),
    ("film must be float32 [R,48,h,w]", (x_, film[:, :-1], rows, down, across)),
    ("side by side", (x_, film.contiguous(), rows, down, across)),
    ("film has no rows", (x_, film[:0], rows, down, across)),
    ("rows must be int64 [3]", (x_, film, rows.int(), down, across)),
    ("down must be float32 [6,4]", (x_, film, rows, down[:-1], across)),
    ("across must be float32 [7,5]", (x_, film, rows, down, across.double())),
):
    refuses(message, ops.map_film, *arguments)
step = (1.0, 1.0, 1.0, 1.0, 1.0)
refuses("at most 8 terms", ops.solver_step, x, output, [x] * 9, [1.0] * 9, *step)
refuses("1 terms, 0 weights", ops.solver_step, x, output, [x], [], *step)
refuses("every term must be like x", ops.solver_step, x, output, [x.half()], [1.0], *step)
refuses("output does not fit x", ops.solver_step, x, output[:, :2], [], [], *step)
refuses("bound must be >= 0", ops.solver_step, x, output, [], [], 1.0, 1.0, -1.0, 1.0, 1.0)
device, launches = number("device").value, number("launches").value
assert device == 3 and launches > 50, (device, launches)
"""


def test_host_code_and_registration(checkout: Path, tmp_path: Path, kernels: Path) -> None:
    library = launchers.compile_operators(checkout, tmp_path, kernels)
    command = [sys.executable, "-c", OPERATORS, str(library), str(kernels)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Fused and in chunks, several tiles in a slab, both ways of resampling, vectors and single numbers.
WATCHED = [
    NormCase(32),
    NormCase(192, skip=64, film="scale", dtype=torch.bfloat16),
    NormCase(32, size=(50, 66), batch=1, resample=-1),
    NormCase(9, groups=3, film="add", resample=1),
    NormCase(2200, groups=1, size=(2, 32), batch=1, film="add", resample=1),
    NormCase(64, size=(8, 12), film="scale", phases=True, dtype=torch.float16),
]


def test_the_model_knows_which_norms_take_one_kernel(host: Launchers) -> None:
    """Those of the published size, with and without a skip connection."""
    found = set()
    for side, channels in itertools.product((128, 64, 32, 16, 8), (256, 512, 768, 1024, 1280, 1536, 2048)):
        sizes = {"height": side, "width": side, "x_channels": channels, "batch": 1, "groups": 32}
        problem = launchers.NormProblem(**sizes, format=launchers.FORMATS[torch.float16])
        floats = host.library.rcdm_fast_film_group_norm_workspace(ctypes.byref(problem))
        fits = one_kernel(side * side, channels, 32)
        assert fits == (floats == 0), (side, channels)
        found.add(fits)
    assert found == {True, False}


@pytest.fixture(scope="module")
def watched(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Launchers:
    """The same, with every access followed (cuda_on_host/shadow.h)."""
    return Launchers(launchers.compile_launchers(checkout, tmp_path_factory.mktemp("watched"), shadow=True))


@pytest.mark.parametrize("case", WATCHED, ids=str)
def test_no_thread_depends_on_timing(watched: Launchers, case: NormCase) -> None:
    _check(watched, case)


def test_no_thread_depends_on_timing_in_a_solver_step(watched: Launchers) -> None:
    x = torch.randn(2, 3, 33, 31)
    following, _ = watched.solver_step(x, x.clone(), [x.clone()], [0.1], (1.3, -0.7, 0.9, 0.8, 0.25))
    assert following.isfinite().all()


def test_no_thread_depends_on_timing_in_films_of_maps(watched: Launchers) -> None:
    for shape in FILMS:
        assert watched.map_film(*op_checks.map_film_inputs(*shape, dtype=torch.bfloat16)).isfinite().all()


BARRIERS = {"film_group_norm_block.cuh": 1, "film_group_norm_write.cuh": 2, "join_groups.cuh": 2, "map_film.cu": 1}
MORE = {"film_group_norm_given.cu": 1, "residual.cu": 2}  # tried in test_cuda_moments_on_host.py


def test_every_barrier_is_tried(checkout: Path) -> None:
    counted = {path.name: path.read_text().count("__syncthreads();") for path in checkout.glob("csrc/cuda/*.cu*")}
    assert {name: count for name, count in counted.items() if count} == BARRIERS | MORE


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=pytest.mark.long(short=number == 0))
        for name, count in BARRIERS.items()
        for number in range(count)
    ],
)
def test_a_missing_barrier_is_found(checkout: Path, tmp_path: Path, name: str, number: int) -> None:
    watched = launchers.without_barrier(checkout, tmp_path, name, number, ("film_group_norm", "map_film"))
    tries: list[Callable[[], object]] = [partial(_check, watched, case) for case in WATCHED]
    if name == "map_film.cu":
        tries = [partial(watched.map_film, *op_checks.map_film_inputs(2, 16, 4, 4, 3, 3))]
    launchers.assert_race_is_found(tries)
