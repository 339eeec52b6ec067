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


class Watch:
    """Notices when weights are changed that somebody prepared: packed them, captured them, exported them.

    What writes to `parameter.data` is not noticed, nor weights made in inference mode: PyTorch does not count there.
    """

    def __init__(self, network: UNet) -> None:
        self._network = network
        self._before: list[int] | None = None

    def check(self, engine: str) -> None:
        """Raises `ConfigError` where the weights are not those of the first call; `engine`: who prepared them."""
        now = [-1 if tensor.is_inference() else tensor._version for tensor in self._network.state_dict().values()]
        self._before = now if self._before is None else self._before
        if now != self._before:
            raise ConfigError(
                f"the network's weights were changed after engine {engine} had prepared them: it would draw with old "
                "and new ones together. copy.copy(model) makes a model whose engine has the new ones"
            )
