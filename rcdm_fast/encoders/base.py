"""The encoder protocol, and the one class that makes an encoder of any network or function.

An encoder turns images into representations. How it sees an image, which layer it reads and how that layer is
pooled are data (`EncoderConfig`), never knowledge of the caller.

Does not know where networks come from: one file per family beside this one does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import layers, layout, modes, preprocess
from rcdm_fast.encoders.errors import EncoderError, reason
from rcdm_fast.encoders.layers import Forward
from rcdm_fast.encoders.layout import Order
from rcdm_fast.images import check_images
from rcdm_fast.precision import ieee_fp32

log = logging.getLogger(__name__)

BATCH = 32


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns images into representations."""

    @property
    def config(self) -> EncoderConfig:
        """Source, layer and input convention."""

    @property
    def dim(self) -> int:
        """Width D of a representation."""

    @property
    def device(self) -> torch.device:
        """Where the network runs and where representations are returned."""

    def encode(self, images: Tensor) -> Tensor:
        """Float [N,3,H,W] in [-1,1] -> float32 [N,D]; of maps [C,h,w] these are C h w numbers, in this order."""

    def view(self, images: Tensor) -> Tensor:
        """Float [N,3,H,W] in [-1,1] -> the crop [N,3,s,s] that the network sees, before normalization."""

    def to(self, device: str | torch.device) -> Self:
        """Move the network in place."""


@runtime_checkable
class Movable(Protocol):
    """A function that runs somewhere and can be sent elsewhere."""

    def __call__(self, x: Tensor) -> Any:
        """Normalized images [N,3,s,s] -> output."""

    def to(self, device: torch.device) -> Any:
        """Move in place."""


@dataclass(frozen=True)
class Network:
    """What a family hands over: a network and what is known about it.

    `convention` holds the family's defaults. `forward` is what to call for the layer and pooling that were asked for,
    None if the layer can be found by its name. `prefix_tokens` are the tokens before the patches in the layer's output,
    as `layers.pool` needs them; stated, they also say that the network's own output is tokens [N,T,D].
    """

    module: Forward
    convention: EncoderConfig
    forward: Forward | None = None
    prefix_tokens: int | None = None


def checked_device(device: str | torch.device) -> torch.device:
    """A device that exists here. Raises `EncoderError`."""
    try:
        checked = torch.device(device)
    except RuntimeError as error:
        raise EncoderError(f"{device!r} is no device: {reason(error)}") from error
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise EncoderError(f"device {device}: this machine or this torch build has no CUDA")
    return checked


