"""Training, adapting, evaluating and analyzing in one call each, with names and files where the parts take objects.

Knows nothing about how any of it is done; commands and notebooks start here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rcdm_fast import doors, encoders
from rcdm_fast import model as models
from rcdm_fast.analysis import adapted as adapted_models
from rcdm_fast.analysis import registry
from rcdm_fast.config import ConfigError, EncoderConfig, from_dict, migrated
from rcdm_fast.data import aligned
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.data.random_access import Given
from rcdm_fast.data.sources import check_apart, of_array, open_data
from rcdm_fast.devices import best
from rcdm_fast.encoders import Encoder
from rcdm_fast.encoders.layers import Forward
from rcdm_fast.encoders.modules import PoolingGiven
from rcdm_fast.evaluation import EvaluateConfig, Faithfulness
from rcdm_fast.evaluation import evaluate as measure
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.training import trust
from rcdm_fast.training.adapt import AdaptConfig
from rcdm_fast.training.adapt import adapt as adapted
from rcdm_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from rcdm_fast.analysis.result import Analysis

AnyData = str | os.PathLike[str] | ImageSet | np.ndarray | Tensor
AnyEncoder = str | EncoderConfig | Encoder | Forward
AnyModel = str | os.PathLike[str] | Model


def train(
    config: TrainConfig | str | os.PathLike[str],
    data: AnyData,
    out: str | os.PathLike[str],
    *,
    encoder: AnyEncoder | None = None,
    convention: EncoderConfig | None = None,
    layer: str | None = None,
    pooling: PoolingGiven | None = None,
    representations: Given | None = None,
    device: str | None = None,
    minutes: float | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    trust_repo: bool = False,
    **changes: Any,
) -> Path:
    """Train a decoder on the representations of a frozen encoder. The same call resumes a run that was interrupted.

    Args:
        config: a configuration, the name of a shipped one (``"cifar10-simclr-trunk"``), or a JSON file.
        data: images, as ``rcdm train --data`` takes them (a folder, .npz, shards, ``hf:NAME``), a set that is open,
            or an array: uint8 [N,H,W,3], or float [N,3,H,W] in [-1,1].
        out: the run's folder.
        encoder: in place of the configuration's: a specification (``"timm:resnet50?pretrained=1"``), a module or
            function of your own, called with [N,3,s,s], or an encoder. A module is left as it is; the finished model
            is used with ``rcdm_fast.load(path, encoder=module)``.
        convention: what a module or function of your own takes; see `rcdm_fast.EncoderConfig`. It is asked for unless
            the module tells it, as timm's do.
        layer: of a module: the dotted name of a sub-module whose output is taken (``"blocks.11.mlp"``; of one that is
            called several times ``"relu#2"``).
        pooling: of a module or function: how one vector is made of the output: none, mean, max, cls, flatten, or a
            function of your own; that one is to be given again to `rcdm_fast.load`.
        representations: of the images, computed elsewhere, in place of an encoder: a file (.npy, .npz, .safetensors, a
            table) or an array [N,D]. By ids where it has some, else in the images' order (`data/aligned.py`).
        device: "cpu", "cuda"...; None for a GPU where there is one.
        minutes: stop after so long, with a state to go on from (raises `rcdm_fast.training.state.Paused`).
        progress: called with (steps done, steps in all, loss).
        trust_repo: run the code of an encoder's torch.hub repository, or Python file; this run remembers it.
        changes: fields of the configuration, such as ``images=200_000`` or ``learning_rate=3e-4``.

    Returns:
        The finished model's file: ``out/NAME.safetensors``.

    Raises:
        ConfigError: no such configuration or field, or a value that a field cannot have.
        RunError: the folder holds another run, or the loss is not finite.
        ImageError, EncoderError, StorageError: data, an encoder or a file that cannot be read or written.
    """
    from rcdm_fast.training.train import train as trained  # brings in what changes settings of the host's warnings

    settings = _changed(config, changes)
    chosen, built, trusted = _encoder(encoder, convention, device, trust_repo, Path(out), layer, pooling)
    _one_of(encoder, representations)
    if chosen is not None:
        settings = dataclasses.replace(settings, encoder=chosen)
    if trust_repo and settings.encoder is not None:
        trusted.append(settings.encoder.source)
    if isinstance(data, str | os.PathLike):
        check_apart(out, os.fspath(data))
    images = images_of(data, settings.unet.image_size)
    h = None if representations is None else aligned.read(representations, images)
    return trained(settings, images, Path(out), best(device), progress, minutes, trusted, built, h)


def adapt(
    model: str | os.PathLike[str],
    encoder: AnyEncoder | None,
    data: AnyData,
    out: str | os.PathLike[str],
    *,
    convention: EncoderConfig | None = None,
    layer: str | None = None,
    pooling: PoolingGiven | None = None,
    representations: Given | None = None,
    device: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    minutes: float | None = None,
    trust_repo: bool = False,
    **changes: Any,
) -> Path:
    """Give a trained model another encoder, in minutes: its decoder stays, the map into it is learned.

    Args:
        model: name, file, folder or hub id of the model whose decoder is kept.
        encoder, convention, layer, pooling, representations: as for `train`; encoder is None with representations.
        data, out, device, progress, minutes, trust_repo: as for `train`.
        changes: fields of `AdaptConfig`, such as ``steps=0`` (the closed form alone); ``name`` is the folder's by
            default.

    Returns:
        The finished model's file: ``out/NAME.safetensors``.

    Raises:
        ConfigError: a model that cannot be adapted, or a field that is none.
        RunError, CheckpointError, ImageError, EncoderError, StorageError: as for `train`.
    """
    chosen, built, trusted = _encoder(encoder, convention, device, trust_repo, Path(out), layer, pooling)
    _one_of(encoder, representations)
    values = {"name": Path(out).name, "model": os.fspath(model), **changes}
    settings = dataclasses.replace(from_dict(AdaptConfig, values, "adapt"), encoder=chosen)
    size = checkpoint.load_model(model)[0].unet.image_size
    images = images_of(data, size)
    h = None if representations is None else aligned.read(representations, images)
    return adapted(settings, images, Path(out), best(device), progress, trusted, built, h, minutes)


def evaluate(
    model: AnyModel, data: AnyData, *, progress: Callable[[int, int], None] | None = None, **settings: Any
) -> Faithfulness:
    """How well samples keep their representation: ranks, MRR and distances with 95 % intervals.

    Args:
        model: a model, or what `load` takes.
        data: images, as for `train`; sources and gallery are spread evenly over them.
        progress: called with (done, in all).
        settings: fields of `EvaluateConfig`, such as ``sources=256, per=4, steps=20``.

    Raises:
        ConfigError: a field that is none, or data that is too small.
    """
    loaded = _model(model)
    config = from_dict(EvaluateConfig, settings, "evaluate")
    return measure(loaded, images_of(data, loaded.image_size), config, progress)


def analyze(
    model: AnyModel,
    experiment: str,
    data: AnyData | None = None,
    *,
    photos: AnyData | None = None,
    training: AnyData | None = None,
    against: Iterable[AnyModel] = (),
    layers: Sequence[str] = (),
    encoders: Sequence[str | EncoderConfig | Encoder] = (),
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Analysis:
    """Run one of the paper's experiments: tables, findings and figures, with intervals.

    Args:
        model: a model, or what `load` takes.
        experiment: its name, as ``rcdm analyze --help`` lists them: ``"invariance"``, ``"layers"``...
        data: images, as for `train`, if the experiment needs them.
        photos: photographs that need not be like the data, for experiments that take them; with `layers` or `encoders`
            they are shown in the figure in place of sources.
        training: images that the model was trained on, for ``"neighbors"``, which looks for copies of them.
        against: other models, for experiments that compare.
        layers: for ``"layers"``, in place of `against`: layers of the model's encoder (dotted names), or of each of
            `encoders`. The decoder of the model, which is then a name or a file, is adapted to each by the same budget.
        encoders: the same for other encoders, at `layers` or each as it is specified.
        folder: where decoders that were adapted are kept, and found again.
        progress: called with (done, in all).
        settings: fields of the experiment's configuration, such as ``sources=64``.

    Returns:
        The result: ``print(found.as_text())``, ``found.as_json()``, ``found.figures["rows"]``.

    Raises:
        ConfigError: no such experiment or field; data, photographs or models that it needs are missing.
    """
    found = registry.find(experiment)
    others = tuple(_model(other) for other in against)
    deep = bool(layers) or bool(encoders)
    missing = found.lacks(data=data is not None, photos=photos is not None, against=bool(others), wanted=deep)
    missing = found.leaves_out(photos=photos is not None, training=training is not None, wanted=deep) or missing
    if missing:
        raise ConfigError(f"the experiment {experiment} {missing}")
    wanted = _wanted(model, layers, encoders, folder) if deep else None
    loaded = _model(model)
    shown = None if photos is None else images_of(photos, loaded.image_size)
    images = None if data is None else images_of(data, loaded.image_size)
    learned = None if training is None else images_of(training, loaded.image_size)
    return found.run(registry.Job(loaded, images, shown, others, settings, progress, training=learned, wanted=wanted))


def _wanted(
    model: AnyModel, layers: Sequence[str], encoders: Sequence[Any], folder: str | os.PathLike[str] | None
) -> adapted_models.Wanted:
    if isinstance(model, Model):
        raise ConfigError("a decoder is adapted from its file: with layers= or encoders= give the model's name or file")
    if folder is None:
        raise ConfigError("folder= says where the adapted decoders are kept")
    if isinstance(layers, str) or isinstance(encoders, str):
        raise ConfigError("layers= and encoders= are lists")
    return adapted_models.Wanted(model, Path(folder), tuple(layers), tuple(encoders))


def stored_configuration(name: str | os.PathLike[str], shipped_only: bool = False) -> dict[str, Any]:
    """A configuration of training as plain data: a JSON file, or a shipped one by its name.

    Raises:
        ConfigError: there is none of that name (the shipped ones are listed), or it cannot be read.
    """
    folder = Path(__file__).resolve().parent / "training" / "configs"
    chosen = doors.path(name, ConfigError)
    shipped = folder / f"{os.fspath(name)}.json"
    file = next((each for each in ([shipped] if shipped_only else [chosen, shipped]) if os.path.isfile(each)), None)
    if file is None:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ConfigError(f"no configuration {str(chosen)!r} (shipped: {known}); name one, or a file, with --config")
    with doors.door(ConfigError, f"{file}: not a readable JSON file"):
        values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    found: dict[str, Any] = migrated(values)
    return found


def _changed(config: TrainConfig | str | os.PathLike[str], changes: Mapping[str, Any]) -> TrainConfig:
    values = dataclasses.asdict(config) if isinstance(config, TrainConfig) else stored_configuration(config)
    return from_dict(TrainConfig, {**values, **changes}, "train" if isinstance(config, TrainConfig) else str(config))


def _one_of(encoder: AnyEncoder | None, representations: Given | None) -> None:
    if encoder is not None and representations is not None:
        raise ConfigError("representations= stand in place of an encoder: give one of them")


def _encoder(
    given: AnyEncoder | None,
    convention: EncoderConfig | None,
    device: str | None,
    trust_repo: bool,
    out: Path,
    layer: str | None,
    pooling: PoolingGiven | None,
) -> tuple[EncoderConfig | None, Encoder | None, list[str]]:
    """Its configuration; the encoder itself where no configuration names it; sources that are trusted."""
    if given is None:
        if any(each is not None for each in (convention, layer, pooling)):
            raise ConfigError(
                "convention=, layer= and pooling= are about a module or function that is given as encoder="
            )
        return None, None, []
    if isinstance(given, str | EncoderConfig) and convention is None and layer is None and pooling is None:
        built, trusted = trust.built(given, out, best(device), trust_repo)
        return built.config, None, trusted
    built = encoders.build(given, best(device), config=convention, layer=layer, pooling=pooling)
    return built.config, built, []


def images_of(given: AnyData, size: int) -> ImageSet:
    """Images as `train` takes them, as a set of size x size pixels. Raises `ImageError`."""
    if isinstance(given, np.ndarray | Tensor):
        return of_array(given, size)
    return given if isinstance(given, ImageSet) else open_data(os.fspath(given), size)


def _model(given: AnyModel) -> Model:
    return given if isinstance(given, Model) else models.load(given)
