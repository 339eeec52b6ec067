"""Compiling the CUDA part: every kernel for every architecture without spilling, and what setup.py makes of a toolkit.

Needs no GPU. That the built library loads is tested in test_packaging.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURES = ("80", "90", "120")
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the path")

SOURCES = ("film_group_norm", "pictures_to_uint8", "solver_step")


def test_every_source_is_tested(checkout: Path) -> None:
    assert sorted(path.stem for path in checkout.glob("csrc/cuda/*.cu")) == sorted(SOURCES)


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_without_spills(checkout: Path, tmp_path: Path, source: str) -> None:
    command = [str(NVCC), "-std=c++17", "-O3", "--threads", "0", "-I", str(checkout / "csrc"), "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command += ["-c", str(checkout / f"csrc/cuda/{source}.cu"), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    kernels = _resources(done.stderr)
    assert {arch for arch, _ in kernels} == set(ARCHITECTURES)
    spilling = {key: facts for key, facts in kernels.items() if "0 bytes stack frame, 0 bytes spill" not in facts}
    assert not spilling


def _resources(report: str) -> dict[tuple[str, str], str]:
    """(architecture, kernel) -> what ptxas -v says on its stack, spills and registers."""
    found = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?registers)", report, re.DOTALL)
    return {(arch, kernel): " ".join(text.split()) for kernel, arch, text in found}


def _record(folder: Path) -> dict[str, object]:
    namespace: dict[str, object] = {}
    exec((folder / "rcdm_fast/_build_info.py").read_text(encoding="utf-8"), namespace)
    return namespace


def _setup(checkout: Path, folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    temporary = ("--build-temp", str(folder / "temp")) if "build_ext" in command else ()
    return subprocess.run(
        [sys.executable, "setup.py", *command, "--build-lib", str(folder), *temporary],
        cwd=checkout,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _toolkit(folder: Path, release: str, compiles: str) -> Path:
    """A CUDA toolkit that consists of an nvcc that answers questions, and a runtime."""
    _script(folder / "bin/nvcc", f'[ "$1" = --version ] && echo "release {release}" && exit 0\n{compiles}')
    for major in ("12", "13"):
        (folder / "lib").mkdir(exist_ok=True)
        (folder / "lib" / f"libcudart.so.{major}").touch()
    return folder


def _torch_like(folder: Path, cuda: str | None) -> Path:
    """A folder that setup.py takes for torch."""
    header = folder / "include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    text = f"__version__ = '2.12.0'\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
    (folder / "version.py").write_text(text, encoding="utf-8")
    return folder


def test_reasons_for_leaving_the_cuda_part_out(checkout: Path, tmp_path: Path) -> None:
    cpu_torch = str(_torch_like(tmp_path / "cpu_torch", None))
    cuda_torch = str(_torch_like(tmp_path / "cuda_torch", "13.0"))
    older = _toolkit(tmp_path / "older", "12.8", "exit 1")
    for torch, home, reason in (
        (cpu_torch, older, "torch 2.12.0 was built without CUDA"),
        (cuda_torch, tmp_path / "nowhere", f"no nvcc in CUDA_HOME={tmp_path / 'nowhere'}"),
        (cuda_torch, older, f"{older / 'bin/nvcc'} is CUDA 12.8, but torch 2.12.0 was built for 13.0"),
    ):
        environment = {"RCDM_FAST_TORCH": torch, "CUDA_HOME": str(home)}
        done = _setup(checkout, tmp_path, "build_py", **environment)
        assert done.returncode == 0, done.stderr
        assert _record(tmp_path)["PARTS"] == {"cpu": "", "cuda": reason}
        done = _setup(checkout, tmp_path, "build_py", RCDM_FAST_REQUIRE="cpu,cuda", **environment)
        assert done.returncode != 0
        assert f"RCDM_FAST_REQUIRE=cuda, but it cannot be built: {reason}" in done.stderr


def test_a_failing_nvcc_leaves_the_cpu_part_alone(checkout: Path, tmp_path: Path) -> None:
    touch = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done; echo stub'
    environment = {
        "RCDM_FAST_TORCH": str(_torch_like(tmp_path / "torch", "13.0")),
        "CUDA_HOME": str(_toolkit(tmp_path / "toolkit", "13.0", "exit 1")),
        "CXX": str(_script(tmp_path / "c++", touch)),
    }
    stale = tmp_path / "rcdm_fast/_C_cuda.abi3.so"
    stale.parent.mkdir()
    stale.touch()
    os.utime(stale, (0, 0))  # older than its sources
    done = _setup(checkout, tmp_path, "build_ext", **environment)
    assert done.returncode == 0, done.stderr
    parts = _record(tmp_path)["PARTS"]
    assert isinstance(parts, dict)
    assert parts["cpu"] == ""
    assert parts["cuda"].startswith("compiling failed: nvcc failed on csrc/cuda/")
    assert (tmp_path / "rcdm_fast/_C.abi3.so").exists()
    assert not stale.exists()
