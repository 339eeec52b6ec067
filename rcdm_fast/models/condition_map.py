"""Representations that are maps: from [N,C,h,w] to scales and shifts of every residual block, per pixel.

A map is projected where it is, at its own h x w positions, by two 1x1 convolutions with SiLU between (as the time
embedding is, film = Linear(SiLU(emb))). What it gives does not depend on the timestep. The rows of the time embedding
are added there, and the sum is brought to the size of each block: bilinearly, and over as much of the map as a pixel
covers where the block is smaller. The weights of a pixel sum to one, so a map of equal positions is a vector.

The second convolution begins as zeros: a network that takes the weights of a vector's decoder begins as that decoder.

Knows nothing about the network; inside the library a map is a row of C h w numbers, in this order.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MapFilm(nn.Module):
    """Scales and shifts of all residual blocks at every position of a map.

    Args:
        shape: (C,h,w) of a map.
        width: channels between the two convolutions.
        film_width: F, of all blocks side by side.
    """

    def __init__(self, shape: tuple[int, ...], width: int, film_width: int) -> None:
        super().__init__()
        self.shape = shape
        self.project = nn.Linear(shape[0], width)  # linear layers over the last axis: 1x1 convolutions, channels last
        self.film = nn.Linear(width, film_width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Rows of maps [N,C h w] -> [N,F,h,w], channels-last in memory."""
        positions: Tensor = h.unflatten(1, self.shape).permute(0, 2, 3, 1)
        out: Tensor = self.film(F.silu(self.project(positions))).permute(0, 3, 1, 2)
        return out


def mean_of(h: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of maps [N,C h w] -> their means over the positions [N,C]."""
    channels: Tensor = h.unflatten(1, (shape[0], -1))
    return channels.mean(dim=2)


def resized(film: Tensor, size: int) -> Tensor:
    """[N,F,h,w] -> [N,F,size,size], channels-last in memory; see the module."""
    n, channels, height, width = film.shape
    if (height, width) == (size, size):
        return film
    rows = film.permute(0, 2, 3, 1)
    if height != size:
        down = weights(height, size, film.dtype, film.device)
        rows = torch.matmul(down, rows.reshape(n, height, width * channels)).reshape(n, size, width, channels)
    if width != size:
        across = weights(width, size, film.dtype, film.device)
        rows = torch.matmul(across, rows.reshape(n * size, width, channels)).reshape(n, size, size, channels)
    return rows.permute(0, 3, 1, 2)


def weights(of: int, to: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each of `to` pixels takes of `of` positions along a side; [to,of], rows sum to one."""
    if torch.compiler.is_exporting() or torch.compiler.is_compiling():  # what is traced belongs to its graph
        return torch.tensor(_triangles(of, to), dtype=dtype, device=device)
    return _kept(of, to, dtype, device)


@functools.cache
def _kept(of: int, to: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # for training, too
        return torch.tensor(_triangles(of, to), dtype=dtype, device=device)


def _triangles(of: int, to: int) -> tuple[tuple[float, ...], ...]:
    """Triangles around the pixels' centers, as wide as two positions or, where they are larger, two pixels."""
    ratio = of / to
    reach = max(1.0, ratio)
    found = []
    for pixel in range(to):
        center = min(max((pixel + 0.5) * ratio, 0.5), of - 0.5)  # beyond the outer centers: the outer positions
        row = [max(0.0, 1 - abs(place + 0.5 - center) / reach) for place in range(of)]
        found.append(tuple(value / sum(row) for value in row))
    return tuple(found)
