"""The operators: native against reference, the registration, what is said when native code is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcdm_fast import images, ops
from rcdm_fast.ops import library, reference, schema

DTYPES = schema.FLOAT_DTYPES
SHAPES = [(0,), (1,), (31,), (2, 3, 0, 5), (1, 3, 7, 9), (3, 3, 33, 31), (5, 3, 128, 127)]


def _pictures(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 0.8 + 0.1).to(dtype)  # non-zero mean, some values outside [-1,1]


def _equal(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype == torch.uint8
    assert got.shape == want.shape
    assert torch.equal(got, want)


def _cpu_part() -> library.Part:
    (part,) = (part for part in ops.describe() if part.name == "cpu")
    return part


@pytest.fixture(scope="module")
def native() -> Callable[[Tensor], Tensor]:
    """The native CPU implementation; every test environment has it (`make` needs a compiler)."""
    part = _cpu_part()
    assert part.loaded, part.reason
    operator: Callable[[Tensor], Tensor] = torch.ops.rcdm_fast.pictures_to_uint8
    return operator


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_equals_reference(
    native: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = _pictures(*shape, dtype=dtype)
    _equal(native(x), reference.pictures_to_uint8(x))
    _equal(ops.pictures_to_uint8(x), images.to_uint8(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number(native: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    _equal(native(x), reference.pictures_to_uint8(x))
    finite = x[x.isfinite()]
    _equal(native(finite), images.to_uint8(finite))


def test_ties_round_to_even_and_neighbours_do_not(native: Callable[[Tensor], Tensor]) -> None:
    ties = (torch.arange(0, 255, dtype=torch.float64) + 0.5) / 127.5 - 1
    exact = ties.to(torch.float32)
    x = torch.cat([exact, exact.nextafter(torch.tensor(2.0)), exact.nextafter(torch.tensor(-2.0))])
    _equal(native(x), images.to_uint8(x))


def test_special_values(native: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 3e38, -3e38, 1.0, -1.0])
    want = torch.tensor([0, 255, 0, 128, 128, 255, 0, 255, 0], dtype=torch.uint8)
    for dtype in DTYPES:
        _equal(native(x.to(dtype)), want)
        _equal(reference.pictures_to_uint8(x.to(dtype)), want)


VIEWS: dict[str, Callable[[], Tensor]] = {
    "offset": lambda: _pictures(1000)[3:],
    "channels_last": lambda: _pictures(2, 3, 9, 7).to(memory_format=torch.channels_last),
    "transposed": lambda: _pictures(5, 7).t(),
    "strided": lambda: _pictures(4, 3, 10, 12)[:, :, ::2, 1::3],
    "reversed_by_flip": lambda: _pictures(3, 5).flip(0),
    "expanded": lambda: _pictures(1, 3, 1, 5).expand(4, 3, 6, 5),
    "scalar": lambda: _pictures(1)[0],
    "negative_bit": lambda: torch.complex(_pictures(8), _pictures(8)).conj().imag,
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_keep_values_and_strides(native: Callable[[Tensor], Tensor], view: str) -> None:
    x = VIEWS[view]()
    want = reference.pictures_to_uint8(x)
    got = native(x)
    _equal(got, want)
    assert got.stride() == want.stride() == torch.empty_like(x).stride()


def test_many_threads_leave_no_gap(native: Callable[[Tensor], Tensor]) -> None:
    x = _pictures(3, 3, 401, 397)  # several grains, odd everywhere
    _equal(native(x), images.to_uint8(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64])
def test_other_dtypes_are_refused(native: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.zeros(3, dtype=dtype)
    for function in (ops.pictures_to_uint8, reference.pictures_to_uint8):
        with pytest.raises(TypeError, match="expected pictures of dtype float32, bfloat16, float16; got"):
            function(x)
    with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16"):
        native(x)
    with pytest.raises(TypeError, match="expected pictures of dtype"):
        native(x.to("meta"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_registration(dtype: torch.dtype) -> None:
    ops.load()
    for x in (
        _pictures(2, 3, 5, 7, dtype=dtype),
        _pictures(2, 3, 8, 6, dtype=dtype).to(memory_format=torch.channels_last),
        _pictures(4, 9, dtype=dtype)[:, 1::2],
        _pictures(0, 3, 4, 4, dtype=dtype),
    ):
        torch.library.opcheck(torch.ops.rcdm_fast.pictures_to_uint8.default, (x,))


def test_is_part_of_an_exported_graph() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.pictures_to_uint8(x * 0.5)

    ops.load()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Module(), (_pictures(2, 3, 5, 5),), dynamic_shapes={"x": {0: batch}})
    assert torch.ops.rcdm_fast.pictures_to_uint8.default in {node.target for node in exported.graph.nodes}
    x = _pictures(7, 3, 5, 5)
    _equal(exported.module()(x), images.to_uint8(x * 0.5))


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


COMPARE = """
import json, torch
from rcdm_fast import images, ops
ops.describe()
x = torch.arange(-(2**15), 2**15, dtype=torch.int16)
y = torch.randn(65539) * 0.8
same = all(
    torch.equal(ops.pictures_to_uint8(v), ops.reference.pictures_to_uint8(v))
    for v in (x.view(torch.bfloat16), x.view(torch.float16), y)
)
torch.set_flush_denormal(True)
half = x.view(torch.float16)
same = same and torch.equal(ops.pictures_to_uint8(half), ops.reference.pictures_to_uint8(half))
print(json.dumps([ops.instruction_set(), same]))
"""


@pytest.mark.parametrize("name", ["base", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(name: str) -> None:
    done = _run(COMPARE, RCDM_FAST_CPU_ISA=name)
    if "not supported by this processor" in done.stderr:
        pytest.skip(f"this processor has no {name}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [name, True]


def test_an_unknown_instruction_set_is_an_error() -> None:
    done = _run(COMPARE, RCDM_FAST_CPU_ISA="mmx")
    assert done.returncode != 0
    assert "RCDM_FAST_CPU_ISA=mmx: expected base, avx2, avx512 or avx512_bf16" in done.stderr


def test_importing_loads_no_library() -> None:
    done = _run("import torch, rcdm_fast.ops; print(sorted(torch.ops.loaded_libraries))")
    assert done.returncode == 0, done.stderr
    assert "_C" not in done.stdout


def _without_native(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    monkeypatch.setattr(library, "PACKAGE", package)
    monkeypatch.setattr(library, "_parts", {})


def test_a_missing_library_means_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_native(monkeypatch, tmp_path)
    x = _pictures(2, 3, 4, 5)
    _equal(ops.pictures_to_uint8(x), images.to_uint8(x))
    part = _cpu_part()
    assert not part.loaded
    assert "_C.abi3.so was built but is not there any more" in part.reason
    assert ops.instruction_set() == "no native CPU code"


def test_an_unusable_library_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_native(monkeypatch, tmp_path)
    (tmp_path / "_C.abi3.so").write_bytes(b"no library")
    part = _cpu_part()
    assert not part.loaded
    assert "cannot be loaded" in part.reason
    assert "file too short" in part.reason or "invalid ELF header" in part.reason
    _equal(ops.pictures_to_uint8(torch.zeros(3)), torch.full((3,), 128, dtype=torch.uint8))
