"""Compiling the CUDA part: every kernel for every architecture without spilling, and what setup.py makes of a toolkit.

Needs no GPU. That the built library loads is tested in test_packaging.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ARCHITECTURES = ("80", "90", "100", "120")
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the path")

SOURCES = ("film_group_norm", "film_group_norm_given", "map_film", "residual", "solver_step")


def test_every_source_is_tested(checkout: Path) -> None:
    assert sorted(path.stem for path in checkout.glob("csrc/cuda/*.cu")) == sorted(SOURCES)


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.long
def test_kernels_compile_without_spills(checkout: Path, tmp_path: Path, short: bool, source: str) -> None:
    architectures = ("90",) if short else ARCHITECTURES
    command = [str(NVCC), "-std=c++17", "-O3", "--threads", "0", "-I", str(checkout / "csrc"), "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    command += ["-c", str(checkout / f"csrc/cuda/{source}.cu"), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    kernels = _resources(done.stderr)
    assert {arch for arch, _ in kernels} == set(architectures)
    spilling = {key: facts for key, facts in kernels.items() if "0 bytes stack frame, 0 bytes spill" not in facts}
    assert not spilling


@needs_nvcc
@pytest.mark.parametrize("source", ["film_group_norm_given", "residual"])
@pytest.mark.long
def test_images_are_read_and_written_16_bytes_at_a_time(checkout: Path, tmp_path: Path, source: str) -> None:
    triton = pytest.importorskip("triton")
    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    cubin = tmp_path / "kernels.cubin"
    command = [str(NVCC), "-std=c++17", "-O3", "-arch=sm_90", "-I", str(checkout / "csrc"), "-cubin", "-o", str(cubin)]
    subprocess.run([*command, str(checkout / f"csrc/cuda/{source}.cu")], check=True, capture_output=True)
    done = subprocess.run([disassembler, "-c", cubin], check=True, capture_output=True, text=True)
    kernels = re.findall(r"^\.text\.(\w+):$(.*?)(?=^\.text\.|\Z)", done.stdout, re.DOTALL | re.MULTILINE)
    of_vectors = [(name, code) for name, code in kernels if re.search(r"Float(16ELi8|32ELi4)E", name)]
    assert len(of_vectors) == {"film_group_norm_given": 9, "residual": 21}[source]
    for name, code in of_vectors:
        loads = re.findall(r"\bLDG\.\S*STRONG\S*", code)  # of images: past the first-level cache
        assert loads, name
        assert all(".128" in load for load in loads), name
        writes = "residual_kernel" not in name or "ELi2ELb1E" not in name  # that one takes moments alone
        assert writes == ("STG.E.128" in code), name


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


def _toolkit(folder: Path, release: str, compiles: str, knows: Sequence[str] = ()) -> Path:
    """A CUDA toolkit that consists of an nvcc that answers questions, and a runtime."""
    answers = f'[ "$1" = --version ] && echo "release {release}" && exit 0\n'
    answers += f'[ "$1" = --list-gpu-code ] && echo "{" ".join(f"sm_{arch}" for arch in knows)}" && exit 0\n'
    _script(folder / "bin/nvcc", answers + compiles)
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


TOUCH = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done; echo stub'  # a compiler that compiles anything


def _environment(folder: Path, toolkit: Path, **more: str) -> dict[str, str]:
    torch = folder / "torch"
    if not torch.exists():
        _torch_like(torch, "13.0")
    return {
        "RCDM_FAST_TORCH": str(torch),
        "CUDA_HOME": str(toolkit),
        "CXX": str(_script(folder / "c++", TOUCH)),
        **more,
    }


def test_a_failing_nvcc_fails_the_build_and_the_message_says_how_to_do_without(checkout: Path, tmp_path: Path) -> None:
    toolkit = _toolkit(tmp_path / "toolkit", "13.0", "exit 1")
    done = _setup(checkout, tmp_path, "build_ext", **_environment(tmp_path, toolkit))
    assert done.returncode != 0
    assert "the native part 'cuda' does not compile: nvcc failed on csrc/cuda/" in done.stderr
    assert f"torch 2.12.0; stub; {toolkit}/bin/nvcc 13.0" in done.stderr
    assert "Set RCDM_FAST_NATIVE=cpu, to build without it, or RCDM_FAST_NATIVE=0" in done.stderr
    stale = tmp_path / "rcdm_fast/_C_cuda.abi3.so"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    done = _setup(checkout, tmp_path, "build_ext", **_environment(tmp_path, toolkit, RCDM_FAST_NATIVE="cpu"))
    assert done.returncode == 0, done.stderr
    turned_off = "turned off by RCDM_FAST_NATIVE=cpu when rcdm_fast was built"
    assert _record(tmp_path)["PARTS"] == {"cpu": "", "cuda": turned_off}
    assert (tmp_path / "rcdm_fast/_C.abi3.so").exists()
    assert not stale.exists()


def test_a_failing_compiler_fails_the_build_without_any_requirement(checkout: Path, tmp_path: Path) -> None:
    toolkit = _toolkit(tmp_path / "toolkit", "13.0", TOUCH)
    environment = _environment(tmp_path, toolkit)
    _script(tmp_path / "c++", '[ "$1" = --version ] && echo stub && exit 0\nexit 1')
    done = _setup(checkout, tmp_path, "build_ext", **environment)
    assert done.returncode != 0
    assert "the native part 'cpu' does not compile" in done.stderr
    assert "RCDM_FAST_NATIVE=0 to install without native parts" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RCDM_FAST_REQUIRE": "gpu"}, "RCDM_FAST_REQUIRE=gpu: there is no part 'gpu'; parts are cpu, cuda"),
        ({"RCDM_FAST_NATIVE": "no"}, "RCDM_FAST_NATIVE=no: there is no part 'no'; parts are cpu, cuda"),
        ({"RCDM_FAST_NATIVE": "cpu", "RCDM_FAST_REQUIRE": "cpu, cuda"}, "RCDM_FAST_REQUIRE=cuda, but it cannot be"),
        ({"RCDM_FAST_TORCH": "/nowhere"}, "RCDM_FAST_TORCH=/nowhere is no torch package"),
        ({"RCDM_FAST_CUDA_ARCHS": "9.0"}, "knows 80, 90, not '9.0'"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error(
    checkout: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    toolkit = _toolkit(tmp_path / "toolkit", "13.0", TOUCH, knows=("80", "90"))
    done = _setup(checkout, tmp_path, "build_ext", **{**_environment(tmp_path, toolkit), **changes})
    assert done.returncode != 0
    assert message in done.stderr


# What NVIDIA's GPUs of these generations answer for their compute capability.
CHIPS = (80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130)


@pytest.mark.parametrize(
    ("knows", "machine_code"),
    [
        ((75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121), {80, 86, 87, 89, 90, 100, 103, 120, 121}),  # 13.0
        ((75, 80, 86, 87, 89, 90), {80, 86, 87, 89, 90}),  # 12.4
    ],
)
def test_every_chip_is_served(checkout: Path, tmp_path: Path, knows: tuple[int, ...], machine_code: set[int]) -> None:
    log = tmp_path / "log"
    toolkit = _toolkit(tmp_path / "toolkit", "13.0", f'echo "$@" >> {log}\n{TOUCH}', [str(arch) for arch in knows])
    done = _setup(checkout, tmp_path, "build_ext", **_environment(tmp_path, toolkit))
    assert done.returncode == 0, done.stderr
    commands = [line for line in log.read_text().splitlines() if ".cu" in line]
    assert len(commands) == len(SOURCES)
    for command in commands:
        cubins = {int(arch) for arch in re.findall(r"code=sm_(\d+)", command)}
        ptx = {int(arch) for arch in re.findall(r"code=compute_(\d+)", command)}
        assert cubins == {int(arch) for arch in ARCHITECTURES} & set(knows)
        # Machine code runs on chips of the same generation that are not older; PTX on all that are not older.
        assert {chip for chip in CHIPS if any(c // 10 == chip // 10 and c <= chip for c in cubins)} == machine_code
        assert all(chip in machine_code or any(arch <= chip for arch in ptx) for chip in CHIPS)
        newest = max(arch for arch in ptx if arch <= 110)
        assert newest == (100 if 100 in knows else 90)  # what compute capability 11.0 compiles
