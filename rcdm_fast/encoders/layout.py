"""Where channels are in the output of a layer, found by trying it: [N,C,H,W] or [N,H,W,C], [N,T,D] or [N,D,T].

Something is changed at the top, the bottom, the left and the right of an image. Along rows and columns (or tokens,
which follow the rows) the output answers where the image was changed; along channels it answers everywhere alike.

Knows nothing about encoders, and trusts nobody's word: libraries write both orders, and one network has both in its
middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Order = Literal["nchw", "nhwc"]  # of tokens, nhwc means [N,T,D] and nchw [N,D,T]

DRAWS = 2  # of the patterns; what moves in all of them moves
# Of an axis' length: by less, nothing was seen to move. With random weights convolutions and windows move by 0.7 to
# 0.9, attention by 0.5; channels by 0.02, a few of them by up to 0.1.
SHIFT = 0.15
TIMES = 3.0  # by which one order must move more than the other


def by_shape(shape: tuple[int, ...]) -> Order | None:
    """The order of a four-dimensional output that its shape leaves: square images make square maps."""
    if len(shape) != 4:
        return None
    first, last = shape[2] == shape[3], shape[1] == shape[2]
    if first == last:
        return None
    return "nchw" if first else "nhwc"


def by_width(shape: tuple[int, ...], width: int | None) -> Order | None:
    """The order of an output whose channels a network has a number for: it stands at one place alone."""
    if width is None or len(shape) not in (3, 4) or (shape[1] == width) == (shape[-1] == width):
        return None
    return "nchw" if shape[1] == width else "nhwc"


def by_trial(run: Callable[[Tensor], Tensor], size: int) -> Order | None:
    """The order that a layer shows when parts of an image are changed; None if it does not show one clearly.

    Args:
        run: images [5,3,size,size] in [-1,1] to the layer's output of three or four dimensions.
        size: of the images.
    """
    moved = {"nhwc": math.inf, "nchw": math.inf}
    for draw in range(DRAWS):
        change = _changes(run, size, draw)
        if change is None:
            return None
        if change.ndim == 3:
            found = {"nhwc": _moved(change, 0), "nchw": _moved(change, 1)}
        else:
            found = {
                "nhwc": min(_along(change, 0, (0, 1)), _along(change, 1, (2, 3))),
                "nchw": min(_along(change, 1, (0, 1)), _along(change, 2, (2, 3))),
            }
        moved = {order: min(moved[order], found[order]) for order in found}
    best, worst = sorted(moved, key=lambda order: -moved[order])
    if moved[best] < SHIFT or moved[best] < TIMES * moved[worst]:
        return None
    return "nchw" if best == "nchw" else "nhwc"


def _changes(run: Callable[[Tensor], Tensor], size: int, draw: int) -> Tensor | None:
    """By how much the output changes [4,...] when the top, the bottom, the left and the right of an image do."""
    base, other = _pattern(size, 2 * draw) / 2, _pattern(size, 2 * draw + 1)
    part = max(1, size // 4)
    images = base.repeat(5, 1, 1, 1)
    images[1, :, :part] = other[0, :, :part]
    images[2, :, -part:] = other[0, :, -part:]
    images[3, :, :, :part] = other[0, :, :, :part]
    images[4, :, :, -part:] = other[0, :, :, -part:]
    with torch.no_grad():
        output = run(images).detach().to("cpu", torch.float64)
    if output.ndim not in (3, 4) or len(output) != 5 or not output.isfinite().all():
        return None
    return (output[1:] - output[:1]).abs()


def _pattern(size: int, seed: int) -> Tensor:
    """Noise [1,3,size,size] in [-1,1] that is the same at opposite edges, which channels then cannot tell apart."""
    part = max(1, size // 4)
    tile = torch.rand(1, 3, part, part, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * 2 - 1
    count = -(-size // part)
    pattern = tile.repeat(1, 1, count, count)[..., :size, :size].clone()
    pattern[..., -part:, :] = pattern[..., :part, :]
    pattern[..., -part:] = pattern[..., :part]
    return pattern


def _moved(change: Tensor, axis: int) -> float:
    """How far the answer moves along an axis of tokens, which follow rows or columns."""
    return max(_along(change, axis, (0, 1)), _along(change, axis, (2, 3)))


def _along(change: Tensor, axis: int, pair: tuple[int, int]) -> float:
    """By which part of an axis the answer moves from one change to the opposite one; negative: the other way."""
    centers = []
    for number in pair:
        profile = change[number].movedim(axis, 0).flatten(1).sum(1)
        places = torch.linspace(0, 1, len(profile), dtype=torch.float64)
        total = profile.sum()
        if len(profile) < 2 or not total > 0:
            return 0.0
        centers.append(float((profile * places).sum() / total))
    return centers[1] - centers[0]
