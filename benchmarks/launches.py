"""From traced operators to the kernels that a GPU runs for them: their matrix products, the bytes they move.

Every kernel reads each of its tensors from memory once and writes each once. Parameters of norms, biases and FiLM rows
count nothing. `of_engine` takes operators as they come, as the native engine launches them; `of_compiler` is what
torch.compile is taken to make of the plain network: whatever lies between convolutions and attention is fused as far as
its reductions allow, without any cost of its own.

Knows nothing about devices or time (`roofline.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod

from benchmarks.traced import ATTENTION, Call, Operand

KINDS = ("convolution", "bias", "residual", "norm", "attention", "other")  # products of 1x1 are convolutions too
ELEMENT_BYTES = 2
MOMENT_BYTES = 4
SHARED_BYTES = 96 * 1024  # of one block of csrc/cuda's norm; what does not fit into it takes two kernels
SHARED_OVERHEAD = 8 * 1024
SECTOR_BYTES = 32


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        kind: one of `KINDS`.
        read, written: bytes.
        product: rows, columns and inner length of its matrix product, or None.
        flop: operations of matrix products; attention has some without a `product`.
    """

    kind: str
    read: int
    written: int
    product: tuple[int, int, int] | None = None
    flop: int = 0

    @property
    def moved(self) -> int:
        """Bytes, both ways."""
        return self.read + self.written


def of_engine(calls: Sequence[Call]) -> list[Kernel]:
    """What the native engine launches; `KeyError` for an operator that is not known here."""
    return [kernel for call in calls for kernel in ENGINE[call.name](call)]


