"""The Triton convolution as machine code for three generations of GPUs, without a GPU.

What it computes is tested in test_kernels_convolution.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import convolution as module
from tests import triton_aot


@pytest.mark.parametrize(
    "capability",
    [90, *(pytest.param(each, marks=pytest.mark.long(short=False)) for each in (80, 89, 120))],
    ids="sm_{}".format,
)
@pytest.mark.parametrize(
    ("shape", "resample"),
    [((2, 512, 512, 32, 32), -1), ((1, 1024, 1024, 8, 8), 1), ((64, 256, 256, 128, 128), 0)],
    ids=str,
)
def test_machine_code(
    shape: tuple[int, ...], resample: int, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tensor cores, copies of 16 bytes, nothing spilled, no more shared memory than there is."""
    n, inner, outer, height, width = shape

    def of(*size: int) -> Tensor:
        return torch.empty(size, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)

    x, weight, add, out = of(n, inner, height, width), of(outer, inner, 3, 3), *(of(n, outer, height, width),) * 2
    bias = torch.empty(outer, device="meta")
    splits = 8 if shape[-1] == 8 else 1
    moments: Tensor | None = None
    sides: list[Tensor] = []
    if shape[-1] == 128:  # as a block ends that projects what it reads
        moments, sides = torch.empty(0, device="meta"), [out, of(outer, outer, 1, 1)] * 2
    added = module.Added(bias, None if moments is not None else add, resample, *sides)
    launches = triton_aot.record(monkeypatch, module, lambda: module._write(out, x, weight, added, splits, moments))
    assert [launch.kernel.__name__ for launch in launches] == ["convolution_kernel", "join_kernel"][: 1 + (splits > 1)]
    for launch in launches:
        facts = triton_aot.compile_launch(launch, capability, tmp_path)
        logging.getLogger(__name__).info(facts)
        assert (facts.spills, facts.stack) == (0, 0)
        assert facts.registers <= 255
        assert facts.shared <= triton_aot.SHARED_LIMIT[capability]
        assert facts.wide_stores > 0
        if facts.name == "convolution_kernel":
            assert facts.matrix > 0
            assert facts.target == ("sm_90a" if capability == 90 else f"sm_{capability}")
            assert (facts.warpgroup > 0) is (capability == 90)  # WGMMA
            assert facts.asynchronous > 0
        else:
            assert facts.wide_loads > 0
