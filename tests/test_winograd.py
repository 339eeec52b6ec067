"""3x3 convolutions after Winograd: numbers, the same in any batch, what is refused, which convolutions run so.

Every instruction set: `op_checks.quick_round`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import ops
from rcdm_fast.engines.backends import OneDnnBackend
from rcdm_fast.ops import library, reference_winograd, winograd
from rcdm_fast.training.convolution import convolution
from tests import op_checks
from tests.op_checks import error, winograd_inputs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def native() -> None:
    ops.load()
    if not library.has_native("cpu"):
        pytest.skip("no native CPU code")


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize(
    "shape",
    [
        (4, 32, 32, 32, 32),
        (2, 64, 128, 16, 16),
        (3, 256, 64, 8, 8),
        (1, 16, 48, 5, 9),
        (9, 48, 16, 4, 4),
        (2, 32, 16, 1, 1),
        (1, 16, 16, 3, 70),
        (1, 512, 256, 8, 12),
    ],
    ids=str,
)
def test_numbers(shape: tuple[int, int, int, int, int], mean: float) -> None:
    op_checks.check_winograd(*shape, mean=mean)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_are_those_of_the_reference(mirrored: bool, layout: torch.memory_format) -> None:
    weight = torch.randn(48, 32, 3, 3).contiguous(memory_format=layout)
    found, wanted = winograd.packed(weight, mirrored), reference_winograd.winograd_weight(weight, mirrored)
    assert found.shape == wanted.shape == ((36, 2, 48, 16) if mirrored else (36, 3, 32, 16))
    assert error(found, wanted.double()) < 1e-7


def test_the_reference_is_the_convolution_to_the_last_digit_of_float64() -> None:
    x, weight, bias, add = (each.double() for each in winograd_inputs(2, 16, 32, 7, 10))
    a, g, b = reference_winograd.matrices()
    values = torch.einsum("ak,oikl,bl->aboi", g, weight, g)
    tiles = F.pad(x, (1, 3, 1, 2)).unfold(2, 6, 4).unfold(3, 6, 4)
    products = torch.einsum("aboi,nihwab->nohwab", values, torch.einsum("ak,nihwkl,bl->nihwab", b, tiles, b))
    pixels = torch.einsum("pa,nohwab,qb->nohpwq", a, products, a).reshape(2, 32, 8, 12)[..., :7, :10]
    assert torch.allclose(pixels + bias[:, None, None] + add, F.conv2d(x, weight, bias, padding=1) + add, atol=1e-12)


@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_the_operator_is_the_reference(upsampled: bool, biased: bool, added: bool) -> None:
    x, weight, bias, _ = winograd_inputs(3, 32, 48, 6, 5)
    scale = 2 if upsampled else 1
    add = torch.randn(3, 48, 6 * scale, 5 * scale).contiguous(memory_format=torch.channels_last)
    given = winograd.packed(weight), bias if biased else None, add if added else None
    wanted = torch.empty_like(add)
    reference_winograd.winograd_convolution(wanted, x, *given, upsampled)
    found = winograd.convolution(x, *given, upsampled=upsampled)
    assert error(found, wanted.double()) < 3e-6
    if added:
        other = add.clone(memory_format=torch.preserve_format)
        assert winograd.convolution(x, *given[:2], other, overwrite=True, upsampled=upsampled) is other
        assert torch.equal(other, found)
        assert not torch.equal(add, found)


def test_an_image_is_the_same_in_any_batch_and_with_any_threads() -> None:
    x, weight, bias, add = winograd_inputs(9, 64, 32, 12, 20)
    packed = winograd.packed(weight)
    whole, before = winograd.convolution(x, packed, bias, add), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for count in (1, 2, 5, 9):
                assert torch.equal(winograd.convolution(x[:count], packed, bias, add[:count]), whole[:count])
    finally:
        torch.set_num_threads(before)


def test_a_gradient_of_a_weight_is_the_same_with_any_threads() -> None:
    x, _, _, grad = winograd_inputs(5, 32, 48, 18, 22)
    before, found = torch.get_num_threads(), list[tuple[Tensor, Tensor]]()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(winograd.weight_gradient(grad, x))
    finally:
        torch.set_num_threads(before)
    for weight, bias in found[1:]:
        assert torch.equal(weight, found[0][0])
        assert torch.equal(bias, found[0][1])


@pytest.mark.parametrize("shape", [(3, 32, 48, 6, 5), (1, 16, 16, 4, 4), (40, 16, 16, 9, 8)], ids=str)
def test_gradients_of_weights_are_those_of_the_reference(shape: tuple[int, int, int, int, int]) -> None:
    x, _, _, grad = winograd_inputs(*shape)
    for found, wanted in zip(
        winograd.weight_gradient(grad, x), reference_winograd.winograd_weight_gradient(grad, x), strict=True
    ):
        assert found.stride() == wanted.stride()
        assert error(found, wanted.double()) < 3e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda grad, x: (grad, x.contiguous()), "channels-last"),
        (lambda grad, x: (grad.double(), x), "must be float32"),
        (lambda grad, x: (grad[:1], x), "grad does not fit|does not fit x"),
        (lambda grad, x: (grad, x[:, :, 1:].contiguous(memory_format=torch.channels_last)), "does not fit x"),
        (
            lambda grad, x: (grad, x[:, :8].contiguous(memory_format=torch.channels_last)),
            "multiples of 16, got 32 and 8",
        ),
    ],
)
def test_gradients_that_are_refused(change: Callable[..., tuple[Tensor, Tensor]], message: str) -> None:
    x, _, _, grad = winograd_inputs(2, 16, 32, 5, 6)
    given = change(grad, x)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.rcdm_fast.winograd_weight_gradient(*given)
    with pytest.raises(ValueError, match=message):
        reference_winograd.winograd_weight_gradient(*given)


def test_nothing_to_do() -> None:
    x, weight, bias, add = winograd_inputs(2, 16, 16, 4, 4)
    assert winograd.convolution(x[:0], winograd.packed(weight), bias).shape == (0, 16, 4, 4)
    assert not any(bool(each.any()) for each in winograd.weight_gradient(add[:0], x[:0]))


def test_what_is_no_number_stays_near() -> None:
    """In the tiles that see it: no other image, and no pixel further off than a tile."""
    x, weight, bias, _ = winograd_inputs(2, 16, 16, 16, 16)
    x[0, 3, 9, 9] = torch.nan
    found = winograd.convolution(x, winograd.packed(weight), bias)
    assert found[1].isfinite().all()
    assert not found[0, :, 8:11, 8:11].isfinite().any()
    assert found[0, :, :4].isfinite().all()


CHANGES: list[tuple[Callable[..., tuple[Any, ...]], str]] = [
    (lambda out, x, w, b, a: (out, x.contiguous(), w, b, a), "x must be float32|out and x must be float32"),
    (lambda out, x, w, b, a: (out, x.double(), w, b, a), "x must be float32|out and x must be float32"),
    (lambda out, x, w, b, a: (out.bfloat16(), x, w, b, a), "out must be float32|out and x must be float32"),
    (lambda out, x, w, b, a: (out[:1], x, w, b, a), "does not fit x"),
    (lambda out, x, w, b, a: (out[:, :, 1:], x, w, b, a), "does not fit x|channels-last"),
    (lambda out, x, w, b, a: (out, x, w[1:], b, a), "weight must be"),
    (lambda out, x, w, b, a: (out, x, w.transpose(2, 3), b, a), "weight must be"),
    (lambda out, x, w, b, a: (out, x, w[:, :1], b, a), "weight must be"),
    (lambda out, x, w, b, a: (out, x, w.double(), b, a), "weight must be"),
    (lambda out, x, w, b, a: (out, x[:, :0], w[:, :, :0].contiguous(), b, a), "x has no channels|channels-last"),
    (lambda out, x, w, b, a: (out, x, w, b[1:], a), "bias must be"),
    (lambda out, x, w, b, a: (out, x, w, b.double(), a), "bias must be float32"),
    (lambda out, x, w, b, a: (out, x, w, b.repeat(2)[::2], a), "bias must be float32"),
    (lambda out, x, w, b, a: (out, x, w, b, a[:1]), "like out"),
    (lambda out, x, w, b, a: (out, x, w, b, a.contiguous()), "like out|add must be float32"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_is_refused(change: Callable[..., tuple[Any, ...]], message: str) -> None:
    """By the operator and by its fake."""
    x, weight, bias, add = winograd_inputs(2, 16, 32, 5, 6)
    given = (*change(torch.empty_like(add), x, winograd.packed(weight), bias, add), False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.rcdm_fast.winograd_convolution(*given)
    with pytest.raises(ValueError, match=message):
        reference_winograd.winograd_convolution(*given)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(16, 16, 1, 1), r"float32 \[O,I,3,3\]"),
        (torch.zeros(16, 16, 3, 3, dtype=torch.bfloat16), r"float32 \[O,I,3,3\]"),
        (torch.zeros(16, 24, 3, 3), "multiples of 16, got 16 and 24"),
        (torch.zeros(8, 16, 3, 3), "multiples of 16, got 8 and 16"),
    ],
)
def test_weights_that_are_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        winograd.packed(weight)
    with pytest.raises(ValueError, match=message):
        reference_winograd.winograd_weight(weight, False)


def test_registration() -> None:
    x, weight, bias, add = winograd_inputs(2, 16, 32, 5, 6)
    torch.library.opcheck(torch.ops.rcdm_fast.winograd_weight.default, (weight, True))
    torch.library.opcheck(torch.ops.rcdm_fast.winograd_weight_gradient.default, (add, x))
    packed = winograd.packed(weight)
    for rest in ((bias, add), (None, None)):
        torch.library.opcheck(
            torch.ops.rcdm_fast.winograd_convolution.default, (torch.empty_like(add), x, packed, *rest, False)
        )


def test_gradients_are_float32_whatever_the_hosts_default() -> None:
    """What a graph is told of them, too."""
    x = torch.empty(1, 16, 4, 4, dtype=torch.float32, device="meta").to(memory_format=torch.channels_last)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = winograd.weight_gradient(x, x)
    finally:
        torch.set_default_dtype(before)
    assert [each.dtype for each in found] == [torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("weight", "stride", "padding", "dtype", "device", "isa", "served"),
    [
        ((32, 16, 3, 3), 1, 1, torch.float32, "cpu", "avx2", True),
        ((32, 16, 3, 3), 1, 1, torch.float32, "cpu", "avx512", True),
        ((32, 16, 3, 3), 1, 1, torch.float32, "cpu", "avx512_bf16", True),
        ((32, 16, 3, 3), 1, 1, torch.float32, "cpu", "base", False),  # nothing was measured
        ((32, 16, 3, 3), 1, 1, torch.bfloat16, "cpu", "avx512_bf16", False),
        ((32, 16, 3, 3), 1, 1, torch.float32, "meta", "avx2", False),
        ((32, 16, 3, 3), 2, 1, torch.float32, "cpu", "avx2", False),
        ((32, 16, 3, 3), 1, 0, torch.float32, "cpu", "avx2", False),
        ((32, 16, 1, 1), 1, 1, torch.float32, "cpu", "avx2", False),
        ((32, 16, 2, 2), 1, 1, torch.float32, "cpu", "avx2", False),
        ((32, 3, 3, 3), 1, 1, torch.float32, "cpu", "avx2", False),
        ((6, 32, 3, 3), 1, 1, torch.float32, "cpu", "avx2", False),
        ((960, 960, 3, 3), 1, 1, torch.float32, "cpu", "avx2", True),
        ((1024, 960, 3, 3), 1, 1, torch.float32, "cpu", "avx2", False),  # 142 MB at the points
    ],
)
def test_which_convolutions_run_so(
    monkeypatch: pytest.MonkeyPatch,
    weight: tuple[int, ...],
    stride: int,
    padding: int,
    dtype: torch.dtype,
    device: str,
    isa: str,
    served: bool,
) -> None:
    monkeypatch.setattr(library, "instruction_set", lambda: isa)
    given = torch.empty(weight, device="meta")
    assert winograd.serves(given, stride, padding, dtype, torch.device(device)) is served
    monkeypatch.setattr(library, "has_native", lambda _: False)
    assert not winograd.serves(given, stride, padding, dtype, torch.device(device))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("upsampled", [False, True])
def test_an_engine_computes_images_too_small_for_tiles_as_before(
    monkeypatch: pytest.MonkeyPatch, side: int, upsampled: bool
) -> None:
    calls: list[int] = []
    real = winograd.convolution
    monkeypatch.setattr(winograd, "serves", lambda *_: True)

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return real(*given)

    monkeypatch.setattr(winograd, "convolution", counted)
    x, weight, bias, _ = winograd_inputs(2, 16, 32, side, side)
    backend = OneDnnBackend(torch.float32)
    made = backend.upsampling(weight, bias) if upsampled else backend.convolution(weight, bias, 1, 1)
    assert made is not None
    wide = F.interpolate(x, scale_factor=2.0) if upsampled else x
    with torch.inference_mode():
        assert error(made(x), F.conv2d(wide, weight, bias, padding=1).double()) < 3e-6
    assert bool(calls) is (side * (2 if upsampled else 1) >= 4)


@pytest.mark.parametrize("added", [False, True])
def test_gradients_in_training(monkeypatch: pytest.MonkeyPatch, added: bool) -> None:
    """Those of PyTorch's convolution, whichever of them are wanted."""
    x, weight, bias, add = winograd_inputs(3, 16, 32, 6, 8)
    asked: list[bool] = []
    real = winograd.packed
    monkeypatch.setattr(winograd, "serves", lambda *_: True)

    def packed(weight: Tensor, mirrored: bool = False) -> Tensor:
        asked.append(mirrored)
        return real(weight, mirrored)

    monkeypatch.setattr(winograd, "packed", packed)
    grad = torch.randn_like(add)
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        ours = [each.clone().requires_grad_(need) for each, need in zip((x, weight, bias), wanted, strict=True)]
        theirs = [
            each.double().detach().requires_grad_(need) for each, need in zip((x, weight, bias), wanted, strict=True)
        ]
        residual = add.clone().requires_grad_() if added else None
        convolution(ours[0], ours[1], ours[2], padding=1, add=residual).backward(grad)
        F.conv2d(theirs[0], theirs[1], theirs[2], padding=1).backward(grad.double())
        for mine, true, need in zip(ours, theirs, wanted, strict=True):
            assert (mine.grad is not None) is need
            assert mine.grad is None or true.grad is None or error(mine.grad, true.grad) < 3e-6
        assert residual is None or torch.equal(residual.grad, grad)  # type: ignore[arg-type]
    assert asked == [False, True, False, True, False, False]
