"""A program in which whoever writes a large image takes its moments, for GPUs: the norm that follows reads it once.

The convolutions that begin and end a block write those images. They add bias and residual in the same pass, where a
projected residual is more of the same sum, so a block's result misses nothing: what `folded.py` carries from layer to
layer are only the biases of the first layer, of resizing and of attention. Small images stay on the chip while a norm
reads them, and take no moments.

Same weights, in the same memory, as the program that it is made from; a candidate beside it and the folded one. Knows
nothing about how a candidate is chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcdm_fast.engines.backends import TorchBackend, TorchConvolution
from rcdm_fast.engines.folded import (
    FoldedAttention,
    FoldedNorm,
    FoldedProgram,
    FoldedResize,
    Missing,
    beside,
    bias_of,
    placed,
    plain,
    sum_of,
    through,
    without_bias,
)
from rcdm_fast.engines.program import AttentionLayer, BlockLayer, FirstLayer, Norm, ResizeLayer, Stage
from rcdm_fast.ops.schema_moments import chunks_of


class Known(NamedTuple):
    """An image that layers hand on, and its moments where somebody took them (`schema_moments`)."""

    image: Tensor
    moments: Tensor | None


class SummedProgram(FoldedProgram):
    """See `FoldedProgram`; its layers hand on `Known`."""

    def _stage_of(
        self, stage: Stage, backend: TorchBackend, missing: Missing, of_skip: Missing
    ) -> tuple[Stage, Missing]:
        made: Stage = []
        for name, layer in stage:
            if isinstance(layer, BlockLayer):
                made.append((name, _SummedBlock(layer, backend, missing, of_skip)))
                missing = None
            elif isinstance(layer, AttentionLayer):
                attention = _SummedAttention(layer, backend, missing)
                made.append((name, attention))
                missing = attention.missing
            elif isinstance(layer, ResizeLayer):
                resize = _SummedResize(layer, backend, missing)
                made.append((name, resize))
                missing = resize.missing
            else:
                made.append((name, _SummedFirst(layer, backend)))
                missing = bias_of(layer.conv)
        return made, missing

    def _norm_of(self, norm: Norm, backend: TorchBackend, before: Missing) -> Norm:
        return _SummedNorm(norm, backend, before)

    def _observe(self, name: str, h: Tensor | Known) -> None:
        super()._observe(name, h.image if isinstance(h, Known) else h)


class _SummedNorm(FoldedNorm):
    def __call__(self, x: Known, *, skip: Known | None = None, **options: object) -> Tensor:  # type: ignore[override]
        beside = None if skip is None else skip.image
        if x.moments is None or (skip is not None and skip.moments is None):
            return super().__call__(x.image, skip=beside, **options)
        inputs = self.inputs(x.image, beside, **options)  # type: ignore[arg-type]
        return self._torch.norm_given(x.moments, None if skip is None else skip.moments, self._before, inputs)


class _SummedBlock(BlockLayer):
    def __init__(self, block: BlockLayer, backend: TorchBackend, missing: Missing, of_skip: Missing) -> None:
        first, last = plain(block.first), plain(block.last)
        self.up, self.down, self.film, self.phases = block.up, block.down, block.film, block.phases
        self.projection = block.projection
        self.first, self.last = without_bias(first), without_bias(last)
        self.backend = self._torch = backend
        before = beside(missing, of_skip, block.in_norm.weight.numel())
        self._in_norm = _SummedNorm(block.in_norm, backend, before)
        own = bias_of(first)  # four times the same where it computes phases
        self.out_norm = _SummedNorm(block.out_norm, backend, None if own is None else own[: len(block.out_norm.weight)])
        settled = bias_of(last)
        if block.projection is None:
            settled = sum_of(settled, before)
        else:
            direct, other = block.projection
            settled = sum_of(settled, through(plain(direct), missing))
            if other is not None:
                settled = sum_of(settled, through(plain(other), of_skip))
        nothing = torch.zeros(len(last.weight), device="cpu")
        self._settled = placed(nothing if settled is None else settled, block.out_norm.weight)

    def __call__(self, x: Known, skip: Known | None, film: Tensor, rows: Tensor) -> Known:  # type: ignore[override]
        read = self._in_norm(x, skip=skip, resample=-1 if self.down else 0)
        # Nobody takes moments of phases.
        h = Known(self.first(read), None) if self.up else _convolved(self._torch, plain(self.first), read)
        read = self.conditioned(h, film, rows)  # type: ignore[arg-type]
        weight, choices = plain(self.last).weight, self._torch.choices
        residual: Tensor | None = None
        resample, sides = 0, self._sides(x.image, None if skip is None else skip.image)
        if not sides:
            residual = x.image if skip is None else torch.cat([x.image, skip.image], dim=1)
            resample = 1 if self.up else -1 if self.down else 0
        if chunks_of(*read.shape[2:]):
            return Known(*choices.convolution_moments(read, weight, self._settled, residual, resample, *sides))
        return Known(choices.convolution_residual(read, weight, self._settled, residual, resample, *sides), None)

    def _sides(self, x: Tensor, skip: Tensor | None) -> list[Tensor]:
        """Images that are projected, each with its weight."""
        if self.projection is None:
            return []
        direct, other = self.projection
        beside = [] if other is None or skip is None else [skip, plain(other).weight]
        return [x, plain(direct).weight, *beside]


class _SummedAttention(FoldedAttention):
    def __init__(self, layer: AttentionLayer, backend: TorchBackend, missing: Missing) -> None:
        super().__init__(layer, backend, missing)
        self._norm = _SummedNorm(layer.norm, backend, missing)

    def __call__(self, x: Known) -> Known:  # type: ignore[override]
        """The moments are not those of the result."""
        return Known(self.attended(x.image, self._norm(x, silu=False)), None)


class _SummedResize(FoldedResize):
    def __call__(self, x: Known) -> Known:  # type: ignore[override]
        return Known(super().__call__(x.image), None)


class _SummedFirst(FirstLayer):
    def __init__(self, layer: FirstLayer, backend: TorchBackend) -> None:
        self.conv = without_bias(plain(layer.conv))
        self._torch = backend

    def __call__(self, x: Tensor) -> Known:  # type: ignore[override]
        return _convolved(self._torch, plain(self.conv), x)


def _convolved(backend: TorchBackend, convolution: TorchConvolution, x: Tensor) -> Known:
    """A 3x3 convolution that keeps the size, with moments where the image is large."""
    if chunks_of(*x.shape[2:]):
        return Known(*backend.choices.convolution_moments(x, convolution.weight))
    return Known(backend.choices.convolution_residual(x, convolution.weight, None, None, 0), None)
