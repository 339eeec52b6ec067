"""In somebody else's training loop: sheets of what the encoder that is being trained keeps, drawn as it goes.

The decoder is a finished model's and stays; the map from the new representation into it is solved anew for every sheet,
by ridge regression as `rcdm adapt` does it in closed form. So sheets of different steps differ by the encoder alone.

`SheetOf` knows nothing about loops or where sheets go: TensorBoard takes `SheetOf.array`, W&B a PIL image. `lightning`
makes a callback of one for a Trainer, and is the only thing here that needs that library.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rcdm_fast import encoders, host, outputs, workflows
from rcdm_fast import model as models
from rcdm_fast.checks import Range, whole
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.image_set import evenly
from rcdm_fast.data.inputs import Images
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.encoders.base import map_shape
from rcdm_fast.encoders.layers import Forward
from rcdm_fast.encoders.modules import PoolingGiven
from rcdm_fast.metrics.ridge import ridge
from rcdm_fast.model import Model
from rcdm_fast.models.unet import UNet
from rcdm_fast.training import representations
from rcdm_fast.training.adapt import BIAS, WEIGHT, check_adaptable
from rcdm_fast.training.batches import Standardization

DRAWN = SamplingConfig(per=4)


class SheetOf:
    """Draws a fixed sheet with whatever an encoder has become; see the module.

    Args:
        decoder: name, file, folder or hub id of a model with its encoder, whose decoder draws.
        data: images that the map is solved on, as for `rcdm_fast.train`.
        shown: images on the sheet, as `Model.encode` takes them.
        convention: what images the encoder takes; asked for unless the module tells it.
        layer, pooling: as for `rcdm_fast.train`.
        count: how many images of the data are taken, spread evenly.
        config: how samples are drawn; the same noise every time.
        device: "cpu", "cuda"...; None for a GPU where there is one.

    Attributes:
        explained: of the last sheet: which fraction of the decoder's conditioning the new representation explains, on
            images that the map was not solved on.

    Raises:
        ConfigError: a decoder without its encoder, or one that cannot be adapted (`adapt.check_adaptable`).
    """

    def __init__(
        self,
        decoder: str | os.PathLike[str],
        data: workflows.AnyData,
        shown: Images,
        *,
        convention: EncoderConfig | None = None,
        layer: str | None = None,
        pooling: PoolingGiven | None = None,
        count: int = 512,
        config: SamplingConfig = DRAWN,
        device: str | None = None,
    ) -> None:
        self._model = models.load(decoder, device=device)
        check_adaptable(self._model.config, decoder)
        if self._model.encoder is None:
            raise ConfigError(f"{decoder}: it can be drawn with only if it knows its encoder")
        images = workflows.images_of(data, self._model.image_size)
        taken = min(whole(count, "count", Range(2)), len(images))
        self._images = images.subset(evenly(taken, len(images)))
        self._old = representations.compute(self._model.encoder, self._images)
        self._shown, self._config = shown, config
        self._convention, self._layer, self._pooling = convention, layer, pooling
        self.explained = float("nan")

    @host.guarded(random=True)
    def __call__(self, network: Forward) -> Image.Image:
        """The sheet: each image, what the encoder sees of it, and samples of its representation now.

        Raises:
            EncoderError: the network gives no representation, or one that is not finite.
            ConfigError: it gives maps.
        """
        return self._adapted(network).show(self._shown, config=self._config)

    def array(self, network: Forward) -> NDArray[np.uint8]:
        """The same as uint8 [H,W,3]."""
        return np.asarray(self(network))

    def _adapted(self, network: Forward) -> Model:
        model = self._model
        encoder = encoders.build(
            network, model.device, config=self._convention, layer=self._layer, pooling=self._pooling
        )
        if map_shape(encoder):
            raise ConfigError("a decoder of vectors cannot be adapted to maps; choose pooling=mean")
        h = representations.compute(encoder, self._images)
        standard = Standardization(*representations.standardization(h[None]))
        tensors = {name: value.cpu() for name, value in model.unet.state_dict().items()}
        found = ridge(standard(h)[None], self._old[None], tensors[WEIGHT], tensors[BIAS])
        self.explained = found.explained
        fitted = standard.fold({**tensors, WEIGHT: found.weight.float(), BIAS: found.bias.float()})
        unet = UNet(dataclasses.replace(model.config.unet, representation_dim=h.shape[1]))
        unet.load_state_dict(fitted, strict=True)
        return Model.from_network(unet, model.config.schedule, encoder, model.device)


def lightning(
    look: SheetOf,
    network: str = "",
    *,
    every: int = 1,
    name: str = "samples",
    out: str | os.PathLike[str] | None = None,
) -> Any:
    """A callback for Lightning's Trainer that draws the sheet after training epochs.

    Sheets go to every logger of the trainer that takes images (TensorBoard's, W&B's), and to files. Only the process of
    global rank 0 draws.

    Args:
        look: what draws.
        network: dotted name of the encoder in the LightningModule, as ``"encoder"``; empty for the module itself.
        every: draw after every so many epochs.
        name: of the image in loggers and of files.
        out: folder for ``NAME-EPOCH.png``, if sheets are to be there, too.

    Returns:
        A `lightning.pytorch.Callback` (or `pytorch_lightning.Callback`, if only that is installed).

    Raises:
        ConfigError: Lightning is not installed. When training begins: no such encoder in the module, or nowhere for a
            sheet to go.
    """
    whole(every, "every", Range(1))

    class Sheets(_callback()):  # type: ignore[misc]
        """Draws after epochs."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            """Find out now what would fail after the first epoch."""
            _encoder_in(pl_module, network)
            if out is None and not any(map(_takes_images, trainer.loggers)):
                raise ConfigError("no logger of the trainer takes images (TensorBoard's and W&B's do): give out=FOLDER")

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Draw and hand over."""
            if not trainer.is_global_zero or (trainer.current_epoch + 1) % every:
                return
            sheet = look(_encoder_in(pl_module, network))
            for logger in filter(_takes_images, trainer.loggers):
                _log(logger, name, sheet, trainer.global_step)
            if out is not None:
                outputs.write_image(sheet, Path(out) / f"{name}-{trainer.current_epoch:04d}.png")

    return Sheets()


def _callback() -> Any:
    """The class that callbacks are made of. Raises `ConfigError` without the library."""
    for library in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(library).Callback
        except ImportError as error:
            missing = error
    raise ConfigError(f"a callback for Lightning needs that library ({missing}): pip install lightning")


def _encoder_in(module: Any, name: str) -> Any:
    found = module
    for part in name.split(".") if name else ():
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"{type(module).__name__} has no encoder called {name!r}")
    return found


def _takes_images(logger: Any) -> bool:
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_image")


def _log(logger: Any, name: str, sheet: Image.Image, step: int) -> None:
    if hasattr(logger, "log_image"):  # W&B's
        logger.log_image(name, [sheet], step=step)
    else:
        logger.experiment.add_image(name, np.asarray(sheet), step, dataformats="HWC")
