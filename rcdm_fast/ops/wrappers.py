"""The operators as functions: check the input, then run the implementation that `selection` names.

The choice depends only on the input's device, on which parts are loaded, and on whether a gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rcdm_fast.ops import candidates, gradients, library, reference, schema, selection
from rcdm_fast.ops.schema import NormInputs

Resample = Literal["none", "up", "down"]
RESAMPLE: dict[Resample, int] = {"none": 0, "up": 1, "down": -1}


def solver_step(
    x: Tensor,  # float32 [N,C,H,W]
    output: Tensor,  # [N,C or more,H,W]
    *,
    x_to_x0: float,
    output_to_x0: float,
    bound: float,
    x0_to_next: float,
    x_to_next: float,
    terms: Sequence[Tensor] = (),  # each float32 [N,C,H,W]
    weights: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """One update of a linear solver, (next x, x0), both float32 [N,C,H,W]; see `reference.solver_step`.

    Args:
        x: the current image, contiguous. float64 works too, by the reference, for studies of solvers.
        output: what the network gave, float32, bfloat16 or float16 of any strides; channels beyond C are ignored.
        x_to_x0, output_to_x0: x0 is their combination of x and output,
        bound: clipped to [-bound, bound]; `math.inf` for no clipping.
        x0_to_next, x_to_next: weights of x0 and x in the next x.
        terms: further tensors (earlier x0, noise), contiguous, with their `weights`.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.
        RuntimeError: more than eight terms (GPU).
    """
    listed, factors = list(terms), list(weights)
    schema.check_solver_step(x, output, listed, factors, bound)
    numbers = (x_to_x0, output_to_x0, bound, x0_to_next, x_to_next)
    narrow = x.dtype == torch.float32 and output.dtype != torch.float64
    if narrow and library.has_native(x.device.type):
        both: tuple[Tensor, Tensor] = torch.ops.rcdm_fast.solver_step(x, output, listed, factors, *numbers)
        return both
    return reference.solver_step(x, output, listed, factors, *numbers)


def film_group_norm(
    x: Tensor,  # [N,C,H,W]
    weight: Tensor,  # float32 [C+C']
    bias: Tensor,  # float32 [C+C']
    *,
    skip: Tensor | None = None,  # [N,C',H,W]
    film: Tensor | None = None,  # float32 [R,2(C+C')] or [R,C+C']
    rows: Tensor | None = None,  # int64 [N]
    groups: int = 32,
    eps: float = 1e-5,
    silu: bool = True,
    resample: Resample = "none",
    phases: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """GroupNorm, FiLM, SiLU and resampling in one pass over channels-last memory; see `reference.film_group_norm`.

    Args:
        x: float32, bfloat16 or float16, channels-last, any storage offset. With `phases` [N,4C,H/2+1,W/2+1]: the four
            phases of an upsampling convolution (`reference.merge_phases`).
        weight, bias: of the norm.
        skip: read as if concatenated to x.
        film: (scale, shift) rows, or rows that are added before the norm; any distance between rows.
        rows: row of `film` for every image. On a GPU a row out of range gives NaN for its image.
        groups, eps: of the norm; statistics are float32.
        silu: apply SiLU after FiLM.
        resample: "up" (nearest neighbor) or "down" (2x2 averages) after that.
        out: where to write the result; made if left out. Has no gradient.

    Returns:
        The dtype of x, channels-last.

    Raises:
        TypeError, ValueError: dtypes, layouts, shapes or devices that do not fit.
        RuntimeError: a row out of range (CPU).
    """
    if resample not in RESAMPLE:
        raise ValueError(f"film_group_norm: resample must be none, up or down; got {resample!r}")
    inputs = NormInputs(x, skip, weight, bias, film, rows, groups, eps, silu, RESAMPLE[resample], phases)
    shape = schema.check_film_group_norm(inputs)
    if _wants_gradient(x, skip, weight, bias, film):
        if out is not None:
            raise ValueError("film_group_norm: a result written to out has no gradient")
        found: Tensor = gradients.differentiable_film_group_norm(x.device)(*inputs)
        return found
    if out is None:
        out = schema.film_group_norm_result(inputs)
    else:
        schema.check_out(out, shape, x)
    selection.film_group_norm(x.device)(out, *inputs)
    return out


def attention(qkv: Tensor, heads: int, new_order: bool = False) -> Tensor:  # [N,L,3C] -> [N,L,C]
    """Self-attention of packed q, k and v; see `reference.attention`.

    Args:
        qkv: float32, bfloat16 or float16, contiguous: a channels-last [N,3C,H,W] seen as [N,H W,3C].
        heads: number of heads.
        new_order: channels are [(q,k,v), head, d] instead of [head, (q,k,v), d].

    Raises:
        TypeError, ValueError: dtype, layout or shape that do not fit.
    """
    schema.check_attention(qkv, heads)
    if _wants_gradient(qkv) and not (qkv.device.type == "cpu" and library.has_native("cpu")):
        return candidates.attention_candidates(qkv.device)["sdpa"](qkv, heads, new_order)  # PyTorch's own gradient
    return selection.attention(qkv.device)(qkv, heads, new_order)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
