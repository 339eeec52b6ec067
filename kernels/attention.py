"""Self-attention over packed q, k and v in Triton, with an online softmax; see `reference.attention`.

One program computes BLOCK_M rows of one head and reads k and v in blocks of BLOCK_N positions. Scores of 16-bit inputs
come from tensor cores with float32 sums; float32 inputs are multiplied in float32 ("ieee"), not TF32, so that the error
stays that of plain PyTorch. A head of 96 or 192 numbers is taken as 64 + 32 or 128 + 64, not padded to a power of two
(but see `HOPPER_PART`).

Knows nothing about models or how an implementation is chosen. Inference only. Importing this needs Triton. Method: Dao
et al. 2022 (FlashAttention), Milakov and Gimelshein 2018 (online softmax).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton
from torch.nn import functional as F

from rcdm_fast.kernels.launch import device_of, is_hopper, next_power
from rcdm_fast.ops import reference, schema

MAX_HEAD = 256  # numbers per head
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Blocks:
    """How one head is cut, and how many warps and stages of loads a program has."""

    rows: int
    positions: int
    warps: int
    stages: int


# (bytes per number, longest head with its padding) -> blocks for up to LONG positions, and for more. Few positions make
# few programs, so their blocks are small. All fit into the 99 KiB of shared memory that the smallest recent GPUs have,
# and into registers without spills.
LONG = 1024
BLOCKS = {
    (2, 64): (Blocks(64, 64, 4, 3), Blocks(128, 64, 4, 3)),
    (2, 128): (Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 2)),
    (2, 192): (Blocks(64, 16, 4, 3), Blocks(64, 16, 4, 3)),
    (2, 256): (Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 2)),
    (4, 64): (Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2)),
    (4, 128): (Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2)),
    (4, 256): (Blocks(32, 16, 8, 2), Blocks(32, 16, 8, 2)),
}
# Where matrix instructions read shared memory (compute capability 9), q needs no registers, and 16 positions are too
# few for one of them.
HOPPER_BLOCKS = {**BLOCKS, (2, 192): (Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 2))}
# Measured on an H100 with Triton 3.6, in 16 bits: heads of two parts whose second has 16 or 32 numbers (40 to 96, 160)
# come out wrong, those with 64 (192) right. The former are padded to a power of two there.
HOPPER_PART = 64


@triton.jit
def _load(base, start, offset, step, column, length, HEAD: tl.constexpr, MASK_ROW: tl.constexpr, PADDED: tl.constexpr):
    """Rows from `start` of one of q, k and v, for some of its columns; zeros past the end."""
    at = base + tl.cast(start, tl.int64) * step + offset[:, None] * step + column[None, :]
    if MASK_ROW and PADDED:
        return tl.load(at, mask=(start + offset < length)[:, None] & (column < HEAD)[None, :], other=0.0)
    elif MASK_ROW:
        return tl.load(at, mask=(start + offset < length)[:, None], other=0.0)
    elif PADDED:
        return tl.load(at, mask=(column < HEAD)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _join(
    start, q1, q2, top, total, sum1, sum2, k, v, step, length, scale, column1, column2,
    HEAD: tl.constexpr, BLOCK_N: tl.constexpr, TWO: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one block of positions into every row's maximum, sum of weights and weighted sums of v."""
    offset = tl.arange(0, BLOCK_N)
    k1 = _load(k, start, offset, step, column1, length, HEAD, MASKED, PADDED and not TWO)
    scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
    if TWO:
        k2 = _load(k, start, offset, step, column2, length, HEAD, MASKED, PADDED)
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision=PRECISION)
    if MASKED:
        scores = tl.where((start + offset < length)[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new_top[:, None])
    keep = tl.exp2(top - new_top)
    total = total * keep + tl.sum(weights, 1)
    weights = weights.to(q1.dtype)
    v1 = _load(v, start, offset, step, column1, length, HEAD, MASKED, PADDED and not TWO)
    sum1 = tl.dot(weights, v1, sum1 * keep[:, None], input_precision=PRECISION)
    if TWO:
        v2 = _load(v, start, offset, step, column2, length, HEAD, MASKED, PADDED)
        sum2 = tl.dot(weights, v2, sum2 * keep[:, None], input_precision=PRECISION)
    return new_top, total, sum1, sum2


@triton.jit
def attention_kernel(
    out_ptr, qkv_ptr, length, heads, blocks, scale,
    HEAD: tl.constexpr, PART_1: tl.constexpr, PART_2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    NEW_ORDER: tl.constexpr, ROWS_LEFT: tl.constexpr, POSITIONS_LEFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head; HEAD = PART_1 + PART_2, the last part padded. `scale` is log2(e) / sqrt(HEAD)."""
    program = tl.program_id(0)
    start = program % blocks * BLOCK_M
    head = program // blocks % heads
    image = (program // blocks // heads).to(tl.int64)
    channels = heads * HEAD
    step = 3 * channels
    q = qkv_ptr + image * length * step
    if NEW_ORDER:
        q += head * HEAD
        part = channels
    else:
        q += head * 3 * HEAD
        part = HEAD
    k = q + part
    v = k + part

    TWO: tl.constexpr = PART_2 > 0
    PADDED: tl.constexpr = PART_1 + PART_2 != HEAD
    row = tl.arange(0, BLOCK_M)
    column1 = tl.arange(0, PART_1)
    column2 = PART_1 + tl.arange(0, PART_2 if TWO else 1)
    q1 = _load(q, start, row, step, column1, length, HEAD, ROWS_LEFT, PADDED and not TWO)
    sum1 = tl.zeros((BLOCK_M, PART_1), tl.float32)
    q2, sum2 = q1, 0.0  # of no meaning unless there are two parts
    if TWO:
        q2 = _load(q, start, row, step, column2, length, HEAD, ROWS_LEFT, PADDED)
        sum2 = tl.zeros((BLOCK_M, PART_2), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # Positions that fill no block are rare (odd sizes), so all blocks are masked then: a second copy of the loop's
    # body for the last block would need more registers than there are.
    for position in range(0, length, BLOCK_N):
        top, total, sum1, sum2 = _join(
            position, q1, q2, top, total, sum1, sum2, k, v, step, length, scale, column1, column2,
            HEAD, BLOCK_N, TWO, PADDED, POSITIONS_LEFT, PRECISION,
        )  # fmt: skip

    out = out_ptr + (image * length + start) * channels + head * HEAD + row[:, None] * channels
    there = (start + row < length)[:, None]
    whole1 = (sum1 / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out + column1[None, :], whole1, mask=there & (column1 < HEAD)[None, :])
    if TWO:
        whole2 = (sum2 / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out + column2[None, :], whole2, mask=there & (column2 < HEAD)[None, :])


def split_head(head: int, least: int = 16) -> tuple[int, int]:
    """Two powers of two, 0 or at least 16, that hold `head` numbers: 192 is 128 + 64, 100 is 128 + 0.

    A second part of less than `least` numbers is joined to the first: 96 is 64 + 32, or with 64 as the least 128 + 0.
    """
    whole = max(16, 1 << (head.bit_length() - 1))
    rest = head - whole
    if rest <= 0:
        return whole, 0
    second = max(16, next_power(rest))
    return (whole, second) if least <= second < whole else (2 * whole, 0)


def least_part(itemsize: int, hopper: bool) -> int:
    """How long the second part of a head must be; see `HOPPER_PART`."""
    return HOPPER_PART if hopper and itemsize == 2 else 16


def plan(length: int, head: int, itemsize: int, hopper: bool) -> Blocks:
    """The table's blocks, no larger than the next power of two from the number of positions; smaller if masked."""
    table = HOPPER_BLOCKS if hopper else BLOCKS
    size = sum(split_head(head, least_part(itemsize, hopper)))
    longest = min(longest for bytes_, longest in table if bytes_ == itemsize and size <= longest)
    blocks = table[itemsize, longest][length > LONG]
    enough = max(16, next_power(length))
    rows, positions = min(blocks.rows, enough), min(blocks.positions, enough)
    if size > 64 and length % positions and not hopper:  # masks take registers
        rows, positions = (rows, positions // 2) if positions > 16 else (rows // 2, positions)
    return Blocks(rows, positions, blocks.warps, blocks.stages)


@triton_op("rcdm_fast::attention_triton", mutates_args=(), schema=schema.ATTENTION)
def attention(qkv: Tensor, heads: int, new_order: bool) -> Tensor:  # [N,L,3C] -> [N,L,C]
    """`reference.attention`; heads of more than `MAX_HEAD` numbers are left to PyTorch's own attention.

    Raises:
        TypeError, ValueError: dtype, layout or shape that do not fit.
    """
    channels = schema.check_attention(qkv, heads)
    head = channels // heads
    if head > MAX_HEAD:
        # Memory of their own: PyTorch's kernels may read 16 bytes at once, wherever qkv begins.
        q, k, v = (part.contiguous() for part in reference.split_heads(qkv, heads, new_order))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    n, length, _ = qkv.shape
    out = torch.empty((n, length, channels), dtype=qkv.dtype, device=qkv.device)
    if n == 0 or length == 0:
        return out
    hopper = is_hopper(qkv)
    cut = plan(length, head, qkv.element_size(), hopper)
    blocks = -(-length // cut.rows)
    first, second = split_head(head, least_part(qkv.element_size(), hopper))
    with device_of(qkv):
        wrap_triton(attention_kernel)[(n * heads * blocks,)](
            out, qkv, length, heads, blocks, LOG2_E / head**0.5,
            HEAD=head, PART_1=first, PART_2=second, BLOCK_M=cut.rows, BLOCK_N=cut.positions,
            NEW_ORDER=new_order, ROWS_LEFT=length % cut.rows != 0, POSITIONS_LEFT=length % cut.positions != 0,
            PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32", num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return out
