"""3x3 convolutions in fp8 (e4m3), emulated: what tensor cores compute, up to the order in which sums are added.

Every input channel is divided by a scale of its own, which was calibrated, and rounded to e4m3 (4 bits of exponent, 3
of mantissa, largest number 448, no infinity); the weights take up the scales, are divided by one more of each output
channel and rounded, too. Products of such numbers are exact in float32 and summed in float32; then come the output
channel's scale and the bias. Everything else stays float32. (The tensor cores of sm_90 keep fewer digits in sums of up
to 128 products, `kernels/fp8_convolution.py`.)

Scales of inputs are powers of two: dividing by one, and giving it to the weights, rounds nothing, on any device.
Nothing is lost by that, for e4m3 has the same digits in every binade.

Knows nothing about where scales come from (`exporters/fp8.py`) or how a GPU does it fast.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.models.unet import UNet

LARGEST = 448.0  # of e4m3; more is held there, for the format itself has NaN in its place
LEAST_EXPONENT = -6  # of a normal number; below it steps are 2^-9
MANTISSA = 3  # bits
# The largest input of a calibration is scaled to 112..224: another one may be twice as large before it saturates, and
# that costs only the smallest of 15 binades.
AIMED = LARGEST / 2
MOST_EXPONENT = 60  # of a scale, up and down: it, its inverse and weights times it stay normal in float32
_FLOAT32_MANTISSA, _FLOAT32_BIAS = 23, 127
_EXPONENT_BITS = 0xFF << _FLOAT32_MANTISSA


def rounded(x: Tensor) -> Tensor:
    """The nearest e4m3 numbers, ties to even, at most `LARGEST` in size; NaN stays NaN. Float32 -> float32.

    Equal to PyTorch's conversion there and back (tests/test_fp8.py), and faster than it on a CPU: c is so large that
    float32 numbers near it lie as far apart as e4m3 numbers near x, so that x + c is rounded as x is to be.
    """
    x = x.clamp(-LARGEST, LARGEST)
    exponent = (x.view(torch.int32) & _EXPONENT_BITS).clamp_(min=(_FLOAT32_BIAS + LEAST_EXPONENT) << _FLOAT32_MANTISSA)
    c = (exponent + ((_FLOAT32_MANTISSA - MANTISSA) << _FLOAT32_MANTISSA)).view(torch.float32).mul_(1.5)
    return (x + c).sub_(c)


def input_scale(largest: Tensor) -> Tensor:
    """The scales of channels whose inputs are at most so large in size: powers of two; float32 [I] -> float32 [I].

    Between 2^-60 and 2^60; inputs for which that is too large a scale are so small that they round to zero.
    """
    wanted = torch.where(largest > 0, largest.double() / AIMED, 1.0)
    return wanted.log2().ceil().clamp(-MOST_EXPONENT, MOST_EXPONENT).exp2().float()


def rounded_weight(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution's weights for inputs that were divided by their channels' scales, and how their sums are scaled.

    Args:
        weight: float32 [O,I,3,3].
        scale: float32 [I], powers of two.

    Returns:
        e4m3 numbers as float32 [O,I,3,3], and float32 [O], what the sums of an output channel are multiplied by.
    """
    folded = weight.detach().float() * scale[:, None, None]
    largest = folded.abs().amax(dim=(1, 2, 3))
    least = LARGEST * torch.finfo(torch.float32).tiny  # a channel below it is zero: its scale would not be normal
    out_scale = torch.where(largest >= least, largest / LARGEST, 1.0)
    return rounded(folded / out_scale[:, None, None, None]), out_scale


class Fp8Convolution(nn.Module):
    """See the module's docstring; in place of a 3x3 convolution."""

    def __init__(self, convolution: nn.Conv2d, scale: Tensor) -> None:
        super().__init__()
        assert convolution.bias is not None
        assert isinstance(convolution.padding, tuple)
        self.weight: Tensor
        self.out_scale: Tensor
        self.bias: Tensor
        self.inverse: Tensor
        scale = scale.to(convolution.weight.device)
        weight, out_scale = rounded_weight(convolution.weight, scale)
        self.register_buffer("weight", weight)
        self.register_buffer("out_scale", out_scale)
        self.register_buffer("bias", convolution.bias.detach().float())
        self.register_buffer("inverse", 1 / scale)  # exact
        self.stride, self.padding = convolution.stride, convolution.padding

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [N,I,H,W] -> float32 [N,O,H',W']."""
        x = rounded(x * self.inverse[:, None, None])
        sums = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return torch.addcmul(self.bias[:, None, None], sums, self.out_scale[:, None, None])


def inner_convolutions(network: UNet) -> dict[str, nn.Conv2d]:
    """All 3x3 convolutions but the first and the last, by their names in the state_dict, in the network's order."""
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    names = list(found)
    return {name: found[name] for name in names[1:-1]}


def emulated(network: UNet, scales: Mapping[str, Tensor]) -> UNet:
    """A network whose convolutions of these names are computed in fp8; other layers are the given network's own.

    Args:
        network: never changed; in float32.
        scales: of the input channels, float32 [I] each, by the names of `inner_convolutions`.
    """
    made = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    for name, convolution in inner_convolutions(network).items():
        if name in scales:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, Fp8Convolution(convolution, scales[name]))
    return made
