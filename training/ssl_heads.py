"""Projectors of the self-supervised methods, built by lightly in the layout of `SmallResNet.projector`.

lightly's heads for VICReg, Barlow Twins and BYOL have exactly the layers of our projector (linear without bias, batch
norm, ReLU, ..., linear), so that a trained network is read back as a plain `SmallResNet`. DINO's has GELU instead of
ReLU; its last, weight-normalized layer is no part of the projector (`ssl_momentum.Prototypes`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from rcdm_fast.config import ConfigError
from rcdm_fast.errors import RunError, install

_LAYERS = {"vicreg": "at least 2", "barlow": "3", "byol": "2", "dino": "3"}


def missing_lightly(error: ImportError) -> RunError:
    """The error to raise when lightly cannot be imported."""
    return RunError(f"self-supervised losses and heads come from lightly ({error}): {install('train')}")


def projector(method: str, channels: int, widths: Sequence[int]) -> nn.Sequential:
    """lightly's projector of a method: [N, channels] -> [N, widths[-1]].

    Args:
        method: vicreg, barlow, byol or dino.
        channels: width of the backbone's output.
        widths: hidden widths (all equal, as lightly's heads want) and the output's. VICReg takes any number of hidden
            layers (three layers in all in Bardes et al. 2022, section 4.2), Barlow Twins two (Zbontar et al. 2021,
            section 2.2), BYOL one (Grill et al. 2020, section 3.3), DINO two (Caron et al. 2021, section 3.1; with
            batch norm, since the backbone is convolutional).

    Raises:
        ConfigError: widths that the method's head cannot have.
        RunError: lightly is not installed.
    """
    *hidden, out = widths
    fits = {"vicreg": len(hidden) >= 1, "barlow": len(hidden) == 2, "byol": len(hidden) == 1, "dino": len(hidden) == 2}
    if not fits[method] or len(set(hidden)) != 1:
        raise ConfigError(
            f"projector {list(widths)}: {method} takes {_LAYERS[method]} layers, all but the last of one width"
        )
    try:
        from lightly.models.modules import heads
    except ImportError as error:
        raise missing_lightly(error) from error
    width = hidden[0]
    if method == "vicreg":
        head = heads.VICRegProjectionHead(channels, width, out, num_layers=len(widths))
    elif method == "barlow":
        head = heads.BarlowTwinsProjectionHead(channels, width, out)
    elif method == "byol":
        head = heads.BYOLProjectionHead(channels, width, out)
    else:
        head = dino_head(channels, width, out, 1)
    layers: nn.Sequential = head.layers
    return layers


def dino_head(channels: int, width: int, bottleneck: int, outputs: int) -> nn.Module:
    """lightly's whole head for DINO (`layers`, `last_layer`), with batch norm. Raises `RunError` without lightly."""
    try:
        from lightly.models.modules.heads import DINOProjectionHead
    except ImportError as error:
        raise missing_lightly(error) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`?torch.nn.utils.weight_norm", FutureWarning)  # lightly's choice, not ours
        head: nn.Module = DINOProjectionHead(channels, width, bottleneck, outputs, batch_norm=True)
    return head
