"""The operators' schemas and fake implementations, declared once for every build.

An install without native code has them too, so that graphs can be traced anywhere. A fake says which inputs are
accepted and what the output looks like: shape, dtype, strides, device. The checks here are the wrappers' checks too.

Knows nothing about how an operator is computed (`reference.py`, csrc/, kernels/).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMESPACE = "rcdm_fast"
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

SOLVER_STEP = (
    "(Tensor x, Tensor output, Tensor[] terms, float[] weights, float x_to_x0, float output_to_x0, float bound, "
    "float x0_to_next, float x_to_next) -> (Tensor, Tensor)"
)
NORM_INPUTS = (
    "Tensor x, Tensor? skip, Tensor weight, Tensor bias, Tensor? film, Tensor? rows, int groups, float eps, "
    "bool silu, int resample, bool phases"
)
FILM_GROUP_NORM = f"({NORM_INPUTS}) -> Tensor"
FILM_GROUP_NORM_OUT = f"(Tensor(a!) out, {NORM_INPUTS}) -> ()"
ATTENTION = "(Tensor qkv, int heads, bool new_order) -> Tensor"
MAP_FILM = "(Tensor(a!) x, Tensor film, Tensor rows, Tensor down, Tensor across) -> ()"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def check_float_dtype(what: str, tensor: Tensor) -> None:
    """`TypeError` unless the dtype is one of `FLOAT_DTYPES`."""
    if tensor.dtype not in FLOAT_DTYPES:
        expected = ", ".join(map(dtype_name, FLOAT_DTYPES))
        raise TypeError(f"expected {what} of dtype {expected}; got {dtype_name(tensor.dtype)}")


def check_solver_step(x: Tensor, output: Tensor, terms: list[Tensor], weights: list[float], bound: float) -> None:
    """`TypeError` or `ValueError` for inputs that `solver_step` does not accept."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"solver_step: expected x of dtype float32 or float64; got {dtype_name(x.dtype)}")
    if output.dtype != torch.float64:
        check_float_dtype("solver_step's output", output)
    if x.ndim != 4 or not x.is_contiguous():
        raise ValueError(f"solver_step: x must be [N,C,H,W], contiguous; got {list(x.shape)}, strides {x.stride()}")
    same = output.ndim == 4 and output.shape[0] == x.shape[0] and output.shape[2:] == x.shape[2:]
    if not same or output.shape[1] < x.shape[1]:
        raise ValueError(f"solver_step: output {list(output.shape)} does not fit x {list(x.shape)}")
    if len(terms) != len(weights):
        raise ValueError(f"solver_step: {len(terms)} terms, {len(weights)} weights")
    for term in terms:
        if term.shape != x.shape or term.dtype != x.dtype or not term.is_contiguous():
            raise ValueError(f"solver_step: every term must be like x; got {dtype_name(term.dtype)} {list(term.shape)}")
    if math.isnan(bound) or bound < 0:
        raise ValueError(f"solver_step: bound must be >= 0, got {bound}")
    if any(tensor.device != x.device for tensor in (output, *terms)):
        raise ValueError("solver_step: all tensors must be on one device")


def _solver_step(
    x: Tensor,
    output: Tensor,
    terms: list[Tensor],
    weights: list[float],
    x_to_x0: float,
    output_to_x0: float,
    bound: float,
    x0_to_next: float,
    x_to_next: float,
) -> tuple[Tensor, Tensor]:
    check_solver_step(x, output, terms, weights, bound)
    return torch.empty_like(x), torch.empty_like(x)


def is_channels_last(x: Tensor) -> bool:
    """Whether [N,C,H,W] lies in memory as [N,H,W,C] without gaps."""
    return x.permute(0, 2, 3, 1).is_contiguous()


