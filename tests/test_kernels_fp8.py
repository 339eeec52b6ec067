"""fp8 in Triton: rounding and 3x3 convolutions, interpreted or on a GPU, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import fp8_convolution as module
from rcdm_fast.models import fp8
from rcdm_fast.ops import reference_fp8, schema_fp8
from rcdm_fast.ops.schema_fp8 import E4M3
from tests.triton_cases import (
    DEVICE,
    INTERPRETED,
    computes,
    outside,
    passes_in_the_interpreter,
    patched_once,  # noqa: F401  (a fixture)
    poisoned,  # noqa: F401  (a fixture)
)

HAS_FP8 = INTERPRETED or (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))
on_fp8 = pytest.mark.skipif(not HAS_FP8, reason="this GPU has no e4m3")
SHAPES = [(2, 20, 40, 4, 6), (3, 16, 3, 4, 2), (1, 150, 17, 4, 5), (0, 8, 8, 4, 4)]  # images, in, out, height, width


@outside
def test_in_the_interpreter(short: bool) -> None:
    passes_in_the_interpreter(__file__, "not long", short)


def made(shape: tuple[int, ...], resize: int, resample: int | None, dtype: torch.dtype, device: str) -> list[Any]:
    """What the convolution is given: channels of different sizes, a residual unless `resample` is None."""
    n, inner, outer, height, width = shape
    out = {-1: ((height + 1) // 2, (width + 1) // 2), 0: (height, width), 1: (2 * height, 2 * width)}[resize]
    sides = {-1: [2 * side for side in out], 0: out, 1: [side // 2 for side in out]}[resample or 0]

    def of(*size: int, spread: float) -> Tensor:
        return (torch.randn(size) * spread).to(device, memory_format=torch.channels_last)

    x = of(n, inner, height, width, spread=60.0).clamp(-448, 448).to(E4M3)
    weight = of(outer, inner, 3, 3, spread=100.0).clamp(-448, 448).to(E4M3)
    scale, bias = torch.rand(outer).to(device) * 1e-4, torch.randn(outer).to(device)
    add = None if resample is None else of(n, outer, *sides, spread=1.0).to(dtype)
    return [x, weight, scale, bias, add, resize, resample or 0, dtype]


def truth(given: list[Any]) -> Tensor:
    """In float64, from the rounded operands."""
    x, weight, scale, bias, add, resize, resample, _ = given
    image = x.float().double()
    image = image.repeat_interleave(2, 2).repeat_interleave(2, 3) if resize == 1 else image
    sums = F.conv2d(image, weight.float().double(), stride=2 if resize == -1 else 1, padding=1)
    whole = sums * scale.double()[:, None, None] + bias.double()[:, None, None]
    if add is not None:
        read = add.double()
        if resample == 1:
            read = read.repeat_interleave(2, 2).repeat_interleave(2, 3)
        whole = whole + (F.avg_pool2d(read, 2) if resample == -1 else read)
    found: Tensor = whole
    return found


@computes
@on_fp8
@pytest.mark.parametrize(
    ("resize", "resample"), [(0, None), (0, -1), (0, 1), (1, 0), (-1, None), (-1, -1), (1, None)], ids=str
)
def test_it_is_the_sum_of_rounded_operands(resize: int, resample: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """At borders, in odd numbers of channels, in several tiles, for large tensors."""
    for number, shape in enumerate(SHAPES):
        if resample == 1 and resize == 0 and shape[-1] % 2:
            continue  # no upsampled size
        monkeypatch.setattr(module, "WIDE_ELEMENTS", 1 if number % 2 else 2**31)
        monkeypatch.setattr(module, "COLUMNS", 32 if number == 0 else 128)
        monkeypatch.setattr(module, "ROWS", 32 if number == 0 else 128)
        monkeypatch.setattr(module, "DEPTH", 32 if number == 0 else 128)
        for dtype in (torch.float32, torch.float16) if number == 0 else (torch.float16,):
            given = made(shape, resize, resample, dtype, DEVICE)
            got, want = module.fp8_convolution(*given), truth(given)
            assert got.dtype == dtype
            assert got.shape == want.shape
            if not want.numel():
                continue
            assert got.is_contiguous(memory_format=torch.channels_last)
            # Sums of a Hopper's matrix unit have 14 bits, up to PROMOTED numbers at a time.
            summed = 2e-6 if INTERPRETED else 2e-4
            bound = torch.finfo(dtype).eps / 2 * want.abs() + summed * want.abs().max()
            assert bool(((got.double() - want).abs() <= bound).all())


@computes
@on_fp8
def test_an_image_has_the_same_bits_in_any_batch() -> None:
    x, weight, scale, bias, add, *rest = made((3, 24, 32, 4, 4), 0, 0, torch.float16, DEVICE)
    whole = module.fp8_convolution(x, weight, scale, bias, add, *rest)
    alone = module.fp8_convolution(x[2:], weight, scale, bias, add[2:], *rest)
    assert torch.equal(whole[2:], alone)


@computes
@on_fp8
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_rounding(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, (shape, wide) in enumerate((((2, 20, 5, 6), 1), ((1, 3, 1, 1), 2**31), ((0, 8, 2, 2), 1))):
        monkeypatch.setattr(module, "WIDE_ELEMENTS", wide)
        spread = torch.logspace(-3, 3, shape[1])[:, None, None]
        x = (torch.randn(shape) * spread).to(DEVICE, dtype, memory_format=torch.channels_last)
        if count == 0:
            x[0, 1, 0, :2] = torch.tensor([float("inf"), -float("inf")], dtype=dtype)
        inverse = torch.exp2(torch.arange(shape[1]) % 13 - 6.0).to(DEVICE)
        got, want = module.quantize(x, inverse), reference_fp8.quantize(x, inverse)
        assert got.dtype == E4M3
        assert got.stride() == want.stride()
        assert torch.equal(got.float(), want.float())
        assert torch.equal(want.float(), fp8.rounded(x.float() * inverse[:, None, None]))


@outside
def test_the_operators_are_the_emulation() -> None:
    """`models/fp8.py` says the same, up to the order of sums."""
    torch.manual_seed(3)
    convolution = torch.nn.Conv2d(20, 12, 3, padding=1)
    x = torch.randn(2, 20, 6, 4).to(memory_format=torch.channels_last)
    scale = fp8.input_scale(x.abs().amax(dim=(0, 2, 3)))
    weight, out_scale = fp8.rounded_weight(convolution.weight, scale)
    assert torch.equal(weight.to(E4M3).float(), weight)
    assert convolution.bias is not None
    got = torch.ops.rcdm_fast.fp8_convolution(
        torch.ops.rcdm_fast.quantize(x, 1 / scale),
        weight.to(memory_format=torch.channels_last).to(E4M3),
        out_scale, convolution.bias.detach(), None, 0, 0, torch.float32,
    )  # fmt: skip
    torch.testing.assert_close(got, fp8.Fp8Convolution(convolution, scale)(x), rtol=0, atol=2e-6)


@outside
def test_what_does_not_fit_is_refused() -> None:
    given = made((1, 4, 6, 4, 4), 0, 0, torch.float16, "cpu")
    x, weight, _, bias, add, *_ = given
    check = schema_fp8.fp8_convolution_result

    def of(**changes: object) -> list[Any]:
        names = ("x", "weight", "scale", "bias", "add", "resize", "resample", "dtype")
        return [changes.get(name, value) for name, value in zip(names, given, strict=True)]

    for kind, changes, match in (
        (TypeError, {"x": x.half()}, "must be float8_e4m3fn; got float16, float8_e4m3fn"),
        (TypeError, {"dtype": torch.int32}, "expected fp8_convolution's result of dtype"),
        (ValueError, {"weight": weight[:, :3]}, "weight .* does not fit x"),
        (ValueError, {"x": x.contiguous()}, "channels-last"),
        (ValueError, {"resize": 2}, "resize must be"),
        (ValueError, {"scale": bias[:4]}, r"scale must be float32 \[6\]"),
        (ValueError, {"bias": bias.double()}, r"bias must be float32 \[6\]"),
        (ValueError, {"add": add.float()}, "one dtype"),
        (ValueError, {"resize": 1}, "does not fit out"),
        (ValueError, {"add": None, "resample": 1}, "there is none"),
    ):
        with pytest.raises(kind, match=match):
            check(*of(**changes))
    y = torch.zeros(1, 4, 2, 2).to(memory_format=torch.channels_last)
    for wrong, inverse, match in (
        (y.contiguous(), torch.ones(4), "channels-last"),
        (y, torch.ones(3), r"float32 \[4\]"),
    ):
        with pytest.raises(ValueError, match=match):
            schema_fp8.quantize_result(wrong, inverse)
    of_fakes = "test_faketensor"  # the other checks compute with e4m3 as no operator of PyTorch does
    torch.library.opcheck(torch.ops.rcdm_fast.quantize, (y, torch.ones(4)), test_utils=of_fakes)
    torch.library.opcheck(torch.ops.rcdm_fast.fp8_convolution, tuple(given), test_utils=of_fakes)
