"""What operators' tests share: plain PyTorch at the same dtype, errors against float64, a quick round of all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import ops
from rcdm_fast.models.condition_map import weights
from rcdm_fast.ops import reference, schema, winograd
from tests.tolerances import OP_ERROR_FLOOR, OP_ERROR_RATIO, WINOGRAD_L2

DTYPES = schema.FLOAT_DTYPES


@dataclass(frozen=True)
class NormCase:
    """One call of film_group_norm: sizes and switches."""

    channels: int
    groups: int
    height: int = 8
    width: int = 6
    skip: int = 0  # how many of the channels come from a second input
    film: int = 2  # rows of film x channels numbers; 0: none
    silu: bool = True
    resample: int = 0
    phases: bool = False
    mean: float = 3.0
    batch: int = 3

    def inputs(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """Arguments in the schema's order; x is an offset view, film rows lie apart, rows repeat."""
        first = self.channels - self.skip
        if self.phases:
            x = self._image(4 * first, self.height // 2 + 1, self.width // 2 + 1, dtype)
        else:
            x = self._image(first, self.height, self.width, dtype)
        skip = self._image(self.skip, self.height, self.width, dtype) if self.skip else None
        weight, bias = torch.rand(self.channels) + 0.5, torch.randn(self.channels)
        film = rows = None
        if self.film:
            film = torch.randn(4, 5 + self.film * self.channels)[:, 5:]
            rows = torch.arange(self.batch) * 2 % 3
        return x, skip, weight, bias, film, rows, self.groups, 1e-5, self.silu, self.resample, self.phases

    def _image(self, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        spread = torch.rand(1, channels, 1, 1) + 0.5
        images = torch.randn(self.batch + 1, channels, height, width) * spread + self.mean
        return images.to(dtype).to(memory_format=torch.channels_last)[1:]


def plain_norm(*inputs: Any) -> Tensor:
    """film_group_norm as plain PyTorch does it at the input's dtype, each step rounded."""
    x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases = schema.NormInputs(*inputs)
    h = reference.merge_phases(x) if phases else x
    h = h if skip is None else torch.cat([h, skip], dim=1)
    picked = None if film is None or rows is None else film[rows].to(h.dtype)[:, :, None, None]
    if picked is not None and picked.shape[1] == h.shape[1]:
        h = h + picked
    h = F.group_norm(h, groups, weight.to(h.dtype), bias.to(h.dtype), eps)
    if picked is not None and picked.shape[1] == 2 * h.shape[1]:
        scale, shift = picked.chunk(2, dim=1)
        h = h * (1 + scale) + shift
    h = F.silu(h) if silu else h
    if resample == 1:
        h = F.interpolate(h, scale_factor=2.0)
    elif resample == -1:
        h = F.avg_pool2d(h, 2)
    return h


def error(got: Tensor, truth: Tensor) -> float:
    """Relative L2."""
    return float((got.double() - truth).norm() / truth.norm())


def widened(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with float64 tensors."""
    return tuple(
        value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs
    )


def within_bar(got: Tensor, plain: Tensor, truth: Tensor) -> None:
    """At most twice plain PyTorch's error."""
    bar = OP_ERROR_RATIO * max(error(plain, truth), OP_ERROR_FLOOR[got.dtype])
    assert got.isfinite().all()
    assert error(got, truth) <= bar, f"error {error(got, truth):.2e}, bar {bar:.2e}"


def check_norm(case: NormCase, dtype: torch.dtype) -> None:
    """The native operator, into poisoned memory."""
    inputs = case.inputs(dtype)
    truth = reference.film_group_norm(*widened(inputs))
    out = torch.full_like(truth, float("nan"), dtype=dtype, memory_format=torch.channels_last)
    torch.ops.rcdm_fast.film_group_norm_out(out, *inputs)
    within_bar(out, plain_norm(*inputs), truth)
    again = torch.ops.rcdm_fast.film_group_norm(*inputs)
    assert torch.equal(again, out)
    assert again.stride() == out.stride()
    assert schema.is_channels_last(again)


def check_attention(length: int, heads: int, width: int, new_order: bool, dtype: torch.dtype, batch: int = 2) -> None:
    """The native operator against PyTorch's fused one."""
    qkv = (torch.randn(batch, length, 3 * heads * width) * 1.5 + 0.3).to(dtype)
    truth = reference.attention(qkv.double(), heads, new_order)
    q, k, v = reference.split_heads(qkv, heads, new_order)
    plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    within_bar(torch.ops.rcdm_fast.attention(qkv, heads, new_order), plain, truth)


STEP: dict[str, Any] = {"x_to_x0": 1.7, "output_to_x0": -1.4, "bound": 1.0, "x0_to_next": 0.6, "x_to_next": 0.5}


def check_solver_step(shape: tuple[int, int, int, int], dtype: torch.dtype, terms: int, layout: str) -> None:
    """The wrapper (native) against float64."""
    x = torch.randn(shape)
    given = torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(dtype)
    if layout == "channels_last":
        given = given.to(memory_format=torch.channels_last)
    elif layout == "strided":
        given = given.repeat_interleave(2, dim=3)[..., ::2]
    others, weights = [torch.randn(shape) for _ in range(terms)], [0.3, -0.2, 0.1][:terms]
    numbers = tuple(STEP.values())
    truth = reference.solver_step(x.double(), given.double(), [o.double() for o in others], weights, *numbers)
    got = ops.solver_step(x, given, terms=others, weights=weights, **STEP)
    plain = reference.solver_step(x, given, others, weights, *numbers)
    for ours, theirs, true in zip(got, plain, truth, strict=True):
        within_bar(ours, theirs, true)


def lacking(name: str) -> bool:
    """Whether this processor has no such instruction set, as far as torch can tell without a process to try it in."""
    return name.startswith("avx512") and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def map_film_inputs(
    n: int, channels: int, height: int, width: int, h: int, w: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Films lie between those of other blocks, as an engine has them."""
    x = torch.randn(n, channels, height, width).to(dtype, memory_format=torch.channels_last)
    film = torch.randn(4, 2 * channels + 9, h, w).mul(0.5).contiguous(memory_format=torch.channels_last)[:, 4:-5]
    assert film.stride(0) == (2 * channels + 9) * h * w
    assert w == 1 or film.stride(3) == 2 * channels + 9
    rows = torch.arange(n) * 3 % 4
    return (
        x,
        film,
        rows,
        weights(h, height, torch.float32, torch.device("cpu")),
        weights(w, width, torch.float32, torch.device("cpu")),
    )


def map_film_by_hand(x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Pixel by pixel, float64."""
    n, channels, height, width = x.shape
    found = torch.empty(x.shape, dtype=torch.float64)
    for image in range(n):
        of_image = film[rows[image]].double()
        for y in range(height):
            for column in range(width):
                share = torch.outer(down[y].double(), across[column].double())
                both = (of_image * share).sum(dim=(1, 2))
                value = x[image, :, y, column].double() * (1 + both[:channels]) + both[channels:]
                found[image, :, y, column] = value / (1 + torch.exp(-value))
    return found


def check_map_film(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    """At most twice the error of plain PyTorch at that dtype."""
    given = map_film_inputs(*shape, dtype=dtype)
    want = map_film_by_hand(*given)
    plain, fused = given[0].clone(), given[0].clone()
    reference.map_film(plain, *given[1:])
    torch.ops.rcdm_fast.map_film(fused, *given[1:])
    assert error(fused, want) <= 2 * error(plain, want) + 1e-7
    assert error(plain, want) < {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]


def winograd_inputs(
    n: int, inputs: int, outputs: int, height: int, width: int, mean: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (an offset view), weight, bias and a residual."""
    x = (torch.randn(n + 1, inputs, height, width) + mean).contiguous(memory_format=torch.channels_last)[1:]
    weight, bias = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5), torch.randn(outputs)
    return x, weight, bias, torch.randn(n, outputs, height, width).contiguous(memory_format=torch.channels_last)


def check_winograd(n: int, inputs: int, outputs: int, height: int, width: int, mean: float = 0.0) -> None:
    """A convolution, one of the upsampled image, and the gradient of its input, against float64."""
    x, weight, bias, add = winograd_inputs(n, inputs, outputs, height, width, mean)
    packed, true = winograd.packed(weight), weight.double()
    wide = F.interpolate(x.double(), scale_factor=2.0)
    for got, truth in (
        (winograd.convolution(x, packed, bias, add), F.conv2d(x.double(), true, bias.double(), padding=1) + add),
        (winograd.convolution(x, packed, upsampled=True), F.conv2d(wide, true, padding=1)),
        (
            winograd.convolution(add, winograd.packed(weight, mirrored=True)),
            F.conv_transpose2d(add.double(), true, padding=1),
        ),
    ):
        assert schema.is_channels_last(got)
        assert error(got, truth) <= WINOGRAD_L2
    of_weight, of_bias = winograd.weight_gradient(add, x)
    truth = torch.ops.aten.convolution_backward(
        add.double(), x.double(), true, [outputs], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True]
    )
    assert schema.is_channels_last(of_weight)
    assert error(of_weight, truth[1]) <= WINOGRAD_L2 * 2
    assert error(of_bias, truth[2]) <= WINOGRAD_L2


def quick_round() -> None:
    """Small cases of everything, for every dtype."""
    for inputs, outputs, height, width in ((16, 32, 4, 4), (48, 16, 7, 9), (32, 32, 16, 12), (16, 16, 1, 2)):
        check_winograd(3, inputs, outputs, height, width)
    for dtype in DTYPES:
        for channels, groups in ((32, 32), (96, 32), (40, 8), (7, 7)):
            check_norm(NormCase(channels, groups), dtype)
            check_norm(NormCase(channels, groups, skip=channels // 3, film=1, resample=-1), dtype)
            check_norm(NormCase(channels, groups, height=5, width=7, film=0, resample=1), dtype)
            check_norm(NormCase(channels, groups, phases=True, silu=False), dtype)
        for length, width, order in itertools.product((1, 17, 64), (7, 32, 96), (False, True)):
            check_attention(length, 2, width, order, dtype)
        for layout in ("contiguous", "channels_last", "strided"):
            check_solver_step((2, 3, 5, 7), dtype, 2, layout)
        for channels, positions in ((48, 4), (40, 3), (7, 9), (3, 1)):  # of an image of 4 x 6: as many, fewer and more
            check_map_film((2, channels, 4, 6, positions, positions + 1), dtype)


def check_conversions() -> None:
    """All numbers of 16 bits become what the reference makes of them, and so do some of 32."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    zero = torch.zeros(1, 1, 256, 256)
    for output in (numbers.view(torch.bfloat16), numbers.view(torch.float16), torch.randn(65536) * 0.8):
        # the output alone, so that nothing is rounded but its conversion
        step: tuple[Any, ...] = (zero, output.view_as(zero), [], [], 0.0, 1.0, float("inf"), 1.0, 0.0)
        got, want = torch.ops.rcdm_fast.solver_step(*step)[1], reference.solver_step(*step)[1]
        assert torch.equal(got.nan_to_num(nan=7e37), want.nan_to_num(nan=7e37)), output.dtype
