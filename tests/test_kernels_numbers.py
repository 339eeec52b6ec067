"""What Triton kernels of a network's way forward compute, against fp64: norms, films of maps and attention.

In Triton's interpreter without a GPU, and on a GPU where there is one (`triton_cases.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.ops import reference
from tests import op_checks
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
    ulp,
)

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import attention as attention_module
from rcdm_fast.kernels import film_group_norm as norm_module
from rcdm_fast.kernels import map_film as map_film_module

SUMMED = DTYPES[:2] if INTERPRETED else DTYPES  # the interpreter multiplies matrices of bfloat16 as integers


@outside
@both_lengths
def test_in_the_interpreter(marked: str, short: bool) -> None:
    passes_in_the_interpreter(__file__, marked, short)


def _check_norm(case: Norm, inputs: list[Any]) -> Tensor:
    got: Tensor = norm_module.film_group_norm(*inputs)
    # Plain PyTorch's fp32 norm loses digits in channels-last memory on a CPU; it is given other memory.
    plain_inputs: list[Any] = [v.contiguous() if isinstance(v, Tensor) else v for v in inputs]
    wide_inputs: list[Any] = [v.double() if isinstance(v, Tensor) and v.dtype == case.dtype else v for v in inputs]
    plain: Tensor = reference.film_group_norm(*plain_inputs)
    truth = reference.film_group_norm(*wide_inputs)
    assert got.dtype == case.dtype
    assert got.shape == truth.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    compare(got, plain, truth)
    return got


@pytest.fixture(params=["slab", "tiles"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One kernel for small images, or the three for large ones whatever the size."""
    if request.param == "tiles":
        monkeypatch.setattr(norm_module, "SLAB_BYTES", 0)
    return str(request.param)


# Every dtype and every film; the other pairs are long.
PAIRS = [
    pytest.param(film, dtype, marks=() if film == index else pytest.mark.long(short=False))
    for film in (0, 1, 2)
    for index, dtype in enumerate(DTYPES)
]


@computes
@pytest.mark.parametrize(("film", "dtype"), PAIRS)
def test_a_norm_of_what_misses_a_bias(film: int, dtype: torch.dtype, path: str) -> None:
    for case in (Norm(24, 4, skip=8, film=film, dtype=dtype), Norm(8, 4, height=6, width=4, film=film, phases=True)):
        inputs = case.inputs(mean=3.0)
        before = torch.randn(case.channels + case.skip, device=DEVICE) * 5
        plain = reference.film_group_norm_before(before, *inputs)
        wide = [v.double() if isinstance(v, Tensor) and v.dtype == case.dtype else v for v in inputs]
        truth = reference.film_group_norm_before(before.double(), *wide)
        got = torch.empty(truth.shape, dtype=case.dtype, device=DEVICE, memory_format=torch.channels_last)
        norm_module.film_group_norm_before_out(got, before, *inputs)
        compare(got, plain, truth)


PER_GROUP = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64)
HEADS = (8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 100, 128, 160, 192, 256)


