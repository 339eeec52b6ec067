"""The Triton kernel behind `map_film.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def map_film_kernel(
    x_ptr, film_ptr, row_ptr, down_ptr, across_ptr, film_rows, of_map, of_line, of_place, height, width, channels,
    lines, places, pieces, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """ROWS pixels of one line of an image, BLOCK_C of its channels; x [N,H,W,C] is overwritten.

    `pieces` of a line are programs of their own. What the map says at each of its places along the line is blended from
    its lines, and added to every pixel by its share.
    """
    program = tl.program_id(0)
    line = program // pieces  # of all images
    image = line // height
    y = line - image * height
    pixel = (program - line * pieces) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    used = channel < channels
    row = tl.load(row_ptr + image)
    known = (row >= 0) & (row < film_rows)
    film = film_ptr + tl.where(known, row, 0) * of_map + channel
    scale = tl.zeros((ROWS, BLOCK_C), tl.float32)
    shift = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for place in range(places):
        of_scale = tl.zeros((BLOCK_C,), tl.float32)
        of_shift = tl.zeros((BLOCK_C,), tl.float32)
        for k in range(lines):
            weight = tl.load(down_ptr + y * lines + k)
            if weight != 0.0:
                near = film + k * of_line + place * of_place
                of_scale += weight * tl.load(near, mask=used & known, other=0.0)
                of_shift += weight * tl.load(near + channels, mask=used & known, other=0.0)
        share = tl.load(across_ptr + pixel * places + place, mask=pixel < width, other=0.0)
        scale += share[:, None] * (of_scale + 1.0)[None, :]
        shift += share[:, None] * of_shift[None, :]
    start = line * width
    if WIDE:
        start = start.to(tl.int64)
    at = ((start + pixel) * channels)[:, None] + channel[None, :]
    there = (pixel < width)[:, None] & used[None, :]
    v = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32) * scale + shift
    v = tl.where(known, v / (1.0 + tl.exp(-v)), float("nan"))
    tl.store(x_ptr + at, v.to(x_ptr.dtype.element_ty), mask=there)
