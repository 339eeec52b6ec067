"""The compiled engine: the program of fused operators as one graph for torch.compile.

On CPU the compiler packs the convolutions' weights (freezing) and fuses what lies between our operators, which it sees
as single nodes; on CUDA it works with its own CUDA graphs. The first evaluation of a batch size compiles, for about a
minute. fp32 on CPU runs in groups of one fixed size, as in the native engine.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import devices, ops
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.engines.backends import ModuleBackend
from rcdm_fast.engines.groups import in_groups
from rcdm_fast.engines.native import DTYPES
from rcdm_fast.engines.program import Program
from rcdm_fast.errors import install
from rcdm_fast.models.unet import UNet
from rcdm_fast.precision import exact

MOST_SIZES = 2**16  # in a process

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why torch.compile cannot be used on a device in a precision; empty if it can."""
    reasons = []
    if device.type == "cuda":
        if not torch.cuda.is_available():
            reasons.append("this PyTorch sees no CUDA device")
        if importlib.util.find_spec("triton") is None:
            reasons.append(f"torch.compile needs triton on CUDA: {install('triton')}")
    elif device.type != "cpu":
        reasons.append(f"not tried on {device.type}")
    elif not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        reasons.append("torch.compile needs a C++ compiler on CPU")
    if device.type == "cpu" and precision == "fp16":
        reasons.append("fp16 runs on CUDA only (use bf16)")
    return reasons


class CompiledEngine(Engine):
    """See `rcdm_fast.diffusion.engine.Engine`."""

    name = "compiled"

    def __init__(self, network: UNet, device: torch.device, precision: str) -> None:
        self.precision = precision
        self.device = devices.placed(device)
        self._network = network.to(self.device)
        self._module: _Module | None = None
        self._compiled: Denoise | None = None

    def prepare(self, batch: Batch) -> None:
        self._made()

    @torch.no_grad()  # the compiler folds weights only outside inference mode
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        run = self._made()
        film = batch.film(k)
        with devices.current(self.device), exact(self.precision, self.device), _any_number_of_sizes():
            if self.precision == "fp32" and self.device.type == "cpu":
                return in_groups(lambda part, own: run(part, own, _rows(part)), x, film).contiguous()
            return run(x, film, _rows(x)).to(torch.float32, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def first_nonfinite(self, batch: Batch, x: Tensor, k: int) -> str | None:
        """Name of the first layer whose output is not finite for these images at step k, or None."""
        self._made()
        assert self._module is not None
        with devices.current(self.device), exact(self.precision, self.device):
            return self._module.program.first_nonfinite(x, *batch.film_rows(k))

    def describe(self) -> str:
        return (
            f"compiled, {self.precision}, on {self.device}: torch.compile {torch.__version__}, our operators as nodes"
        )

    def _made(self) -> Denoise:
        if self._compiled is None:
            ops.load()
            self._module = _Module(self._network, DTYPES[self.precision], self.device).eval()
            options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True}
            if self.device.type == "cuda":
                options = {"triton.cudagraphs": True}
            self._compiled = torch.compile(self._module, fullgraph=True, dynamic=False, options=options)
        return self._compiled


def _any_number_of_sizes() -> AbstractContextManager[None]:
    """Every batch size is compiled by itself; PyTorch gives up at the ninth in a process, whatever the models."""
    limits: Any = torch._dynamo.config
    found: AbstractContextManager[None] = limits.patch(
        recompile_limit=MOST_SIZES, accumulated_recompile_limit=MOST_SIZES
    )
    return found


class _Module(nn.Module):
    """The program with its convolutions as submodules, which is where the compiler looks for constants."""

    def __init__(self, network: UNet, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        backend = ModuleBackend(dtype, device)
        self.program = Program(network, backend, dtype, device)
        self.convolutions = nn.ModuleList(backend.made)

    def forward(self, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        return self.program.denoise(x, film, rows)


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)
