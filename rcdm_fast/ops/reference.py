"""What every operator computes, in plain PyTorch: the truth that other implementations are tested against.

Works on every device and every build. Arithmetic is float32 (float64 for a float64 input, which only the tests use),
rounded once to the output's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops import schema, schema_folding
from rcdm_fast.ops.schema import NAMESPACE, NormInputs


def solver_step(
    x: Tensor,  # [N,C,H,W]
    output: Tensor,  # [N,C or more,H,W]
    terms: list[Tensor],  # each [N,C,H,W]
    weights: list[float],
    x_to_x0: float,
    output_to_x0: float,
    bound: float,
    x0_to_next: float,
    x_to_next: float,
) -> tuple[Tensor, Tensor]:  # both [N,C,H,W]
    """One update of a linear solver: (next x, x0).

    x0 = clip(x_to_x0 x + output_to_x0 output[:, :C], -bound, bound); next = x0_to_next x0 + x_to_next x + sum of
    weights times terms (earlier x0 of a multistep solver, fresh noise). NaN stays NaN.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x0 = (x_to_x0 * x.to(wide) + output_to_x0 * output[:, : x.shape[1]].to(wide)).clamp(-bound, bound)
    following = x0_to_next * x0 + x_to_next * x.to(wide)
    for weight, term in zip(weights, terms, strict=True):
        following = following + weight * term.to(wide)
    return following.contiguous(), x0.contiguous()


