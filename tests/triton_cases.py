"""What the tests of Triton kernels share: the interpreter, one call of the norm, the bound of an error.

TRITON_INTERPRET must be set before Triton is imported, so a file of such tests runs itself once more in another
process (`passes_in_the_interpreter`). There the same tests run on the CPU; elsewhere they are marked `gpu`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Tests that compute numbers; numpy, which the interpreter uses, warns when exp2 becomes inf.
computes = pytest.mark.filterwarnings("ignore::RuntimeWarning") if INTERPRETED else pytest.mark.gpu
outside = pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
both_lengths = pytest.mark.parametrize("marked", ["not long", pytest.param("long", marks=pytest.mark.long)])


def passes_in_the_interpreter(file: str, marked: str, short: bool) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-m", f"not gpu and {marked}", *(["--short"] if short else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.fixture(autouse=True, scope="module")
def patched_once() -> Iterator[None]:
    """The interpreter puts its functions into Triton's language at every call inside a kernel, a third of its time.

    The first call of a module's functions does it for good; what a launch puts back, the next one patches anew.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    real = InterpretedFunction.__call__
    patched: set[str] = set()

    def call(function: Any, *given: Any, **named: Any) -> Any:
        module = function.fn.__module__
        if module in patched:
            return function.rewrite()(*given, **named)
        patched.add(module)
        return real(function, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New float tensors are full of NaN: outputs and workspaces that are not written show."""
    made = torch.empty

    def empty(*size: Any, **options: Any) -> Tensor:
        tensor = made(*size, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", empty)


@dataclass(frozen=True)
class Norm:
    """One call of `film_group_norm`; defaults are the harder choice."""

    channels: int
    groups: int
    skip: int = 0
    height: int = 9
    width: int = 7
    film: int = 2  # numbers per channel in a row
    silu: bool = True
    resample: int = 0
    phases: bool = False
    dtype: torch.dtype = torch.float32
    images: int = 2

    def inputs(self, mean: float = 30.0, std: float = 1.0) -> list[Any]:
        """x, skip and film begin in the middle of their storages; the distance of film's rows is odd."""
        height, width = (self.height // 2 + 1, self.width // 2 + 1) if self.phases else (self.height, self.width)
        channels = self.channels + self.skip
        x = self._image(self.channels * (4 if self.phases else 1), height, width, mean, std)
        skip = self._image(self.skip, height, width, -0.2 * mean, 2 * std) if self.skip else None
        weight, bias = torch.randn(channels) * 0.3 + 1, torch.randn(channels)
        film = torch.randn(5, self.film * channels + 3)[:, 2:-1] if self.film else None
        rows = torch.randint(0, 5, (self.images,)) if self.film else None
        tensors = [tensor if tensor is None else tensor.to(DEVICE) for tensor in (x, skip, weight, bias, film, rows)]
        settings: list[Any] = [self.groups, 1e-5, self.silu, self.resample, self.phases]
        return [*tensors, *settings]

    def _image(self, channels: int, height: int, width: int, mean: float, std: float) -> Tensor:
        storage = torch.randn(3 + self.images * height * width * channels) * std + mean
        view = storage.to(self.dtype).to(DEVICE)[3:].view(self.images, height, width, channels)
        return view.permute(0, 3, 1, 2)


def ulp(dtype: torch.dtype) -> float:
    """Relative error that the interpreter's truncating cast to bfloat16 may add."""
    return torch.finfo(dtype).eps if INTERPRETED and dtype == torch.bfloat16 else 0.0


def compare(got: Tensor, plain: Tensor, truth: Tensor) -> None:
    bound = 2 * (plain.double() - truth).abs().max() + ulp(got.dtype) * truth.abs().max()
    error = (got.double() - truth).abs().max()
    assert error <= bound, f"largest error {error:.2e}, bound {bound:.2e}"
