"""The CUDA operators on a GPU: exact enough, independent of the batch, usable in graphs and on any stream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.ops import library, reference
from tests import native_errors, op_checks
from tests.norm_cases import DTYPES, Inputs, NormCase, error_bound, layouts, make_inputs

pytestmark = pytest.mark.gpu

PER_GROUP = (1, 2, 3, 4, 6, 8, 16, 24, 32, 40, 48, 56, 64)
SIZES = ((4, 4), (8, 8), (15, 9), (32, 32), (65, 63), (128, 128))


@pytest.fixture(scope="module", autouse=True)
def _native() -> None:
    (part,) = (part for part in library.describe() if part.name == "cuda")
    if not part.loaded:
        pytest.skip(f"the CUDA part is missing: {part.reason}")


def _run(inputs: Inputs) -> Tensor:
    """The result in memory that was poisoned before; PyTorch's allocator hands out used memory too."""
    poison = torch.full((1 << 22,), float("nan"), device=inputs[0].device)
    del poison
    want = torch.ops.rcdm_fast.film_group_norm(*inputs)
    out = torch.full_like(want, float("nan"))
    torch.ops.rcdm_fast.film_group_norm_out(out, *inputs)
    assert torch.equal(out, want)
    return out


def _check(case: NormCase) -> None:
    inputs = make_inputs(case, "cuda")
    truth, bound = error_bound(inputs)
    error = (_run(inputs).double() - truth).abs().max().item()
    assert error <= bound, f"{case}: error {error:.3g}, allowed {bound:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", PER_GROUP)
def test_film_group_norm_for_every_group_size(per_group: int, dtype: torch.dtype) -> None:
    groups = min(32, 1024 // per_group)
    for size in SIZES:
        _check(NormCase(per_group * groups, groups=groups, size=size, film="scale", dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", layouts(), ids=str)
def test_film_group_norm_for_every_layout(case: NormCase, dtype: torch.dtype) -> None:
    _check(case._replace(dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_image(dtype: torch.dtype) -> None:
    _check(NormCase(64, skip=64, size=(512, 510), batch=1, film="scale", dtype=dtype))


def _off_alignment(tensor: Tensor) -> Tensor:
    buffer = torch.full((tensor.numel() + 3,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    return buffer[3:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 8), (66, 64)])
def test_offset_views(size: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = make_inputs(NormCase(64, skip=32, size=size, film="scale", dtype=dtype), "cuda")
    assert inputs[1] is not None
    truth, bound = error_bound(inputs)
    got = _run((_off_alignment(inputs[0]), _off_alignment(inputs[1]), *inputs[2:]))
    assert (got.double() - truth).abs().max().item() <= bound


@pytest.mark.parametrize("size", [(8, 8), (33, 31), (96, 96)])
def test_an_image_does_not_depend_on_its_batch(size: tuple[int, int]) -> None:
    inputs = make_inputs(NormCase(128, size=size, batch=9, film="scale", dtype=torch.bfloat16), "cuda")
    x, rows = inputs[0], inputs[5]
    assert rows is not None
    together = _run(inputs)
    assert torch.equal(together, _run(inputs))
    for n in range(9):
        assert torch.equal(together[n : n + 1], _run((x[n : n + 1], *inputs[1:5], rows[n : n + 1], *inputs[6:])))


@pytest.mark.parametrize("film", ["scale", "add"])
@pytest.mark.parametrize("size", [(8, 8), (66, 64)])
def test_a_row_out_of_range_gives_nan_for_its_image_alone(film: str, size: tuple[int, int]) -> None:
    inputs = make_inputs(NormCase(64, size=size, batch=3, film=film), "cuda")
    want = _run(inputs)
    assert inputs[5] is not None
    for bad in (-1, 5, 2**40):
        rows = inputs[5].clone()
        rows[1] = bad
        got = torch.ops.rcdm_fast.film_group_norm(*inputs[:5], rows, *inputs[6:])
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])


def test_large_fp16_activations_do_not_overflow() -> None:
    for size in ((8, 8), (128, 128)):
        inputs = make_inputs(NormCase(64, size=size, dtype=torch.float16), "cuda")
        x = torch.where(inputs[0] > 3, 6e4, -6e4).to(torch.float16)
        assert torch.ops.rcdm_fast.film_group_norm(x, *inputs[1:]).isfinite().all()


@pytest.mark.parametrize("case", layouts()[::5], ids=str)
def test_registration(case: NormCase) -> None:
    inputs = make_inputs(case, "cuda")
    torch.library.opcheck(torch.ops.rcdm_fast.film_group_norm.default, inputs)
    out = torch.ops.rcdm_fast.film_group_norm(*inputs)
    torch.library.opcheck(torch.ops.rcdm_fast.film_group_norm_out.default, (out, *inputs))


def test_in_a_cuda_graph() -> None:
    inputs = make_inputs(NormCase(64, size=(66, 64), film="scale"), "cuda")
    small = make_inputs(NormCase(512, size=(16, 16), film="scale"), "cuda")
    x, noise = torch.randn(2, 3, 32, 32, device="cuda"), torch.randn(2, 3, 32, 32, device="cuda")

    def everything() -> tuple[Tensor, ...]:
        norms = [torch.ops.rcdm_fast.film_group_norm(*given) for given in (inputs, small)]
        step = torch.ops.rcdm_fast.solver_step(x, noise, [noise], [0.5], 1.0, 0.5, 1.0, 0.5, 0.5)
        return (*norms, *step)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        everything()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything()
    for tensor in (inputs[0], small[0], x):
        tensor.normal_()
    graph.replay()
    for got, want in zip(captured, everything(), strict=True):
        assert torch.equal(got, want)


def test_the_current_stream_is_used() -> None:
    inputs = make_inputs(NormCase(64, size=(128, 128), film="scale"), "cuda")
    want = _run(inputs)
    x = torch.zeros_like(inputs[0])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # the copy comes late; a kernel on another stream would see zeros
        x.copy_(inputs[0])
        got = torch.ops.rcdm_fast.film_group_norm(x, *inputs[1:])
    stream.synchronize()
    assert torch.equal(got, want)


def test_empty_batches() -> None:
    inputs = make_inputs(NormCase(64, film="scale"), "cuda")
    assert inputs[5] is not None
    empty = torch.ops.rcdm_fast.film_group_norm(inputs[0][:0], *inputs[1:5], inputs[5][:0], *inputs[6:])
    assert empty.shape == (0, 64, 6, 10)
    x = torch.randn(0, 3, 8, 8, device="cuda")
    assert ops.solver_step(x, x, x_to_x0=1, output_to_x0=1, bound=1, x0_to_next=1, x_to_next=1)[0].shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 33, 31), (70000, 1, 2, 2), (4, 3, 128, 128)])
@pytest.mark.parametrize("terms", [0, 1, 8])
def test_solver_step(shape: tuple[int, int, int, int], dtype: torch.dtype, terms: int) -> None:
    n, channels, height, width = shape
    x = torch.randn(shape, device="cuda")
    wide = torch.randn(n, 2 * channels, height, width, device="cuda").to(dtype)
    listed, weights = [torch.randn_like(x) for _ in range(terms)], [0.1 * k - 0.3 for k in range(terms)]
    for output in (wide, wide.contiguous(memory_format=torch.channels_last), wide[:, channels:]):
        numbers = (1.3, -0.7, 0.9, 0.8, 0.25)
        truth = reference.solver_step(x.double(), output, listed, weights, *numbers)
        plain = reference.solver_step(x, output, listed, weights, *numbers)
        got = torch.ops.rcdm_fast.solver_step(x, output, listed, weights, *numbers)
        for value, exact, other in zip(got, truth, plain, strict=True):
            bound = 2 * (other.double() - exact).abs().max().item() + 1e-7
            assert (value.double() - exact).abs().max().item() <= bound
    torch.library.opcheck(
        torch.ops.rcdm_fast.solver_step.default, (x[:2], wide[:2], [t[:2] for t in listed], weights, *numbers)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 64, 32, 32, 8, 8), (2, 264, 5, 130, 3, 5), (2, 13, 5, 7, 30, 30)], ids=str)