def merge_phases(x: Tensor) -> Tensor:  # [N,4C,H+1,W+1] -> [N,C,2H,2W]
    """The image of which a 2x2 convolution with padding 1 computed the four phases, [even|odd row, even|odd column].

    Phase (i, j) of pixel (y, x) lies at (y + i, x + j): what is left of the padding is dropped.
    """
    channels, h, w = x.shape[1], x.shape[2] - 1, x.shape[3] - 1
    parts = x.unflatten(1, (2, 2, channels // 4))
    rows = [torch.stack([parts[:, i, j, :, i : i + h, j : j + w] for j in (0, 1)], dim=-1).flatten(-2) for i in (0, 1)]
    return torch.stack(rows, dim=-2).flatten(2, 3)


def film_group_norm(*inputs: Any) -> Tensor:
    """GroupNorm of x (and skip, as if concatenated) with FiLM; [N,C+C',H,W], [..,2H,2W] or [..,H/2,W/2].

    film row r: (scale, shift) side by side gives GN(x) (1 + scale) + shift; a row of C numbers is added to x before
    the norm. Then SiLU, then nearest-neighbor upsampling (`resample` 1) or 2x2 averages (-1).
    Takes `*NormInputs`, as the operator. Source: Dhariwal and Nichol 2021, section 3 (AdaGN); Wu and He 2018
    (GroupNorm, biased variance).
    """
    x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases = NormInputs(*inputs)
    h = merge_phases(x) if phases else x
    h = h if skip is None else torch.cat([h, skip], dim=1)
    h = h.to(torch.promote_types(x.dtype, torch.float32))
    picked = None if film is None or rows is None else film[rows][:, :, None, None].to(h.dtype)
    if picked is not None and picked.shape[1] == h.shape[1]:
        h = h + picked
    # Not F.group_norm, which refuses groups of one number, and so the only image of a batch.
    h = torch.group_norm(h, groups, weight.to(h.dtype), bias.to(h.dtype), eps)
    if picked is not None and picked.shape[1] == 2 * h.shape[1]:
        scale, shift = picked.chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return resampled(F.silu(h) if silu else h, resample).to(x.dtype).contiguous(memory_format=torch.channels_last)


def film_group_norm_checked(*inputs: Any) -> Tensor:
    """`film_group_norm`, and on a CPU an error for a row that is not there: to PyTorch -1 is the last one."""
    given = NormInputs(*inputs)
    film, rows = given.film, given.rows
    if film is not None and rows is not None and rows.device.type == "cpu" and not torch.compiler.is_compiling():
        for image, row in enumerate(rows.tolist()):
            if not 0 <= row < len(film):
                raise RuntimeError(
                    f"film_group_norm: row {row} of image {image} is out of range: film has {len(film)} rows"
                )
    return film_group_norm(*inputs)


def film_group_norm_before(before: Tensor, *inputs: Any) -> Tensor:  # float32 [C+C'], *NormInputs
    """`film_group_norm` of what `before` is added to, channel by channel: a bias that nobody has added yet."""
    given = NormInputs(*inputs)
    h = merge_phases(given.x) if given.phases else given.x
    h = h if given.skip is None else torch.cat([h, given.skip], dim=1)
    wide = torch.promote_types(h.dtype, torch.float32)
    # PyTorch's norm loses digits in channels-last memory on a CPU.
    whole = (h.to(wide) + before.to(wide)[:, None, None]).contiguous()
    return film_group_norm(*given._replace(x=whole, skip=None, phases=False)).to(h.dtype)


def film_group_norm_before_out(out: Tensor, before: Tensor, *inputs: Any) -> None:
    """The same, written to `out`."""
    schema_folding.check_before(out, before, NormInputs(*inputs))
    out.copy_(film_group_norm_before(before, *inputs))


def map_film(x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> None:
    """x becomes SiLU(x (1 + scale) + shift) with films of maps, in place, rounded once.

    film float32 [R,2C,h,w], (scale, shift) side by side, row `rows[n]` for image n of x [N,C,H,W]. Each pixel takes of
    the map's positions what `down` [H,h] and `across` [W,w] say, whose rows sum to one.
    """
    schema.check_map_film(x, film, rows, down, across)
    wide = torch.promote_types(x.dtype, torch.float32)
    spread = torch.einsum("yi,ncij,xj->ncyx", down.to(wide), film[rows].to(wide), across.to(wide))
    scale, shift = spread.chunk(2, dim=1)
    x.copy_(F.silu(x.to(wide) * (1 + scale) + shift))


def add_residual(out: Tensor, bias: Tensor, add: Tensor, resample: int) -> None:
    """out += bias + add, in place, rounded once.

    out [N,C,H,W], bias float32 [C]; add [N,C,H,W], or read upsampled from [N,C,H/2,W/2] (`resample` 1) or as 2x2
    averages of [N,C,2H,2W] (-1).
    """
    schema_folding.check_add_residual(out, bias, add, resample)
    wide = torch.promote_types(out.dtype, torch.float32)
    out.copy_(out.to(wide) + bias.to(wide)[:, None, None] + resampled(add.to(wide), resample))


def convolution_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    resample: int,
    splits: int = 1,
    left: Tensor | None = None,
    left_weight: Tensor | None = None,
    right: Tensor | None = None,
    right_weight: Tensor | None = None,
) -> Tensor:
    """The 3x3 convolution of x [N,I,H,W], padded by zeros, with weight [O,I,3,3], plus bias and residual; rounded once.

    bias float32 [O], without which nothing else is added; add [N,O,H,W] as in `add_residual`; `left` and `right`
    [N,J,H,W] are images whose 1x1 convolutions, with weights [O,J,1,1], are part of the sum. The result is [N,O,H,W].
    In how many parts a kernel sums (`splits`) is nothing but rounding.
    """
    sides = (left, left_weight, right, right_weight)
    out = schema_folding.convolution_residual_result(x, weight, bias, add, resample, splits, *sides)
    wide = torch.promote_types(x.dtype, torch.float32)
    whole = F.conv2d(x.to(wide), weight.to(wide), padding=1)
    if bias is not None:
        whole = whole + bias.to(wide)[:, None, None]
    if add is not None:
        whole = whole + resampled(add.to(wide), resample)
    for image, its in ((left, left_weight), (right, right_weight)):
        if image is not None and its is not None:
            whole = whole + F.conv2d(image.to(wide), its.to(wide))
    return out.copy_(whole)


def resampled(add: Tensor, resample: int) -> Tensor:  # [N,C,H,W]
    """Upsampled by nearest neighbors (1), as it is (0), or as 2x2 averages (-1)."""
    if resample == 1:
        return F.interpolate(add, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(add, 2) if resample == -1 else add


def split_heads(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k, v, each [N,heads,L,d], of packed channels [N,L,3C]; see `attention`."""
    if new_order:
        parts = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    else:
        parts = qkv.unflatten(2, (heads, 3, -1)).permute(3, 0, 2, 1, 4)
    q, k, v = parts.unbind(0)
    return q, k, v


def attention(qkv: Tensor, heads: int, new_order: bool) -> Tensor:  # [N,L,3C] -> [N,L,C]
    """softmax(q k^T / sqrt(d)) v for every head, heads side by side in the result.

    Channels are [head, (q,k,v), d], or [(q,k,v), head, d] in the new order (the published flag
    use_new_attention_order).
    """
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = (part.to(wide) for part in split_heads(qkv, heads, new_order))
    fractions = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
    return (fractions @ v).transpose(1, 2).flatten(2).to(qkv.dtype)


# There is no C++ for these: on a CPU only tests run them.
torch.library.impl(f"{NAMESPACE}::film_group_norm_before_out", "cpu", film_group_norm_before_out)
torch.library.impl(f"{NAMESPACE}::add_residual", "cpu", add_residual)
torch.library.impl(f"{NAMESPACE}::convolution_residual", "cpu", convolution_residual)