class NormInputs(NamedTuple):
    """What film_group_norm is given, in the schema's order: an operator gets them one by one, all else gets this.

    Attributes:
        x: float32, bfloat16 or float16 [N,C,H,W], channels-last; with `phases` [N,4C,H/2+1,W/2+1].
        skip: [N,C',H,W], read as if concatenated to x, or None.
        weight, bias: of the norm, float32 [C+C'].
        film: rows float32 [R,2(C+C')], (scale, shift) side by side, or [R,C+C'], added before the norm; or None.
        rows: row of `film` for every image, int64 [N]; None without `film`.
        groups, eps: of the norm.
        silu: apply SiLU after FiLM.
        resample: after that 1 (upsample, nearest neighbor), -1 (2x2 averages) or 0.
        phases: x has the four phases of an upsampling convolution (`reference.merge_phases`).
    """

    x: Tensor
    skip: Tensor | None
    weight: Tensor
    bias: Tensor
    film: Tensor | None
    rows: Tensor | None
    groups: int
    eps: float
    silu: bool
    resample: int
    phases: bool


def film_group_norm_shape(inputs: NormInputs) -> tuple[int, int, int, int]:
    """Shape of the result, for inputs that are accepted."""
    n, channels, height, width = inputs.x.shape
    if inputs.phases:
        return n, channels // 4, 2 * (height - 1), 2 * (width - 1)
    channels += 0 if inputs.skip is None else inputs.skip.shape[1]
    if inputs.resample == 1:
        return n, channels, 2 * height, 2 * width
    if inputs.resample == -1:
        return n, channels, height // 2, width // 2
    return n, channels, height, width


def film_group_norm_result(inputs: NormInputs) -> Tensor:
    """Memory for the result, for inputs that are accepted."""
    x, shape = inputs.x, film_group_norm_shape(inputs)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def check_film_group_norm(inputs: NormInputs) -> tuple[int, int, int, int]:
    """The output's shape (N, C, H, W); `TypeError` or `ValueError` for inputs that are not accepted."""
    x, skip, weight, bias, film, rows, groups, _, _, resample, phases = inputs
    check_float_dtype("film_group_norm's x", x)
    for name, part in (("x", x), ("skip", skip)):
        if part is None:
            continue
        if part.ndim != 4 or not is_channels_last(part):
            raise ValueError(
                f"film_group_norm: {name} must be [N,C,H,W] in channels-last memory without gaps; "
                f"got {list(part.shape)}, strides {part.stride()}"
            )
    n, channels, height, width = x.shape
    if phases:
        if skip is not None or resample:
            raise ValueError("film_group_norm: phases go with neither skip nor resample")
        if channels % 4 or height < 2 or width < 2:
            raise ValueError(f"film_group_norm: phases need x [N,4C,H+1,W+1]; got {list(x.shape)}")
        channels, height, width = channels // 4, 2 * (height - 1), 2 * (width - 1)
    if skip is not None:
        if skip.dtype != x.dtype or skip.shape[0] != n or skip.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"film_group_norm: skip {dtype_name(skip.dtype)} {list(skip.shape)} does not fit "
                f"x {dtype_name(x.dtype)} {list(x.shape)}"
            )
        channels += skip.shape[1]
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"film_group_norm: {channels} channels do not form {groups} groups")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter.shape != (channels,) or parameter.dtype != torch.float32 or not parameter.is_contiguous():
            raise ValueError(
                f"film_group_norm: {name} must be float32 [{channels}], contiguous; "
                f"got {dtype_name(parameter.dtype)} {list(parameter.shape)}"
            )
    _check_film(n, channels, film, rows)
    if resample not in (-1, 0, 1):
        raise ValueError(f"film_group_norm: resample must be -1 (pool), 0 or 1 (upsample); got {resample}")
    if resample == -1 and (height % 2 or width % 2):
        raise ValueError(f"film_group_norm: {height} x {width} cannot be halved")
    given = [tensor for tensor in (skip, weight, bias, film, rows) if tensor is not None]
    if any(tensor.device != x.device for tensor in given):
        raise ValueError("film_group_norm: all tensors must be on one device")
    return film_group_norm_shape(inputs)


