"""What an encoder is for someone who is to choose a layer: its layers with their shapes, and whose convention it has.

Knows nothing about how layers are pooled (`layers.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import modes
from rcdm_fast.encoders.base import ImageEncoder
from rcdm_fast.encoders.errors import EncoderError, reason
from rcdm_fast.encoders.layers import CALL
from rcdm_fast.encoders.onnx_models import OnnxNetwork

log = logging.getLogger(__name__)

ORIGINS = {
    "bundled": "the encoder's file",
    "file": "the encoder's file",
    "published": "the published code",
    "timm": "timm's configuration of the network",
    "torchvision": "torchvision's transforms of these weights",
    "transformers": "the model's image processor",
    "torchhub": "customary for ImageNet; torch.hub says nothing of it",
    "python": "stated, or the default",
    "onnx": "the graph's input, or the file's metadata; images in [-1,1] if those do not say",
    "oracle": "the world's images",
}
SHOWN = ("image_size", "resize", "resize_to", "interpolation", "mean", "std", "channel_order", "border", "normalize")


@dataclass(frozen=True)
class Layer:
    """A layer that can be named.

    Attributes:
        name: as ``layer=`` takes it.
        shape: of its output for one image.
        kind: of what it is.
    """

    name: str
    shape: tuple[int, ...]
    kind: str


def layers_of(encoder: ImageEncoder) -> list[Layer]:
    """All layers that answer with a tensor, or with a tuple that begins with one, in the order in which they answer.

    One that is called several times is listed at each call (``NAME#1``...); a network that is a function has none.

    Raises:
        EncoderError: a graph that cannot be read, or a network that fails before any layer has answered.
    """
    network = encoder.network
    if isinstance(network, OnnxNetwork):
        return [Layer(name, shape, "tensor") for name, shape in network.layers().items()]
    if not isinstance(network, nn.Module):
        return []
    names: dict[nn.Module, str] = {module: name for name, module in network.named_modules() if name}
    if not names:  # nor is it asked: an oracle refuses images that are none of its world's
        return []
    seen: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(found, Mapping):
            found = next((each for each in found.values() if isinstance(each, Tensor)), None)
        if isinstance(found, Tensor) and found.ndim > 1:
            seen.append((module, tuple(found.shape)))

    handles = [module.register_forward_hook(note) for module in names]
    size = encoder.config.image_size
    try:
        with torch.no_grad(), modes.evaluating(network):
            # as the network itself is called, so that layers behind the one that is configured are seen, too
            first = next((each for each in network.parameters() if each.is_floating_point()), None)
            x = torch.zeros(1, 3, size, size, device=encoder.home, dtype=None if first is None else first.dtype)
            try:
                network(x)
            except Exception as error:  # of a head that fails nothing is wanted where layers before it answer
                if not seen:
                    raise EncoderError(f"{encoder.config.source}: fails on an image: {reason(error)}") from error
                log.warning("the network fails behind layer %s: %s", names[seen[-1][0]], reason(error))
    finally:
        for handle in handles:
            handle.remove()
    counts: dict[nn.Module, int] = {}
    for module, _ in seen:
        counts[module] = counts.get(module, 0) + 1
    found, so_far = [], dict.fromkeys(counts, 0)
    for module, shape in seen:
        so_far[module] += 1
        ending = f"{CALL}{so_far[module]}" if counts[module] > 1 else ""
        found.append(Layer(names[module] + ending, shape, type(module).__name__))
    return found


def convention(config: EncoderConfig, stated: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and origin of every part of an input convention.

    Args:
        config: of the encoder.
        stated: what its specification says.
    """
    family = config.source.partition(":")[0]
    rows = []
    for name in SHOWN:
        value = getattr(config, name)
        text = ", ".join(f"{each:.6g}" for each in value) if isinstance(value, tuple) else str(value)
        if name == "resize_to" and not value:
            text = str(config.image_size)
        rows.append((name, text, "the specification" if name in stated else ORIGINS.get(family, "given")))
    return rows
