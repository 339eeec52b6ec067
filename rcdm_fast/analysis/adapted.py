"""A model's decoder adapted to many representations, all by the same budget: layers of an encoder, or encoders.

Each adapted decoder is a model file like any other, in a folder named by a hash of all that it depends on (decoder,
encoder, images, budget), so that a second run finds it and a changed one makes its own. What is damaged is made again.

Knows nothing about what is measured with them (`depth.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from rcdm_fast import encoders, engines, storage
from rcdm_fast import model as models
from rcdm_fast.analysis.common import encoder_of
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.doors import printable
from rcdm_fast.encoders import Encoder, ImageEncoder, inside
from rcdm_fast.encoders.errors import EncoderError
from rcdm_fast.model import Model
from rcdm_fast.models.checkpoint import CheckpointError
from rcdm_fast.outputs import file_name
from rcdm_fast.training import representations, trust
from rcdm_fast.training.adapt import AdaptConfig, adapt

log = logging.getLogger(__name__)

AnyEncoder = str | EncoderConfig | Encoder
Pooled = Literal["mean", "max", "cls", "flatten"]


@dataclass(frozen=True)
class Wanted:
    """Which representations a decoder is to be adapted to.

    Attributes:
        decoder: name, file, folder or hub id of the model whose decoder is kept.
        folder: where adapted models are kept.
        layers: of the model's own encoder, or of each of `encoders`.
        encoders: other encoders, at `layers` or, without, each as it is specified.
    """

    decoder: str | os.PathLike[str]
    folder: Path
    layers: tuple[str, ...] = ()
    encoders: tuple[AnyEncoder, ...] = ()


def split_encoders(text: str) -> list[str]:
    """Specifications that stand in one text, apart by commas: only such as a family's name follows part them.

    "timm:resnet18?mean=0.5,0.5,0.5,bundled:cifar10-simclr" is two.
    """
    return re.split(rf",(?=(?:{'|'.join(map(re.escape, encoders.OPTIONS))}):)", text)


def chosen(model: Model, wanted: Wanted, pooling: Pooled) -> list[Encoder]:
    """The encoders that are meant, each made ready, in the order in which they were named.

    Args:
        model: the model whose decoder is adapted, with its own encoder.
        wanted: see there.
        pooling: how one vector is made of a layer's output that is none; only where `wanted` names layers.

    Raises:
        ConfigError: fewer than two representations, one twice, or a model in a precision that was calibrated for its
            weights.
        EncoderError: as `encoders.build`; no such layer.
    """
    precision = model.engine.precision
    if precision in engines.CALIBRATED:
        raise ConfigError(
            f"a decoder cannot be adapted from a model in {precision}: the calibrated file is bound to the model's "
            "weights, and an adapted decoder has others; load it in fp32, bf16 or fp16"
        )
    own = encoder_of(model, "layers are those of")
    if own.config.source == "module":
        raise ConfigError("the model's own encoder is a module, which cannot be made again by its name to adapt from")
    bases = [
        trust.built(each, wanted.folder, model.device)[0]
        if isinstance(each, str | EncoderConfig)
        else encoders.build(each, model.device)
        for each in wanted.encoders
    ] or [own]
    found = [at(base, layer, pooling) for base in bases for layer in wanted.layers] if wanted.layers else bases
    if len(found) < 2:
        raise ConfigError("representations are compared: name two layers at least, or two encoders")
    return found


def at(encoder: Encoder, layer: str, pooling: Pooled) -> Encoder:
    """The same network at another layer; what gives positions or tokens is pooled, what gives a vector is taken so.

    Raises:
        EncoderError: no such layer, or an encoder that has none.
    """
    if not isinstance(encoder, ImageEncoder):
        raise EncoderError(f"{encoder.config.source}: has no layers that can be named")
    if layer == encoder.config.layer:
        return encoder
    shapes = {each.name: each.shape for each in inside.layers_of(encoder)}
    shape = shapes.get(layer, shapes.get(f"backbone.{layer}", ()))
    config = dataclasses.replace(
        encoder.config, layer=layer, pooling=pooling if len(shape) > 2 else "none", layout="auto", dim=0
    )
    if config.source == "module":
        return encoders.build(encoder.network, encoder.device, config=config)
    return encoders.build(config, encoder.device, trust_repo=True)  # it runs already


def apart(data: ImageSet, sources: Tensor, count: int) -> ImageSet:
    """At most `count` images that sources will not be taken from, nor from their photographs, spread evenly.

    Raises:
        ConfigError: fewer than two are left.
    """
    photographs = data.photographs
    taken = set(sources.tolist())
    if photographs is not None:
        names = set(photographs[sources].tolist())
        taken = {place for place, name in enumerate(photographs.tolist()) if name in names}
    left = [place for place in range(len(data)) if place not in taken]
    if len(left) < 2:
        raise ConfigError(
            f"of {len(data)} images {len(left)} are no sources; a decoder is adapted on others: take fewer --sources"
        )
    picked = evenly(min(count, len(left)), len(left))
    return data.subset(sources.new_tensor(left)[picked])


def adapted(
    model: Model,
    wanted: Wanted,
    found: Sequence[Encoder],
    data: ImageSet,
    steps: int,
    progress: Callable[[int], None] | None = None,
) -> list[Model]:
    """The decoder adapted to each encoder, with that encoder, run as `model` is.

    Args:
        model: the model with its own encoder.
        wanted: names the decoder and the folder.
        found: encoders, as `chosen` gives them.
        data: images that all maps are learned on.
        steps: optimizer steps after the closed form, for each.
        progress: called with how many are done.

    Raises:
        ConfigError: a model that cannot be adapted. RunError, CheckpointError, EncoderError, StorageError: as `adapt`.
    """
    made = []
    for number, encoder in enumerate(found):
        made.append(_adapted(model, wanted, encoder, data, steps))
        if progress is not None:
            progress(number + 1)
    return made


def _adapted(model: Model, wanted: Wanted, encoder: Encoder, data: ImageSet, steps: int) -> Model:
    own = encoder_of(model, "the decoder was trained with").config
    name = re.sub(r"[^\w.+-]", "_", encoder.config.layer)
    settings = AdaptConfig(
        name=name, model=os.fspath(wanted.decoder), encoder=encoder.config, old_encoder=own, steps=steps
    )
    key = _key(settings, model, encoder, data)
    folder = wanted.folder / file_name(name, f"-{key}")
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        _adapt(settings, model, encoder, data, folder)
    try:
        return _loaded(file, encoder, model)
    except (CheckpointError, storage.StorageError) as error:
        log.warning("%s; adapted again", error)
        _adapt(settings, model, encoder, data, folder)
        return _loaded(file, encoder, model)


def _key(settings: AdaptConfig, model: Model, encoder: Encoder, data: ImageSet) -> str:
    """What tells one adapted decoder from all others: 12 hex digits. The model counts by its weights, not its name."""
    described = {**dataclasses.asdict(settings), "model": model.weights}
    text = json.dumps(described, sort_keys=True, default=str) + representations.key(encoder, data)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _adapt(settings: AdaptConfig, model: Model, encoder: Encoder, data: ImageSet, folder: Path) -> None:
    assert settings.old_encoder is not None
    source = settings.old_encoder.source  # it runs already, by leave of whoever loaded the model
    family = source.partition(":")[0]
    adapt(settings, data, folder, str(model.device), None, [source] if family in encoders.TRUSTED else [], encoder)


def _loaded(file: Path, encoder: Encoder, model: Model) -> Model:
    return models.load(file, None, encoder, model.device, model.engine.name, model.engine.precision)


def labels(found: Iterable[Encoder]) -> list[str]:
    """What the representations are called: by layer where all are of one encoder, else by encoder and layer."""
    configs = [encoder.config for encoder in found]
    alone = len({config.source for config in configs}) == 1
    names = [config.layer if alone else f"{short_source(config)} {config.layer}" for config in configs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{printable(twice)} is named twice")
    return names


def short_source(config: EncoderConfig) -> str:
    """An encoder's name without its family's and its weights' options."""
    source = encoders.sources.parse(config.source, encoders.OPTIONS)[0] if config.source != "module" else None
    return "module" if source is None else printable(source.name)


def random_weights(config: EncoderConfig) -> bool:
    """Whether a specification names a network whose weights nobody has trained."""
    if config.source == "module":
        return False
    source = encoders.sources.parse(config.source, encoders.OPTIONS)[0]
    trained = bool(source.options.get("weights")) or source.flag("pretrained")
    return source.family in ("timm", "torchvision") and not trained
