"""Encoders: images in, representations out, whatever the network behind them.

`build` makes an encoder from a spec string, a configuration, a network or a function. Libraries that a family needs
(timm, transformers, onnxruntime...) are imported when an encoder of that family is built, not before.

Does not know about diffusion.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rcdm_fast import downloads, offline
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.doors import printable
from rcdm_fast.encoders import (
    factor_reader,
    modules,
    native,
    onnx_models,
    oracle,
    published,
    python_files,
    read_code,
    sources,
    timm_models,
    torchhub,
    torchvision_models,
    transformers_models,
    weights,
)
from rcdm_fast.encoders.base import Encoder, ImageEncoder, Network
from rcdm_fast.encoders.errors import EncoderError, Untrusted
from rcdm_fast.encoders.layers import Forward
from rcdm_fast.encoders.modules import PoolingGiven
from rcdm_fast.encoders.sources import Source

__all__ = ["Encoder", "EncoderError", "ImageEncoder", "build", "source_of", "trusts"]

TRUST = "trust"  # the option by which a person allows the code of a specification to run
TRUSTED: dict[str, set[str]] = {"torchhub": {TRUST, "trust_repo"}, "python": {TRUST}}


def build(
    source: str | EncoderConfig | Encoder | Forward,
    device: str | torch.device = "cpu",
    *,
    config: EncoderConfig | None = None,
    trust_repo: bool = False,
    layer: str | None = None,
    pooling: PoolingGiven | None = None,
    stored: EncoderConfig | None = None,
) -> Encoder:
    """Make an encoder ready.

    Args:
        source: one of

            * a spec string: ``timm:NAME``, ``torchvision:NAME``, ``transformers:NAME_OR_FOLDER``,
              ``torchhub:REPO:NAME``, ``python:FILE.py:NAME``, ``onnx:PATH``, ``file:PATH``, ``bundled:NAME``,
              ``published:NAME``, ``oracle:WORLD?factors=x,y`` (knows the truth about images of a world: `oracle.py`)
              or ``reader:shapes-reader?factors=x,y`` (reads it off any image: `read_code.py`), with options as in
              ``timm:resnet50?pretrained=1&layer=layer3&pooling=mean``. The network's own convention is used where no
              option says otherwise. Options: layer, pooling, image_size (or size), resize, resize_to, interpolation,
              mean and std (one number or three), normalize, border, channel_order, layout; weights (timm, torchvision,
              torchhub, python, published), pretrained (timm, torchvision, torchhub), revision (transformers),
              arguments (python), trust (torchhub, python).
              ``weights=FILE`` finds the network in what a training script saved: below whatever dictionaries and
              prefixes (DataParallel, torch.compile, Lightning, MoCo, DINO, I-JEPA, BYOL...). Where several copies of
              it are in the file, the average or the teacher is taken and that is logged; ``key=`` (dotted place of a
              dictionary) and ``prefix=`` (what stands before every name) choose another, or are asked for;
            * an `EncoderConfig`: the network that its `source` names, with exactly this convention;
            * a module or function, called with normalized images [N,3,s,s]; `config` states its convention, unless
              the module tells it (timm's do). A module stays as it is: it is in evaluation mode during calls only, and
              its weights stay on their device;
            * an encoder, returned as it is.
        device: where to run, and where representations are returned.
        config: convention of a module or function; only for those.
        trust_repo: allow a torch.hub repository, or a Python file, to run its code.
        layer, pooling: of a module or function, in place of those in its convention: a sub-module's dotted name
            (``NAME#2``: at its second call); ``none``, ``cls``, ``mean``, ``max``, ``flatten``, ``map`` (tokens or
            positions stay where they are: [C,h,w], for decoders of maps), or a function of whatever the layer gives.
        stored: the encoder that a model file names; its convention is that of a module given in place of the one that
            the model was trained with.

    Nothing but a trusted torch.hub repository or Python file runs code that comes with a network: pickles are read
    without it, and transformers' custom code is refused without asking. With RCDM_FAST_OFFLINE=1 no family reaches the
    network.

    Raises:
        ConfigError: a spec or configuration that names no encoder.
        EncoderError: a missing library, missing or damaged weights, an output that is no representation, an input
            convention that is not understood.
        StorageError: a native encoder file that cannot be read.
    """
    if isinstance(source, str | EncoderConfig | Encoder) and not isinstance(source, type):
        _no_config(config, layer, pooling)
    if isinstance(source, str):
        return _from_spec(source, device, trust_repo)
    if isinstance(source, EncoderConfig):
        return _from_config(source, device, trust_repo)
    if isinstance(source, type):
        raise EncoderError(f"{source.__name__} is a class; give an instance of it: {source.__name__}(...)")
    if isinstance(source, Encoder):
        return source
    if not callable(source):
        raise EncoderError(f"{type(source).__name__} is no encoder: give a spec string, a module or a function")
    return modules.encoder(source, device, config or modules.of_stored(stored, source), layer, pooling)


def _no_config(*given: object) -> None:
    if any(each is not None for each in given):
        raise ConfigError(
            "config=, layer= and pooling= are for modules and functions; other encoders bring their own convention"
        )


def trusts(spec: str) -> bool:
    """Whether a spec string says that its code is trusted (``trust=1``). Raises `ConfigError`."""
    return _parsed(spec)[2]


def source_of(spec: str) -> str:
    """What `EncoderConfig.source` is for a spec string, without building it. Raises `ConfigError`."""
    return str(_parsed(spec)[0])


def stated(spec: str) -> dict[str, Any]:
    """The fields of an `EncoderConfig` that a spec string states. Raises `ConfigError`."""
    return _parsed(spec)[1]


def _parsed(text: str) -> tuple[Source, dict[str, Any], bool]:
    """The source, stated fields, and whether it is trusted: that is nothing to be stored."""
    source, fields = sources.parse(text, {key: {*each, *TRUSTED.get(key, ())} for key, each in OPTIONS.items()})
    said = TRUSTED.get(source.family, set())
    trusted = any(source.flag(key) for key in said)
    kept = {key: value for key, value in source.options.items() if key not in said}
    return dataclasses.replace(source, options=kept), fields, trusted


def _from_spec(text: str, device: str | torch.device, trust_repo: bool) -> Encoder:
    source, fields, trusted = _parsed(text)
    try:
        network = _load(source, fields, trust_repo or trusted)
    except Untrusted as error:
        mark = "&" if "?" in text else "?"
        raise Untrusted(f"{error}; if you trust it, say so: {printable(text)}{mark}{TRUST}=1") from None
    return ImageEncoder(network, _complete(network.convention, source, fields), device)


def _complete(convention: EncoderConfig, source: Source, fields: Mapping[str, Any]) -> EncoderConfig:
    """A family's convention with what a spec string states; the width is kept only if it is still known."""
    stated = dict(fields)
    if "image_size" in stated and "resize_to" not in stated and convention.resize_to:
        stated["resize_to"] = round(convention.resize_to * stated["image_size"] / convention.image_size)
    config = dataclasses.replace(convention, source=str(source), **stated)
    if (config.layer, config.pooling) != (convention.layer, convention.pooling):
        config = dataclasses.replace(config, dim=0)
    return config


def _from_config(config: EncoderConfig, device: str | torch.device, trust_repo: bool) -> Encoder:
    if config.source == "module":
        raise ConfigError("this encoder was a module given in Python; give it again as encoder=")
    source, stray = sources.parse(config.source, OPTIONS)
    if stray:
        raise ConfigError(f"{config.source!r}: {', '.join(stray)} belong into the fields of EncoderConfig")
    fields = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != "source"}
    try:
        network = _load(source, fields, trust_repo)
    except Untrusted as error:
        raise Untrusted(
            f"{error}, and a stored name is no leave to do so; if you trust it, give the encoder as "
            f"{printable(sources.spelled(config, TRUST))}"
        ) from None
    if source.family == "oracle" and config.dim == 0:  # it refuses the gray image on which the width is found
        config = dataclasses.replace(config, dim=network.convention.dim)
    return ImageEncoder(network, config, device)


