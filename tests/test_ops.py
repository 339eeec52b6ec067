"""The operators: native against reference, the registration, what is said when native code is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.ops import library


def _images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 0.8 + 0.1).to(dtype)  # non-zero mean, some values outside [-1,1]


def _step(x: Tensor) -> Tensor:
    """A solver's step whose result is 2 clip(x)."""
    return ops.solver_step(x, x, x_to_x0=1, output_to_x0=0, bound=1, x0_to_next=2, x_to_next=0)[0]


def _cpu_part() -> library.Part:
    (part,) = (part for part in ops.describe() if part.name == "cpu")
    return part


def test_registration() -> None:
    """The operators whose files have no tests of it (`test_ops_native.py`, `test_ops_backward.py`)."""
    ops.load()
    x = _images(2, 3, 5, 7)
    for output in (x, x.bfloat16(), _images(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)):
        for terms in ([], [x.clone(), x * 2]):
            arguments = (x, output, terms, [0.5] * len(terms), 1.3, -0.7, 0.9, 0.8, 0.25)
            torch.library.opcheck(torch.ops.rcdm_fast.solver_step.default, arguments)


def test_is_part_of_an_exported_graph() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _step(x * 0.5)

    ops.load()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Module(), (_images(2, 3, 5, 5),), dynamic_shapes={"x": {0: batch}})
    assert torch.ops.rcdm_fast.solver_step.default in {node.target for node in exported.graph.nodes}
    x = _images(7, 3, 5, 5)
    torch.testing.assert_close(exported.module()(x), _step(x * 0.5))


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_an_unknown_instruction_set_is_an_error() -> None:
    code = (
        "import torch; from rcdm_fast import ops; ops.load(); x = torch.zeros(1, 1, 2, 2); "
        "torch.ops.rcdm_fast.solver_step(x, x, [], [], 0.0, 1.0, 1.0, 1.0, 0.0)"
    )
    done = _run(code, RCDM_FAST_CPU_ISA="mmx")
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
    x = _images(2, 3, 4, 5)
    assert torch.equal(_step(x), 2 * x.clamp(-1, 1))
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
    assert torch.equal(_step(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))


def test_a_library_from_before_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An install whose sources went on without it: an operator that it has not would be an error while drawing."""
    ops.load()
    if not library.has_native("cpu"):
        pytest.skip("no native CPU code")
    monkeypatch.setattr(library, "_parts", {})
    monkeypatch.setattr(library, "OPERATORS", {"cpu": ("attention", "of_tomorrow"), "cuda": ()})
    with torch.library._scoped_library("rcdm_fast", "FRAGMENT") as declared:
        declared.define("of_tomorrow(Tensor x) -> Tensor")
        part = _cpu_part()
    assert not part.loaded
    assert part.reason == "_C.abi3.so was built from older sources: it has no of_tomorrow; install the package again"
    assert torch.equal(_step(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))


@pytest.mark.parametrize(("part", "file"), [("cpu", "binding.cpp"), ("cuda", "binding_cuda.cpp")])
def test_every_operator_of_a_library_is_asked_for(part: str, file: str) -> None:
    text = (Path(__file__).parent.parent / "csrc" / file).read_text(encoding="utf-8")
    assert sorted(re.findall(r'm\.impl\("(\w+)"', text)) == sorted(library.OPERATORS[part])
