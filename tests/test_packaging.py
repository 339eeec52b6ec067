"""The wheel: what is in it, and that it works where the checkout is not on the path.

Builds from a copy of the files a source distribution has, in pip's isolated build environment (once with the tools that
are there, where nothing is to be built). A fresh environment borrows the packages of the running one through a .pth
file, which comes after its own; torch is not installed again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast.ops import library
from tests import older

SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "constraints.txt",
    "csrc",
    "kernels",
    "pyproject.toml",
    "rcdm_fast",
    "setup.py",
    "training",
)
CUDA = bool(torch.version.cuda and shutil.which("nvcc"))  # whether that part is built here


def _run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _build(checkout: Path, folder: Path, *options: str, **env: str) -> Path:
    """Copy the sources, build a wheel from them and return it."""
    copy = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
    for name in SOURCES:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=left_out)
        else:
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    wheels = folder / "wheels"
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", *options, "-w", wheels, copy, cwd=folder, env=env)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def _environment(folder: Path, *packages: str | Path, first: tuple[Path, ...] = ()) -> Path:
    """A fresh environment with `packages` of its own, then those of `first` and of the running one; its python."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    paths = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    running = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    borrowed = dict.fromkeys([*map(str, first), *running])
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--force-reinstall")
    _run(*pip, *packages, cwd=folder.parent)
    return python


@pytest.fixture(scope="module")
def expected(request: pytest.FixtureRequest) -> dict[str, bool]:
    """Part -> whether the wheel has it. In short without what nvcc takes minutes for, and makes when CI installs."""
    return {"cpu": True, "cuda": CUDA and not request.config.getoption("--short")}


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory, expected: dict[str, bool]) -> Path:
    """The wheel with native code; for one GPU architecture, which is enough to see that it is built and loads."""
    return _build(checkout, tmp_path_factory.mktemp("native"), RCDM_FAST_CUDA_ARCHS="90", **_parts(expected))