def _many(values: tuple[int, ...], quick: tuple[int, ...]) -> list[Any]:
    """Parameters; those that are not in `quick` belong to tests marked long, every fifth to their short form."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.long(short=place % 5 == 1))
        for place, value in enumerate(values)
    ]


@computes
@pytest.mark.parametrize("dtype", [SUMMED[0], *(pytest.param(each, marks=pytest.mark.long) for each in SUMMED[1:])])
@pytest.mark.parametrize("per_group", _many(PER_GROUP, (1, 12, 40)))
def test_norm_of_every_number_of_channels(per_group: int, dtype: torch.dtype, path: str) -> None:
    groups = 32 if per_group < 4 else 4
    case = Norm(groups * per_group, groups, film=PER_GROUP.index(per_group) % 3, dtype=dtype)
    _check_norm(case, case.inputs())


CASES = {
    "boundary inside a group": Norm(40, 4, skip=56),
    "boundary inside a vector": Norm(5, 3, skip=7, film=1),
    "published widths": Norm(1024, 32, skip=1024, height=3, width=3, images=1),
    "one group": Norm(36, 1),
    "one channel": Norm(1, 1, images=3),
    "one row": Norm(32, 8, height=1, width=37),
    "no activation": Norm(32, 8, silu=False),
    "up": Norm(64, 32, resample=1, images=1),
    "up, odd": Norm(6, 3, skip=3, height=5, width=11, resample=1),
    "down": Norm(64, 32, height=10, width=6, resample=-1, images=1),
    "down, two inputs": Norm(40, 8, skip=24, height=6, width=14, film=1, resample=-1),
    "phases": Norm(32, 8, height=10, width=6, phases=True),
    "phases, added": Norm(12, 3, height=6, width=14, film=1, phases=True),
}


# The interpreter's time goes with groups times images: the widest only as small images are computed.
WAYS = [
    pytest.param(name, path, marks=pytest.mark.long if name == "published widths" and path == "tiles" else ())
    for name in CASES
    for path in ("slab", "tiles")
]


@computes
@pytest.mark.parametrize(("name", "path"), WAYS, indirect=["path"])
def test_norm(name: str, path: str) -> None:
    _check_norm(CASES[name], CASES[name].inputs())


@computes
@pytest.mark.parametrize("resample", _many((-1, 0, 1), (-1,)))
def test_norm_of_several_chunks_and_wide_offsets(resample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_module, "SLAB_BYTES", 0)
    monkeypatch.setattr(norm_module, "WIDE_ELEMENTS", 0)
    case = Norm(40, 4, skip=8, height=34, width=30, images=1, resample=resample)
    assert norm_module.plan_tiles(34 * 30, 40, 8, 4).chunk < 34 * 30
    _check_norm(case, case.inputs())


@computes
def test_norm_of_half_precision_does_not_overflow(path: str) -> None:
    case = Norm(32, 8, height=8, width=8, dtype=torch.float16)
    inputs = case.inputs()
    inputs[0] = torch.where(torch.rand_like(inputs[0].float()) < 0.5, 6e4, -6e4).half()
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    _check_norm(case, inputs)


@computes
def test_norm_with_a_row_that_is_not_there(path: str) -> None:
    for film in (1, 2):
        inputs = Norm(32, 2, film=film, images=3).inputs()
        want = norm_module.film_group_norm(*inputs)
        inputs[5] = inputs[5].clone()
        inputs[5][0], inputs[5][2] = -1, 5
        got: Tensor = norm_module.film_group_norm(*inputs)
        assert got[[0, 2]].isnan().all()
        assert torch.equal(got[1], want[1])


@computes
@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(each, marks=pytest.mark.long) for each in DTYPES[1:])])
def test_norm_of_an_image_does_not_depend_on_the_batch(dtype: torch.dtype, path: str) -> None:
    inputs = Norm(48, 2, skip=16, height=16, width=10, dtype=dtype, images=2).inputs()
    inputs[:2] = [image.clone(memory_format=torch.preserve_format) for image in inputs[:2]]
    batch = norm_module.film_group_norm(*inputs)
    for i in range(2):
        x, skip, *parameters, film, rows = (
            v[i : i + 1].clone() if k in (0, 1, 5) else v for k, v in enumerate(inputs[:6])
        )
        alone = norm_module.film_group_norm(x, skip, *parameters, film, rows, *inputs[6:])
        assert torch.equal(alone[0], batch[i])


@computes
def test_norm_writes_into_a_given_tensor(path: str) -> None:
    inputs = Norm(32, 2).inputs()
    out = torch.empty_like(inputs[0], memory_format=torch.channels_last).fill_(float("nan"))
    norm_module.film_group_norm_out(out, *inputs)
    assert torch.equal(out, norm_module.film_group_norm(*inputs))


@computes
def test_norm_of_no_images() -> None:
    assert norm_module.film_group_norm(*Norm(32, 8, images=0).inputs()).shape == (0, 32, 9, 7)


@computes
def test_norm_refuses_what_the_schema_refuses() -> None:
    inputs = Norm(32, 8).inputs()
    with pytest.raises(ValueError, match="channels-last memory"):
        norm_module.film_group_norm(inputs[0].contiguous(), *inputs[1:])
    with pytest.raises(ValueError, match="out must be"):
        norm_module.film_group_norm_out(inputs[0][:1], *inputs)


def _plain_attention(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    q, k, v = reference.split_heads(qkv, heads, new_order)
    fractions = torch.softmax(_product(q, k.transpose(2, 3)) / q.shape[-1] ** 0.5, dim=-1)
    return _product(fractions, v).transpose(1, 2).flatten(2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of matrices, by the library that the kernel's products are made by: NumPy's in the interpreter.

    With AVX2 and heads of 256 the interpreted kernel was three times as far off as PyTorch.
    """
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy())) if INTERPRETED else a @ b


def _qkv(images: int, length: int, heads: int, head: int, dtype: torch.dtype) -> Tensor:
    channels = 3 * heads * head
    drawn = torch.randn(images * length * channels + 3) + 0.5
    return drawn.to(dtype).to(DEVICE)[3:].view(images, length, channels)


def _check_attention(qkv: Tensor, heads: int, new_order: bool) -> None:
    got = attention_module.attention(qkv, heads, new_order)
    truth = reference.attention(qkv.double(), heads, new_order)
    assert got.dtype == qkv.dtype
    assert got.shape == truth.shape
    assert got.is_contiguous()
    compare(got, _plain_attention(qkv, heads, new_order), truth)


@computes
@pytest.mark.parametrize("dtype", [SUMMED[0], *(pytest.param(each, marks=pytest.mark.long) for each in SUMMED[1:])])
@pytest.mark.parametrize("head", _many(HEADS, (24, 100, 256)))
def test_attention_of_every_head(head: int, dtype: torch.dtype) -> None:
    _check_attention(_qkv(2, 37, 2, head, dtype), 2, new_order=head % 3 == 0)


