"""Networks of the library's own: made of tensors, ready for inference, shared with nobody.

No random number is drawn for weights that are given anyway, and a network that somebody else owns is only read: its
training goes on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.checks import ConfigError, described
from rcdm_fast.config import UNetConfig
from rcdm_fast.models.unet import UNet


@host.guarded()
def from_tensors(config: UNetConfig, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> UNet:
    """A network with copies of these tensors as float32, without dropout and gradients.

    Raises:
        RuntimeError: tensors that are missing, unexpected or misshapen.
    """
    with torch.device("meta"):
        network = UNet(config).eval().requires_grad_(False)
    copies = {
        name: torch.empty(tensor.shape, dtype=torch.float32, device=device).copy_(tensor.detach())
        for name, tensor in tensors.items()
    }
    network.load_state_dict(copies, strict=True, assign=True)  # `to_empty` takes as long as the rest of a small network
    return network


def copy_of(network: UNet, device: torch.device | str = "cpu") -> UNet:
    """A copy of somebody's network; it stays as it is, and what its owner does with it later does not reach the copy.

    Raises:
        ConfigError: something that is no `UNet`, or has no values yet.
    """
    if not isinstance(network, UNet):
        raise ConfigError(f"expected an rcdm_fast.models.unet.UNet, got {described(network)}")
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ConfigError("the network has no values yet (its parameters are on the meta device)")
    return from_tensors(network.config, network.state_dict(), device)
