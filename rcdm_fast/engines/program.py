"""The network as a fast engine runs it: convolutions, our operators between them, nothing computed twice.

Channels-last throughout. GroupNorm, FiLM, SiLU and average pooling are one operator (the FiLM of maps is another one
behind it); a skip connection is read beside its partner instead of being concatenated; the residual is added by the
convolution that ends a block; an upsampled block's first convolution reads the small image where the backend has one
that does, or runs as four 2x2 phase convolutions on it (16/36 of the work, exact).

How a convolution runs is the backend's business (`Backend`). What the network computes is `rcdm_fast.models.unet`;
this module follows it block by block and knows nothing about plans, solvers, CUDA graphs or how weights are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.models.unet import AttentionBlock, Downsample, ResBlock, UNet, Upsample
from rcdm_fast.ops.schema import NormInputs

Observer = Callable[[str, Tensor], None]  # (layer's name in the state_dict, its output)
Passed = Any  # from layer to layer: an image, of which another form of the program may know more (`summed.py`)


class Convolution(Protocol):
    """One prepared convolution with its bias."""

    def __call__(self, x: Tensor, add: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """[N,C,H,W] channels-last -> the same; `add` is added to the result, and may be `overwrite`n by it."""


class Backend(Protocol):
    """How an engine runs convolutions, norms and attention in its dtype, on its device."""

    def convolution(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Convolution:
        """Prepare a convolution: float32 weight [O,I,k,k], bias [O]."""

    def upsampling(self, weight: Tensor, bias: Tensor | None) -> Convolution | None:
        """Prepare one of 3x3 that reads a small image and gives that of the upsampled one; None if it has none."""

    def norm(self, inputs: NormInputs) -> Tensor:
        """`reference.film_group_norm`; the result is valid until the next norm of the same shape."""

    def map_film(self, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        """`reference.map_film` with the weights of `condition_map`; x may be overwritten."""

    def attention(self, qkv: Tensor, heads: int, new_order: bool) -> Tensor:
        """`ops.attention`."""


def phase_weights(weight: Tensor) -> Tensor:
    """Weights of the four 2x2 convolutions that equal upsampling and then a 3x3 convolution; [O,I,3,3] -> [4O,I,2,2].

    Run on the small image with padding 1 they give [N,4O,H+1,W+1], as `ops.reference.merge_phases` describes. In an
    even row the kernel's rows 1 and 2 see the same pixel; in an odd row rows 0 and 1 do.
    """
    even, odd = ((0, 1, 1), (0, 0, 1))  # kernel row -> row of the 2x2 kernel
    phases = []
    for rows in (even, odd):
        for columns in (even, odd):
            small = weight.new_zeros(*weight.shape[:2], 2, 2)
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    small[:, :, row, column] += weight[:, :, i, j]
            phases.append(small)
    return torch.cat(phases)


class Norm:
    """A GroupNorm and what goes along with it; see `NormInputs`."""

    def __init__(self, norm: nn.Module, backend: Backend, device: torch.device) -> None:
        assert isinstance(norm, nn.GroupNorm)
        self.weight = norm.weight.detach().to(device, torch.float32).contiguous()
        self.bias = norm.bias.detach().to(device, torch.float32).contiguous()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.backend = backend

    def __call__(
        self,
        x: Tensor,
        *,
        skip: Tensor | None = None,
        film: Tensor | None = None,
        rows: Tensor | None = None,
        silu: bool = True,
        resample: int = 0,
        phases: bool = False,
    ) -> Tensor:
        return self.backend.norm(self.inputs(x, skip, film, rows, silu, resample, phases))

    def inputs(
        self,
        x: Tensor,
        skip: Tensor | None = None,
        film: Tensor | None = None,
        rows: Tensor | None = None,
        silu: bool = True,
        resample: int = 0,
        phases: bool = False,
    ) -> NormInputs:
        """What the operator is given."""
        own = self.weight, self.bias
        return NormInputs(x, skip, *own, film, rows, self.groups, self.eps, silu, resample, phases)


class BlockLayer:
    """See `unet.ResBlock`; x may come in two parts, as if concatenated."""

    def __init__(self, block: ResBlock, split: int, backend: Backend, device: torch.device, film_start: int) -> None:
        first, last = block.in_layers[2], block.out_layers[3]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        self.backend = backend
        self.in_norm = Norm(block.in_layers[0], backend, device)
        self.out_norm = Norm(block.out_layers[0], backend, device)
        self.up = isinstance(block.resample, Upsample)
        self.down = isinstance(block.resample, Downsample)
        whole = backend.upsampling(first.weight, first.bias) if self.up else None
        self.phases = self.up and whole is None
        if whole is not None:
            self.first = whole
        elif self.up:
            assert first.bias is not None
            self.first = backend.convolution(phase_weights(first.weight), first.bias.repeat(4), 1, 1)
        else:
            self.first = backend.convolution(first.weight, first.bias, 1, 1)
        self.last = backend.convolution(last.weight, last.bias, 1, 1)
        self.film = slice(film_start, film_start + block.film_width)
        self.projection: tuple[Convolution, Convolution | None] | None = None
        if isinstance(block.skip_connection, nn.Conv2d):
            weight, bias = block.skip_connection.weight, block.skip_connection.bias
            other = backend.convolution(weight[:, split:], None, 1, 0) if split < weight.shape[1] else None
            self.projection = backend.convolution(weight[:, :split], bias, 1, 0), other

    def __call__(self, x: Tensor, skip: Tensor | None, film: Tensor, rows: Tensor) -> Tensor:
        h = self.conditioned(self.first(self.in_norm(x, skip=skip, resample=-1 if self.down else 0)), film, rows)
        if self.up:
            return self.last(h, add=upsampled(x), overwrite=True)
        if self.down:
            return self.last(h, add=F.avg_pool2d(x, 2), overwrite=True)
        if self.projection is None:
            return self.last(h, add=x if skip is None else torch.cat([x, skip], dim=1))
        direct, other = self.projection
        residual = direct(x)
        if other is not None and skip is not None:
            residual = other(skip, add=residual, overwrite=True)
        return self.last(h, add=residual, overwrite=True)

    def conditioned(self, h: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        """What the block's last convolution reads."""
        own = film[:, self.film]
        if film.ndim == 2:
            return self.out_norm(h, film=own, rows=rows, phases=self.phases)
        return self.backend.map_film(self.out_norm(h, silu=False, phases=self.phases), own, rows)


