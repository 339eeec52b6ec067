"""What an evaluation asks of a GPU, operator by operator with shapes; traced without a GPU and without numbers.

Two ways to run a network can be traced: the native engine's program on CUDA, and the plain network, whose operators
torch.compile starts from. Shapes are those of any 16-bit precision.

Knows nothing about kernels, bytes or time (`kernels.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rcdm_fast.config import UNetConfig
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.folded import FoldedProgram
from rcdm_fast.engines.program import Program
from rcdm_fast.engines.summed import SummedProgram
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import candidates, convolutions, products, selection
from rcdm_fast.ops.schema import NormInputs

CUDA = torch.device("cuda")
DTYPE = torch.float16  # what PyTorch says of bfloat16's convolutions depends on the GPU, and there is none
ATTENTION = "scaled_dot_product_attention"
PROBE = 97  # images that are traced, a number that no layer has: what it divides grows with the batch
COPY = "copy"  # the name of a view that had to copy after all
EMPTY = ("empty", "empty_like", "new_empty", "zeros", "device")  # no work on tensors


@dataclass(frozen=True)
class Operand:
    """A tensor of a trace: the memory it lies in (views share it), and its shape."""

    memory: int
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Call:
    """An operator that does work.

    Attributes:
        name: without its namespace and overload: "conv2d".
        arguments: as it was given them, tensors as `Operand`.
        written: its results, or the arguments that it writes to.
    """

    name: str
    arguments: tuple[Any, ...]
    written: tuple[Operand, ...]

    @property
    def read(self) -> tuple[Operand, ...]:
        """The tensors among its arguments that it does not write, in their order."""
        memories = {operand.memory for operand in self.written}
        given = [each for each in tree_leaves(self.arguments) if isinstance(each, Operand)]
        return tuple(operand for operand in given if operand.memory not in memories)


class _Tracer(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._same: dict[int, int] = {}  # memory -> the one it stands for
        self._kept: list[Tensor] = []  # so that no memory is known by two names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        name = schema.name.split("::")[1]
        aliases = [value.alias_info for value in schema.returns if value.alias_info is not None]
        results = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        self._kept += results
        arguments = tree_map_only(Tensor, self._operand, (*args, *(kwargs or {}).values()))
        if aliases and not all(alias.is_write for alias in aliases):
            known = {each.memory for each in tree_leaves(arguments) if isinstance(each, Operand)}
            copied = tuple(each for each in map(self._operand, results) if each.memory not in known)
            if copied:
                self._note_copy(arguments, copied)
        elif name not in EMPTY:
            mutated = [
                value
                for value, argument in zip(args, schema.arguments, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            self.calls.append(Call(name, arguments, tuple(map(self._operand, mutated or results))))
        return out

    def _note_copy(self, arguments: tuple[Any, ...], copied: tuple[Operand, ...]) -> None:
        """Attention's result lies on a GPU as [N,L,heads,d], which a trace does not know: no copy is needed of it."""
        (source,) = (each for each in tree_leaves(arguments) if isinstance(each, Operand))
        writers = [call.name for call in self.calls if source.memory == call.written[0].memory]
        if writers and writers[-1] == ATTENTION:
            self._same[copied[0].memory] = source.memory
        else:
            self.calls.append(Call(COPY, arguments, copied))

    def _operand(self, tensor: Tensor) -> Operand:
        self._kept.append(tensor)
        memory = tensor.untyped_storage()._cdata
        return Operand(self._same.get(memory, memory), tuple(tensor.shape))


class TracedBackend(TorchBackend):
    """The native engine's backend on CUDA, with our operators whether they are built here or not."""

    def __init__(self, epilogue: bool = False) -> None:
        super().__init__(DTYPE, CUDA)
        self.choices = _Settled(epilogue)


