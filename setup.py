"""Build the native parts where that is possible; otherwise install pure Python and record why.

A part is left out where something that it needs is not there: a compiler, torch, a CUDA toolkit. Where all is there and
compiling fails, the build fails: slower than it could be is not what anybody asked for, and nobody reads a build's log.

The rest of the metadata is in pyproject.toml. torch is located, never imported, so that pip can build in an isolated
environment without installing a second torch. What was built goes into `rcdm_fast/_build_info.py`.

Environment variables:
    RCDM_FAST_NATIVE=0|cpu|cuda  build nothing native, or only this part
    RCDM_FAST_REQUIRE=cpu,cuda   fail when one of these parts cannot be built, instead of leaving it out
    RCDM_FAST_TORCH=DIR          the folder of the torch package to compile against
    RCDM_FAST_CUDA_ARCHS=80,90   compute capabilities to compile for, the last one also as PTX for later chips
    CUDA_HOME, CXX               the CUDA toolkit, the C++ compiler

Knows nothing about operators: csrc/binding.cpp and csrc/cpu/ are the `cpu` part, csrc/binding_cuda.cpp and csrc/cuda/
the `cuda` part.
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
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, CompileError, ExecError, PlatformError

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
STABLE_ABI = 0x020A000000000000  # the stable interface of torch 2.10, which every later version keeps
ABI_TAG = "cp310"
MODULES = {"cpu": "rcdm_fast._C", "cuda": "rcdm_fast._C_cuda"}  # part -> its library
# Machine code serves later chips of its generation: 80 serves 86 and 89, 100 serves 103, 120 serves 121. Others compile
# PTX at their first launch: of 100 on 110, of the newest on what comes after it.
CUDA_ARCHS = ["80", "90", "100", "120"]
PTX_ARCHS = ["100"]
CXX_FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-trapping-math -g0 -Wall -Wextra -Wno-unused-parameter"


class CannotBuild(Exception):
    """Why a native part is left out."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its package folder, its version, the CUDA version it was built for (or an empty text)."""

    folder: Path
    version: str
    cuda: str


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit."""

    nvcc: str
    root: Path
    release: str  # such as 13.0


def named_parts(variable: str) -> set[str] | None:
    """The parts that an environment variable lists; None where it is not set. Any other word is an error."""
    text = os.environ.get(variable)
    if text is None:
        return None
    parts = {part.strip() for part in text.split(",") if part.strip()}
    unknown = parts - set(MODULES)
    if unknown:
        known = ", ".join(MODULES)
        raise SystemExit(f"rcdm_fast: {variable}={text}: there is no part {sorted(unknown)[0]!r}; parts are {known}")
    return parts


def wanted_parts() -> set[str]:
    """What RCDM_FAST_NATIVE asks for; everything by default."""
    text = os.environ.get("RCDM_FAST_NATIVE", "")
    if text == "0":
        return set()
    return set(MODULES) if text in ("", "1") else named_parts("RCDM_FAST_NATIVE") or set()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command's result, whatever it is."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


@cache
def find_torch() -> Torch:
    """The torch to compile against: named by the user, on the path, or in the environment that runs this build."""
    for folder in torch_folders():
        version_file = folder / "version.py"
        if not version_file.is_file():
            continue
        text = version_file.read_text(encoding="utf-8")
        found = re.search(r"__version__\s*=\s*'([^']+)'", text)
        cuda = re.search(r"^cuda\b[^=\n]*=\s*'([^']+)'", text, re.MULTILINE)
        version = found.group(1) if found else "0"
        release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if release < OLDEST_TORCH:
            raise CannotBuild(f"torch {version} in {folder} is older than {'.'.join(map(str, OLDEST_TORCH))}")
        if not (folder / "include/torch/csrc/stable/library.h").is_file():
            raise CannotBuild(f"torch {version} in {folder} has no C++ headers")
        return Torch(folder, version, cuda.group(1) if cuda else "")
    if os.environ.get("RCDM_FAST_TORCH"):
        raise SystemExit(
            f"rcdm_fast: RCDM_FAST_TORCH={os.environ['RCDM_FAST_TORCH']} is no torch package (no version.py)"
        )
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
            answer = run(interpreter, "-I", "-c", code)
            if answer.returncode == 0 and answer.stdout.strip():
                folders.append(Path(answer.stdout.strip()).parent)
    return folders


def find_compiler() -> str:
    """First line of the C++ compiler's --version."""
    command = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    if not shutil.which(command[0]):
        raise CannotBuild(f"no C++ compiler ({command[0]} not found)")
    answer = run(*command, "--version")
    if answer.returncode or not answer.stdout:
        raise CannotBuild(f"the C++ compiler does not work ({shlex.join(command)} --version)")
    return answer.stdout.splitlines()[0]


