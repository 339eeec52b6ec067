"""The network of training on fused operators: the same blocks and parameters, other forward passes.

As in `engines.program`, GroupNorm, FiLM, SiLU and pooling are one operator, a skip connection is read beside its
partner instead of being concatenated, residuals are added to what a convolution gives, and the first convolution of an
upsampling block runs as four 2x2 convolutions on the small image. Here all of it has gradients, and works on the
parameters themselves. `attach` changes how a network computes, never what: `rcdm_fast.models.unet` is the truth.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast import ops
from rcdm_fast.engines.program import phase_weights
from rcdm_fast.models.condition_map import resized
from rcdm_fast.models.unet import AttentionBlock, Downsample, ResBlock, UNet, Upsample
from rcdm_fast.ops import library
from rcdm_fast.ops.candidates import triton_reason
from rcdm_fast.ops.wrappers import Resample
from rcdm_fast.training.convolution import convolution, quick


def reasons_unavailable(device: torch.device) -> list[str]:
    """Why the fused operators would not make training faster on a device; empty if they do."""
    if device.type == "cuda":
        reason = triton_reason(device)
        return [reason] if reason else []
    if device.type != "cpu":
        return [f"there are no fused operators on {device.type}"]
    if not library.has_native("cpu"):
        return [part.reason for part in library.describe() if part.name == "cpu"]
    return []


def attach(network: UNet) -> None:
    """Let a network, and its blocks, compute with fused operators from here on."""
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.forward = functools.partial(res_block, module)  # type: ignore[method-assign]
        elif isinstance(module, AttentionBlock):
            module.forward = functools.partial(attention_block, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Conv2d):
            module.forward = functools.partial(_layer, module)  # type: ignore[method-assign]
    network.denoise = functools.partial(denoise, network)  # type: ignore[method-assign]


def denoise(network: UNet, x: Tensor, film: Tensor) -> Tensor:
    """`UNet.denoise`."""
    film = film.float()
    rows = iter(film.split([block.film_width for block in network.residual_blocks()], dim=1))
    h = x.contiguous(memory_format=torch.channels_last)
    skips: list[Tensor] = []
    for stage in network.input_blocks:
        h = stage(h, rows)
        skips.append(h)
    h = network.middle_block(h, rows)
    for stage in network.output_blocks:
        first, *others = stage.children()
        h = first(h, next(rows), skips.pop())
        for layer in others:
            h = layer(h, next(rows)) if isinstance(layer, ResBlock) else layer(h)
    norm, _, last = network.out
    assert isinstance(norm, nn.GroupNorm)
    out: Tensor = last(_norm(norm, h))
    return out


def res_block(block: ResBlock, x: Tensor, film: Tensor, skip: Tensor | None = None) -> Tensor:
    """`ResBlock.forward`; x may come in two parts, as if concatenated."""
    in_norm, _, first = block.in_layers
    out_norm, _, dropout, last = block.out_layers
    assert isinstance(in_norm, nn.GroupNorm)
    assert isinstance(out_norm, nn.GroupNorm)
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    up, down = isinstance(block.resample, Upsample), isinstance(block.resample, Downsample)
    h = _norm(in_norm, x, skip=skip, resample="down" if down else "none")
    phases = up and not quick(h, first.weight, padding=1)
    if phases:
        assert first.bias is not None
        h = convolution(h, _phase_weights(first.weight), first.bias.repeat(4), padding=1)
    else:
        h = first(F.interpolate(h, scale_factor=2.0, mode="nearest") if up else h)
    if film.ndim == 2:
        h = dropout(_norm(out_norm, h, film=film.float(), phases=phases))
    else:
        h = _norm(out_norm, h, silu=False, phases=phases)
        scale, shift = resized(film.float(), h.shape[-1]).to(h.dtype).chunk(2, dim=1)
        h = dropout(F.silu(h * (1 + scale) + shift))
    if up:
        residual = F.interpolate(x, scale_factor=2.0, mode="nearest")
    elif down:
        residual = F.avg_pool2d(x, 2)
    else:
        residual = _projected(block.skip_connection, x, skip)
    return convolution(h, last.weight, last.bias, padding=1, add=residual)


def attention_block(block: AttentionBlock, x: Tensor) -> Tensor:
    """`AttentionBlock.forward`."""
    n, c, height, width = x.shape
    qkv = convolution(_norm(block.norm, x, silu=False), block.qkv.weight[..., None], block.qkv.bias)
    packed = qkv.permute(0, 2, 3, 1).reshape(n, height * width, 3 * c)
    h = ops.attention(packed, block.heads, block.new_order)
    h = h.reshape(n, height, width, c).permute(0, 3, 1, 2)
    return convolution(h, block.proj_out.weight[..., None], block.proj_out.bias, add=x)


def _layer(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return convolution(x, layer.weight, layer.bias, stride=layer.stride[0], padding=int(layer.padding[0]))


def _norm(
    layer: nn.GroupNorm,
    x: Tensor,
    *,
    skip: Tensor | None = None,
    film: Tensor | None = None,
    silu: bool = True,
    resample: Resample = "none",
    phases: bool = False,
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    if skip is not None:
        skip = skip.to(x.dtype, memory_format=torch.channels_last)
    rows = None if film is None else torch.arange(len(x), device=x.device)
    return ops.film_group_norm(
        x, layer.weight, layer.bias, skip=skip, film=film, rows=rows, groups=layer.num_groups, eps=layer.eps,
        silu=silu, resample=resample, phases=phases,
    )  # fmt: skip


def _projected(layer: nn.Module, x: Tensor, skip: Tensor | None) -> Tensor:
    """What a block adds to its result, of x beside skip."""
    if not isinstance(layer, nn.Conv2d):
        return x if skip is None else torch.cat([x, skip], dim=1)
    if skip is None:
        return convolution(x, layer.weight, layer.bias)
    split = x.shape[1]
    residual = convolution(x, layer.weight[:, :split], layer.bias)
    return convolution(skip, layer.weight[:, split:], None, add=residual)


@functools.cache
def _phases_of_taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    """`phase_weights` as a matrix: [9 taps, 4 phases x 4 taps]."""
    taps = torch.eye(9, dtype=dtype, device=device).reshape(1, 9, 3, 3)
    return phase_weights(taps).reshape(4, 9, 4).permute(1, 0, 2).reshape(9, 16)


def _phase_weights(weight: Tensor) -> Tensor:  # [O,I,3,3] -> [4O,I,2,2]
    """`phase_weights` as one product, which has a gradient as cheap as itself."""
    o, i = weight.shape[:2]
    phases = weight.reshape(o * i, 9) @ _phases_of_taps(weight.dtype, weight.device)
    return phases.reshape(o, i, 4, 2, 2).permute(2, 0, 1, 3, 4).reshape(4 * o, i, 2, 2)
