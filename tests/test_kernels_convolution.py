"""3x3 convolutions with bias and residual: what Triton computes, interpreted or on a GPU, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import convolution as module
from rcdm_fast.ops import candidates, reference, schema_folding, selection
from tests.triton_cases import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    both_lengths,
    computes,
    outside,
    passes_in_the_interpreter,
    patched_once,  # noqa: F401  (a fixture)
    poisoned,  # noqa: F401  (a fixture)
)

SUMMED = DTYPES[:2] if INTERPRETED else DTYPES  # the interpreter multiplies matrices of bfloat16 as integers
SHAPES = [(2, 20, 40, 4, 6), (3, 16, 3, 4, 2), (1, 70, 17, 4, 4), (0, 8, 8, 4, 4)]  # images, in, out, height, width


@outside
@both_lengths
def test_in_the_interpreter(marked: str, short: bool) -> None:
    passes_in_the_interpreter(__file__, marked, short)


def made(shape: tuple[int, ...], resample: int, dtype: torch.dtype, device: str = DEVICE) -> tuple[Tensor, ...]:
    n, inner, outer, height, width = shape
    sides = {-1: (2 * height, 2 * width), 0: (height, width), 1: (height // 2, width // 2)}[resample]

    def of(*size: int) -> Tensor:
        return torch.randn(size).to(device, dtype, memory_format=torch.channels_last)

    bias = torch.randn(outer).to(device)
    return of(n, inner, height, width), of(outer, inner, 3, 3), bias, of(n, outer, *sides)


@computes
@pytest.mark.parametrize("dtype", SUMMED, ids=str)
@pytest.mark.parametrize(
    ("resample", "splits"),
    [(-1, 1), (0, 4), (1, 1), *(pytest.param(*each, marks=pytest.mark.long) for each in ((-1, 4), (0, 1), (1, 4)))],
)
def test_it_is_the_convolution(resample: int, splits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """No farther from float64 than twice PyTorch's own, at borders, in odd numbers of channels, for large tensors."""
    for number, shape in enumerate(SHAPES):
        monkeypatch.setattr(module, "WIDE_ELEMENTS", 1 if number % 2 else 2**31)
        monkeypatch.setattr(module, "COLUMNS", 32 if number == 0 else 128)  # several tiles either way
        monkeypatch.setattr(module, "ROWS", 32 if number == 0 else 128)
        x, weight, bias, add = made(shape, resample, dtype)
        truth = reference.convolution_residual(x.double(), weight.double(), bias, add.double(), resample)
        out = module.convolution_residual(x, weight, bias, add, resample, splits)
        assert out.is_contiguous(memory_format=torch.channels_last) or not out.numel()
        plain = reference.convolution_residual(x, weight, bias, add, resample).double()
        error, own = (float((each.double() - truth).abs().max()) if each.numel() else 0.0 for each in (out, plain))
        scale = float(truth.abs().max()) if truth.numel() else 1.0
        assert error <= 2 * own + scale * torch.finfo(dtype).eps * (2 if INTERPRETED else 1)  # which truncates


@computes
def test_nothing_need_be_added() -> None:
    x, weight, _, _ = made((2, 20, 40, 4, 6), 0, torch.float16)
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    for splits in (1, 8):
        out = module.convolution_residual(x, weight, None, None, 0, splits).double()
        assert float((out - truth).abs().max() / truth.abs().max()) <= 2 * torch.finfo(torch.float16).eps


@computes
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_products_of_other_images_are_part_of_the_sum(residual: bool, sides: int) -> None:
    """However it is split: some parts have nothing but those, or nothing at all."""
    x, weight, bias, add = made((2, 20, 40, 4, 6), 0, torch.float16)
    given: list[Tensor | None] = [None] * 4
    for side, channels in enumerate((70, 17)[:sides]):
        given[2 * side] = made((2, channels, 1, 4, 6), 0, torch.float16)[0]
        given[2 * side + 1] = made((40, channels, 1, 1, 1), 0, torch.float16)[0]
    wide = [None if each is None else each.double() for each in given]
    truth = reference.convolution_residual(
        x.double(), weight.double(), bias, add.double() if residual else None, 0, 1, *wide
    )
    for splits in (1, 3, 8, 16):
        out = module.convolution_residual(x, weight, bias, add if residual else None, 0, splits, *given)
        error = float((out.double() - truth).abs().max() / truth.abs().max())
        assert error <= 2 * torch.finfo(torch.float16).eps


