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
