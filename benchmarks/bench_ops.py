"""Time of every operator's implementations: `make bench`.

Each row first checks its implementation against the reference and reports no time when the check fails. Rows carry
device, versions, allocator and threads, and p20, p50, p80 in milliseconds (`extra_info` in the JSON file). Sizes: one
bundled model's batch, and 64 pictures of the 128-pixel release.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast import info, ops
from rcdm_fast.ops import reference

SHAPES = [(64, 3, 32, 32), (64, 3, 128, 128)]
IMPLEMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "reference": reference.pictures_to_uint8,
    "native": lambda x: torch.ops.rcdm_fast.pictures_to_uint8(x),
}


def _describe(benchmark: Any, moved_bytes: int) -> None:
    facts = info.report()
    times_ms = np.asarray(benchmark.stats.stats.data) * 1e3
    p20, p50, p80 = (float(np.percentile(times_ms, q)) for q in (20, 50, 80))
    benchmark.extra_info.update(
        device=facts["machine"]["cpu"],
        instruction_set=facts["instruction_set"],
        versions=facts["versions"],
        threads=torch.get_num_threads(),
        allocator=os.environ.get("LD_PRELOAD", "default") + f", THP={os.environ.get('THP_MEM_ALLOC_ENABLE', '0')}",
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        bytes_per_s=moved_bytes / (p50 * 1e-3),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def bench_pictures_to_uint8(
    benchmark: Any, shape: tuple[int, ...], dtype: str, layout: str, implementation: str
) -> None:
    (part,) = ops.describe()
    if implementation == "native" and not part.loaded:
        pytest.skip(part.reason)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 0.6 + 0.1).to(getattr(torch, dtype))
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    run = IMPLEMENTATIONS[implementation]
    with torch.inference_mode():
        want = reference.pictures_to_uint8(x)
        got = run(x)
        assert torch.equal(got, want), "wrong result: no time is reported"
        assert got.stride() == want.stride()
        benchmark.group = f"pictures_to_uint8 {dtype} {layout} {list(shape)}"
        benchmark.pedantic(run, args=(x,), rounds=100, warmup_rounds=10)
    _describe(benchmark, x.numel() * (x.element_size() + 1))
