"""What native operators refuse in C++, one case per process: an exception that cannot be caught ends it.

python -m tests.native_errors CASE ...

Several cases are forks of a process that has imported all and loaded nothing.
"""

from __future__ import annotations

import faulthandler
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from rcdm_fast import ops
from rcdm_fast.ops import library

SETTINGS = (None, None, 32, 1e-5, True, 0, False)  # of a film_group_norm, from `film` on
NUMBERS = (1.0, 1.0, 1.0, 1.0, 1.0)  # of a solver_step


class OnGpu(Tensor):
    """A tensor of which everything but its numbers is on a GPU, for the C++ checks of a machine without one."""

    @staticmethod
    def __new__(cls, like: Tensor) -> OnGpu:
        device = torch.device("cuda:0")
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} was called: C++ was to refuse before")


def _image(device: str = "cpu") -> Tensor:
    return torch.randn(1, 64, 8, 8, device=device).contiguous(memory_format=torch.channels_last)


def _on_cuda(name: str, *arguments: Any) -> None:
    """The CUDA implementation, whatever the tensors are."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    getattr(torch.ops.rcdm_fast, name).default.redispatch(keys, *arguments)


def cpu_norm() -> None:
    torch.ops.rcdm_fast.film_group_norm(_image(), None, torch.ones(64).double(), torch.ones(64), *SETTINGS)


def cpu_step() -> None:
    torch.ops.rcdm_fast.solver_step(_image().contiguous(), _image()[:, :, :4], [], [], *NUMBERS)


def cuda_norm() -> None:
    _on_cuda("film_group_norm", _image(), None, torch.ones(64), torch.ones(64), *SETTINGS)


def cuda_norm_mixed() -> None:
    _on_cuda("film_group_norm", OnGpu(_image()), None, torch.ones(64), torch.ones(64), *SETTINGS)


def cuda_step_mixed() -> None:
    x = _image().contiguous()
    _on_cuda("solver_step", OnGpu(x), x, [], [], *NUMBERS)


def two_devices() -> None:
    """On a GPU."""
    weight = torch.ones(64)
    torch.ops.rcdm_fast.film_group_norm(_image("cuda"), None, weight, weight.cuda(), *SETTINGS)


CASES: dict[str, tuple[Callable[[], None], str]] = {
    "cpu_norm": (cpu_norm, "weight must be float32"),
    "cpu_step": (cpu_step, "solver_step: "),
    "cuda_norm": (cuda_norm, "x must have the dtype and the device of x"),
    "cuda_norm_mixed": (cuda_norm_mixed, "weight must be float32"),
    "cuda_step_mixed": (cuda_step_mixed, "output does not fit x"),
    "two_devices": (two_devices, "weight must be float32"),
}


def run(case: str) -> subprocess.CompletedProcess[str]:
    """A case in a process of its own; 0 where it was refused with the right words."""
    command = [sys.executable, "-m", "tests.native_errors", case]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_several(cases: list[str]) -> dict[str, tuple[bool, str]]:
    """Whether each case was refused with the right words in a fork of its own, and all that was printed."""
    command = [sys.executable, "-m", "tests.native_errors", *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ends = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended "))
    return {case: (ends.get(case) == "0", done.stdout + done.stderr) for case in cases}


def main() -> None:
    """One case here, or each of several in a fork."""
    if len(sys.argv) == 2:
        _try(sys.argv[1])
    for case in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            _try(case)
        sys.stdout.write(f"ended {case} {os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


def _try(case: str) -> NoReturn:
    """What was loaded is printed first: two C++ runtimes in one process are what to look for after a crash."""
    faulthandler.enable()
    ops.load()
    refused, words = CASES[case]
    maps = Path("/proc/self/maps")
    runtimes = set(re.findall(r"/\S*(?:stdc\+\+|gcc_s)\S*", maps.read_text())) if maps.exists() else set()
    sys.stdout.write(f"torch {torch.__version__}, {library.build_facts()}, {sorted(runtimes)}\n")
    sys.stdout.flush()
    try:
        refused()
    except RuntimeError as error:
        sys.stdout.write(f"{error}\n")
        raise SystemExit(0 if words in str(error) else 1) from error
    raise SystemExit("nothing was refused")


if __name__ == "__main__":
    main()