def _load(source: Source, fields: Mapping[str, Any], trusted: bool) -> Network:
    if weights.WHERE & source.options.keys() and not source.options.get("weights"):
        raise ConfigError(f"{source.shown}: key= and prefix= say where in weights=FILE the network is; give that too")
    try:
        with offline.enforced():
            if source.family in CODE:
                return CODE[source.family](source, fields, trusted)
            return LOADERS[source.family](source, fields)
    except ConfigError as error:  # what a file says about its images is out of bounds
        where = source.shown
        raise error if where in str(error) else ConfigError(f"{where}: {error}") from error
    except EncoderError as error:
        remote = source.family == "transformers" and not os.path.exists(source.name)  # which hides why it found nothing
        if not (downloads.offline() and (remote or offline.caused(error))):
            raise
        local = LOCAL.get(source.family, "weights=FILE")
        raise EncoderError(
            f"{source.shown}: {offline.FORBIDDEN}, and what it needs is not in its library's cache; give {local}"
        ) from error


def _native(source: Source, _fields: Mapping[str, Any]) -> Network:
    bundled = source.family == "bundled"
    if not bundled and source.name.lower().endswith(PICKLES):
        raise EncoderError(
            f"{source.shown}: holds weights without their network; name the network, as in "
            f"python:net.py:TinyNet?weights={printable(source.name)} or timm:resnet18?weights={printable(source.name)}"
        )
    file = os.fspath(native.bundled_path(source.name)) if bundled else source.name
    return read_code.plain(file) if factor_reader.is_reader(file) else Network(*native.load(file))


LOCAL = {  # what needs no network
    "transformers": "a local folder with its weights (transformers:FOLDER)",
    "torchhub": "a local folder (torchhub:FOLDER:NAME), and its weights as weights=FILE",
}
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")  # what torch.save's files are called
CODE: dict[str, Callable[[Source, Mapping[str, Any], bool], Network]] = {  # by whom code runs, if it is trusted
    "torchhub": torchhub.load,
    "python": python_files.load,
}
LOADERS: dict[str, Callable[[Source, Mapping[str, Any]], Network]] = {
    "bundled": _native,
    "file": _native,
    "published": published.load,
    "timm": timm_models.load,
    "torchvision": torchvision_models.load,
    "transformers": transformers_models.load,
    "onnx": onnx_models.load,
    "oracle": oracle.load,
    "reader": read_code.load,
}
OPTIONS: dict[str, frozenset[str]] = {
    "bundled": frozenset(),
    "file": frozenset(),
    "published": published.OPTIONS,
    "timm": timm_models.OPTIONS,
    "torchvision": torchvision_models.OPTIONS,
    "transformers": transformers_models.OPTIONS,
    "torchhub": torchhub.OPTIONS,
    "python": python_files.OPTIONS,
    "onnx": onnx_models.OPTIONS,
    "oracle": oracle.OPTIONS,
    "reader": read_code.OPTIONS,
}
