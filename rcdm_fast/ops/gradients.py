"""Gradients of the operators, registered once for every build and device.

What they are is written here in plain PyTorch; where `selection_backward` knows a faster implementation for a device
(C++, Triton), that runs. The forward pass keeps its inputs only; what the backward pass needs of it (statistics,
normalized values, fractions of attention) is computed again. Arithmetic is float32 (float64 for float64 inputs, which
only the tests use).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops import candidates, library, reference, selection_backward
from rcdm_fast.ops.schema import NAMESPACE, NormInputs


def split_phases(grad: Tensor) -> Tensor:  # [N,C,2H,2W] -> [N,4C,H+1,W+1]
    """Gradient of `reference.merge_phases`: every pixel goes back to its phase, what was dropped gets zeros."""
    h, w = grad.shape[2] // 2, grad.shape[3] // 2
    parts = []
    for i in (0, 1):
        for j in (0, 1):
            parts.append(F.pad(grad[:, :, i::2, j::2], (j, 1 - j, i, 1 - i)))
    return torch.stack(parts, dim=1).reshape(grad.shape[0], -1, h + 1, w + 1)


def film_group_norm(
    grad: Tensor,  # like the result
    *inputs: Any,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """Gradients for x, skip, weight, bias and film; takes `*NormInputs` after the gradient, as the operator."""
    x, skip, weight, bias, film, rows, groups, eps, silu, resample, phases = NormInputs(*inputs)
    wide = torch.promote_types(x.dtype, torch.float32)
    h = reference.merge_phases(x) if phases else x
    h = (h if skip is None else torch.cat([h, skip], dim=1)).to(wide)
    picked = None if film is None or rows is None else film[rows].to(wide)
    channels = h.shape[1]
    added = picked is not None and picked.shape[1] == channels
    if added and picked is not None:
        h = h + picked[:, :, None, None]
    n, hw = h.shape[0], h.shape[2] * h.shape[3]
    h = h.contiguous()
    gamma = weight.to(wide)
    normed, mean, rstd = torch.native_group_norm(h, gamma, bias.to(wide), n, channels, hw, groups, eps)
    modulated = normed
    scale = None
    if picked is not None and not added:
        scale, shift = (part[:, :, None, None] for part in picked.chunk(2, dim=1))
        modulated = normed * (1 + scale) + shift
    g = grad.to(wide)
    if resample == 1:
        g = 4 * F.avg_pool2d(g, 2)
    elif resample == -1:
        g = F.interpolate(g, scale_factor=2.0, mode="nearest") / 4
    if silu:
        fraction = torch.sigmoid(modulated)
        g = g * fraction * (1 + modulated * (1 - fraction))
    of_rows = None
    if scale is not None:
        of_rows = torch.cat([(g * normed).sum(dim=(2, 3)), g.sum(dim=(2, 3))], dim=1)
        g = g * (1 + scale)
    of_h, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
        g.contiguous(), h, mean, rstd, gamma, n, channels, hw, groups, [True, True, True]
    )
    if added:
        of_rows = of_h.sum(dim=(2, 3))
    of_film = None if film is None or rows is None or of_rows is None else _put_back(of_rows, film, rows)
    own = x.shape[1] // 4 if phases else x.shape[1]
    of_x = split_phases(of_h) if phases else of_h[:, :own]
    of_skip = None if skip is None else _like(of_h[:, own:], skip)
    return _like(of_x, x), of_skip, of_weight.to(weight.dtype), of_bias.to(bias.dtype), of_film


def _put_back(of_rows: Tensor, film: Tensor, rows: Tensor) -> Tensor:
    """Gradient of `film`, given that of the rows that were picked."""
    whole = torch.zeros(film.shape, dtype=of_rows.dtype, device=film.device)
    return whole.index_add_(0, rows, of_rows).to(film.dtype)


def _like(grad: Tensor, value: Tensor) -> Tensor:
    return grad.to(value.dtype).contiguous(memory_format=torch.channels_last)


def attention(grad: Tensor, qkv: Tensor, heads: int, new_order: bool) -> Tensor:  # [N,L,C], [N,L,3C] -> [N,L,3C]
    """Gradient for qkv; arguments as of `reference.attention`."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = (part.to(wide) for part in reference.split_heads(qkv, heads, new_order))
    factor = q.shape[-1] ** -0.5
    fractions = torch.softmax(q @ k.transpose(2, 3) * factor, dim=-1)
    g = grad.to(wide).unflatten(2, (heads, -1)).transpose(1, 2)
    of_v = fractions.transpose(2, 3) @ g
    of_fractions = g @ v.transpose(2, 3)
    of_logits = fractions * (of_fractions - (of_fractions * fractions).sum(dim=-1, keepdim=True)) * factor
    parts = torch.stack([of_logits @ k, of_logits.transpose(2, 3) @ q, of_v])  # [3,N,heads,L,d]
    order = (1, 3, 0, 2, 4) if new_order else (1, 3, 2, 0, 4)
    return parts.permute(*order).flatten(2).to(qkv.dtype).contiguous()