def test_map_film(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    given = op_checks.map_film_inputs(*shape, dtype=dtype)
    want, plain = op_checks.map_film_by_hand(*given), given[0].clone()
    reference.map_film(plain, *given[1:])
    there = tuple(each.cuda() for each in given)
    got = there[0].clone()
    torch.ops.rcdm_fast.map_film(got, *there[1:])
    assert op_checks.error(got.cpu(), want) <= 2 * op_checks.error(plain, want) + 1e-7
    x, film, rows, *weights = there
    alone = x[1:2].clone(memory_format=torch.channels_last)
    torch.ops.rcdm_fast.map_film(alone, film, rows[1:2].clone(), *weights)
    assert torch.equal(alone[0], got[1])
    torch.library.opcheck(torch.ops.rcdm_fast.map_film.default, there)


def test_the_wrappers_choose_the_native_operators() -> None:
    inputs = make_inputs(NormCase(64, film="scale"), "cuda")
    x, skip, weight, bias, film, rows = inputs[:6]
    got = ops.film_group_norm(x, weight, bias, skip=skip, film=film, rows=rows)
    truth, bound = error_bound(inputs)
    assert (got.double() - truth).abs().max().item() <= bound
    assert library.has_native("cuda")


def test_tensors_on_two_devices_are_refused() -> None:
    """By the wrapper in Python; by the operator itself in C++, in a process of its own.

    On the first H100 (torch 2.11, a g++ of that machine) the latter ended the process; see `test_native_errors.py`,
    which asks the same of both parts without a GPU.
    """
    x, _, weight, bias, *_ = make_inputs(NormCase(64), "cuda")
    with pytest.raises(ValueError, match="on one device"):
        ops.film_group_norm(x, weight.cpu(), bias)
    done = native_errors.run("two_devices")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    inputs = make_inputs(NormCase(64, size=(66, 64), film="scale"), "cuda:1")
    truth, bound = error_bound(inputs)
    assert (_run(inputs).double() - truth).abs().max().item() <= bound
    assert torch.cuda.current_device() == 0