@computes
def test_an_image_has_the_same_bits_in_any_batch() -> None:
    x, weight, bias, add = made((3, 24, 32, 4, 4), 0, torch.float16)
    for splits in (1, 4):
        whole = module.convolution_residual(x, weight, bias, add, 0, splits)
        alone = module.convolution_residual(x[2:], weight, bias, add[2:], 0, splits)
        assert torch.equal(whole[2:], alone)


@outside
def test_what_it_means() -> None:
    """By a sum over taps, written out."""
    x, weight, bias, add = made((1, 3, 4, 4, 6), 1, torch.float32, "cpu")
    wanted = bias[:, None, None] + F.interpolate(add, scale_factor=2.0)
    padded = F.pad(x, (1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            wanted = wanted + torch.einsum("nchw,oc->nohw", padded[:, :, i : i + 4, j : j + 6], weight[:, :, i, j])
    torch.testing.assert_close(torch.ops.rcdm_fast.convolution_residual(x, weight, bias, add, 1, 1), wanted)


@outside
def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias, add = made((1, 4, 6, 4, 4), 0, torch.float32, "cpu")
    check = schema_folding.convolution_residual_result
    for given, match in (
        ((x, weight[:, :3], bias, add, 0, 1), "weight .* does not fit x"),
        ((x, weight[..., :1, :1], bias, add, 0, 1), "weight .* does not fit x"),
        ((x, weight.half(), bias, add, 0, 1), "one dtype"),
        ((x, weight, bias, add, 0, 0), "splits must be at least 1, got 0"),
        ((x.contiguous(), weight, bias, add, 0, 1), "channels-last"),
        ((x, weight, bias, add[:, :4], 0, 1), "does not fit out"),
        ((x, weight, bias[:4], add, 0, 1), r"bias must be float32 \[6\]"),
        ((x, weight, bias, add, 3, 1), "resample must be"),
        ((x, weight, bias, None, 1, 1), "resample is a residual's"),
        ((x, weight, None, add, 0, 1), "adds a bias, too"),
        ((x, weight, bias, None, 0, 1, None, None, x, weight[..., :1, :1]), "right comes after left"),
        ((x, weight, bias, None, 0, 1, x), "left and its weight go together"),
        ((x, weight, bias, None, 0, 1, x, weight), "does not fit"),
        ((x, weight, bias, None, 0, 1, x, weight[:, :, :1, :1].half()), "x's dtype"),
        ((x, weight, bias, None, 0, 1, x.contiguous(), weight[:, :, :1, :1].contiguous()), "channels-last"),
    ):
        with pytest.raises(ValueError, match=match):
            check(*given)
    assert check(x, weight, bias, add, 0, 1).is_contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.rcdm_fast.convolution_residual, (x, weight, bias, add, 0, 1))


@outside
def test_sums_are_split_where_there_are_few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For 16 bits alone; what runs where nothing is measured is the library's convolution."""
    monkeypatch.setattr(candidates, "triton_reason", lambda device: "" if device.type == "cuda" else "none")
    cuda = torch.device("cuda")
    ours = ["library", "triton1", "triton4", "triton8"]
    for dtype, split, wanted in (
        (torch.float16, False, ours[:2]), (torch.bfloat16, True, ours), (torch.float32, True, ours[:1]),
        (torch.float64, True, ours[:1]),
    ):  # fmt: skip
        assert list(candidates.convolution_residual_candidates(cuda, dtype, split)) == wanted
    choices = selection.Choices(torch.device("cpu"))
    for size in (4, 24):
        x, weight, bias, add = made((2, 8, 8, size, size), -1, torch.float32, "cpu")
        with choices.measuring():
            found = choices.convolution_residual(x, weight, bias, add, -1)
        torch.testing.assert_close(found, reference.convolution_residual(x, weight, bias, add, -1))
    met = [name for name in choices.describe() if "convolution" in name]
    assert met == [f"convolution_residual, {count} pixels of float32" for count in ("few", "many")]