@cache
def find_toolkit(torch: Torch) -> Toolkit:
    """The CUDA toolkit of the same major version as torch's."""
    if not torch.cuda:
        raise CannotBuild(f"torch {torch.version} was built without CUDA")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc")
    if nvcc is None:
        raise CannotBuild(f"no nvcc in CUDA_HOME={home}" if home else "no CUDA compiler (nvcc not found)")
    release = re.search(r"release (\d+\.\d+)", run(nvcc, "--version").stdout)
    if release is None:
        raise CannotBuild(f"the CUDA compiler does not work ({nvcc} --version)")
    if release.group(1).split(".")[0] != torch.cuda.split(".")[0]:
        raise CannotBuild(f"{nvcc} is CUDA {release.group(1)}, but torch {torch.version} was built for {torch.cuda}")
    # nvcc on the path may be a wrapper: it is asked where it really lies.
    top = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-x", "cu", os.devnull).stderr, re.MULTILINE)
    return Toolkit(nvcc, Path(top.group(1) if top else Path(nvcc).resolve().parent.parent).resolve(), release.group(1))


def find_cudart(torch: Torch, toolkit: Toolkit) -> str:
    """The CUDA runtime to link: the one beside torch, which torch has loaded by then, or the toolkit's."""
    name = f"libcudart.so.{toolkit.release.split('.')[0]}"
    beside_torch = [torch.folder / "lib", *torch.folder.parent.glob("nvidia/*/lib")]
    in_toolkit = [toolkit.root / "lib64", toolkit.root / "lib", *toolkit.root.glob("targets/*/lib")]
    for folder in (*beside_torch, *in_toolkit):
        if (folder / name).is_file():
            return str(folder / name)
    raise CannotBuild(f"{name} is neither beside torch nor in {toolkit.root}")


def extension(part: str, torch: Torch, sources: list[Path], libraries: list[str]) -> Extension:
    """A part's library, through torch's stable ABI."""
    return Extension(
        MODULES[part],
        sources=[str(path.relative_to(ROOT)) for path in sources],
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*h")),
        include_dirs=["csrc", str(torch.folder / "include")],
        library_dirs=[str(torch.folder / "lib")],
        libraries=libraries,
        define_macros=[("TORCH_TARGET_VERSION", f"{STABLE_ABI:#018x}ULL"), ("Py_LIMITED_API", "0x030A0000")],
        extra_compile_args=CXX_FLAGS.split(),
        language="c++",
        py_limited_api=True,
    )


def cpu_extension(torch: Torch) -> Extension:
    """The `cpu` part: operators for the CPU."""
    return extension("cpu", torch, [ROOT / "csrc/binding.cpp", *sorted(ROOT.glob("csrc/cpu/*.cpp"))], ["torch_cpu"])


def cuda_extension(torch: Torch) -> Extension:
    """The `cuda` part: operators for NVIDIA GPUs. C++ first: where that fails, nvcc need not start."""
    cudart = find_cudart(torch, find_toolkit(torch))
    files = [path for suffix in ("cpp", "cu") for path in sorted(ROOT.glob(f"csrc/cuda/*.{suffix}"))]
    part = extension("cuda", torch, [ROOT / "csrc/binding_cuda.cpp", *files], ["torch_cuda", "torch_cpu"])
    part.define_macros.append(("USE_CUDA", None))
    part.extra_link_args.append(cudart)
    return part


def nvcc_command(toolkit: Toolkit, source: str, target: str) -> list[str]:
    """How a .cu file is compiled; it includes neither torch nor Python."""
    known = re.findall(r"sm_(\w+)", run(toolkit.nvcc, "--list-gpu-code").stdout)
    named = os.environ.get("RCDM_FAST_CUDA_ARCHS")
    wanted = [arch.strip() for arch in named.split(",")] if named else [arch for arch in CUDA_ARCHS if arch in known]
    unknown = [arch for arch in wanted if known and arch.rstrip("af") not in known]
    if unknown:
        raise CompileError(f"RCDM_FAST_CUDA_ARCHS={named}: {toolkit.nvcc} knows {', '.join(known)}, not {unknown[0]!r}")
    wanted = wanted or CUDA_ARCHS
    machines = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted]
    portable = [arch for arch in wanted[:-1] if arch in PTX_ARCHS and not named] + wanted[-1:]
    machines += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in portable]
    flags = "-std=c++17 -O3 --threads 0 -Icsrc -Xfatbin -compress-all -Xcompiler -fPIC,-fvisibility=hidden"
    return [toolkit.nvcc, *flags.split(), *machines, "-c", source, "-o", target]