@computes
@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("length", _many((1, 2, 16, 31, 64, 65, 257), (1, 31, 65)))
def test_attention_of_every_length(length: int, new_order: bool) -> None:
    for dtype in (torch.float32, torch.float16):
        _check_attention(_qkv(1, length, 3, 32, dtype), 3, new_order)


@computes
def test_attention_of_many_positions() -> None:
    _check_attention(_qkv(1, attention_module.LONG + 1, 1, 16, torch.float16), 1, False)


@computes
def test_attention_with_large_scores() -> None:
    """Scores of thousands, of which one rounding (1e-3) moves weights: how far off a result is, is luck.

    Calculated, with exact softmax and sums of products in float32 in another order: of two heads' largest errors one
    was more than twice the other in a quarter of 150 draws (up to 19 times; an H100 once gave 2.3). So many heads are
    asked, and plain PyTorch's error is its largest in four orders of summation: 1.25 times at most in 40 draws. In the
    interpreter, where the draw is always the same, fewer do.
    """
    assert attention_module.attention((_qkv(1, 70, 2, 32, torch.float32) * 30).half() * 100, 2, False).isfinite().all()
    qkv = _qkv(8 if INTERPRETED else 20, 70, 2, 32, torch.float32) * 30
    got, truth = attention_module.attention(qkv, 2, False), reference.attention(qkv.double(), 2, False)
    error = (got.double() - truth).abs().max()
    bound = 2 * max((_in_order(qkv, order) - truth).abs().max() for order in _orders(32))
    assert error <= bound, f"largest error {error:.2e}, bound {bound:.2e}"


def _orders(head: int) -> list[Tensor]:
    """Orders in which the products of q and k may be summed."""
    forward = torch.arange(head)
    return [forward, forward.flip(0), torch.cat([forward[::2], forward[1::2]]), torch.randperm(head)]


def _in_order(qkv: Tensor, order: Tensor) -> Tensor:
    """Plain PyTorch's attention of two heads, with the columns of q and k in another order; float64."""
    n, length, channels = qkv.shape
    parts = qkv.view(n, length, 2, 3, channels // 6).clone()
    parts[:, :, :, :2] = parts[:, :, :, :2, order.to(qkv.device)]
    return _plain_attention(parts.view(n, length, channels), 2, False).double()


@computes
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_an_image_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    qkv = _qkv(3, 40, 2, 48, dtype).clone()
    batch = attention_module.attention(qkv, 2, False)
    for i in range(3):
        assert torch.equal(attention_module.attention(qkv[i : i + 1].clone(), 2, False)[0], batch[i])


@computes
def test_attention_of_nothing_and_of_a_long_head() -> None:
    assert attention_module.attention(_qkv(0, 5, 1, 16, torch.float32), 1, False).shape == (0, 5, 16)
    _check_attention(_qkv(1, 5, 1, 300, torch.float32), 1, True)
    with pytest.raises(ValueError, match="are not q, k and v of 5 heads"):
        attention_module.attention(_qkv(1, 5, 1, 16, torch.float32), 5, False)


def _film(x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """What the kernel leaves in x, which lies between numbers that must stay."""
    n, channels, height, width = x.shape
    around = torch.full((x.numel() + 16,), 7.0, dtype=x.dtype)
    inside = around[8:-8].view(n, height, width, channels).permute(0, 3, 1, 2).copy_(x)
    around = around.to(DEVICE)
    inside = around[8:-8].view(n, height, width, channels).permute(0, 3, 1, 2)
    map_film_module.map_film(inside, *(each.to(DEVICE) for each in (film, rows, down, across)))
    assert (around[:8] == 7).all()
    assert (around[-8:] == 7).all()
    return inside


FILMS = [(3, 16, 8, 8, 8, 8), (2, 140, 3, 40, 2, 5), (2, 24, 4, 4, 9, 6), (2, 13, 5, 7, 1, 1), (1, 3, 1, 1, 4, 4)]


@computes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", FILMS, ids=str)
def test_films_of_maps(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_film_module, "WIDE_ELEMENTS", 1 if shape[1] == 13 else 2**31)
    given = op_checks.map_film_inputs(*shape, dtype=dtype)
    truth, plain = op_checks.map_film_by_hand(*given), given[0].clone()
    reference.map_film(plain, *given[1:])
    got = _film(*given)
    assert op_checks.error(got.cpu(), truth) <= 2 * op_checks.error(plain, truth) + 1e-7 + ulp(dtype)
    x, film, rows, *weights = given
    last = shape[0] - 1
    assert torch.equal(_film(x[last:], film, rows[last:].clone(), *weights)[0], got[last])


@computes
def test_a_map_out_of_range_gives_nan_for_its_image_alone() -> None:
    x, film, rows, *weights = op_checks.map_film_inputs(3, 24, 4, 4, 4, 4)
    want = _film(x, film, rows, *weights)
    for bad in (-1, 4, 2**40):
        got = _film(x, film, torch.tensor([rows[0], bad, rows[2]]), *weights)
        assert got[1].isnan().all()
        assert torch.equal(got[::2], want[::2])
    assert _film(x[:0], film, rows[:0], *weights).shape == (0, 24, 4, 4)
