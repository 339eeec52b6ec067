"""Where channels are in the output of a layer, found by trying it: [N,C,H,W] or [N,H,W,C], [N,T,D] or [N,D,T].

Something is changed at the top, the bottom, the left and the right of a picture. Along rows and columns (or tokens, which
follow the rows) the output answers where the picture was changed; along channels it answers everywhere alike.

Knows nothing about encoders, and trusts nobody's word: libraries write both orders, and one network has both in its
middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Order = Literal["nchw", "nhwc"]  # of tokens, nhwc means [N,T,D] and nchw [N,D,T]

SHIFT = 0.02  # of an axis' length: by less, nothing was seen to move
TIMES = 3.0  # by which one order must move more than the other


def by_shape(shape: tuple[int, ...]) -> Order | None:
    """The order of a four-dimensional output that its shape leaves: square pictures make square maps."""
    if len(shape) != 4:
        return None
    first, last = shape[2] == shape[3], shape[1] == shape[2]
    if first == last:
        return None
    return "nchw" if first else "nhwc"


def by_trial(run: Callable[[Tensor], Tensor], size: int) -> Order | None:
    """The order that a layer shows when parts of a picture are changed; None if it does not show one clearly.

    Args:
        run: pictures [N,3,size,size] in [-1,1] to the layer's output of three or four dimensions; called once.
        size: of the pictures.
    """
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(1, 3, size, size, generator=generator, dtype=torch.float32) - 0.5
    other = torch.rand(1, 3, size, size, generator=generator, dtype=torch.float32) * 2 - 1
    part = max(1, size // 4)
    pictures = base.repeat(5, 1, 1, 1)
    pictures[1, :, :part] = other[0, :, :part]
    pictures[2, :, -part:] = other[0, :, -part:]
    pictures[3, :, :, :part] = other[0, :, :, :part]
    pictures[4, :, :, -part:] = other[0, :, :, -part:]
    with torch.no_grad():
        output = run(pictures).detach().to("cpu", torch.float64)
    if output.ndim not in (3, 4) or len(output) != 5 or not output.isfinite().all():
        return None
    change = (output[1:] - output[:1]).abs()
    if output.ndim == 3:
        moved = {"nhwc": _moved(change, 0), "nchw": _moved(change, 1)}
    else:
        moved = {
            "nhwc": min(_along(change, 0, (0, 1)), _along(change, 1, (2, 3))),
            "nchw": min(_along(change, 1, (0, 1)), _along(change, 2, (2, 3))),
        }
    best, worst = sorted(moved, key=lambda order: -moved[order])
    if moved[best] < SHIFT or moved[best] < TIMES * max(moved[worst], 0.0):
        return None
    return "nchw" if best == "nchw" else "nhwc"


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
