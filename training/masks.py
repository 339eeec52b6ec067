"""Parts of representations that are hidden at random, so that one decoder serves every subset of them.

A representation here is made of parts, and ends in one number for each: 1 where the part is shown. A hidden part is
zeros, its number too. Every part of every image of a batch is hidden with probability 1/2, each by itself, so a decoder
meets every subset equally often; an encoder that always hides the same parts (``oracle:...&masked=1``) then gives it
what it has seen. Some images may be shown whole: what takes all parts together (how a shape is turned, and where it
stands) is learned from them, and of eight parts all are shown in one image of 256 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.encoders import Encoder
from rcdm_fast.encoders.oracle_code import Code

WHOLE = 0.5  # of the images that a finished model is learned from further: how many are shown whole
STREAM = 1 << 20  # of a step's random numbers: masks have one of their own


def check(parts: Sequence[int], bank: Tensor) -> None:
    """Raise `ConfigError` unless representations [...,D] are such parts, all shown."""
    count = len(parts)
    width = sum(parts) + count
    if bank.shape[-1] != width:
        raise ConfigError(
            f"masked_parts {tuple(parts)} need representations of {width} dimensions ({sum(parts)} and one for each "
            f"part), the encoder gives {bank.shape[-1]}"
        )
    if not bool((bank[..., -count:] == 1).all()):
        raise ConfigError("masked_parts need representations whose parts are all shown: they must end in ones")


def drawn(parts: Sequence[int], count: int, generator: torch.Generator, whole: float = 0.0) -> Tensor:
    """What representations of `count` images are multiplied by, zeros and ones; float32 [count, sum(parts) + parts].

    `whole` is the fraction of images that are shown whole.
    """
    shown = torch.rand((count, len(parts)), generator=generator) < 0.5
    if whole:
        shown |= torch.rand((count, 1), generator=generator) < whole
    shown = shown.to(torch.float32)
    return torch.cat([shown.repeat_interleave(torch.tensor(parts), dim=1), shown], dim=1)


def parts_of(encoder: Encoder | None) -> tuple[int, ...]:
    """Widths of the parts of what an encoder says, where it writes masked codes of a world; else none."""
    code = getattr(getattr(encoder, "network", None), "code", None)
    return code.widths if isinstance(code, Code) and code.masked else ()


def hidden(h: Tensor, parts: Sequence[int], seed: int) -> Tensor:
    """Representations [N,D] of which half are whole, and in the others each part is hidden with probability 1/2.

    Raises:
        ConfigError: they do not consist of such parts, all shown.
    """
    check(parts, h)
    shown = drawn(parts, len(h), torch.Generator().manual_seed(seed), whole=WHOLE)
    return h * shown.to(h.device)