class AttentionLayer:
    """See `unet.AttentionBlock`."""

    def __init__(self, block: AttentionBlock, backend: Backend, device: torch.device) -> None:
        self.backend = backend
        self.norm = Norm(block.norm, backend, device)
        self.qkv = backend.convolution(block.qkv.weight[..., None], block.qkv.bias, 1, 0)
        self.out = backend.convolution(block.proj_out.weight[..., None], block.proj_out.bias, 1, 0)
        self.heads, self.new_order = block.heads, block.new_order

    def __call__(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x, silu=False))
        packed = qkv.permute(0, 2, 3, 1).reshape(n, height * width, 3 * c)
        h = self.backend.attention(packed, self.heads, self.new_order)
        return self.out(h.reshape(n, height, width, c).permute(0, 3, 1, 2), add=x)


class ResizeLayer:
    """See `unet.Upsample` and `unet.Downsample` outside residual blocks."""

    whole: Convolution | None = None  # reads the small image itself

    def __init__(self, layer: Upsample | Downsample, backend: Backend) -> None:
        self.up = isinstance(layer, Upsample)
        conv = layer.conv if isinstance(layer, Upsample) else layer.op
        self.conv: Convolution | None = None
        if isinstance(conv, nn.Conv2d):
            self.whole = backend.upsampling(conv.weight, conv.bias) if self.up else None
            if self.whole is None:
                self.conv = backend.convolution(conv.weight, conv.bias, 1 if self.up else 2, 1)

    def __call__(self, x: Tensor) -> Tensor:
        if self.whole is not None:
            return self.whole(x)
        if self.up:
            x = upsampled(x)
            return x if self.conv is None else self.conv(x)
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(x)


