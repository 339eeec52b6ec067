"""From a network to one row of numbers per image: which layer is taken, and how tokens or positions are pooled.

Or left where they are: a map is a row of numbers, too, and `map_of` says what its shape is.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rcdm_fast import maps
from rcdm_fast.doors import printable
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.encoders.layout import Order

Forward = Callable[[Tensor], Any]

CALL = "#"  # between the name of a layer and the number of its call

_ONE_THREAD = threading.RLock()  # hooks belong to modules, so a second thread in one would get the first one's output


class _Reached(Exception):
    """Raised inside a forward pass when the wanted layer has answered: nothing after it is computed."""


class LayerOutput:
    """Calls a network and returns the output of one sub-module, at one of its calls in the forward pass.

    The first pass runs to its end and counts: of a layer that is called several times it has to be said which call is
    meant. From then on a pass stops where the layer has answered; while torch.export traces it, which no exception may
    interrupt, it runs to its end and what follows the layer is left out of the graph as unused.

    Args:
        network: any module.
        name: dotted name of a sub-module of it.
        call: the call that is meant, from 1; None for a layer that is called once.
    """

    def __init__(self, network: nn.Module, name: str, call: int | None = None) -> None:
        self.network = network
        self.name = name
        self.call = call
        self.module = network.get_submodule(name)
        self.calls: int | None = None  # in one pass, once that is known

    def __call__(self, x: Tensor) -> Any:
        """The sub-module's output for the network's input x. Raises `EncoderError`."""
        seen: list[Any] = []
        wanted = self.call or 1

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            reached = len(seen) + 1 == wanted
            ends = reached and self.calls is not None and not torch.compiler.is_exporting()
            # where the pass goes on, what follows may write over it: a ReLU in place, a sum of a residual block
            seen.append(output if ends or not reached else tree_map_only(Tensor, Tensor.clone, output))
            if ends:
                raise _Reached

        with _ONE_THREAD:
            handle = self.module.register_forward_hook(stop)
            try:
                self.network(x)
            except _Reached:
                pass
            except Exception:
                if len(seen) < wanted or self.calls is not None:
                    raise  # what follows the layer need not work on its own: of a head that fails nothing is wanted
            finally:
                handle.remove()
            if self.calls is None:
                self._check(len(seen))
        return seen[wanted - 1]

    def _check(self, calls: int) -> None:
        shown = printable(repr(self.name))
        if not calls:
            raise EncoderError(f"layer {shown} is not used when the network sees an image")
        if self.call is None and calls > 1:
            raise EncoderError(
                f"layer {shown} is called {calls} times for an image; say which call is meant: {self.name}{CALL}1 to "
                f"{self.name}{CALL}{calls}"
            )
        if (self.call or 1) > calls:
            raise EncoderError(f"layer {shown} is called {calls} times for an image, there is no call {self.call}")
        self.calls = calls


def locate(network: Forward, layer: str) -> Forward:
    """What to call so that the network's `layer` answers.

    A sub-module of that name (also below ``backbone``) is found first; ``backbone`` otherwise means the network's own
    output. ``NAME#2`` is the second call of a layer that a forward pass uses several times.

    Raises:
        EncoderError: there is no such layer.
    """
    names: list[str] = []
    if isinstance(network, nn.Module):
        names = list(dict.fromkeys(name for name, _ in network.named_modules(remove_duplicate=False) if name))
        name, mark, number = layer.rpartition(CALL)
        call = int(number) if mark and number.isdecimal() and 0 < int(number[:9]) else None
        for wanted, which in ((layer, None), *([(name, call)] if call else [])):
            for candidate in (wanted, f"backbone.{wanted}"):
                if candidate in names:
                    return LayerOutput(network, candidate, which)
    if layer == "backbone":
        return network
    if not names:
        raise EncoderError(f"a function has no layer {printable(repr(layer))}; use layer 'backbone' for its output")
    raise EncoderError(
        f"no layer {printable(repr(layer))} in this network; there are, for example, {near(layer, names)}"
    )


def near(layer: str, names: Sequence[str]) -> str:
    """Names that are like one that there is not, for a message."""
    return printable(", ".join(difflib.get_close_matches(layer, names, n=5, cutoff=0.4) or list(names)[:5]))


def tensor_of(output: Any, pooling: str) -> Tensor:
    """The tensor in whatever a network returned.

    Of named outputs (transformers) ``none`` takes the pooled one and any pooling the last hidden states; of a
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
            positions, ``max`` takes the largest number over them; ``flatten`` keeps everything, whatever its rank;
            ``map`` keeps everything, too, as `map_of` has it.
        prefix_tokens: tokens before the patches (class, registers), None if unknown. ``mean`` and ``max`` leave them
            out.
        order: where the channels are; needed for ``mean``, ``max``, ``cls`` and ``map``.

    Returns:
        [N,D]; of a map C h w numbers, in this order.

    Raises:
        EncoderError: the output's rank does not fit the pooling, or its order is needed and not known.
    """
    shape = list(output.shape)
    if pooling == "none":
        if output.ndim == 2:
            return output
        if output.ndim == 4 and (shape[2:] == [1, 1] or shape[1:3] == [1, 1]):
            return output.flatten(1)
        hint = {
            3: "pooling=cls or pooling=mean, or pooling=map for a decoder of maps",
            4: "pooling=mean, or pooling=map for a decoder of maps",
        }.get(output.ndim)
        raise EncoderError(f"the layer gives {shape}, not [N,D]" + (f"; choose {hint}" if hint else ""))
    if pooling == "flatten":
        if output.ndim < 2:
            raise EncoderError(f"pooling=flatten: the layer gives {shape}, a number for each image at most")
        return output.flatten(1)
    over = pooling in ("mean", "max")
    pooled = output.ndim == 3 or (output.ndim == 4 and pooling != "cls")
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
    if pooling == "map":
        return map_of(output, prefix_tokens, order).flatten(1)
    if output.ndim == 4:
        places = (1, 2) if order == "nhwc" else (2, 3)
        return output.mean(dim=places) if pooling == "mean" else output.amax(dim=places)
    tokens = output if order == "nhwc" else output.transpose(1, 2)
    if over:
        if tokens.shape[1] <= (prefix_tokens or 0):
            raise EncoderError(f"pooling={pooling}: the layer gives {shape}, no tokens of patches; choose pooling=cls")
        patches = tokens[:, prefix_tokens or 0 :]
        return patches.mean(dim=1) if pooling == "mean" else patches.amax(dim=1)
    if prefix_tokens == 0:
        raise EncoderError("pooling=cls: this network has no class token; choose pooling=mean")
    return tokens[:, 0]


def map_of(output: Tensor, prefix_tokens: int | None, order: Order) -> Tensor:
    """Positions or tokens as a map, [N,C,h,w]; arguments as for `pool`.

    Tokens of a square grid are its rows, one after another. Those before the patches (class, registers) are left out
    where the network says how many there are; where it does not, nothing is, for nobody knows which they are.

    Raises:
        EncoderError: one position alone, or tokens that make no square grid.
    """
    if output.ndim == 3:
        tokens = output if order == "nhwc" else output.transpose(1, 2)
        try:
            found = maps.of_tokens(tokens[:, prefix_tokens or 0 :])
        except ValueError as error:
            unknown = "; the network does not say how many tokens are none of patches" if prefix_tokens is None else ""
            raise EncoderError(f"pooling=map: {error}{unknown}") from error
    else:
        found = output if order == "nchw" else output.permute(0, 3, 1, 2)
    if found.shape[2] * found.shape[3] < 2:
        raise EncoderError(f"pooling=map: the layer gives {list(output.shape)}, one position; choose pooling=flatten")
    return found


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
