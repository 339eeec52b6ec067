"""A program whose biases are no passes of their own, for GPUs: cuDNN adds none to a convolution.

A bias is the same for all pixels, so nobody has to add it where it arises: what a layer passes on is the image less a
known number per channel, which is added where that costs nothing. A norm adds it to what it reads; a 1x1 convolution
turns it into another one, W (x + b) = W x + W b, known beforehand; what ends a block without a projection, a
convolution of ours or a pass behind PyTorch's, adds it with the residual. 1x1 convolutions are matrix products that add
to what is there, so that a projected residual, and what attention gives, need no pass either.

Same weights, in the same memory, as the program that it is made from; it rounds less often, and not as that one
does: a candidate beside it, never its replacement. Knows nothing about how a candidate is chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.engines.backends import TorchBackend, TorchConvolution
from rcdm_fast.engines.program import (
    AttentionLayer,
    BlockLayer,
    Convolution,
    FirstLayer,
    Norm,
    Program,
    ResizeLayer,
    Stage,
)

Missing = Tensor | None  # float64 [C] on the CPU: what is to be added to an image's channels; None for nothing


class FoldedProgram(Program):
    """See `Program`; made from one on a `TorchBackend`."""

    def __init__(self, program: Program, backend: TorchBackend) -> None:
        self.dtype = program.dtype
        self._observer = None
        missing: Missing = None
        skips: list[Missing] = []
        self._down, self._up = [], []
        for stage in program._down:
            folded, missing = self._stage_of(stage, backend, missing, None)
            self._down.append(folded)
            skips.append(missing)
        self._middle, missing = self._stage_of(program._middle, backend, missing, None)
        for stage in program._up:
            folded, missing = self._stage_of(stage, backend, missing, skips.pop())
            self._up.append(folded)
        self._out_norm = self._norm_of(program._out_norm, backend, missing)
        self._out = program._out

    def _stage_of(
        self, stage: Stage, backend: TorchBackend, missing: Missing, of_skip: Missing
    ) -> tuple[Stage, Missing]:
        """The layers of a stage, given what its inputs miss; and what its result misses."""
        return _folded(stage, backend, missing, of_skip)

    def _norm_of(self, norm: Norm, backend: TorchBackend, before: Missing) -> Norm:
        return FoldedNorm(norm, backend, before)


def _folded(stage: Stage, backend: TorchBackend, missing: Missing, of_skip: Missing) -> tuple[Stage, Missing]:
    made: Stage = []
    for name, layer in stage:
        if isinstance(layer, BlockLayer):
            block = _FoldedBlock(layer, backend, missing, of_skip)
            made.append((name, block))
            missing = block.missing
        elif isinstance(layer, AttentionLayer):
            attention = FoldedAttention(layer, backend, missing)
            made.append((name, attention))
            missing = attention.missing
        elif isinstance(layer, ResizeLayer):
            resize = FoldedResize(layer, backend, missing)
            made.append((name, resize))
            missing = resize.missing
        else:
            made.append((name, _FoldedFirst(layer)))
            missing = bias_of(layer.conv)
    return made, missing


class FoldedNorm(Norm):
    """Of an image less `before`, which it adds."""

    def __init__(self, norm: Norm, backend: TorchBackend, before: Missing) -> None:
        self.weight, self.bias, self.groups, self.eps = norm.weight, norm.bias, norm.groups, norm.eps
        self.backend = self._torch = backend
        self._before = None if before is None else placed(before, norm.weight)

    def __call__(self, x: Tensor, **options: object) -> Tensor:
        inputs = self.inputs(x, **options)  # type: ignore[arg-type]
        return self._torch.norm(inputs) if self._before is None else self._torch.norm_before(self._before, inputs)


class _FoldedBlock(BlockLayer):
    def __init__(self, block: BlockLayer, backend: TorchBackend, missing: Missing, of_skip: Missing) -> None:
        first, last = plain(block.first), plain(block.last)
        self.up, self.down, self.film, self.phases = block.up, block.down, block.film, block.phases
        self.projection = block.projection
        self.first, self.last = without_bias(first), without_bias(last)
        self.backend = self._torch = backend
        before = beside(missing, of_skip, block.in_norm.weight.numel())
        self.in_norm = FoldedNorm(block.in_norm, backend, before)
        own = bias_of(first)  # four times the same where it computes phases
        self.out_norm = FoldedNorm(block.out_norm, backend, None if own is None else own[: len(block.out_norm.weight)])
        if block.projection is None:
            settled = sum_of(bias_of(last), before)
            self._settled = placed(
                torch.zeros(len(last.weight), device="cpu") if settled is None else settled, block.out_norm.weight
            )
            self.missing: Missing = None
            return
        direct, other = block.projection
        self.missing = sum_of(bias_of(last), through(plain(direct), missing))
        if other is not None:
            self.missing = sum_of(self.missing, through(plain(other), of_skip))

    def __call__(self, x: Tensor, skip: Tensor | None, film: Tensor, rows: Tensor) -> Tensor:
        h = self.conditioned(self.first(self.in_norm(x, skip=skip, resample=-1 if self.down else 0)), film, rows)
        if self.projection is None:
            residual = x if skip is None else torch.cat([x, skip], dim=1)
            resample = 1 if self.up else -1 if self.down else 0
            return self._torch.choices.convolution_residual(
                h, plain(self.last).weight, self._settled, residual, resample
            )
        h = self.last(h)
        direct, other = self.projection
        self._torch.choices.add_product(h, x, plain(direct).weight)
        if other is not None and skip is not None:
            self._torch.choices.add_product(h, skip, plain(other).weight)
        return h


class FoldedAttention(AttentionLayer):
    """See `AttentionLayer`; its result misses `missing`."""

    def __init__(self, layer: AttentionLayer, backend: TorchBackend, missing: Missing) -> None:
        self.backend = self._torch = backend
        self.norm = FoldedNorm(layer.norm, backend, missing)
        self.qkv, self.out = layer.qkv, layer.out
        self.heads, self.new_order = layer.heads, layer.new_order
        self.missing = sum_of(missing, bias_of(layer.out))

    def __call__(self, x: Tensor) -> Tensor:
        return self.attended(x, self.norm(x, silu=False))

    def attended(self, x: Tensor, read: Tensor) -> Tensor:
        """What was read of x, attended to, is added to x itself: the block before made it for this layer alone."""
        n, c, height, width = x.shape
        qkv, choices = plain(self.qkv), self._torch.choices
        assert qkv.bias is not None
        packed = choices.product(read, qkv.weight, qkv.bias)
        h = choices.attention(packed.permute(0, 2, 3, 1).view(n, height * width, 3 * c), self.heads, self.new_order)
        choices.add_product(x, h.view(n, height, width, c).permute(0, 3, 1, 2), plain(self.out).weight)
        return x


class FoldedResize(ResizeLayer):
    """A convolution pads with zeros, which miss nothing: what its input misses is added first."""

    def __init__(self, layer: ResizeLayer, backend: TorchBackend, missing: Missing) -> None:
        self.up = layer.up
        self.conv = None if layer.conv is None else without_bias(plain(layer.conv))
        self._settled: Tensor | None = None
        self.missing = missing
        if layer.conv is not None:
            weight = plain(layer.conv).weight
            self._settled = None if missing is None else missing.to(weight.device, weight.dtype)[:, None, None]
            self.missing = bias_of(layer.conv)

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x if self._settled is None else x + self._settled)


class _FoldedFirst(FirstLayer):
    def __init__(self, layer: FirstLayer) -> None:
        self.conv = without_bias(plain(layer.conv))


def without_bias(convolution: TorchConvolution) -> TorchConvolution:
    """The same convolution, in the same memory, that adds no bias."""
    made = TorchConvolution.__new__(TorchConvolution)
    torch.nn.Module.__init__(made)
    made.weight, made.bias = convolution.weight, None
    made.stride, made.padding = convolution.stride, convolution.padding
    return made


def plain(convolution: Convolution) -> TorchConvolution:
    """It, on a `TorchBackend`."""
    assert isinstance(convolution, TorchConvolution)
    return convolution


def bias_of(convolution: Convolution) -> Missing:
    """What its result misses while nobody adds its bias."""
    bias = plain(convolution).bias
    return None if bias is None else bias.to("cpu", torch.float64)


def through(convolution: TorchConvolution, missing: Missing) -> Missing:
    """What a 1x1 convolution misses of its result when its input misses something and its bias is not added."""
    if missing is None:
        return bias_of(convolution)
    return sum_of(convolution.weight.flatten(1).to("cpu", torch.float64) @ missing, bias_of(convolution))


def sum_of(one: Missing, other: Missing) -> Missing:
    """Both together."""
    return other if one is None else one if other is None else one + other


def beside(of_x: Missing, of_skip: Missing, channels: int) -> Missing:
    """Of x and skip side by side, `channels` in all."""
    if of_x is None and of_skip is None:
        return None
    whole = torch.zeros(channels, dtype=torch.float64, device="cpu")
    if of_x is not None:
        whole[: len(of_x)] = of_x
    if of_skip is not None:
        whole[channels - len(of_skip) :] = of_skip
    return whole


def placed(numbers: Tensor, like: Tensor) -> Tensor:
    """In float32, where another tensor is."""
    return numbers.to(like.device, torch.float32).contiguous()