class BuildRecord:
    """What this build contains, part by part; written where the package's files go."""

    def __init__(self) -> None:
        self.torch = self.compiler = self.nvcc = ""
        self.missing: dict[str, str] = {}
        self.required: set[str] = set()

    def plan(self) -> list[Extension]:
        """The extensions that can be built; a part that cannot be is noted."""
        self.required = named_parts("RCDM_FAST_REQUIRE") or set()
        wanted = wanted_parts()
        for part in sorted(set(MODULES) - wanted):
            value = os.environ["RCDM_FAST_NATIVE"]
            self.leave_out(part, f"turned off by RCDM_FAST_NATIVE={value} when rcdm_fast was built")
        if not wanted:
            return []
        try:
            if sys.platform == "win32":
                raise CannotBuild("native parts are not built on Windows")
            self.compiler = find_compiler()
            torch = find_torch()
        except CannotBuild as reason:
            for part in sorted(wanted):
                self.leave_out(part, str(reason))
            return []
        self.torch = torch.version
        planned = []
        for part, make in (("cpu", cpu_extension), ("cuda", cuda_extension)):
            if part not in wanted:
                continue
            try:
                planned.append(make(torch))
            except CannotBuild as reason:
                self.leave_out(part, str(reason))
        if "cuda" not in self.missing:
            self.nvcc = "{0.nvcc} {0.release}".format(find_toolkit(torch))
        return planned

    def leave_out(self, part: str, reason: str) -> None:
        """Note why a part is missing, or fail when the user requires it."""
        if part in self.required:
            raise SystemExit(f"rcdm_fast: RCDM_FAST_REQUIRE={part}, but it cannot be built: {reason}")
        print(f"rcdm_fast: native part {part!r} left out: {reason}", file=sys.stderr)
        self.missing[part] = reason

    def write(self, package: Path) -> None:
        """Write `_build_info.py` into the package's folder and delete libraries of parts that were left out."""
        reasons = {part: self.missing.get(part, "") for part in MODULES}
        text = (
            '"""Written by setup.py: what this build of rcdm_fast contains."""\n\n'
            f"PARTS: dict[str, str] = {reasons!r}  # part -> why it was left out; empty when built\n"
            f"TORCH: str = {self.torch!r}\nCOMPILER: str = {self.compiler!r}\nNVCC: str = {self.nvcc!r}\n"
        )
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.py").write_text(text, encoding="utf-8")
        for part in self.missing:
            for stale in package.glob(MODULES[part].split(".")[1] + ".*so"):
                stale.unlink()


def failure(part: str, error: Exception) -> str:
    """What to say when a part does not compile; setuptools prints it last."""
    others = [other for other in MODULES if other != part and other not in RECORD.missing]
    without = f"RCDM_FAST_NATIVE={','.join(others)}, to build without it, or " if others else ""
    return (
        f"\nrcdm_fast: the native part {part!r} does not compile: {error}\n"
        f"  torch {RECORD.torch}; {RECORD.compiler}{f'; {RECORD.nvcc}' if part == 'cuda' else ''}; "
        f"the compiler's messages are above.\n"
        f"  Set {without}RCDM_FAST_NATIVE=0 to install without native parts: everything works, but slower.\n"
    )


RECORD = BuildRecord()


class BuildPython(build_py):
    """Copies the Python files and adds the record, which a pure Python build needs too."""

    def run(self) -> None:
        super().run()
        RECORD.write(ROOT / "rcdm_fast" if self.editable_mode else Path(self.build_lib) / "rcdm_fast")


class BuildNative(build_ext):
    """Compiles the extensions; one that does not compile fails the build, and the message says how to do without."""

    def build_extensions(self) -> None:
        self._let_nvcc_compile_cuda()
        for extension in self.extensions:
            try:
                self.build_extension(extension)
            except (CCompilerError, ExecError, PlatformError) as error:
                (part,) = (part for part, module in MODULES.items() if module == extension.name)
                raise SystemExit(failure(part, error)) from error
        RECORD.write(Path(self.build_lib) / "rcdm_fast")

    def _let_nvcc_compile_cuda(self) -> None:
        """.cu files become objects among the others, so that setuptools knows what to link and what is up to date."""
        self.compiler.src_extensions = [*self.compiler.src_extensions, ".cu"]
        compile_other = self.compiler._compile

        def compile_one(target: str, source: str, *arguments: Any) -> None:
            if not source.endswith(".cu"):
                compile_other(target, source, *arguments)
                return
            command = nvcc_command(find_toolkit(find_torch()), source, target)
            print(shlex.join(command), flush=True)
            if subprocess.run(command, check=False).returncode != 0:
                raise CompileError(f"nvcc failed on {source}")

        self.compiler._compile = compile_one

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        RECORD.write(ROOT / "rcdm_fast")


setup(
    ext_modules=RECORD.plan(),
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": ABI_TAG}},
)