class ImageEncoder:
    """An encoder made of a network (or any function) and its convention.

    A bare module stays its owner's: it is in evaluation mode during calls only, its weights stay where they are
    (images go to them, and representations come back to `device`), and it is moved by `to` alone. The network of a
    family is the encoder's own. An encoder can be pickled and copied as far as its network can.

    Args:
        network: the network and what its family knows; or a bare module or function, called with normalized images
            [N,3,s,s] and returning representations.
        config: layer, pooling and input convention. With `dim` 0 the width is found by encoding one gray image.
        device: where to run.
        batch_size: images per call of the network.
        pooler: for pooling ``function``: whatever the layer gives -> [N,D], or maps [N,C,h,w].

    Raises:
        EncoderError: no such layer or device, no map where one is asked for, the network fails on an image of the
            configured size, or tokens or positions are to be pooled and nothing tells where the channels are
            (`EncoderConfig.layout`).
    """

    def __init__(
        self,
        network: Network | Forward,
        config: EncoderConfig,
        device: str | torch.device = "cpu",
        batch_size: int = BATCH,
        pooler: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self._owned = isinstance(network, Network)
        if not isinstance(network, Network):
            network = Network(network, config)
        if batch_size < 1:
            raise EncoderError(f"batch_size must be positive, got {batch_size}")
        if (pooler is None) == (config.pooling == "function"):
            raise EncoderError("pooling=function needs the function that pools: give it as pooling=")
        self._config = config
        self._network = network
        self._pooler = pooler
        self._forward = network.forward or layers.locate(network.module, config.layer)
        stated = network.prefix_tokens
        self._prefix_tokens = layers.prefix_tokens_of(network.module) if stated is None else stated
        self.batch_size = batch_size
        self._device = checked_device(device)
        if self._owned or not isinstance(network.module, nn.Module):
            self.to(device)
        elif self.home.type != self._device.type or self._device.index not in (None, self.home.index):
            log.warning("the encoder's weights are on %s and stay there; encoder.to(...) moves them", self.home)
        self._map: tuple[int, ...] = ()
        if config.pooling in ("mean", "max", "cls", "map"):
            self._settle()
        if config.pooling in ("map", "function"):
            self._map = self._probe_map()
        if config.dim == 0:
            self._config = dataclasses.replace(self._config, dim=self._probe())

    @property
    def config(self) -> EncoderConfig:
        """Source, layer and input convention; `dim` is known."""
        return self._config

    @property
    def dim(self) -> int:
        """Width D of a representation."""
        return self._config.dim

    @property
    def map_shape(self) -> tuple[int, ...]:
        """(C,h,w) if representations are maps (pooling ``map``, or a function that gives [N,C,h,w]); else empty."""
        return self._map

    @property
    def device(self) -> torch.device:
        """Where the network runs and where representations are returned."""
        return self._device

    @property
    def network(self) -> Forward:
        """What its family made: a module, or any function of normalized images."""
        return self._network.module

    @property
    def home(self) -> torch.device:
        """Where the weights are: `device`, unless a bare module was given that lies elsewhere."""
        module = self._network.module
        found = next(module.parameters(), None) if isinstance(module, nn.Module) else None
        return self._device if found is None else found.device

    def __repr__(self) -> str:
        c = self._config
        return f"ImageEncoder({c.source}, layer={c.layer}, dim={c.dim}, {c.image_size} px, {self._device})"

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device, in place; returns the encoder. Raises `EncoderError`."""
        device = checked_device(device)
        module = self._network.module
        if isinstance(module, Movable):
            module.to(device)
        self._device = device
        return self

    def view(self, images: Tensor) -> Tensor:
        """What the encoder sees of each image, before normalization.

        Args:
            images: float [N,3,H,W] in [-1,1].

        Returns:
            float32 [N,3,s,s] in [-1,1], where the images are.

        Raises:
            ImageError: not a batch of images in [-1,1].
        """
        return preprocess.view(check_images(images), self._config)

    def encode(self, images: Tensor) -> Tensor:
        """Representations of images, without gradients.

        Args:
            images: float [N,3,H,W] in [-1,1], one size per call; at the encoder's size they are taken for what `view`
                returns, and seen as they are.

        Returns:
            float32 [N,D] on `device`.

        Raises:
            ImageError: not a batch of images in [-1,1].
            EncoderError: the network's output has another rank or width than configured, or is not finite.
        """
        check_images(images)
        if not len(images):
            return torch.zeros(0, self.dim, dtype=torch.float32, device=self._device)
        parts: list[Tensor] = []
        # no inference mode: what a network keeps between calls (tables of positions) must do for its training, too
        with torch.no_grad(), ieee_fp32(self._device):
            for chunk in torch.split(images, self.batch_size):
                seen, size = chunk.to(self._device, torch.float32), self._config.image_size
                if tuple(seen.shape[-2:]) != (size, size):
                    seen = preprocess.view(seen, self._config)
                parts.append(self.represent(seen))
            finite = [bool(part.isfinite().all()) for part in parts]
        if not all(finite):
            raise EncoderError(
                f"{self._config.source}: the representation contains NaN or infinity; the weights are damaged, "
                "or the input convention is not the network's"
            )
        return torch.cat(parts)

    def represent(self, views: Tensor) -> Tensor:
        """Representations of images that already have the encoder's size, in one call and with gradients.

        Args:
            views: float [N,3,s,s] in [-1,1] on `device`.

        Returns:
            float32 [N,D].

        Raises:
            EncoderError: the output has another rank or width than configured.
        """
        config = self._config
        output = self._output(views)
        pooling, order = self._pooling(output)
        try:
            h = layers.pool(output, pooling, self._prefix(output), order).to(views.device, torch.float32)
        except EncoderError as error:
            raise EncoderError(f"{config.source}, layer {config.layer}: {reason(error)}") from error
        if h.shape[0] != views.shape[0] or (config.dim and h.shape[1] != config.dim):
            expected = [len(views), config.dim or "D"]
            raise EncoderError(
                f"{config.source}, layer {config.layer}: gives {list(h.shape)}, configured are {expected}"
            )
        return F.normalize(h, dim=1) if config.normalize else h

    def _output(self, views: Tensor) -> Tensor:
        """What the layer gives for images of the encoder's size; by a function of the caller's, pooled already."""
        config, module = self._config, self._network.module
        x = preprocess.normalize(views, config)
        if isinstance(module, nn.Module):
            dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
            x = x.to(self.home, dtype)
        with contextlib.ExitStack() as stack:
            if isinstance(module, nn.Module) and not self._owned:
                stack.enter_context(modes.evaluating(module))
            elif isinstance(module, nn.Module) and any(part.training for part in module.modules()):
                module.eval()
            if torch.is_autocast_enabled(x.device.type):  # a host's; representations are float32
                stack.enter_context(torch.autocast(x.device.type, enabled=False))
            output = self._forward(x)
            if self._pooler is not None:
                output = self._pooler(output)
        try:
            return layers.tensor_of(output, config.pooling)
        except EncoderError as error:
            raise EncoderError(f"{config.source}, layer {config.layer}: {reason(error)}") from error

    def _pooling(self, output: Tensor) -> tuple[str, Order | None]:
        """How that output is pooled, and its order; what a function of the caller's gives is a row or a map already."""
        if self._pooler is None:
            return self._config.pooling, self._order()
        return ("map" if output.ndim == 4 and output.shape[2] * output.shape[3] > 1 else "none"), "nchw"

    def _order(self) -> Order | None:
        return None if self._config.layout == "auto" else self._config.layout

    def _prefix(self, output: Tensor) -> int | None:
        """Tokens before the patches in this very output: layers before the class token is added have none."""
        stated = self._prefix_tokens
        if not stated or output.ndim != 3:
            return stated
        count = output.shape[2 if self._order() == "nchw" else 1]
        return 0 if _is_square(count) and not _is_square(count - stated) else stated

    def _settle(self) -> None:
        """Find out where the channels of the layer's output are, if the configuration does not say."""
        if self._order() is not None:
            return
        size = self._config.image_size
        with self._failing(), torch.no_grad():
            shape = tuple(self._output(torch.zeros(1, 3, size, size, device=self._device)).shape)
        own = self._config.layer == "backbone"
        order: Order | None = "nhwc" if len(shape) == 3 and own and self._prefix_tokens is not None else None
        if order is None and len(shape) in (3, 4):
            with self._failing():
                order = layout.by_trial(lambda images: self._output(images.to(self._device)), size)
        if order is None and own:
            width = getattr(self._network.module, "num_features", None)  # timm
            order = layout.by_width(shape, width if isinstance(width, int) else None)
        if order is None:
            order = layout.by_shape(shape)
        if order is not None:
            self._config = dataclasses.replace(self._config, layout=order)

    def _probe(self) -> int:
        size = self._config.image_size
        with self._failing():
            return self.encode(torch.zeros(1, 3, size, size)).shape[1]

    def _probe_map(self) -> tuple[int, ...]:
        """The shape of maps, from one gray image."""
        size = self._config.image_size
        with self._failing(), torch.no_grad(), ieee_fp32(self._device):
            output = self._output(torch.zeros(1, 3, size, size, device=self._device))
            pooling, order = self._pooling(output)
            if pooling != "map":
                return ()
            layers.pool(output, pooling, self._prefix(output), order)  # for its errors
            assert order is not None, "pooling says so where it is not known"
            return tuple(layers.map_of(output, self._prefix(output), order).shape[1:])

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        size = self._config.image_size
        try:
            yield
        except (EncoderError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise EncoderError(
                f"{self._config.source}: fails on an image [1,3,{size},{size}]: {reason(error)}"
            ) from error


def map_shape(encoder: Encoder | None) -> tuple[int, ...]:
    """(C,h,w) of an encoder whose representations are maps; empty for vectors, and for no encoder."""
    found: tuple[int, ...] = getattr(encoder, "map_shape", ())
    return found


def _is_square(count: int) -> bool:
    return count >= 0 and math.isqrt(count) ** 2 == count
