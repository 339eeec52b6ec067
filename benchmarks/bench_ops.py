"""Time of every operator's implementations on the CPU: `make bench`.

Each row first checks its implementation against the reference and reports no time when the check fails. Rows carry
device, versions, allocator and threads, and p20, p50, p80 in milliseconds (`extra_info` in the JSON file). Sizes are
those of a bundled model, of `s` and of the 128-pixel release. ``reference`` computes in fp32 and rounds once; ``plain``
is what PyTorch does step by step at the input's dtype.

GPU implementations are timed by bench_gpu.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import info, ops
from rcdm_fast.benchmarking import relative_l2
from rcdm_fast.models.condition_map import weights
from rcdm_fast.ops import reference

IMAGES = [(64, 3, 32, 32), (64, 3, 128, 128)]
NORMS = [(16, 64, 32, 32), (16, 192, 32, 32), (16, 128, 8, 8), (1, 256, 128, 128), (1, 1024, 16, 16)]
ATTENTIONS = [(16, 256, 4, 32), (16, 64, 4, 32), (1, 1024, 4, 128), (1, 256, 4, 192)]  # images, length, heads, width
DTYPES = ["float32", "bfloat16", "float16"]
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


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


def _time(benchmark: Any, group: str, run: Callable[[], object], moved_bytes: int) -> None:
    benchmark.group = group
    benchmark.pedantic(run, rounds=50, warmup_rounds=5)
    _describe(benchmark, moved_bytes)


def _require_native(implementation: str) -> None:
    part = ops.describe()[0]
    if implementation == "native" and not part.loaded:
        pytest.skip(part.reason)


def _name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _plain_norm(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor) -> Tensor:
    scale, shift = film.to(x.dtype)[:, :, None, None].chunk(2, dim=1)
    return F.silu(F.group_norm(x, 32, weight.to(x.dtype), bias.to(x.dtype)) * (1 + scale) + shift)


@pytest.mark.parametrize("implementation", ["native", "plain", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORMS, ids=_name)
def bench_film_group_norm(benchmark: Any, shape: tuple[int, int, int, int], dtype: str, implementation: str) -> None:
    _require_native(implementation)
    torch.manual_seed(0)
    n, channels = shape[:2]
    x = (torch.randn(shape) + 2).to(getattr(torch, dtype)).to(memory_format=torch.channels_last)
    weight, bias, film, rows = (
        torch.rand(channels),
        torch.randn(channels),
        torch.randn(n, 2 * channels),
        torch.arange(n),
    )
    inputs = (x, None, weight, bias, film, rows, 32, 1e-5, True, 0, False)
    out = torch.empty_like(x)
    run: dict[str, Callable[[], object]] = {
        "native": lambda: torch.ops.rcdm_fast.film_group_norm_out(out, *inputs),
        "plain": lambda: out.copy_(_plain_norm(x, weight, bias, film)),
        "reference": lambda: out.copy_(reference.film_group_norm(*inputs)),
    }
    with torch.inference_mode():
        out.fill_(float("nan"))
        run[implementation]()
        error = relative_l2(out, reference.film_group_norm(*inputs))
        assert error < LIMITS[x.dtype], f"wrong result ({error:.1e}): no time is reported"
        group = f"film_group_norm {dtype} {list(shape)}"
        _time(benchmark, group, run[implementation], 2 * x.numel() * x.element_size())


@pytest.mark.parametrize("implementation", ["native", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ATTENTIONS, ids=_name)
def bench_attention(benchmark: Any, shape: tuple[int, int, int, int], dtype: str, implementation: str) -> None:
    _require_native(implementation)
    torch.manual_seed(0)
    n, length, heads, width = shape
    qkv = torch.randn(n, length, 3 * heads * width).to(getattr(torch, dtype))

    def plain() -> Tensor:
        q, k, v = reference.split_heads(qkv, heads, False)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    run = plain if implementation == "plain" else lambda: torch.ops.rcdm_fast.attention(qkv, heads, False)
    with torch.inference_mode():
        error = relative_l2(run(), reference.attention(qkv, heads, False))
        assert error < LIMITS[qkv.dtype], f"wrong result ({error:.1e}): no time is reported"
        moved_bytes = qkv.numel() * 4 // 3 * qkv.element_size()
        _time(benchmark, f"attention {dtype} {list(shape)}", run, moved_bytes)


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("shape", [(16, 32, 32, 8), (16, 64, 8, 8)], ids=_name)
def bench_map_film(benchmark: Any, shape: tuple[int, int, int, int], implementation: str) -> None:
    _require_native(implementation)
    torch.manual_seed(0)
    n, channels, size, side = shape
    x = torch.randn(n, channels, size, size).contiguous(memory_format=torch.channels_last)
    film = torch.randn(n, 2 * channels, side, side).contiguous(memory_format=torch.channels_last)
    share = weights(side, size, torch.float32, torch.device("cpu"))
    others = (film, torch.arange(n), share, share)
    run = torch.ops.rcdm_fast.map_film if implementation == "native" else reference.map_film
    with torch.inference_mode():
        want, got = x.clone(), x.clone()
        reference.map_film(want, *others)
        run(got, *others)
        assert relative_l2(got, want) < LIMITS[torch.float32], "wrong result: no time is reported"
        moved_bytes = 2 * x.numel() * x.element_size() + film.numel() * film.element_size()
        _time(benchmark, f"map_film {list(shape)}", lambda: run(x, *others), moved_bytes)


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("shape", IMAGES, ids=_name)
def bench_solver_step(benchmark: Any, shape: tuple[int, ...], implementation: str) -> None:
    _require_native(implementation)
    torch.manual_seed(0)
    x, output = torch.randn(shape), torch.randn(shape[0], 6, *shape[2:])
    numbers = (1.7, -1.4, 1.0, 0.6, 0.5)
    native = torch.ops.rcdm_fast.solver_step
    run = native if implementation == "native" else reference.solver_step
    with torch.inference_mode():
        want, got = reference.solver_step(x, output, [], [], *numbers), run(x, output, [], [], *numbers)
        for ours, theirs in zip(got, want, strict=True):
            assert relative_l2(ours, theirs) < LIMITS[torch.float32], "wrong result: no time is reported"
        group = f"solver_step {list(shape)}"
        _time(benchmark, group, lambda: run(x, output, [], [], *numbers), 4 * x.numel() * x.element_size())
