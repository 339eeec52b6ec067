"""From a network to one vector per image: which layer is taken, and how tokens or positions are pooled."""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast.doors import printable
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.encoders.layout import Order

Forward = Callable[[Tensor], Any]

_ONE_THREAD = threading.RLock()  # hooks belong to modules, so a second thread in one would get the first one's output


class _Reached(Exception):
    """Raised inside a forward pass when the wanted layer has answered: nothing after it is computed."""


class LayerOutput:
    """Calls a network and returns the output of one sub-module, at its first use in the forward pass.

    The forward pass stops there; while torch.export traces it, which no exception may interrupt, it runs to its end and
    what follows the layer is left out of the graph as unused.

    Args:
        network: any module.
        name: dotted name of a sub-module of it.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network
        self.name = name
        self.module = network.get_submodule(name)

    def __call__(self, x: Tensor) -> Any:
        """The sub-module's output for the network's input x."""
        seen: list[Any] = []

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen.append(output)
            if not torch.compiler.is_exporting():
                raise _Reached

        with _ONE_THREAD:
            handle = self.module.register_forward_hook(stop)
            try:
                with contextlib.suppress(_Reached):
                    self.network(x)
            finally:
                handle.remove()
        if seen:
            return seen[0]
        raise EncoderError(f"layer {self.name!r} is not used when the network sees an image")


def locate(network: Forward, layer: str) -> Forward:
    """What to call so that the network's `layer` answers.

    A sub-module of that name (also below ``backbone``) is found first; ``backbone`` otherwise means the network's own
    output.

    Raises:
        EncoderError: there is no such layer.
    """
    names: list[str] = []
    if isinstance(network, nn.Module):
        names = [name for name, _ in network.named_modules() if name]
        for candidate in (layer, f"backbone.{layer}"):
            if candidate in names:
                return LayerOutput(network, candidate)
    if layer == "backbone":
        return network
    if not names:
        raise EncoderError(f"a function has no layer {printable(repr(layer))}; use layer 'backbone' for its output")
    near = printable(", ".join(difflib.get_close_matches(layer, names, n=5, cutoff=0.4) or names[:5]))
    raise EncoderError(f"no layer {printable(repr(layer))} in this network; there are, for example, {near}")


def tensor_of(output: Any, pooling: str) -> Tensor:
    """The tensor in whatever a network returned.

    Of named outputs (transformers) ``none`` takes the pooled one and ``cls``/``mean`` the last hidden states; of a
    tuple or list the first element counts.

    Raises:
        EncoderError: nothing usable in it.
    """
    if isinstance(output, Tensor):
        return output
    wanted = "pooler_output" if pooling == "none" else "last_hidden_state"
    if isinstance(output, Mapping):
        found = output.get(wanted)
        if isinstance(found, Tensor):
            return found
        has = ", ".join(str(key) for key in output)
        raise EncoderError(f"pooling {pooling!r} needs an output named {wanted}; the network returned {has}")
    if isinstance(output, tuple | list) and output:
        return tensor_of(output[0], pooling)
    raise EncoderError(f"the network returned {type(output).__name__}, not a tensor")


def pool(output: Tensor, pooling: str, prefix_tokens: int | None, order: Order | None = None) -> Tensor:
    """One vector per image.

    Args:
        output: [N,D], tokens [N,T,D] ([N,D,T] in order ``nchw``), or positions [N,C,H,W] ([N,H,W,C] in order ``nhwc``).
        pooling: ``none`` takes [N,D], [N,D,1,1] or [N,1,1,D]; ``cls`` takes token 0; ``mean`` averages patch tokens or
            positions.
        prefix_tokens: tokens before the patches (class, registers), None if unknown. ``mean`` leaves them out.
        order: where the channels are; needed for ``mean``, and for ``cls``.

    Returns:
        [N,D].

    Raises:
        EncoderError: the output's rank does not fit the pooling, or its order is needed and not known.
    """
    shape = list(output.shape)
    if pooling == "none":
        if output.ndim == 2:
            return output
        if output.ndim == 4 and (shape[2:] == [1, 1] or shape[1:3] == [1, 1]):
            return output.flatten(1)
        hint = {3: "pooling=cls or pooling=mean", 4: "pooling=mean"}.get(output.ndim)
        raise EncoderError(f"the layer gives {shape}, not [N,D]" + (f"; choose {hint}" if hint else ""))
    pooled = output.ndim == 3 or (output.ndim == 4 and pooling == "mean")
    if not pooled:
        needs = "tokens [N,T,D]" if pooling == "cls" else "tokens [N,T,D] or positions [N,C,H,W]"
        hint = "; choose pooling=none" if output.ndim == 2 else ""
        raise EncoderError(f"pooling={pooling} needs {needs}, but the layer gives {shape}{hint}")
    if order is None:
        choice = "[N,T,D] or [N,D,T]" if output.ndim == 3 else "[N,H,W,C] or [N,C,H,W]"
        raise EncoderError(
            f"the layer gives {shape}, and neither its shape nor a trial tells whether that is {choice}; say "
            "layout=nhwc or layout=nchw"
        )
    if output.ndim == 4:
        return output.mean(dim=(1, 2) if order == "nhwc" else (2, 3))
    tokens = output if order == "nhwc" else output.transpose(1, 2)
    if pooling == "mean":
        if tokens.shape[1] <= (prefix_tokens or 0):
            raise EncoderError(f"pooling=mean: the layer gives {shape}, no tokens of patches; choose pooling=cls")
        return tokens[:, prefix_tokens or 0 :].mean(dim=1)
    if prefix_tokens == 0:
        raise EncoderError("pooling=cls: this network has no class token; choose pooling=mean")
    return tokens[:, 0]


def prefix_tokens_of(network: Any) -> int | None:
    """Tokens before the patches, if the network says so; None if it does not.

    Read from `num_prefix_tokens` (timm), or from a class token with `num_register_tokens` (DINOv2).
    """
    stated = getattr(network, "num_prefix_tokens", None)
    if isinstance(stated, int):
        return stated
    for name in ("cls_token", "class_token"):
        if isinstance(getattr(network, name, None), Tensor):
            registers = getattr(network, "num_register_tokens", 0)
            return 1 + (registers if isinstance(registers, int) else 0)
    return None
