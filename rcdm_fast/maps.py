"""Representations that are maps, as they come from outside: [N,C,h,w], tokens [N,L,C] of a grid, or rows [N,C h w].

Inside the library a map is a row of C h w numbers, in this order: whatever works on vectors works on maps. What a
network makes of one is `models/condition_map.py`.
"""

from __future__ import annotations

import math

from torch import Tensor


def of_tokens(tokens: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Tokens [N,L,C] of an h x w grid, row by row, without class token -> maps [N,C,h,w]; `shape` is (C,h,w) if known.

    Raises:
        ValueError: L is no square, or not h w.
    """
    count, channels = tokens.shape[1:]
    side = math.isqrt(count)
    height, width = shape[1:] if shape else (side, side)
    if height * width != count:
        grid = f"grid of {height} x {width}" if shape else "square grid"
        raise ValueError(f"{count} tokens make no {grid} (a class token is no part of one)")
    return tokens.transpose(1, 2).reshape(len(tokens), channels, height, width)


def as_rows(h: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Maps of a known shape (C,h,w), in any of the forms above -> rows [N,C h w].

    Raises:
        ValueError: another shape.
    """
    if h.ndim == 3 and h.shape[2] == shape[0]:
        h = of_tokens(h, shape)
    if tuple(h.shape[1:]) not in (shape, (math.prod(shape),)):
        raise ValueError(f"got {list(h.shape)}")
    return h.reshape(len(h), math.prod(shape))


def shaped(h: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows [N,D] -> maps [N,C,h,w]; as they are without a shape."""
    return h.reshape(len(h), *shape) if shape else h


def named(shape: tuple[int, ...], width: int, count: str = "N") -> str:
    """What representations are called in messages: [N,512], or [N,64,8,8]."""
    return f"[{count},{','.join(map(str, shape or (width,)))}]"
