"""The floor under a training step: its convolutions alone, forward and both ways back, as oneDNN runs them.

Every convolution of the network, as often as it occurs, channels-last, each on tensors of its own that are used again:
what lies between convolutions, and memory that is new, cost nothing here. A step that is faster than its floor does
less work (upsampled images) or does it better than oneDNN.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.rows import Row
from rcdm_fast.config import UNetConfig
from rcdm_fast.models.unet import UNet

PARTS = ("forward", "of_input", "of_weight")
MASKS = {"of_input": [True, False, False], "of_weight": [False, True, True]}  # what convolution_backward computes


@dataclass(frozen=True)
class Shape:
    """One convolution; attention's 1x1 convolutions are seen as those of images."""

    inputs: int
    outputs: int
    size: int  # of the input, px
    kernel: int
    stride: int
    padding: int


def shapes_of(unet: UNetConfig) -> dict[Shape, int]:
    """The convolutions of a network and how often each occurs."""
    found: collections.Counter[Shape] = collections.Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv1d):
            found[Shape(module.in_channels, module.out_channels, round(inputs[0].shape[2] ** 0.5), 1, 1, 0)] += 1
        elif isinstance(module, nn.Conv2d):
            geometry = module.kernel_size[0], module.stride[0], int(module.padding[0])
            found[Shape(module.in_channels, module.out_channels, inputs[0].shape[2], *geometry)] += 1

    with torch.device("meta"), torch.no_grad():
        network = UNet(unet).eval()
        for module in network.modules():
            module.register_forward_hook(note)
        size = unet.image_size
        network(torch.empty(1, 3, size, size), torch.empty(1), torch.empty(1, unet.representation_dim))
    return dict(found)


class Convolution:
    """One shape with tensors to run it on."""

    def __init__(self, shape: Shape, batch: int, dtype: torch.dtype) -> None:
        last = torch.channels_last
        self.shape = shape
        x = torch.randn(batch, shape.inputs, shape.size, shape.size, dtype=dtype)
        weight = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel, dtype=dtype)
        self.x, self.weight = x.to(memory_format=last), weight.div_(shape.inputs).to(memory_format=last)
        self.bias = torch.zeros(shape.outputs, dtype=dtype)
        self.grad = torch.randn_like(self.forward())
        self.flops = 2 * self.grad.numel() * shape.inputs * shape.kernel**2

    def forward(self) -> Tensor:
        return torch.conv2d(self.x, self.weight, self.bias, self.shape.stride, self.shape.padding)

    def backward(self, part: str) -> None:
        """`of_input` or `of_weight` (with the bias)."""
        stride, padding = [self.shape.stride] * 2, [self.shape.padding] * 2
        torch.ops.aten.convolution_backward(
            self.grad, self.x, self.weight, [len(self.bias)], stride, padding, [1, 1], False, [0, 0], 1, MASKS[part]
        )

    def run(self, part: str) -> None:
        """One of `PARTS`."""
        if part == "forward":
            self.forward()
        else:
            self.backward(part)


def alone(unet: UNetConfig, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """A call that runs all convolutions of a training step once."""
    made = [(Convolution(shape, batch, dtype), count) for shape, count in shapes_of(unet).items()]

    def run() -> None:
        for convolution, count in made:
            for part in PARTS:
                for _ in range(count):
                    convolution.run(part)

    return run


def rates(unet: UNetConfig, batch: int, dtype: torch.dtype, repeats: int = 3) -> list[Row]:
    """A row per shape, most work first: the least time of some repeats, and the rate, of every part."""
    rows = []
    for shape, count in shapes_of(unet).items():
        convolution = Convolution(shape, batch, dtype)
        row: Row = {**vars(shape), "count": count, "gflop": convolution.flops / 1e9}
        for part in PARTS:
            convolution.run(part)
            times = []
            for _ in range(repeats):
                since = time.perf_counter()
                convolution.run(part)
                times.append(time.perf_counter() - since)
            row[f"{part}_ms"] = 1e3 * min(times)
            row[f"{part}_gflops"] = convolution.flops / min(times) / 1e9
        rows.append(row)
    return sorted(rows, key=lambda row: -row["gflop"] * row["count"])