def one_kernel(pixels: int, channels: int, groups: int) -> bool:
    """Whether csrc/cuda/film_group_norm_plan.h keeps a slab of one image, 16-bit numbers, on the chip."""
    per_group, vector = channels // groups, 16 // ELEMENT_BYTES
    slab = per_group // gcd(vector, per_group) * vector
    slab *= -(-SECTOR_BYTES // (slab * ELEMENT_BYTES))
    return pixels * slab * ELEMENT_BYTES + SHARED_OVERHEAD <= SHARED_BYTES


def _bytes(*operands: Operand | None) -> int:
    return sum(operand.numbers for operand in operands if operand is not None) * ELEMENT_BYTES


def _convolution(call: Call) -> Kernel:
    x, weight = call.arguments[:2]
    (out,) = call.written
    product = out.numbers // weight.shape[0], weight.shape[0], prod(weight.shape[1:])
    return Kernel("convolution", _bytes(x, weight), _bytes(out), product, 2 * prod(product))


def _convolution_and_bias(call: Call) -> list[Kernel]:
    """cuDNN adds no bias here: PyTorch does, in place, in a pass of its own."""
    (out,) = call.written
    found = [_convolution(call)]
    return (
        found
        if len(call.arguments) < 3 or call.arguments[2] is None
        else [*found, Kernel("bias", _bytes(out), _bytes(out))]
    )


def _attention(call: Call) -> Kernel:
    q, k = call.arguments[:2]
    flop = 4 * q.numbers * k.shape[2]
    return Kernel("attention", _bytes(*call.read), _bytes(*call.written), None, flop)


def _product(call: Call) -> list[Kernel]:
    """addmm(bias, x, weight), or out.addmm_(x, weight), which reads out too."""
    given, x, weight = call.arguments[:3]
    (out,) = call.written
    adds = given.memory == out.memory
    product = x.shape[0], weight.shape[1], weight.shape[0]
    read = _bytes(x, weight, out if adds else None)
    return [Kernel("convolution", read, _bytes(out), product, 2 * prod(product))]


def _bare_product(call: Call) -> list[Kernel]:
    x, weight = call.arguments[:2]
    product = x.shape[0], weight.shape[1], weight.shape[0]
    return [Kernel("convolution", _bytes(x, weight), _bytes(*call.written), product, 2 * prod(product))]


def _add_residual(call: Call) -> list[Kernel]:
    out, _bias, add = call.arguments[:3]
    return [Kernel("residual", _bytes(out, add), _bytes(out))]


def _norm(call: Call) -> list[Kernel]:
    out, *_, groups, _, _, resample, _ = call.arguments
    n, channels, height, width = out.shape
    pixels = height * width * (4 if resample == -1 else 1) // (4 if resample == 1 else 1)
    read, written = n * pixels * channels * ELEMENT_BYTES, _bytes(out)
    both = [Kernel("norm", read, written)]
    return both if one_kernel(pixels, channels, groups) else [Kernel("norm", read, 0), *both]


def _convolution_residual(call: Call) -> list[Kernel]:
    """Also with moments; products of other images lengthen the sum."""
    x, weight, _bias, add = (*call.arguments, None, None)[:4]
    sides = call.arguments[5 + (call.name == "convolution_residual") :]  # behind resample, and splits
    out, *moments = call.written
    product = out.numbers // out.shape[1], out.shape[1], sum(prod(each.shape[1:]) for each in (weight, *sides[1::2]))
    written = _bytes(out) + sum(each.numbers for each in moments) * MOMENT_BYTES
    return [Kernel("convolution", _bytes(x, weight, add, *sides), written, product, 2 * prod(product))]


def _add_residual_moments(call: Call) -> list[Kernel]:
    out, _bias, add = call.arguments[:3]
    moments = call.written[-1].numbers * MOMENT_BYTES
    return [Kernel("residual", _bytes(out, add), _bytes(out) + moments)]


def _norm_given(call: Call) -> list[Kernel]:
    """Its chunks are joined by a kernel of their own, which writes three numbers for every channel of an image."""
    out, moments, skip_moments = call.arguments[:3]
    x, skip = call.arguments[4:6]
    taken = sum(each.numbers for each in (moments, skip_moments) if each is not None) * MOMENT_BYTES
    joined = out.shape[0] * out.shape[1] * 3 * MOMENT_BYTES
    return [Kernel("norm", taken, joined), Kernel("norm", _bytes(x, skip) + joined, _bytes(out))]


def _one(kind: str) -> Callable[[Call], list[Kernel]]:
    return lambda call: [Kernel(kind, _bytes(*call.read), _bytes(*call.written))]


ENGINE: dict[str, Callable[[Call], list[Kernel]]] = {
    "conv2d": _convolution_and_bias,
    ATTENTION: lambda call: [_attention(call)],
    "film_group_norm_out": _norm,
    "film_group_norm_before_out": _norm,
    "add_residual": _add_residual,
    "convolution_residual": _convolution_residual,
    "moments": lambda call: [Kernel("norm", _bytes(call.arguments[0]), call.written[0].numbers * MOMENT_BYTES)],
    "add_residual_moments": _add_residual_moments,
    "convolution_moments": _convolution_residual,
    "film_group_norm_given_out": _norm_given,
    "map_film": lambda call: [Kernel("norm", _bytes(*call.arguments[:2]), _bytes(call.arguments[0]))],
    "addmm": _product,
    "addmm_": _product,
    "mm": _bare_product,
    "add": _one("residual"),
    "copy": _one("other"),
    "cat": _one("other"),
    "avg_pool2d": _one("other"),
    "upsample_nearest2d": _one("other"),
}


def of_compiler(calls: Sequence[Call]) -> list[Kernel]:
    """What torch.compile is taken to launch for the plain network.

    Biases are part of a convolution or of whoever reads its result. Activations, sums, concatenation and resampling are
    part of the kernel that reads them. A norm is a reduction, which also writes what it reads where that is computed
    from several tensors, and then a part of the kernel that writes the next convolution's input.
    """
    return _Fusion().run(calls)


class _Fusion:
    def __init__(self) -> None:
        self._kernels: list[Kernel] = []
        self._from: dict[int, dict[int, Operand]] = {}  # memory that nobody has written -> what it is computed from

    def run(self, calls: Sequence[Call]) -> list[Kernel]:
        for call in calls:
            if call.name in ("conv2d", "conv1d", ATTENTION):
                self._library(call)
            elif call.name == "group_norm":
                self._reduce(call)
            else:
                self._fuse(call.written[0], call.read or call.written)
        return self._kernels

    def _sources(self, *operands: Operand) -> dict[int, Operand]:
        found: dict[int, Operand] = {}
        for operand in operands:
            if operand.numbers > prod(operand.shape[:2]):  # FiLM rows and parameters count nothing
                found |= self._from.get(operand.memory, {operand.memory: operand})
        return found

    def _fuse(self, out: Operand, read: Sequence[Operand]) -> None:
        sources = self._sources(*read)
        if sources.keys() - {out.memory}:
            self._from[out.memory] = sources

    def _reduce(self, call: Call) -> None:
        x = call.arguments[0]
        sources = self._sources(x)
        several = len(sources) > 1
        self._kernels.append(Kernel("norm", _bytes(*sources.values()), _bytes(x) if several else 0))
        if several:
            del self._from[x.memory]
        self._fuse(call.written[0], [x])

    def _library(self, call: Call) -> None:
        for operand in call.arguments[: 3 if call.name == ATTENTION else 1]:
            sources = self._from.pop(operand.memory, None)
            if sources is not None:
                self._kernels.append(Kernel("norm", _bytes(*sources.values()), _bytes(operand)))
        self._kernels.append(_attention(call) if call.name == ATTENTION else _convolution(call))
