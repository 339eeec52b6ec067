"""A program whose inner 3x3 convolutions are computed in fp8 (e4m3) on tensor cores; the rest as it was.

Made from a program in 16 bits and the calibrated scales of a file. A convolution rounds its input in a pass of its own,
reads it upsampled or at every second pixel where it has to, and adds scale, bias and residual itself; an upsampled
block's first convolution is one of the upsampled image, as the emulation has it, and not four phases. Layers that the
file keeps in floating point are the program's.

What fp8 means is said in `models/fp8.py`, the truth that this is held to. Knows nothing about when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rcdm_fast.engines.program import BlockLayer, Convolution, Layer, Program, ResizeLayer, Stage
from rcdm_fast.models import fp8
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import candidates, reference_fp8  # noqa: F401 # has the operators' reference
from rcdm_fast.ops.schema_fp8 import E4M3


@dataclass(frozen=True)
class _Operators:
    """What runs: see `ops.reference_fp8`."""

    quantize: Callable[[Tensor, Tensor], Tensor]
    convolution: Callable[..., Tensor]


def _operators(device: torch.device) -> _Operators:
    """Triton's; elsewhere than on a GPU, where only tests run this, the reference."""
    if candidates.triton_reason(device):
        return _Operators(torch.ops.rcdm_fast.quantize, torch.ops.rcdm_fast.fp8_convolution)
    from rcdm_fast.kernels import fp8_convolution as kernel  # needs triton

    return _Operators(kernel.quantize, kernel.fp8_convolution)


class Fp8Convolution:
    """One convolution of e4m3 numbers; a `program.Convolution` that can also read its residual resampled.

    Args:
        convolution: float32, 3x3.
        scale: of its input channels, float32 [I].
        dtype: of results.
        device: where it runs.
        resize: as of `reference_fp8.fp8_convolution`.
    """

    def __init__(
        self, convolution: nn.Conv2d, scale: Tensor, dtype: torch.dtype, device: torch.device, resize: int
    ) -> None:
        assert convolution.bias is not None
        weight, out_scale = fp8.rounded_weight(convolution.weight.detach().cpu(), scale)
        self._weight = weight.to(memory_format=torch.channels_last).to(E4M3).to(device)
        self._out_scale = out_scale.to(device)
        self._bias = convolution.bias.detach().to(device, torch.float32).contiguous()
        self._inverse = (1 / scale).to(device)
        self._dtype, self._resize = dtype, resize
        self._run = _operators(device)

    def __call__(self, x: Tensor, add: Tensor | None = None, overwrite: bool = False, resample: int = 0) -> Tensor:
        """[N,I,H,W] channels-last -> [N,O,H',W']; `add` is read upsampled (`resample` 1) or as 2x2 averages (-1)."""
        rounded = self._run.quantize(x, self._inverse)
        return self._run.convolution(
            rounded, self._weight, self._out_scale, self._bias, add, self._resize, resample, self._dtype
        )


class Fp8Program(Program):
    """See `Program`; made from one of the same network.

    Args:
        program: on the device, in the dtype of all that is not fp8.
        network: in float32.
        scales: of the convolutions that are computed in fp8, by name, as a file has them.
        device: where it runs.
    """

    def __init__(self, program: Program, network: UNet, scales: Mapping[str, Tensor], device: torch.device) -> None:
        self.dtype = program.dtype
        self._observer = None
        self._left = dict(scales)
        self._convolutions = fp8.inner_convolutions(network)
        self._place = device
        self._down = [self._of(stage) for stage in program._down]
        self._middle = self._of(program._middle)
        self._up = [self._of(stage) for stage in program._up]
        self._out_norm, self._out = program._out_norm, program._out
        assert not self._left, f"no such convolutions: {', '.join(self._left)}"

    def _of(self, stage: Stage) -> Stage:
        return [(name, self._layer(name, layer)) for name, layer in stage]

    def _layer(self, name: str, layer: Layer) -> Layer:
        if isinstance(layer, BlockLayer):
            first = self._made(f"{name}.in_layers.2", 1 if layer.up else 0)
            return _Fp8Block(layer, first, self._made(f"{name}.out_layers.3", 0))
        if isinstance(layer, ResizeLayer) and layer.conv is not None:
            made = self._made(f"{name}.conv", 1) if layer.up else self._made(f"{name}.op", -1)
            return layer if made is None else _Fp8Resize(layer, made)
        return layer

    def _made(self, name: str, resize: int) -> Fp8Convolution | None:
        scale = self._left.pop(name, None)
        if scale is None:
            return None
        return Fp8Convolution(self._convolutions[name], scale, self.dtype, self._place, resize)


class _Fp8Block(BlockLayer):
    def __init__(self, block: BlockLayer, first: Fp8Convolution | None, last: Fp8Convolution | None) -> None:
        self.backend, self.film, self.projection = block.backend, block.film, block.projection
        self.in_norm, self.out_norm = block.in_norm, block.out_norm
        self.up, self.down = block.up, block.down
        self.first: Convolution = first or block.first
        self.last: Convolution = last or block.last
        self._reads_resampled = last
        self._phases = block.phases and first is None

    def conditioned(self, h: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        own = film[:, self.film]
        if film.ndim == 2:
            return self.out_norm(h, film=own, rows=rows, phases=self._phases)
        return self.backend.map_film(self.out_norm(h, silu=False, phases=self._phases), own, rows)

    def __call__(self, x: Tensor, skip: Tensor | None, film: Tensor, rows: Tensor) -> Tensor:
        if self._reads_resampled is None or not (self.up or self.down):
            return super().__call__(x, skip, film, rows)
        h = self.conditioned(self.first(self.in_norm(x, skip=skip, resample=-1 if self.down else 0)), film, rows)
        return self._reads_resampled(h, add=x, resample=1 if self.up else -1)


class _Fp8Resize(ResizeLayer):
    def __init__(self, layer: ResizeLayer, conv: Fp8Convolution) -> None:
        self.up, self.conv = layer.up, conv

    def __call__(self, x: Tensor) -> Tensor:
        assert self.conv is not None
        return self.conv(x)
