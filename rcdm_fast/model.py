"""Model: encode, sample, invert and interpolate; the only file that knows every stage.

Everything a call needs is decided here (which noise, which rows, which batches) and handed to the stages, none of which
knows the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self, Unpack

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import arguments, encoders, engines, host, maps
from rcdm_fast.arguments import Numbers
from rcdm_fast.checks import Range, whole
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, ScheduleConfig
from rcdm_fast.data import inputs
from rcdm_fast.data.inputs import Images, OnBad
from rcdm_fast.diffusion import conditioning, inversion, solvers
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.diffusion.sampling import SamplingError, interpolation_path
from rcdm_fast.diffusion.sampling_config import ONE_WAY, InversionKeywords, SamplingConfig, SamplingKeywords, chosen
from rcdm_fast.encoders import Encoder, groups
from rcdm_fast.encoders.base import map_shape
from rcdm_fast.encoders.modules import PoolingGiven
from rcdm_fast.images import ImageSource, fit_images, load_image
from rcdm_fast.models import checkpoint, networks
from rcdm_fast.models.unet import UNet
from rcdm_fast.pretrained import Pretrained
from rcdm_fast.showing import Shown


class Model(Pretrained, Shown):
    """A network with its schedule, its encoder (if known) and the engine that runs it. Made by `rcdm_fast.load`.

    It can be pickled, copied and sent to other processes; the engine is made again there. What a program has set up in
    PyTorch (autocast, default dtype and device, precision of float32 products, gradients) neither reaches a model nor
    is changed by one.

    Attributes:
        config: what the weights file says about itself.
        unet: the network in plain PyTorch.
        engine: what evaluates it while sampling.
    """

    def __init__(
        self,
        config: ModelConfig,
        unet: UNet,
        engine: Engine,
        encoder: Encoder | EncoderConfig | None,
        device: torch.device,
        engine_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.config = config
        self.unet = unet
        self.engine = engine
        self.device = device
        self._encoder = encoder
        self._settle(engine_file)

    @property
    def encoder(self) -> Encoder | None:
        """What turns images into representations, or None; built when first asked for (it may need a download)."""
        if isinstance(self._encoder, EncoderConfig):
            with host.apart(), host.own_random():
                self._encoder = _checked_width(encoders.build(self._encoder, self.device), self.config)
        return self._encoder

    @classmethod
    @host.guarded()
    def from_network(
        cls,
        network: UNet,
        schedule: ScheduleConfig,
        encoder: Encoder | None = None,
        device: str | torch.device | int = "cpu",
    ) -> Model:
        """A model around a copy of a network made in Python, run by the eager engine in fp32.

        The network itself stays as it is, and what becomes of it later does not reach the model.
        """
        place = arguments.device(device)
        own = networks.copy_of(network)
        config = ModelConfig(own.config, schedule, encoder.config if encoder is not None else None)
        return cls(config, own, engines.make("eager", own, config, place, "fp32"), encoder, place)

    @classmethod
    def _loaded(cls, source: str | os.PathLike[str], **options: Any) -> Self:
        model: Any = load(source, **options)
        return model  # type: ignore[no-any-return]

    @host.guarded()
    def encode(self, images: Images, *, on_bad: OnBad | None = None) -> Tensor:
        """Representations of images.

        Args:
            images: whatever `load_image` takes, one or several: files, PIL images, arrays...; folders, which stand
                for their images in the order of their paths; or a float tensor [N,3,H,W] in [-1,1]. They may have any
                size and are resized as the encoder's convention says.
            on_bad: told (place, reason) of an image that cannot be read or encoded, and the others go on, as in
                `generate`; without it the first such image is an error.

        Returns:
            float32 [N,D], of an encoder of maps [N,C,h,w], on the model's device: of all that could be read, in their
            order. They are read one by one and encoded in groups; which others there are changes a representation by
            rounding only.

        Raises:
            SamplingError: the model has no encoder.
            ImageError: something that is no usable image, or nothing that is one.
        """
        encoder = self._require_encoder()
        found = inputs.several(images)
        if isinstance(found, Tensor):
            return maps.shaped(encoder.encode(found.to(self.device)), map_shape(encoder))
        h = groups.of_images(encoder, inputs.load(found, on_bad), on_bad).to(self.device)
        return maps.shaped(h, map_shape(encoder))

    @host.guarded()
    def invert(
        self,
        images: Images,
        h: Numbers | None = None,
        config: SamplingConfig | None = None,
        *,
        label: Numbers | Sequence[int] | None = None,
        iterations: int = 1,
        batch_size: int | None = None,
        **settings: Unpack[InversionKeywords],
    ) -> Tensor:
        """The x_T from which DDIM (eta 0, same steps) leads back to the images, others nearly: DDIM inversion.

        Args:
            images: as in `encode`; brought to the model's size (short side, center).
            h: representations [N,D]; computed by the encoder if left out.
            config: how it would be drawn: steps (50 without one), solver and clip count, eta must be 0 and guidance 1.
                solver: "ddim" (also "auto"); or "unipc_2", second order (`multistep_inversion`), steps "quadratic"
                unless they say so: with 10 and more x_T is nearer to where the flow comes from, for all solvers
                without noise.
            label: int64 [N] for a class-conditional model.
            iterations: of ddim: network evaluations per step (`solvers.implicit_inversion`); more bring the round trip
                nearer, but x_T is then less like normal noise. 0: one explicit evaluation, as published; that leads
                back near the images only with many steps.
            batch_size: images per network evaluation.
            settings: steps, solver or clip as keywords.

        Returns:
            float32 [N,3,H,W] on the model's device. The round trip is close, not exact.

        Raises:
            ImageError: what is no image; floats outside [-1,1], such as levels 0..255, are none.
            ConfigError: a wrong shape, width, step count or setting.
            SamplingError: no `h`, and the model has no encoder; the result is not finite.
        """
        iterations = whole(iterations, "iterations", Range(0))
        size = arguments.batch_size(batch_size, self.device)
        drawn = inversion.wanted(config, settings)
        if self.config.student_steps:
            raise ConfigError("a student knows the way to images alone: invert with the model that it learned from")
        schedule, multistep = inversion.way_back(self.config.schedule, drawn, iterations)
        options = solvers.SolverOptions(clip=drawn.clip)
        encoder = self._require_encoder() if h is None and self.config.unet.representation_dim else None
        found = inputs.several(images)
        if isinstance(found, Tensor):
            given = found.float().to(self.device)
            views, seen = fit_images(given, self.image_size), None if encoder is None else encoder.encode(given)
        else:
            views, seen = groups.fitted(encoder, inputs.load(found), self.image_size, self.device)
        h = h if encoder is None else seen
        h, label = arguments.condition(self.config.unet, h, label, self.device)
        arguments.rows_for(len(views), h=h, label=label)
        self._check_process()
        plan = conditioning.make_plan(self.unet, schedule, h, label)
        parts = inversion.batches(self.engine, plan, views, schedule, options, iterations, size, multistep)
        return torch.cat(list(self._in_turn(parts)))

    @host.guarded()
    def interpolate(
        self,
        a: Numbers | Images,
        b: Numbers | Images,
        frames: int = 8,
        config: SamplingConfig | None = None,
        *,
        mode: Literal["linear", "spherical"] = "linear",
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Unpack[SamplingKeywords],
    ) -> Tensor:
        """Samples along the way from one representation to another; all frames of a way start from one x_T.

        Args:
            a, b: representations [D] (or [1,D]; maps [C,h,w]), or an image each, as in `encode`.
            frames: images of a way; the first has exactly a, the last exactly b.
            config: how frames are drawn, as in `sample`; without it there is one way, and `per` is the number of ways,
                each with its own x_T.
            mode: straight line, or along the sphere (lengths interpolated linearly).
            batch_size, progress, settings: as in `sample`.

        Returns:
            float32 [per,frames,3,H,W] in [-1,1].
        """
        if whole(frames, "frames") < 2:
            raise ConfigError(f"an interpolation needs at least 2 frames, got {frames}")
        path = interpolation_path(self._end(a, "a"), self._end(b, "b"), frames, mode)
        drawn = chosen(config, settings, SamplingConfig(per=ONE_WAY))
        images = self.sample(path, drawn, items=[0] * frames, batch_size=batch_size, progress=progress)
        return images.transpose(0, 1)

    def _end(self, given: Numbers | Images, name: str) -> Tensor:
        """The representation [D] that is given, or that of the image."""
        shape = self.config.unet.condition_map
        if isinstance(given, Numbers) and given.dtype not in (torch.uint8, np.uint8):
            is_map = bool(shape) and tuple(given.shape) in (shape, (1, *shape))
            if given.ndim <= 2 or is_map:
                return arguments.vector(given, name, shape).to(self.device)
        h = self.encode(given)
        if len(h) != 1:
            raise ConfigError(f"{name} must be one image, got {len(h)}")
        return h[0].flatten()

    @host.guarded()
    def view(self, image: ImageSource) -> Tensor:
        """What the encoder sees of an image, before normalization; float32 [1,3,s,s] in [-1,1]."""
        encoder = self._require_encoder()
        return encoder.view(load_image(image).to(self.device))

    def _require_encoder(self) -> Encoder:
        self._check_process()
        if self.encoder is None:
            raise SamplingError("this model knows no encoder: give one to load(..., encoder=...), or pass h yourself")
        return self.encoder


@host.guarded(random=True)
def load(
    source: str | os.PathLike[str],
    flags: dict[str, Any] | str | os.PathLike[str] | None = None,
    encoder: Any = None,
    device: str | torch.device | int | None = None,
    engine: str = "auto",
    precision: str = "auto",
    engine_file: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    convention: EncoderConfig | None = None,
    pooling: PoolingGiven | None = None,
) -> Model:
    """Load a model and make it ready.

    A model file may come from anyone, and may name an encoder. What it names is built at the first `encode` without a
    question, because it is read as data: a bundled or published encoder, a network of timm, torchvision or transformers
    by its name (downloaded by those libraries, weights without pickled code), a native or ONNX file on this machine.
    What would run code that comes with a network is refused: torch.hub and Python files always (give them as
    ``encoder=`` with trust=1), and transformers' custom code. With RCDM_FAST_OFFLINE=1 nothing is downloaded.

    Args:
        source: a bundled or published name (`rcdm models`), a native .safetensors file or its folder, a
            published-format .pt, or a Hugging Face hub id.
        flags: published flags (dict, or path of a JSON file) of a .pt; recognized from its shapes where possible.
        encoder: overrides the file's encoder: a specification such as "timm:resnet50", an EncoderConfig, an
            nn.Module, any callable, or an Encoder. A file's own encoder is built at the first `encode`.
        device: "cpu", "cuda", "cuda:1" (or 1), ...; default CUDA if there is one.
        engine: "auto" or one of `rcdm_fast.engines.ENGINES`.
        precision: "fp32", "bf16", "fp16", "auto", or with the file that it was calibrated in "int8=FILE", "fp8=FILE".
        engine_file: an export of this very model that an engine is to run, or that file; else made and cached.
        sha256: hex digest that the model's file must have.
        convention: what images an nn.Module or callable takes; by default as in training, asked for if nothing tells.
        pooling: of an nn.Module or callable, in place of that of its convention; a function if it was one in training.

    Raises:
        checkpoint.CheckpointError: unknown, truncated, foreign or mismatched weights, or another digest.
        ConfigError: flags, device, engine or precision that make no sense here.
    """
    place = arguments.device(device)
    _, _, engine_file = engines.checked(engine, place, precision, engine_file)  # before anything is read
    config, tensors = checkpoint.load_model(source, flags, sha256)
    network = networks.from_tensors(config.unet, tensors)
    runner = engines.make(engine, network, config, place, precision, engine_file)
    if encoder is not None:
        built = encoders.build(encoder, place, config=convention, pooling=pooling, stored=config.encoder)
        return Model(config, network, runner, _checked_width(built, config), place, engine_file)
    own = config.encoder if config.encoder is not None and config.encoder.source != "module" else None
    return Model(config, network, runner, own, place, engine_file)


def _checked_width(encoder: Encoder, config: ModelConfig) -> Encoder:
    wanted = config.unet.representation_dim
    if encoder.dim != wanted:
        raise ConfigError(f"the encoder gives {encoder.dim} dimensions, the model expects {wanted}")
    shape, own = config.unet.condition_map, map_shape(encoder)
    if own != shape:
        gives, expects = (maps.named(each, wanted) for each in (own, shape))
        raise ConfigError(f"the encoder gives {gives}, the model expects {expects}; pooling=map makes maps")
    return encoder
