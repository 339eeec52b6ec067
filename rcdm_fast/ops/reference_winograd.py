"""What the operators of `schema_winograd` compute, in plain PyTorch: Winograd's convolution of tiles of 4x4 pixels.

In one direction, four results y of a kernel g over six pixels d are y = A ((G g) * (B d)) (Winograd 1980; for images
Lavin and Gray 2016, arXiv 1509.09308): two polynomials are multiplied by their values at six points. Here these are 0,
+-5/8, +-3/2 and infinity: with the usual 0, +-1, +-2 numbers in between differ more in size, and rounding loses more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.ops.schema_winograd import (
    PANEL,
    PLACES,
    check_winograd_convolution,
    winograd_weight_gradient_result,
    winograd_weight_result,
)

POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
SIDE, SEEN = 4, 6  # of a tile, and of what it sees


def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A [4,6], G [6,3] and B [6,6], float64."""
    a = [[point**i for point in POINTS] + [float(i == SIDE - 1)] for i in range(SIDE)]
    g = [[point**k / _apart(point) for k in range(3)] for point in POINTS] + [[0.0, 0.0, 1.0]]
    b = [_vanishing([other for other in POINTS if other != point]) for point in POINTS] + [_vanishing(list(POINTS))]
    rows = [row + [0.0] * (SEEN - len(row)) for row in b]
    return tuple(torch.tensor(each, dtype=torch.float64) for each in (a, g, rows))  # type: ignore[return-value]


def winograd_weight(weight: Tensor, mirrored: bool) -> Tensor:
    """float32 [O,I,3,3] -> [36,O/16,I,16]; `mirrored`: of the convolution that gives the gradient of the input."""
    winograd_weight_result(weight, mirrored)  # for its errors
    _, g, _ = matrices()
    if mirrored:
        weight = weight.flip(2, 3).transpose(0, 1)
    values = torch.einsum("ak,oikl,bl->aboi", g, weight.double(), g)
    panels = values.reshape(PLACES, -1, PANEL, weight.shape[1])
    return panels.transpose(2, 3).to(torch.float32).contiguous()


def winograd_convolution(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, upsampled: bool
) -> None:
    """Write F.conv2d(x, weight, bias, padding=1) + add to `out`, of x upsampled twofold (nearest) if so."""
    check_winograd_convolution(out, x, weight, bias, add, upsampled)
    a, _, b = (each.to(x.dtype) for each in matrices())
    if upsampled:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    height, width = x.shape[2:]
    right, below = -width % SIDE + 1, -height % SIDE + 1
    tiles = F.pad(x, (1, right, 1, below)).unfold(2, SEEN, SIDE).unfold(3, SEEN, SIDE)  # [N,I,h,w,6,6]
    seen = torch.einsum("ak,nihwkl,bl->nihwab", b, tiles, b)
    values = weight.transpose(2, 3).reshape(SEEN, SEEN, -1, x.shape[1])
    products = torch.einsum("aboi,nihwab->nohwab", values, seen)
    pixels = torch.einsum("pa,nohwab,qb->nohpwq", a, products, a).flatten(4).flatten(2, 3)[..., :height, :width]
    if bias is not None:
        pixels = pixels + bias[:, None, None]
    out.copy_(pixels if add is None else pixels + add)


def winograd_weight_gradient(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the convolution's weight [O,I,3,3] and bias [O], from that of its result."""
    winograd_weight_gradient_result(grad, x)
    a, g, b = (each.to(x.dtype) for each in matrices())
    below, right = -x.shape[2] % SIDE, -x.shape[3] % SIDE
    tiles = F.pad(x, (1, right + 1, 1, below + 1)).unfold(2, SEEN, SIDE).unfold(3, SEEN, SIDE)
    given = F.pad(grad, (0, right, 0, below)).unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)
    seen = torch.einsum("ak,nihwkl,bl->nihwab", b, tiles, b)
    spread = torch.einsum("pa,nohwpq,qb->nohwab", a, given, a)
    weight = torch.einsum("ak,oiab,bl->oikl", g, torch.einsum("nohwab,nihwab->oiab", spread, seen), g)
    return weight.contiguous(memory_format=torch.channels_last), grad.sum(dim=(0, 2, 3))


def _apart(point: float) -> float:
    """The product of a point's distances from the others."""
    return math.prod(point - other for other in POINTS if other != point)


def _vanishing(points: list[float]) -> list[float]:
    """Coefficients, the constant first, of the polynomial with leading coefficient 1 that is 0 at the points."""
    found = [1.0]
    for point in points:
        found = [before - point * own for before, own in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found
