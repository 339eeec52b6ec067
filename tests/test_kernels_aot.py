"""Triton kernels as machine code for three generations of GPUs, without a GPU: spills, shared memory, wide loads.

The shapes are those of the published 128-pixel release; `--log-cli-level=info` prints a line per kernel. What the
kernels compute is tested in test_kernels_numbers.py and test_kernels_gradients.py.
"""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from rcdm_fast.kernels import attention as attention_module
from rcdm_fast.kernels import bias as bias_module
from rcdm_fast.kernels import film_group_norm as norm_module
from rcdm_fast.kernels import map_film as map_film_module
from rcdm_fast.kernels import residual as residual_module
from rcdm_fast.ops import schema
from tests import older, triton_aot
from tests.norm_cases import NormCase

HALF, FULL = torch.bfloat16, torch.float32
NORMS = [
    NormCase(256, size=(128, 128), dtype=HALF),
    NormCase(256, size=(128, 128), dtype=FULL),
    NormCase(512, skip=256, size=(64, 64), dtype=HALF),
    NormCase(256, size=(64, 64), resample=1, film="scale", dtype=HALF),
    NormCase(256, size=(64, 64), resample=-1, film="scale", dtype=HALF),
    NormCase(256, size=(128, 128), phases=True, film="scale", dtype=HALF),
    NormCase(1024, size=(16, 16), film="scale", dtype=HALF),
    NormCase(512, size=(32, 32), film="add", dtype=torch.float16),
    NormCase(512, skip=512, size=(32, 32), dtype=HALF),
    NormCase(512, skip=512, size=(32, 32), dtype=FULL),
    NormCase(256, size=(32, 32), resample=-1, film="scale", dtype=HALF),
    NormCase(1024, skip=1024, size=(8, 8), dtype=HALF),
]
HEADS = (16, 32, 64, 96, 128, 192, 256)
LENGTHS = (64, 250, 256, 1024, 4096)
SHORT_ATTENTION = [(256, 64, HALF), (250, 96, HALF), (256, 192, HALF), (256, 256, HALF), (256, 64, FULL)]

QUICK = 90  # the others belong to tests marked long, as do norms that a quicker one is much like
SLOWER = (NORMS[4], NORMS[8], NORMS[9], NORMS[10])
capabilities = pytest.mark.parametrize(
    "capability",
    [
        each if each == QUICK else pytest.param(each, marks=pytest.mark.long(short=False))
        for each in triton_aot.CAPABILITIES
    ],
    ids="sm_{}".format,
)


def _norm_call(case: NormCase, moments: torch.Tensor | None = None) -> Callable[[], object]:
    """Host code of one call on tensors without data; `moments`: of x, and of skip if there is one."""

    def empty(channels: int, height: int, width: int) -> torch.Tensor:
        memory = torch.empty(1, height, width, channels, device="meta", dtype=case.dtype)
        return memory.permute(0, 3, 1, 2)

    height, width = case.size
    total = case.channels + case.skip
    phases = (4 * case.channels, height // 2 + 1, width // 2 + 1)
    x = empty(*phases) if case.phases else empty(case.channels, height, width)
    skip = empty(case.skip, height, width) if case.skip else None
    weight = torch.empty(total, device="meta")
    columns = {"none": 0, "add": total, "scale": 2 * total}[case.film]
    film = torch.empty(7, columns, device="meta") if columns else None
    rows = torch.empty(1, device="meta", dtype=torch.int64) if columns else None
    settings = (case.groups, 1e-5, case.silu, case.resample, case.phases)
    inputs = schema.NormInputs(x, skip, weight, weight, film, rows, *settings)
    out = empty(*schema.film_group_norm_shape(inputs)[1:])
    given = None if moments is None else (moments, moments if case.skip else None)
    return lambda: norm_module._write(out, inputs, None, given)


def _check(facts: triton_aot.Facts) -> None:
    logging.getLogger(__name__).info(facts)
    assert facts.spills == 0
    assert facts.stack == 0
    assert facts.registers <= 255
    assert facts.shared <= triton_aot.SHARED_LIMIT[facts.capability]


@capabilities
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long if case in SLOWER else ()) for case in NORMS], ids=str
)
def test_film_group_norm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: NormCase, capability: int) -> None:
    launches = triton_aot.record(monkeypatch, norm_module, _norm_call(case))
    assert len(launches) in (1, 3)
    for launch in launches:
        facts = triton_aot.compile_launch(launch, capability, tmp_path)
        _check(facts)
        if facts.name != "coefficients_kernel":  # which reads few numbers, most of them apart
            assert facts.wide_loads > 0
            assert facts.narrow_loads <= 1  # the row of the FiLM table, where there is one
        if facts.name in ("slab_kernel", "apply_kernel") and case.resample != -1:  # averages are few: narrow, spread
            assert facts.wide_stores > 0


