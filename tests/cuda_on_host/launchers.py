"""The launchers of csrc/cuda, compiled for the CPU through the headers beside this file, as functions on tensors.

Every tensor is handed over inside a larger buffer of NaN, so that a read outside of it shows in the result; what lies
around an output is checked afterwards.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast.ops import schema
from rcdm_fast.ops.schema_moments import moments_result

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas"
GUARD = 64  # numbers around a tensor; a multiple of 16 bytes in every dtype

Pointer = ctypes.c_void_p
Int = ctypes.c_int
Int64 = ctypes.c_int64
Float = ctypes.c_float


class NormProblem(ctypes.Structure):
    """`FilmGroupNormProblem` of csrc/cuda/film_group_norm_launch.h."""

    _fields_ = [
        *((name, Pointer) for name in ("x", "skip", "out", "weight", "bias", "before", "film", "rows")),
        *((name, Int64) for name in ("batch", "film_rows", "film_stride")),
        *((name, Int) for name in ("film_width", "height", "width", "x_channels", "skip_channels", "groups")),
        ("eps", Float),
        ("format", Int),
        ("resample", Int),
        ("silu", ctypes.c_bool),
        ("phases", ctypes.c_bool),
    ]


class GivenMoments(ctypes.Structure):
    """`GivenMoments` of csrc/cuda/film_group_norm_launch.h."""

    _fields_ = [(name, Pointer) for name in ("of_x", "of_skip", "coefficients")]


class ResidualProblem(ctypes.Structure):
    """`ResidualProblem` of csrc/cuda/residual_launch.h."""

    _fields_ = [
        *((name, Pointer) for name in ("out", "bias", "add", "moments")),
        ("batch", Int64),
        *((name, Int) for name in ("height", "width", "channels", "resample", "format")),
    ]


class MapFilmProblem(ctypes.Structure):
    """`MapFilmProblem` of csrc/cuda/map_film_launch.h."""

    _fields_ = [
        *((name, Pointer) for name in ("x", "film", "rows", "down", "across")),
        *((name, Int64) for name in ("batch", "film_rows", "of_map", "of_line", "of_place")),
        *((name, Int) for name in ("channels", "height", "width", "lines", "places")),
        ("format", Int),
    ]


class StepProblem(ctypes.Structure):
    """`SolverStepProblem` of csrc/cuda/solver_step_launch.h."""

    _fields_ = [
        *((name, Pointer) for name in ("x", "output", "following", "x0")),
        ("terms", Pointer * 8),
        ("weights", Float * 8),
        ("strides", Int64 * 4),
        ("batch", Int64),
        *((name, Int) for name in ("channels", "height", "width", "term_count")),
        *((name, Float) for name in ("x_to_x0", "output_to_x0", "bound", "x0_to_next", "x_to_next")),
        ("format", Int),
    ]


def missing() -> str:
    """Why the launchers cannot be compiled here; empty if they can."""
    return "" if shutil.which("g++") else "no g++ to compile the kernels for the host"


def compile_launchers(checkout: Path, folder: Path, shadow: bool = False, sources: Sequence[Path] = ()) -> Path:
    """Compile every .cu file (or others) for the CPU into one library; with `shadow` it finds races, and is slow."""
    library = folder / "cuda_on_host.so"
    flags = f"-std=c++17 {WARNINGS}"
    listed = sources or sorted(checkout.glob("csrc/cuda/*.cu"))
    if not shadow:
        _compile(checkout, f"{flags} -shared -x c++", *listed, "-o", library)
        return library
    # Instrumented, but linked without the sanitizer's own library: shadow.h takes its place.
    flags += " -fsanitize=thread -DRCDM_FAST_SHADOW -c -x c++"
    objects = [folder / f"{source.stem}.o" for source in listed]
    for source, target in zip(listed, objects, strict=True):
        _compile(checkout, flags, source, "-o", target)
    _compile(checkout, "-shared", *objects, "-o", library)
    return library


def compile_operators(checkout: Path, folder: Path, kernels: Path) -> Path:
    """Compile the rest of the CUDA part for the CPU: with `kernels`, a library of operators for CPU tensors."""
    library = folder / "operators_on_host.so"
    torch_folder = Path(torch.__file__).parent
    sources = [checkout / "csrc/binding_cuda.cpp", *sorted(checkout.glob("csrc/cuda/*.cpp"))]
    together = folder / "operators.cpp"  # torch's headers, which take longest, are read once
    together.write_text("".join(f'#include "{source}"\n' for source in sources), encoding="utf-8")
    flags = "-std=c++20 -DTORCH_TARGET_VERSION=0x020a000000000000ULL -DUSE_CUDA -shared -include redirect.h"
    linked = ("-L", torch_folder / "lib", "-ltorch_cpu", f"-Wl,-rpath,{kernels.parent}")
    _compile(checkout, flags, "-I", torch_folder / "include", together, kernels, *linked, "-o", library)
    return library


def _compile(checkout: Path, flags: str, *arguments: str | Path) -> None:
    folders = ("-I", checkout / "tests/cuda_on_host", "-I", checkout / "csrc")
    command = ("g++", "-O1", "-ffp-contract=off", "-fPIC", *folders, *flags.split(), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def guarded(tensor: Tensor, offset: int = 0) -> Tensor:
    """A copy with the same strides inside a buffer of NaN (of -1 for integers), `offset` numbers off alignment."""
    poison = float("nan") if tensor.is_floating_point() else -1
    room = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = torch.full((2 * GUARD + offset + max(room, 0),), poison, dtype=tensor.dtype)
    shift = -buffer.data_ptr() % 16 // tensor.element_size()
    assert shift == 0, "torch aligns its memory"
    return buffer.as_strided(tensor.shape, tensor.stride(), GUARD + offset).copy_(tensor)


def surroundings_untouched(tensor: Tensor) -> bool:
    """Whether the buffer around a guarded dense tensor is still NaN."""
    first = tensor.storage_offset()
    buffer = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return bool(buffer[:first].isnan().all() and buffer[first + tensor.numel() :].isnan().all())


def address(tensor: Tensor | None) -> int | None:
    """For a pointer field."""
    return None if tensor is None else tensor.data_ptr()


LAUNCHERS = ("film_group_norm", "film_group_norm_given", "residual", "map_film", "solver_step")


class Launchers:
    """The library and its switches."""

    def __init__(self, path: Path, names: Sequence[str] = LAUNCHERS) -> None:
        self.library = ctypes.CDLL(str(path))
        for name in names:
            getattr(self.library, f"rcdm_fast_{name}").restype = ctypes.c_char_p
        if "film_group_norm" in names:
            self.library.rcdm_fast_film_group_norm_workspace.restype = Int64
        self.launches = 0  # of the last call

    def number(self, name: str) -> ctypes.c_int:
        """A variable of cuda_runtime.h."""
        return Int.in_dll(self.library, f"cuda_on_host_{name}")

    def run_backwards(self, backwards: bool) -> None:
        """The order in which the threads of a block run between two barriers."""
        self.number("backwards").value = int(backwards)

    def _call(self, name: str, readable: Sequence[Tensor | None], *arguments: object) -> None:
        self.library.cuda_on_host_forget()
        for tensor in readable:
            if tensor is not None:
                size = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
                self.library.cuda_on_host_allow(Pointer(address(tensor)), Int64(size * tensor.element_size()))
        counter = self.number("launches")
        before = counter.value
        message = getattr(self.library, f"rcdm_fast_{name}")(*arguments)
        self.launches = counter.value - before
        assert message is None, message.decode()

    def film_group_norm(self, *inputs: Any, offset: int = 0, before: Tensor | None = None) -> Tensor:
        """As `torch.ops.rcdm_fast.film_group_norm`; tensors lie `offset` numbers off alignment."""
        problem, out, kept = self._norm(schema.NormInputs(*inputs), before, offset)
        floats = self.library.rcdm_fast_film_group_norm_workspace(ctypes.byref(problem))
        workspace = guarded(torch.full((floats,), float("nan")))
        self._call("film_group_norm", kept[:2], ctypes.byref(problem), Pointer(address(workspace)), None)
        assert surroundings_untouched(out)
        assert surroundings_untouched(workspace)
        return out

    def film_group_norm_given(
        self, moments: Tensor, skip_moments: Tensor | None, before: Tensor | None, *inputs: Any, offset: int = 0
    ) -> Tensor:
        """What `torch.ops.rcdm_fast.film_group_norm_given_out` writes."""
        problem, out, kept = self._norm(schema.NormInputs(*inputs), before, offset)
        moments, skip_moments = guarded(moments), None if skip_moments is None else guarded(skip_moments)
        coefficients = guarded(torch.full((out.shape[0], 3, out.shape[1]), float("nan")))
        given = GivenMoments(*(address(tensor) for tensor in (moments, skip_moments, coefficients)))
        self._call("film_group_norm_given", kept[:2], ctypes.byref(problem), ctypes.byref(given), None)
        assert surroundings_untouched(out)
        assert surroundings_untouched(coefficients)
        return out

    def _norm(
        self, of: schema.NormInputs, before: Tensor | None, offset: int
    ) -> tuple[NormProblem, Tensor, list[Tensor | None]]:
        """The problem, the memory for its result, and all that it points to, which has to be kept: x and skip first."""
        shape = schema.check_film_group_norm(of)
        x, phases = guarded(of.x, offset), of.phases
        skip, film = (None if tensor is None else guarded(tensor, offset) for tensor in (of.skip, of.film))
        weight, bias, added = (None if each is None else guarded(each) for each in (of.weight, of.bias, before))
        out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        out = guarded(out.fill_(float("nan")), offset)
        height, width = (2 * (x.shape[2] - 1), 2 * (x.shape[3] - 1)) if phases else (x.shape[2], x.shape[3])
        problem = NormProblem(
            *(address(tensor) for tensor in (x, skip, out, weight, bias, added, film, of.rows)),
            batch=x.shape[0],
            film_rows=0 if film is None else film.shape[0],
            film_stride=0 if film is None else film.stride(0),
            film_width=0 if film is None else film.shape[1],
            height=height,
            width=width,
            x_channels=x.shape[1] // 4 if phases else x.shape[1],
            skip_channels=0 if skip is None else skip.shape[1],
            groups=of.groups,
            eps=of.eps,
            format=FORMATS[x.dtype],
            resample=of.resample,
            silu=of.silu,
            phases=phases,
        )
        return problem, out, [x, skip, weight, bias, added, film, of.rows]

    def residual(
        self, out: Tensor, bias: Tensor, add: Tensor, resample: int, take: bool, offset: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """What `add_residual` leaves in out and, to `take` them, the moments of `add_residual_moments`."""
        out, bias, add = guarded(out, offset), guarded(bias), guarded(add, offset)
        moments = guarded(torch.full_like(moments_result(out), float("nan"))) if take else None
        self._residual(ResidualProblem(*map(address, (out, bias, add, moments)), resample=resample), out, add)
        assert surroundings_untouched(out)
        assert moments is None or surroundings_untouched(moments)
        return out, moments

    def moments(self, x: Tensor, offset: int = 0) -> Tensor:
        """As `torch.ops.rcdm_fast.moments`."""
        given, moments = guarded(x, offset), guarded(torch.full_like(moments_result(x), float("nan")))
        self._residual(ResidualProblem(*map(address, (given, None, None, moments))), given, None)
        assert torch.equal(given, x)
        assert surroundings_untouched(moments)
        return moments

    def _residual(self, problem: ResidualProblem, out: Tensor, add: Tensor | None) -> None:
        problem.batch, problem.channels, problem.height, problem.width = out.shape
        problem.format = FORMATS[out.dtype]
        self._call("residual", (out, add), ctypes.byref(problem), None)

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor, offset: int = 0) -> Tensor:
        """What `torch.ops.rcdm_fast.map_film` leaves in x; x and film lie `offset` numbers off alignment."""
        schema.check_map_film(x, film, rows, down, across)
        x, film, down, across = guarded(x, offset), guarded(film, offset), guarded(down), guarded(across)
        problem = MapFilmProblem(
            *(address(tensor) for tensor in (x, film, rows, down, across)),
            batch=x.shape[0],
            film_rows=film.shape[0],
            of_map=film.stride(0),
            of_line=film.stride(2),
            of_place=film.stride(3),
            channels=x.shape[1],
            height=x.shape[2],
            width=x.shape[3],
            lines=film.shape[2],
            places=film.shape[3],
            format=FORMATS[x.dtype],
        )
        self._call("map_film", (x, film, down, across), ctypes.byref(problem), None)
        assert surroundings_untouched(x)
        return x

    def solver_step(
        self,
        x: Tensor,
        output: Tensor,
        terms: Sequence[Tensor],
        weights: Sequence[float],
        numbers: tuple[float, float, float, float, float],
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """As `torch.ops.rcdm_fast.solver_step`; `numbers` are its last five arguments."""
        x, output, listed = guarded(x, offset), guarded(output, offset), [guarded(term, offset) for term in terms]
        following, x0 = (guarded(torch.full_like(x, float("nan"))) for _ in range(2))
        problem = StepProblem(
            *(address(tensor) for tensor in (x, output, following, x0)),
            (Pointer * 8)(*(address(term) for term in listed)),
            (Float * 8)(*weights),
            (Int64 * 4)(*output.stride()),
            x.shape[0],
            *x.shape[1:],
            len(listed),
            *numbers,
            FORMATS[output.dtype],
        )
        self._call("solver_step", (x, output, *listed), ctypes.byref(problem), None)
        assert surroundings_untouched(x0)
        assert surroundings_untouched(following)
        return following, x0


def without_barrier(checkout: Path, folder: Path, name: str, number: int, names: Sequence[str]) -> Launchers:
    """Launchers of sources `names`, every access followed, after the file `name` of csrc/cuda has lost a barrier."""
    copy = folder / "checkout"
    shutil.copytree(checkout / "csrc", copy / "csrc")
    shutil.copytree(checkout / "tests/cuda_on_host", copy / "tests/cuda_on_host")
    file = copy / "csrc/cuda" / name
    pieces = file.read_text().split("__syncthreads();")
    pieces[number : number + 2] = [";".join(pieces[number : number + 2])]
    file.write_text("__syncthreads();".join(pieces))
    sources = [copy / f"csrc/cuda/{each}.cu" for each in names]
    return Launchers(compile_launchers(copy, folder, shadow=True, sources=sources), names)


def assert_race_is_found(tries: Iterable[Callable[[], object]]) -> None:
    """That one of these calls ends with what shadow.h says of a missing barrier."""
    said = []
    for each in tries:
        try:
            each()
        except AssertionError as error:
            said.append(str(error))
    assert any("shared memory that another one" in each for each in said), said
