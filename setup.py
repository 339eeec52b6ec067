"""Build the native parts where that is possible; otherwise install pure Python and record why.

The rest of the metadata is in pyproject.toml. torch is located, never imported, so that pip can build in an isolated
environment without installing a second torch. What was built goes into `rcdm_fast/_build_info.py`.

Environment variables:
    RCDM_FAST_NATIVE=0      build nothing native
    RCDM_FAST_REQUIRE=cpu   fail when that part cannot be built, instead of leaving it out
    RCDM_FAST_TORCH=DIR     the folder of the torch package to compile against
    CXX                     the C++ compiler

Knows nothing about operators: every .cpp file in csrc/ and csrc/cpu/ belongs to the `cpu` part.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, ExecError, PlatformError

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
STABLE_ABI = 0x020A000000000000  # the stable interface of torch 2.10, which every later version keeps
ABI_TAG = "cp310"
PARTS = ("cpu",)


class CannotBuild(Exception):
    """Why a native part is left out."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package folder and its version."""

    folder: Path
    version: str


def find_torch() -> Torch:
    """The torch to compile against: named by the user, on the path, or in the environment that runs this build."""
    for folder in torch_folders():
        version_file = folder / "version.py"
        if not version_file.is_file():
            continue
        found = re.search(r"__version__\s*=\s*'([^']+)'", version_file.read_text(encoding="utf-8"))
        version = found.group(1) if found else "0"
        release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if release < OLDEST_TORCH:
            raise CannotBuild(f"torch {version} in {folder} is older than {'.'.join(map(str, OLDEST_TORCH))}")
        if not (folder / "include/torch/csrc/stable/library.h").is_file():
            raise CannotBuild(f"torch {version} in {folder} has no C++ headers")
        return Torch(folder, version)
    raise CannotBuild("torch was not installed when rcdm_fast was built; install torch first, then rcdm_fast again")


def torch_folders() -> list[Path]:
    """Places where the torch package may be, best first."""
    named = os.environ.get("RCDM_FAST_TORCH")
    if named:
        return [Path(named)]
    folders = []
    spec = PathFinder.find_spec("torch")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent)
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"
    active = os.environ.get("VIRTUAL_ENV")
    interpreters = [sys.executable, str(Path(active) / "bin" / "python")] if active else [sys.executable]
    for interpreter in interpreters:
        if shutil.which(interpreter):
            # -I: without the paths of pip's isolated build environment
            answer = subprocess.run([interpreter, "-I", "-c", code], capture_output=True, text=True, check=False)
            if answer.returncode == 0 and answer.stdout.strip():
                folders.append(Path(answer.stdout.strip()).parent)
    return folders


def find_compiler() -> str:
    """First line of the C++ compiler's --version."""
    command = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    if not shutil.which(command[0]):
        raise CannotBuild(f"no C++ compiler ({command[0]} not found)")
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not answer.stdout:
        raise CannotBuild(f"the C++ compiler does not work ({shlex.join(command)} --version)")
    return answer.stdout.splitlines()[0]


def cpu_extension(torch: Torch) -> Extension:
    """The `cpu` part: operators for the CPU through torch's stable ABI."""
    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    flags = "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-trapping-math -g0 -Wall -Wextra -Wno-unused-parameter"
    return Extension(
        "rcdm_fast._C",
        sources=sorted(str(path.relative_to(ROOT)) for path in sources),
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
        include_dirs=["csrc", str(torch.folder / "include")],
        library_dirs=[str(torch.folder / "lib")],
        libraries=["torch_cpu"],
        define_macros=[("TORCH_TARGET_VERSION", f"{STABLE_ABI:#018x}ULL"), ("Py_LIMITED_API", "0x030A0000")],
        extra_compile_args=flags.split(),
        language="c++",
        py_limited_api=True,
    )


class BuildRecord:
    """What this build contains, part by part; written where the package's files go."""

    def __init__(self) -> None:
        self.torch = self.compiler = ""
        self.missing: dict[str, str] = {}

    def plan(self) -> list[Extension]:
        """The extensions that can be built; a part that cannot be is noted."""
        try:
            if os.environ.get("RCDM_FAST_NATIVE") == "0":
                raise CannotBuild("turned off by RCDM_FAST_NATIVE=0 when rcdm_fast was built")
            if sys.platform == "win32":
                raise CannotBuild("native parts are not built on Windows")
            self.compiler = find_compiler()
            torch = find_torch()
            self.torch = torch.version
            return [cpu_extension(torch)]
        except CannotBuild as reason:
            self.leave_out("cpu", str(reason))
            return []

    def leave_out(self, part: str, reason: str) -> None:
        """Note why a part is missing, or fail when the user requires it."""
        if part in os.environ.get("RCDM_FAST_REQUIRE", "").split(","):
            raise SystemExit(f"rcdm_fast: RCDM_FAST_REQUIRE={part}, but it cannot be built: {reason}")
        print(f"rcdm_fast: native part {part!r} left out: {reason}", file=sys.stderr)
        self.missing[part] = reason

    def write(self, package: Path) -> None:
        """Write `_build_info.py` into the package's folder and delete libraries of parts that were left out."""
        reasons = {part: self.missing.get(part, "") for part in PARTS}
        text = (
            '"""Written by setup.py: what this build of rcdm_fast contains."""\n\n'
            f"PARTS: dict[str, str] = {reasons!r}  # part -> why it was left out; empty when built\n"
            f"TORCH: str = {self.torch!r}\nCOMPILER: str = {self.compiler!r}\n"
        )
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.py").write_text(text, encoding="utf-8")
        if self.missing:
            for stale in package.glob("_C*.so"):
                stale.unlink()


RECORD = BuildRecord()


class BuildPython(build_py):
    """Copies the Python files and adds the record, which a pure Python build needs too."""

    def run(self) -> None:
        super().run()
        RECORD.write(ROOT / "rcdm_fast" if self.editable_mode else Path(self.build_lib) / "rcdm_fast")


class BuildNative(build_ext):
    """Compiles the extensions; one that does not compile is left out and recorded."""

    def build_extensions(self) -> None:
        built = []
        for extension in self.extensions:
            try:
                self.build_extension(extension)
                built.append(extension)
            except (CCompilerError, ExecError, PlatformError) as error:
                RECORD.leave_out("cpu", f"compiling failed: {error}")
        self.extensions = built
        RECORD.write(Path(self.build_lib) / "rcdm_fast")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        RECORD.write(ROOT / "rcdm_fast")


setup(
    ext_modules=RECORD.plan(),
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": ABI_TAG}},
)