@capabilities
@pytest.mark.parametrize("dtype", [HALF, FULL], ids=str)
@pytest.mark.parametrize("shape", [(512, 64, 32, 32), (2, 128, 8, 8)], ids=str)
@pytest.mark.long
def test_bias(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, capability: int
) -> None:
    n, channels, height, width = shape
    out = torch.empty(n, height, width, channels, device="meta", dtype=dtype).permute(0, 3, 1, 2)
    bias = torch.empty(channels, device="meta")

    def call() -> None:
        bias_module.add_(out, bias, None)
        bias_module.add_(out, bias, out)
        bias_module.sums(out)

    launches = triton_aot.record(monkeypatch, bias_module, call)
    assert [launch.kernel.__name__ for launch in launches] == ["add_kernel", "add_kernel", "sums_kernel"]
    for launch in launches:
        facts = triton_aot.compile_launch(launch, capability, tmp_path)
        _check(facts)
        assert facts.wide_loads > 0
        assert facts.wide_stores > 0 or facts.name == "sums_kernel"


@capabilities
@pytest.mark.parametrize("dtype", [HALF, FULL], ids=str)
@pytest.mark.parametrize("skip", [0, 256])
@pytest.mark.long
def test_a_norm_by_given_moments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, skip: int, dtype: torch.dtype, capability: int
) -> None:
    case = NormCase(256, skip=skip, size=(128, 128), film="scale", dtype=dtype)
    moments = torch.empty(0, device="meta")
    launches = triton_aot.record(monkeypatch, norm_module, _norm_call(case, moments))
    assert [launch.kernel.__name__ for launch in launches] == ["coefficients_kernel", "apply_kernel"]
    for launch in launches:
        _check(triton_aot.compile_launch(launch, capability, tmp_path))


@capabilities
@pytest.mark.parametrize("resample", [-1, 0, 1])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.long
def test_residual(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moments: bool, resample: int, capability: int
) -> None:
    sides = {-1: (32, 64), 0: (32, 32), 1: (64, 32)}[resample]
    out, add = (torch.empty(2, side, side, 512, device="meta", dtype=HALF).permute(0, 3, 1, 2) for side in sides)
    bias, taken = torch.empty(512, device="meta"), torch.empty(0, device="meta") if moments else None
    (launch,) = triton_aot.record(
        monkeypatch, residual_module, lambda: residual_module._write(out, (bias, add, resample), taken)
    )
    facts = triton_aot.compile_launch(launch, capability, tmp_path)
    _check(facts)
    assert facts.wide_loads > 0
    assert facts.wide_stores > 0