def _parts(expected: dict[str, bool]) -> dict[str, str]:
    """What tells setup.py which parts to build, and to fail without them."""
    required = ",".join(part for part, built in expected.items() if built)
    return {"RCDM_FAST_REQUIRE": required, **({} if expected["cuda"] else {"RCDM_FAST_NATIVE": "cpu"})}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a fresh environment with that wheel."""
    return _environment(tmp_path_factory.mktemp("installed") / "venv", wheel)


def _contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _modules(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


@pytest.mark.long
def test_only_one_name_is_importable(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (top,) = (name for name in archive.namelist() if name.endswith("top_level.txt"))
        assert archive.read(top).decode().split() == ["rcdm_fast"]
    assert {name.split("/")[0] for name in _contents(wheel)} == {"rcdm_fast", "rcdm_fast-0.1.0.dist-info"}


@pytest.mark.long
def test_native_wheel_serves_every_later_python(wheel: Path, expected: dict[str, bool]) -> None:
    assert wheel.name.startswith("rcdm_fast-0.1.0-cp310-abi3-")
    libraries = {name for name in _contents(wheel) if name.endswith(".so")}
    assert libraries == {f"rcdm_fast/{library.FILES[part]}" for part, built in expected.items() if built}


@pytest.mark.long
def test_wheel_has_every_module_and_every_bundled_file(wheel: Path, checkout: Path) -> None:
    contents = _contents(wheel)
    for folder, name in (
        ("rcdm_fast", "rcdm_fast"),
        ("training", "rcdm_fast/training"),
        ("kernels", "rcdm_fast/kernels"),
    ):
        missing = {f"{name}/{module}" for module in _modules(checkout / folder)} - contents
        assert not missing
    data = [*checkout.glob("rcdm_fast/bundled/*.safetensors"), *checkout.glob("rcdm_fast/bundled/*.md")]
    assert data
    assert {f"rcdm_fast/bundled/{path.name}" for path in data} <= contents
    assert {f"rcdm_fast/training/configs/{path.name}" for path in checkout.glob("training/configs/*")} <= contents
    assert {"rcdm_fast/py.typed", "rcdm_fast/report/page.css", "rcdm_fast/report/page.js"} <= contents


@pytest.mark.long
def test_wheel_has_nothing_else(wheel: Path) -> None:
    kinds = {Path(name).suffix for name in _contents(wheel) if name.startswith("rcdm_fast/")}
    assert kinds <= {".py", ".so", ".typed", ".json", ".safetensors", ".md", ".css", ".js"}
    assert not [name for name in _contents(wheel) if "test" in name or "csrc" in name or "benchmarks/" in name]


@pytest.mark.long
def test_installed_wheel_imports_with_native_code(installed: Path, tmp_path: Path, expected: dict[str, bool]) -> None:
    code = (
        "import rcdm_fast, torch; from rcdm_fast import ops; import rcdm_fast.data.image_set;"
        f"loaded = {{part.name: part.loaded for part in ops.describe()}}; assert loaded == {expected}, ops.describe();"
        "x = torch.ones(1, 3, 2, 2);"
        "step = ops.solver_step(x, x, x_to_x0=1, output_to_x0=1, bound=1, x0_to_next=1, x_to_next=1);"
        "assert step[0].eq(2).all();"
        "print(rcdm_fast.__file__, *(part.path for part in ops.describe()))"
    )
    for path in _run(installed, "-P", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent.parent)


@pytest.mark.long
def test_installed_wheel_samples_with_a_bundled_model(installed: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[:48, None], (1, 64)), np.full((48, 64), 90, np.uint8)], -1)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    command = "sample photo.png --model cifar10-simclr-trunk --per 2 --steps 2 --out sheet.png"
    _run(installed.parent / "rcdm", *command.split(), cwd=tmp_path)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > sheet.size[1] > 32


@pytest.mark.long
def test_pure_python_install_works_and_says_so(checkout: Path, tmp_path: Path) -> None:
    wheel = _build(checkout, tmp_path, CXX="/nonexistent/c++")
    assert wheel.name == "rcdm_fast-0.1.0-py3-none-any.whl"
    assert not [name for name in _contents(wheel) if name.endswith(".so")]
    python = _environment(tmp_path / "venv", wheel)
    code = (
        "import torch; from rcdm_fast import ops; x = torch.ones(1, 3, 2, 2);"
        "step = ops.solver_step(x, x, x_to_x0=1, output_to_x0=1, bound=1, x0_to_next=1, x_to_next=1);"
        "print(step[0].unique().tolist());"
        "import runpy; runpy.run_module('rcdm_fast.info', run_name='__main__')"
    )
    computed, *printed = _run(python, "-P", "-c", code, cwd=tmp_path).splitlines()
    assert computed == "[2.0]"
    assert any("missing: no C++ compiler (/nonexistent/c++ not found)" in line for line in printed)


@pytest.mark.long(short=False)
def test_a_compiler_that_fails_fails_the_build_and_the_message_says_how_to_do_without(
    checkout: Path, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "odd compiler 1.0" && exit 0\nexit 3\n')
    compiler.chmod(0o755)
    with pytest.raises(AssertionError) as failed:
        _build(checkout, tmp_path / "with", CXX=str(compiler))
    for said in ("the native part 'cpu' does not compile", "odd compiler 1.0", "RCDM_FAST_NATIVE=0"):
        assert said in str(failed.value)
    wheel = _build(checkout, tmp_path / "without", CXX=str(compiler), RCDM_FAST_NATIVE="0")
    with zipfile.ZipFile(wheel) as archive:
        assert "turned off by RCDM_FAST_NATIVE=0" in archive.read("rcdm_fast/_build_info.py").decode()


def test_a_required_part_that_cannot_be_built_is_an_error(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="RCDM_FAST_REQUIRE=cpu, but it cannot be built: turned off"):
        _build(checkout, tmp_path, "--no-build-isolation", RCDM_FAST_REQUIRE="cpu", RCDM_FAST_NATIVE="0")


def test_the_oldest_torch_is_the_one_that_is_asked_for(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (asked,) = (need for need in project["dependencies"] if need.startswith("torch"))
    assert asked == f"torch>={older.OLDEST_TORCH.removesuffix('.0')}"


@pytest.fixture(scope="module")
def older_torch() -> Path:
    """A folder for sys.path with the oldest torch that the package accepts."""
    return older.installed("torch", older.OLDEST_TORCH)


@pytest.fixture(scope="module")
def older_wheel(
    checkout: Path, older_torch: Path, tmp_path_factory: pytest.TempPathFactory, expected: dict[str, bool]
) -> Path:
    """The wheel, compiled and linked against the oldest torch."""
    environment = {"RCDM_FAST_TORCH": str(older_torch / "torch"), "RCDM_FAST_CUDA_ARCHS": "90", **_parts(expected)}
    return _build(checkout, tmp_path_factory.mktemp("older"), **environment)


UNDER_ANOTHER_TORCH = """
import torch
from rcdm_fast import ops
from rcdm_fast.ops import reference
print(torch.__version__, *(part.name for part in ops.describe() if part.loaded))
x, wide = torch.randn(2, 3, 33, 31), torch.randn(2, 64, 8, 9).contiguous(memory_format=torch.channels_last)
rows, parameters = torch.tensor([2, 0]), (torch.rand(64), torch.randn(64), torch.randn(3, 128))
norm = (wide, None, *parameters, rows, 32, 1e-5, True, 0, False)
native = torch.ops.rcdm_fast
torch.testing.assert_close(native.film_group_norm(*norm), reference.film_group_norm(*norm))
qkv = torch.randn(2, 20, 96)
torch.testing.assert_close(native.attention(qkv, 2, False), reference.attention(qkv, 2, False))
step = (x, x.clone(), [x.clone()], [0.1], 1.3, -0.7, 0.9, 0.8, 0.25)
for got, want in zip(native.solver_step(*step), reference.solver_step(*step)):
    torch.testing.assert_close(got, want)
torch.library.opcheck(native.solver_step.default, step)
torch.library.opcheck(native.film_group_norm.default, norm)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("built", "runs"),
    [
        pytest.param("older", "older", marks=pytest.mark.long(short=False)),
        pytest.param("older", "newer", marks=pytest.mark.long(short=False)),
        ("newer", "older"),
    ],
)
def test_one_wheel_serves_the_oldest_torch_and_this_one(
    request: pytest.FixtureRequest, tmp_path: Path, expected: dict[str, bool], built: str, runs: str
) -> None:
    wheel = request.getfixturevalue({"older": "older_wheel", "newer": "wheel"}[built])
    first = (request.getfixturevalue("older_torch"),) if runs == "older" else ()
    python = _environment(tmp_path / "venv", wheel, first=first)
    version, *loaded = _run(python, "-P", "-c", UNDER_ANOTHER_TORCH, cwd=tmp_path).split()
    assert loaded == [part for part, there in expected.items() if there]
    assert version.startswith(older.OLDEST_TORCH if runs == "older" else torch.__version__)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(photo)
    command = "sample photo.png --model cifar10-simclr-trunk --per 2 --steps 2 --engine native --out sheet.png"
    _run(python.parent / "rcdm", *command.split(), cwd=tmp_path)
    assert (tmp_path / "sheet.png").exists()
