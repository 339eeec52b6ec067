"""Films of maps in Triton: scales and shifts that differ from pixel to pixel, and SiLU, in place, in one pass.

A program has a piece of one line of an image: how lines are cut depends on the shape of one image alone.

Inference only. Importing this needs Triton.
"""

from __future__ import annotations

import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from rcdm_fast.kernels.film_group_norm import WIDE_ELEMENTS
from rcdm_fast.kernels.launch import device_of, next_power
from rcdm_fast.kernels.map_film_kernels import map_film_kernel
from rcdm_fast.ops import schema

TILE = 2048  # numbers that a program of 128 threads holds three times: x, scales and shifts
WARPS = 4


def _write(x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> None:
    n, channels, height, width = x.shape
    if x.numel() == 0:
        return
    block = min(next_power(channels), 128)
    pixels = min(next_power(width), TILE // block)
    pieces = triton.cdiv(width, pixels)
    of_map, _, of_line, of_place = film.stride()
    wrap_triton(map_film_kernel)[(n * height * pieces, triton.cdiv(channels, block))](
        x, film, rows, down, across, film.shape[0], of_map, of_line, of_place, height, width, channels, *film.shape[2:],
        pieces, ROWS=pixels, BLOCK_C=block, WIDE=x.numel() >= WIDE_ELEMENTS, num_warps=WARPS,
    )  # fmt: skip


@triton_op("rcdm_fast::map_film_triton", mutates_args={"x"}, schema=schema.MAP_FILM)
def map_film(x: Tensor, film: Tensor, rows: Tensor, down: Tensor, across: Tensor) -> None:
    """`reference.map_film`; an image whose row is out of range becomes NaN."""
    schema.check_map_film(x, film, rows, down, across)
    with device_of(x):
        _write(x, film, rows, down, across)