def _check_film(n: int, channels: int, film: Tensor | None, rows: Tensor | None) -> None:
    if (film is None) != (rows is None):
        raise ValueError("film_group_norm: film and rows go together")
    if film is None or rows is None:
        return
    fits = film.ndim == 2 and film.dtype == torch.float32 and film.shape[1] in (channels, 2 * channels)
    if not fits or film.stride(1) != 1:
        raise ValueError(
            f"film_group_norm: film must be float32 [R,{2 * channels}] (scale, shift) or [R,{channels}] (added), dense "
            f"along its rows; got {dtype_name(film.dtype)} {list(film.shape)}, strides {film.stride()}"
        )
    _check_rows("film_group_norm", rows, n)


def _check_rows(operator: str, rows: Tensor, n: int) -> None:
    if rows.shape != (n,) or rows.dtype != torch.int64 or not rows.is_contiguous():
        got = f"{dtype_name(rows.dtype)} {list(rows.shape)}"
        raise ValueError(f"{operator}: rows must be int64 [{n}], contiguous; got {got}")


def _film_group_norm(*inputs: Any) -> Tensor:
    check_film_group_norm(NormInputs(*inputs))
    return film_group_norm_result(NormInputs(*inputs))


def check_out(out: Tensor, shape: tuple[int, int, int, int], like: Tensor) -> None:
    """`ValueError` unless `out` can take a result of that shape."""
    if tuple(out.shape) != shape or out.dtype != like.dtype or out.device != like.device or not is_channels_last(out):
        raise ValueError(
            f"film_group_norm: out must be {dtype_name(like.dtype)} {list(shape)}, channels-last, on {like.device}; "
            f"got {dtype_name(out.dtype)} {list(out.shape)}, strides {out.stride()}, on {out.device}"
        )


def _film_group_norm_out(out: Tensor, x: Tensor, *others: Any) -> None:
    check_out(out, check_film_group_norm(NormInputs(x, *others)), x)


def check_map_film(x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> None:
    """`TypeError` or `ValueError` for inputs that `map_film` does not accept."""
    check_float_dtype("map_film's x", x)
    if x.ndim != 4 or not is_channels_last(x):
        raise ValueError(
            f"map_film: x must be [N,C,H,W] in channels-last memory without gaps; got {list(x.shape)}, "
            f"strides {x.stride()}"
        )
    n, channels, height, width = x.shape
    fits = film.ndim == 4 and film.dtype == torch.float32 and film.shape[1] == 2 * channels and min(film.shape[2:]) > 0
    if not fits or film.stride(1) != 1:
        raise ValueError(
            f"map_film: film must be float32 [R,{2 * channels},h,w], its channels side by side; "
            f"got {dtype_name(film.dtype)} {list(film.shape)}, strides {film.stride()}"
        )
    _check_rows("map_film", rows, n)
    for name, given, shape in (("down", down, (height, film.shape[2])), ("across", across, (width, film.shape[3]))):
        if given.shape != shape or given.dtype != torch.float32 or not given.is_contiguous():
            raise ValueError(
                f"map_film: {name} must be float32 {list(shape)}, contiguous; "
                f"got {dtype_name(given.dtype)} {list(given.shape)}"
            )
    if any(given.device != x.device for given in (film, rows, down, across)):
        raise ValueError("map_film: all tensors must be on one device")


def check_attention(qkv: Tensor, heads: int) -> int:
    """Channels C of the result; `TypeError` or `ValueError` for inputs that are not accepted."""
    check_float_dtype("attention's qkv", qkv)
    if qkv.ndim != 3 or not qkv.is_contiguous():
        raise ValueError(f"attention: qkv must be [N,L,3C], contiguous; got {list(qkv.shape)}, {qkv.stride()}")
    if heads < 1 or qkv.shape[2] == 0 or qkv.shape[2] % (3 * heads):
        raise ValueError(f"attention: {qkv.shape[2]} channels are not q, k and v of {heads} heads")
    return qkv.shape[2] // 3


def _attention(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    channels = check_attention(qkv, heads)
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], channels)


for _name, _schema, _fake in (
    ("attention", ATTENTION, _attention),
    ("solver_step", SOLVER_STEP, _solver_step),
    ("film_group_norm", FILM_GROUP_NORM, _film_group_norm),
    ("film_group_norm_out", FILM_GROUP_NORM_OUT, _film_group_norm_out),
    ("map_film", MAP_FILM, check_map_film),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema, tags=TAGS)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