def solver_step(
    grads: tuple[Tensor, Tensor],  # for the next x, and for x0
    x: Tensor,
    output: Tensor,
    weights: list[float],
    x_to_x0: float,
    output_to_x0: float,
    bound: float,
    x0_to_next: float,
    x_to_next: float,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients for x, output and terms; zero through an x0 that was clipped."""
    wide = torch.promote_types(x.dtype, torch.float32)
    of_next, of_x0 = (grad.to(wide) for grad in grads)
    x0 = x_to_x0 * x.to(wide) + output_to_x0 * output[:, : x.shape[1]].to(wide)
    through = torch.where(x0.abs() <= bound, of_x0 + x0_to_next * of_next, 0.0)
    of_output = torch.zeros_like(output)
    of_output[:, : x.shape[1]] = (output_to_x0 * through).to(output.dtype)
    of_x = (x_to_next * of_next + x_to_x0 * through).to(x.dtype)
    return of_x, of_output, [(weight * of_next).to(x.dtype) for weight in weights]


def _keep(ctx: Any, tensors: tuple[Tensor | None, ...], others: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.others = others


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep(ctx, inputs[:6], inputs[6:])


def _norm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    inputs = NormInputs(*ctx.saved_tensors, *ctx.others)
    backward = selection_backward.film_group_norm_backward(grad.device)
    if backward is None:
        return (*film_group_norm(grad, *inputs), *[None] * 6)
    grad = grad.contiguous(memory_format=torch.channels_last)
    of_x, of_skip, of_weight, of_bias, of_rows = backward(grad, *inputs)
    film, rows = inputs.film, inputs.rows
    of_film = None if film is None or rows is None else _put_back(of_rows, film, rows)
    return (of_x, None if inputs.skip is None else of_skip, of_weight, of_bias, of_film, *[None] * 6)


class _TritonNorm(torch.autograd.Function):
    """For a GPU whose native part was not built: both ways in Triton."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from rcdm_fast.kernels import film_group_norm as kernel  # needs triton

        _keep(ctx, inputs[:6], inputs[6:])
        out: Tensor = kernel.film_group_norm(*inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _norm_backward(ctx, *grads)


def differentiable_film_group_norm(device: torch.device) -> Callable[..., Tensor]:
    """What has a gradient on a device; takes `*NormInputs`, as the operator."""
    if library.has_native(device.type):
        native: Callable[..., Tensor] = torch.ops.rcdm_fast.film_group_norm
        return native
    if not candidates.triton_reason(device):
        made: Callable[..., Tensor] = _TritonNorm.apply
        return made
    return reference.film_group_norm_checked


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep(ctx, inputs[:1], inputs[1:])


def _attention_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    backward = selection_backward.attention_backward(grad.device) or attention
    return backward(grad.contiguous(), *ctx.saved_tensors, *ctx.others), None, None


def _keep_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _keep(ctx, inputs[:2], inputs[3:])


def _step_backward(ctx: Any, of_next: Tensor, of_x0: Tensor) -> tuple[Any, ...]:
    of_x, of_output, of_terms = solver_step((of_next, of_x0), *ctx.saved_tensors, *ctx.others)
    return of_x, of_output, of_terms, *[None] * 6


for _name, _backward, _setup in (
    ("film_group_norm", _norm_backward, _keep_norm),
    ("attention", _attention_backward, _keep_attention),
    ("solver_step", _step_backward, _keep_step),
):
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_setup)
