"""How many parameters a network has, by its configuration alone: known before anything is allocated.

Counts what `unet.UNet` builds, block by block.
"""

from __future__ import annotations

from typing import Protocol


class Widths(Protocol):
    """What decides the size of a network: see `config.UNetConfig`, which has all of it."""

    @property
    def num_channels(self) -> int:
        """Channels of the first level."""

    @property
    def num_res_blocks(self) -> int:
        """Residual blocks of a level on the way down."""

    @property
    def num_classes(self) -> int:
        """Classes; 0 without labels."""

    @property
    def representation_dim(self) -> int:
        """Numbers in a representation; 0 without one."""

    @property
    def condition_map(self) -> tuple[int, ...]:
        """Channels, height and width of a representation that is a map; empty for a vector."""

    @property
    def representation_hidden(self) -> int:
        """Width of the hidden layers from a representation; 0 without such."""

    @property
    def use_scale_shift_norm(self) -> bool:
        """Whether conditions scale as well as shift."""

    @property
    def resblock_updown(self) -> bool:
        """Whether residual blocks change the resolution."""

    @property
    def conv_resample(self) -> bool:
        """Whether convolutions do, where residual blocks do not."""

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of every level."""

    @property
    def out_channels(self) -> int:
        """3, or 6 with a learned variance."""

    def attends_at(self, level: int) -> bool:
        """Whether a level has attention."""


def parameters(config: Widths) -> int:
    """Numbers in all tensors of ``UNet(config)``."""
    embedding = 4 * config.num_channels
    total = _linear(config.num_channels, embedding) + _linear(embedding, embedding)
    total += config.num_classes * embedding
    channels = config.condition_map[0] if config.condition_map else config.representation_dim
    total += _linear(channels, embedding) if channels else 0
    total += _linear(channels, config.num_channels) if config.condition_map else 0
    hidden = config.representation_hidden
    deep = _linear(channels, hidden) + _linear(hidden, hidden) + _linear(hidden, embedding)
    total += deep if hidden and channels else 0

    def block(of: int, to: int) -> int:
        film = 2 * to if config.use_scale_shift_norm else to
        per_pixel = _linear(config.num_channels, film) if config.condition_map else 0
        skip = _convolution(of, to, 1) if of != to else 0
        both = _convolution(of, to, 3) + _convolution(to, to, 3)
        return 2 * of + 2 * to + both + _linear(embedding, film) + per_pixel + skip

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
