"""The small residual encoder of the bundled models: 32-pixel images, a backbone and a projector.

Follows the basic block of He et al. 2015 (two 3x3 convolutions, batch norm, ReLU, strided first convolution), made
small enough for a CPU: the default is 0.09 GFLOP an image. The backbone ends in ReLU and average pooling, so its
representation is never negative; the projector is a linear layer for a supervised network and an MLP otherwise
(two layers in SimCLR: Chen et al. 2020, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

# A file states an architecture, and every number of it is believed only so far.
MAX_WIDTH = 8192
MAX_PROJECTION = 65536
MAX_STAGES = 16
MAX_BLOCKS = 64  # of a stage


def _limited(name: str, numbers: object, most: int, count: int) -> None:
    if not isinstance(numbers, list | tuple) or not 1 <= len(numbers) <= count:
        raise ValueError(f"{name} must be a list of 1 to {count} numbers")
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
            raise ValueError(f"{name} must be whole numbers from 1 to {most}, got {number!r:.40}")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return F.relu(h + self.shortcut(x))


class SmallResNet(nn.Module):
    """`backbone` [N,3,H,W] -> [N, widths[-1]]; `projector` on top -> [N, projector[-1]]; calling it does both.

    Args:
        stem: channels of the first convolution, at full resolution.
        widths: channels of each stage; every stage halves the resolution in its first block.
        blocks: blocks of each stage.
        projector: widths of the projector's layers; the last is its output. One width means a linear classifier.
        activation: of the projector: relu, or gelu as in DINO's head (Caron et al. 2021).

    Raises:
        ValueError: widths and blocks of different lengths, an unknown activation, numbers that are no whole numbers or
            are beyond the limits (`MAX_WIDTH`, `MAX_STAGES`, `MAX_BLOCKS`).
    """

    def __init__(
        self,
        stem: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (1, 1, 1),
        projector: Sequence[int] = (256, 128),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if activation not in ("relu", "gelu"):
            raise ValueError(f"activation {activation!r} is neither relu nor gelu")
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths but {len(blocks)} block counts")
        _limited("stem", [stem], MAX_WIDTH, 1)
        _limited("widths", widths, MAX_WIDTH, MAX_STAGES)
        _limited("blocks", blocks, MAX_BLOCKS, MAX_STAGES)
        _limited("projector", projector, MAX_PROJECTION, MAX_STAGES)
        layers: list[nn.Module] = [
            nn.Conv2d(3, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        ]
        channels = stem
        for width, count in zip(widths, blocks, strict=True):
            for index in range(count):
                layers.append(BasicBlock(channels, width, stride=2 if index == 0 else 1))
                channels = width
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head: list[nn.Module] = []
        for width in projector[:-1]:
            act = nn.ReLU(inplace=True) if activation == "relu" else nn.GELU()
            head += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), act]
            channels = width
        self.projector = nn.Sequential(*head, nn.Linear(channels, projector[-1]))

    def forward(self, images: Tensor) -> Tensor:
        """Float [N,3,H,W], normalized -> projection [N, projector[-1]]."""
        out: Tensor = self.projector(self.backbone(images))
        return out