class FirstLayer:
    """The first convolution."""

    def __init__(self, conv: nn.Conv2d, backend: Backend) -> None:
        self.conv = backend.convolution(conv.weight, conv.bias, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)


Layer = BlockLayer | AttentionLayer | ResizeLayer | FirstLayer
Stage = list[tuple[str, Layer]]  # with their names in the state_dict


class Program:
    """The network proper (`unet.UNet.denoise`) on a backend, in a dtype, on a device."""

    def __init__(self, network: UNet, backend: Backend, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self._backend, self._device, self._film_start = backend, device, 0
        self._names = {id(module): name for name, module in network.named_modules()}
        self._observer: Observer | None = None
        skips = [_channels(stage) for stage in network.input_blocks]
        channels = 0
        self._down: list[Stage] = []
        self._up: list[Stage] = []
        for stage in network.input_blocks:
            self._down.append(self._stage(stage, channels))
            channels = _channels(stage, channels)
        self._middle = self._stage(network.middle_block, channels)
        for stage in network.output_blocks:
            skips.pop()
            self._up.append(self._stage(stage, channels))
            channels = _channels(stage, channels)
        norm, _, last = network.out
        assert isinstance(last, nn.Conv2d)
        self._out_norm = Norm(norm, backend, device)
        self._out = backend.convolution(last.weight, last.bias, 1, 1)

    def _stage(self, stage: nn.Module, channels: int) -> Stage:
        layers: Stage = []
        for layer in stage.children():
            made: Layer
            if isinstance(layer, ResBlock):
                made = BlockLayer(layer, channels, self._backend, self._device, self._film_start)
                self._film_start += layer.film_width
            elif isinstance(layer, AttentionBlock):
                made = AttentionLayer(layer, self._backend, self._device)
            elif isinstance(layer, Upsample | Downsample):
                made = ResizeLayer(layer, self._backend)
            else:
                assert isinstance(layer, nn.Conv2d)
                made = FirstLayer(layer, self._backend)
            layers.append((self._names[id(layer)], made))
        return layers

    def denoise(self, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        """[N,3,H,W], FiLM rows float32 [R,F] or [R,F,h,w], row of every image int64 [N] -> [N,3 or 6,H,W].

        Images are channels-last. Maps cost a pass more in every residual block.
        """
        h: Passed = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        skips = []
        for stage in self._down:
            h = self._run(stage, h, None, film, rows)
            skips.append(h)
        h = self._run(self._middle, h, None, film, rows)
        for stage in self._up:
            h = self._run(stage, h, skips.pop(), film, rows)
        out = self._out(self._out_norm(h))
        self._observe("out", out)
        return out

    def first_nonfinite(self, x: Tensor, film: Tensor, rows: Tensor) -> str | None:
        """Name of the first layer whose output is not finite, or None; runs the program once more."""
        found: list[str] = []

        def look(name: str, output: Tensor) -> None:
            if not found and not bool(output.isfinite().all()):
                found.append(name)

        self._observer = look
        try:
            self.denoise(x, film, rows)
        finally:
            self._observer = None
        return found[0] if found else None

    def _run(
        self,
        stage: Stage,
        h: Passed,
        skip: Passed,
        film: Tensor,
        rows: Tensor,
    ) -> Passed:
        for name, layer in stage:
            if isinstance(layer, BlockLayer):
                h = layer(h, skip, film, rows)
                skip = None
            else:
                h = layer(h)
            self._observe(name, h)
        return h

    def _observe(self, name: str, h: Passed) -> None:
        if self._observer is not None:
            self._observer(name, h)


def upsampled(x: Tensor) -> Tensor:
    """Each pixel four times; [N,C,H,W] -> [N,C,2H,2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _channels(stage: nn.Module, before: int = 0) -> int:
    """Channels of what a stage gives."""
    for layer in stage.children():
        if isinstance(layer, ResBlock):
            last = layer.out_layers[3]
            assert isinstance(last, nn.Conv2d)
            before = last.out_channels
        elif isinstance(layer, nn.Conv2d):
            before = layer.out_channels
    return before
