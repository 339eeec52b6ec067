"""How many parameters a network has, by its configuration alone: known before anything is allocated.

Counts what `unet.UNet` builds, block by block. Knows nothing about tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rcdm_fast.config import UNetConfig


def parameters(config: UNetConfig) -> int:
    """Numbers in all tensors of ``UNet(config)``."""
    embedding = 4 * config.num_channels
    total = _linear(config.num_channels, embedding) + _linear(embedding, embedding)
    total += config.num_classes * embedding
    total += _linear(config.representation_dim, embedding) if config.representation_dim else 0

    def block(of: int, to: int) -> int:
        film = 2 * to if config.use_scale_shift_norm else to
        skip = _convolution(of, to, 1) if of != to else 0
        both = _convolution(of, to, 3) + _convolution(to, to, 3)
        return 2 * of + 2 * to + both + _linear(embedding, film) + skip

    def stage(of: int, to: int, level: int) -> int:
        return block(of, to) + (_attention(to) if config.attends_at(level) else 0)

    def resampling(width: int) -> int:
        if config.resblock_updown:
            return block(width, width)
        return _convolution(width, width, 3) if config.conv_resample else 0

    widths = config.level_channels
    channels = widths[0]
    total += _convolution(3, channels, 3)
    skips = [channels]
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            total += stage(channels, width, level)
            channels = width
            skips.append(channels)
        if level != len(widths) - 1:
            total += resampling(channels)
            skips.append(channels)
    total += 2 * block(channels, channels) + _attention(channels)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.num_res_blocks + 1):
            total += stage(channels + skips.pop(), width, level)
            channels = width
        total += resampling(channels) if level else 0
    return total + 2 * channels + _convolution(channels, config.out_channels, 3)


def _linear(of: int, to: int) -> int:
    return of * to + to


def _convolution(of: int, to: int, side: int) -> int:
    return of * to * side * side + to


def _attention(width: int) -> int:
    return 2 * width + _linear(width, 3 * width) + _linear(width, width)