@capabilities
@pytest.mark.parametrize("dtype", [HALF, FULL], ids=str)
@pytest.mark.parametrize(("side", "channels"), [(128, 256), (8, 1024)])
@pytest.mark.long
def test_map_film(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, side: int, channels: int, dtype: torch.dtype, capability: int
) -> None:
    x = torch.empty(2, side, side, channels, device="meta", dtype=dtype).permute(0, 3, 1, 2)
    film = torch.empty(2, 16, 16, 2 * channels, device="meta").permute(0, 3, 1, 2)
    rows, weights = torch.empty(2, device="meta", dtype=torch.int64), torch.empty(side, 16, device="meta")
    (launch,) = triton_aot.record(
        monkeypatch, map_film_module, lambda: map_film_module._write(x, film, rows, weights, weights)
    )
    facts = triton_aot.compile_launch(launch, capability, tmp_path)
    _check(facts)
    assert facts.wide_loads > 0
    assert facts.wide_stores > 0


def _attention(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capability: int, length: int, head: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention_module, "is_hopper", lambda _: capability == 90)
    qkv = torch.empty(1, length, 3 * 4 * head, dtype=dtype, device="meta")
    call = lambda: attention_module.attention._init_fn(qkv, 4, False)  # noqa: E731
    (launch,) = triton_aot.record(monkeypatch, attention_module, call)
    facts = triton_aot.compile_launch(launch, capability, folder)
    _check(facts)
    if dtype == FULL:
        assert facts.matrix == 0  # no TF32
    else:
        assert facts.matrix > 0


@capabilities
@pytest.mark.parametrize(("length", "head", "dtype"), SHORT_ATTENTION)
def test_attention(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int, length: int, head: int, dtype: torch.dtype
) -> None:
    _attention(monkeypatch, tmp_path, capability, length, head, dtype)


@pytest.mark.parametrize("length", [1, 37, 64, 1025])
def test_no_head_has_a_short_second_part_on_hopper(length: int) -> None:
    """In 16 bits; on an H100 heads of 40 to 96 and 160 dimensions, whose second part had 16 or 32, came out wrong."""
    for head in range(1, attention_module.MAX_HEAD + 1):
        first, second = attention_module.split_head(head, attention_module.least_part(2, hopper=True))
        assert second == 0 or second >= 64
        assert first + second >= head
        attention_module.plan(length, head, 2, hopper=True)
    assert attention_module.split_head(192, attention_module.least_part(2, hopper=True)) == (128, 64)
    assert attention_module.split_head(96, attention_module.least_part(4, hopper=True)) == (64, 32)


@pytest.mark.long
@capabilities
@pytest.mark.parametrize("dtype", [HALF, FULL], ids=str)
def test_attention_of_every_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short: bool, capability: int, dtype: torch.dtype
) -> None:
    heads, lengths = ((96, 192), (64,)) if short else (HEADS, LENGTHS)
    for length, head in itertools.product(lengths, heads):
        with monkeypatch.context() as patch:
            _attention(patch, tmp_path, capability, length, head, dtype)


@pytest.mark.long
@capabilities
def test_the_oldest_triton_compiles_the_same(checkout: Path, short: bool, capability: int) -> None:
    """The tests of this file once more, under the oldest torch that is accepted and the Triton that comes with it.

    In short a test of every kernel, and of norms one in each form: a slab, three kernels, phases.
    """
    path = [older.installed("torch", older.OLDEST_TORCH), older.installed("triton", older.OLDEST_TRITON)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    versions = "import torch, triton; print(torch.__version__.split('+')[0], triton.__version__)"
    assert run("-c", versions).split() == [older.OLDEST_TORCH, older.OLDEST_TRITON]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"sm_{capability} and not oldest"]
    chosen = [
        "bias",
        "residual",
        "map_film[8-1024-torch.bfloat16",
        "attention[256-192-dtype2",
        *(f"film_group_norm[{NORMS[i]}" for i in (0, 5, 11)),
    ]
    names = [f"::test_{name}" + f"-sm_{capability}]" * ("[" in name) for name in chosen] if short else [""]
    assert " passed" in run(*tests, *(f"{__file__}{name}" for name in names))
