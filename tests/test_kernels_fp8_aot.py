"""The Triton kernels of fp8 as machine code for the generations of GPUs that have it, without a GPU.

What they compute is tested in test_kernels_fp8.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import fp8_convolution as module
from rcdm_fast.ops.schema_fp8 import E4M3
from tests import triton_aot

GENERATIONS = pytest.mark.parametrize(
    "capability",
    [90, *(pytest.param(each, marks=pytest.mark.long(short=False)) for each in (89, 120))],
    ids="sm_{}".format,
)


def of(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(size, device="meta", dtype=dtype).to(memory_format=torch.channels_last)


@GENERATIONS
@pytest.mark.parametrize(
    ("shape", "resize", "resample"),
    [((2, 512, 512, 32, 32), 0, -1), ((4, 256, 256, 64, 64), 1, None), ((4, 192, 192, 64, 64), -1, None)],
    ids=str,
)
def test_convolution(
    shape: tuple[int, ...],
    resize: int,
    resample: int | None,
    capability: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Tensor cores on e4m3 itself, copies of 16 bytes, nothing spilled, no more shared memory than there is."""
    n, inner, outer, height, width = shape
    x, weight = of(n, inner, height, width, dtype=E4M3), of(outer, inner, 3, 3, dtype=E4M3)
    zoom = {-1: 0.5, 0: 1, 1: 2}[resize]
    out = of(n, outer, int(zoom * height), int(zoom * width))
    scale = bias = torch.empty(outer, device="meta")
    add = None if resample is None else out
    (launch,) = triton_aot.record(
        monkeypatch, module, lambda: module._write(out, x, weight, scale, bias, add, resize, resample or 0)
    )
    facts = triton_aot.compile_launch(launch, capability, tmp_path)
    logging.getLogger(__name__).info(facts)
    assert (facts.spills, facts.stack) == (0, 0)
    assert facts.registers <= 255
    assert facts.shared <= triton_aot.SHARED_LIMIT[capability]
    assert facts.wide_stores > 0
    assert facts.asynchronous > 0
    assert facts.of_fp8 == facts.matrix > 0


@GENERATIONS
def test_rounding(capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, inverse = of(2, 256, 32, 32), torch.empty(256, device="meta")
    out = of(2, 256, 32, 32, dtype=E4M3)
    (launch,) = triton_aot.record(monkeypatch, module, lambda: module._round(out, x, inverse))
    facts = triton_aot.compile_launch(launch, capability, tmp_path)
    logging.getLogger(__name__).info(facts)
    assert (facts.spills, facts.stack) == (0, 0)
    assert facts.wide_loads > 0
    assert facts.wide_stores > 0
