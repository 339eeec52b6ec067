"""The benchmarks' gate under the rounding of a GPU, emulated on the CPU: what 16 bits and TF32 cost there.

Tensor cores multiply rounded inputs, add in fp32 and round the result once; that is what is done here with fp32
arithmetic. Which operators autocast runs in 16 bits on CUDA is PyTorch's list for the ones this network has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks import timing, workload
from rcdm_fast.benchmarking import FP32_LIMIT, relative_l2
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.program import Program

CPU = torch.device("cpu")
PRODUCTS = {F.conv2d, F.conv1d, F.linear, F.scaled_dot_product_attention}


def _each(values: Iterable[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    return [change(value) if isinstance(value, Tensor) and value.is_floating_point() else value for value in values]


def to_tf32(x: Tensor) -> Tensor:
    """float32 with 10 bits of mantissa, to the nearest, halves away from zero: as tensor cores read it."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class CudaRounding(TorchFunctionMode):
    """Products whose inputs are bf16 give the fp32 result, rounded once; `autocast` rounds their inputs first."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS and (self.autocast or args[0].dtype == torch.bfloat16):
            exact = func(*_each(args, lambda x: x.bfloat16().float()), **kwargs)
            return exact.bfloat16()
        if func is F.group_norm and self.autocast:
            return func(*_each(args, lambda x: x.float()), **kwargs)
        return func(*args, **kwargs)


class Tf32(TorchFunctionMode):
    """Products read float32 as TF32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.conv2d, F.conv1d, F.linear):
            args = (*_each(args[:2], to_tf32), *args[2:])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def work() -> workload.Workload:
    return workload.make(workload.read_config("s"), 2)


def test_tf32_rounds_to_ten_bits() -> None:
    x = torch.tensor([1.0, 1 + 2**-11, 1 + 2**-11 - 2**-20, -1 - 2**-11, 3e38])
    assert to_tf32(x).tolist()[:4] == [1.0, 1 + 2**-10, 1.0, -1 - 2**-10]
    assert to_tf32(x)[4].isfinite()


@torch.inference_mode()
def test_tf32_is_no_fp32_to_the_gate(work: workload.Workload) -> None:
    def evaluate(inputs: workload.Inputs) -> Tensor:
        with Tf32():
            out: Tensor = work.network(inputs.x, inputs.t, inputs.h)
        return out

    error = timing.Gate(work).error(evaluate)
    assert 5 * FP32_LIMIT < error < 5e-3


@torch.inference_mode()
def test_our_error_is_autocasts_up_to_chance(work: workload.Workload) -> None:
    program = Program(work.network, TorchBackend(torch.bfloat16, CPU), torch.bfloat16, CPU)
    errors: dict[str, list[float]] = {"ours": [], "autocast": []}
    for inputs in (work.timed, work.other):
        want = work.network(inputs.x, inputs.t, inputs.h)
        with CudaRounding(autocast=True):
            theirs = work.network(inputs.x, inputs.t, inputs.h)
        film, rows = work.plan(inputs).batch(torch.arange(work.batch)).film_rows(inputs.k)
        with CudaRounding(autocast=False):
            ours = program.denoise(inputs.x, film, rows)
        errors["ours"].append(relative_l2(ours.float(), want))
        errors["autocast"].append(relative_l2(theirs.float(), want))
    ratio = max(errors["ours"]) / max(errors["autocast"])
    assert 5e-3 < max(errors["autocast"]) < 2e-2
    assert 0.9 < ratio < timing.OUR_FACTOR["cuda"], errors