class _Settled(selection.Choices):
    """`epilogue`: whether residuals are added by convolutions of ours, not in a pass after PyTorch's."""

    def __init__(self, epilogue: bool) -> None:
        super().__init__(CUDA)
        self._epilogue = epilogue

    def film_group_norm_before(self, out: Tensor, before: Tensor, inputs: NormInputs) -> None:
        torch.ops.rcdm_fast.film_group_norm_before_out(out, before, *inputs)

    def convolution_residual(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, resample: int, *sides: Tensor | None
    ) -> Tensor:
        run = torch.ops.rcdm_fast
        if self._epilogue:
            out: Tensor = run.convolution_residual(x, weight, bias, add, resample, 1, *sides)
            return out
        return convolutions.convolution_then_residual(run.add_residual, x, weight, bias, add, resample, *sides)

    def convolution_moments(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        add: Tensor | None = None,
        resample: int = 0,
        *sides: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        run = torch.ops.rcdm_fast
        if self._epilogue:
            out, moments = run.convolution_moments(x, weight, bias, add, resample, *sides)
            return out, moments
        behind = run.add_residual_moments, run.moments
        return convolutions.convolution_then_moments(*behind, x, weight, bias, add, resample, *sides)

    def film_group_norm_given(
        self,
        out: Tensor,
        moments: Tensor,
        skip_moments: Tensor | None,
        before: Tensor | None,
        inputs: NormInputs,
    ) -> None:
        torch.ops.rcdm_fast.film_group_norm_given_out(out, moments, skip_moments, before, *inputs)

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> None:
        torch.ops.rcdm_fast.map_film(x, film, rows, down, across)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return products.product(x, weight, bias)

    def add_product(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        products.add_product(out, x, weight)

    def film_group_norm(self, out: Tensor, inputs: NormInputs) -> None:
        torch.ops.rcdm_fast.film_group_norm_out(out, *inputs)

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        return candidates.sdpa(qkv, heads, new_order)


Form = Literal["written", "folded", "summed"]


def of_program(unet: UNetConfig, batch: int, form: Form = "written", epilogue: bool = False) -> list[Call]:
    """One evaluation by the native engine's program, of float32 images [batch,3,H,W].

    Args:
        unet, batch: which network, and how many images.
        form: as it is written, without bias passes (`engines/folded.py`), or of that with moments of large images taken
            by what writes them (`engines/summed.py`).
        epilogue: residuals, and moments, are the convolutions' own business (`kernels/convolution.py`).
    """
    return _of_batch(_program(unet, form, epilogue), batch)


def of_plain(unet: UNetConfig, batch: int) -> list[Call]:
    """One evaluation by the plain network, in channels-last memory; FiLM rows are given, as to our engines."""
    return _of_batch(_plain(unet), batch)


@functools.cache
def _program(unet: UNetConfig, form: Form, epilogue: bool) -> list[Call]:
    with _network(unet) as network:
        backend = TracedBackend(epilogue)
        program = Program(network, backend, DTYPE, CUDA)
        if form != "written":
            program = (FoldedProgram if form == "folded" else SummedProgram)(program, backend)
        return _traced(program.denoise, *_inputs(network))


@functools.cache
def _plain(unet: UNetConfig) -> list[Call]:
    with _network(unet) as network:
        x, film, _ = _inputs(network)
        wide = film.expand(PROBE, -1).contiguous()
        return _traced(network.denoise, x.contiguous(memory_format=torch.channels_last), wide)


def _of_batch(calls: list[Call], batch: int) -> list[Call]:
    """The same for another number of images than `PROBE`."""

    def resized(operand: Operand) -> Operand:
        first, *rest = operand.shape or (1,)
        return operand if first % PROBE else Operand(operand.memory, (first // PROBE * batch, *rest))

    return [Call(call.name, *tree_map_only(Operand, resized, (call.arguments, call.written))) for call in calls]


@contextmanager
def _network(unet: UNetConfig) -> Iterator[UNet]:
    with FakeTensorMode(), torch.device(CUDA):
        network = UNet(unet).eval().requires_grad_(False)
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        yield network


def _inputs(network: UNet) -> tuple[Tensor, Tensor, Tensor]:
    """Images, one FiLM row and row numbers."""
    size = network.config.image_size
    width = sum(block.film_width for block in network.residual_blocks())
    x, film = torch.zeros(PROBE, 3, size, size, device=CUDA), torch.zeros(1, width, device=CUDA)
    return x, film, torch.zeros(PROBE, dtype=torch.int64, device=CUDA)


def _traced(function: Callable[..., Tensor], *inputs: Tensor) -> list[Call]:
    with torch.inference_mode(), _Tracer() as tracer:
        function(*inputs)
    calls: list[Call] = tracer.calls
    return calls
