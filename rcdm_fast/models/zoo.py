"""The models that can be asked for by name: those shipped with the library and the nine published RCDM releases.

Knows nothing about reading weights (`checkpoint.py`) or fetching them (`downloads.py`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from rcdm_fast import doors, downloads, storage
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, from_json
from rcdm_fast.encoders import native, published

MODEL_KEY = "rcdm_fast.model"  # metadata key of a native model file
ENCODER_ENDING = "-encoder"  # bundled files that hold an encoder, not a model

RELEASE_URL = "https://dl.fbaipublicfiles.com/rcdm"
RELEASE_LICENSE = "CC-BY-NC 4.0 (no commercial use)"


@dataclass(frozen=True)
class Release:
    """A published RCDM checkpoint: its file on the server, and the encoder whose representations it was trained on."""

    file: str
    encoder: EncoderConfig

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"{RELEASE_URL}/{self.file}"


@dataclass(frozen=True)
class KnownModel:
    """What `rcdm models` shows. `present` is False for a model that would first be downloaded from `location`."""

    name: str
    kind: str  # "bundled" or "published"
    about: str
    location: str
    present: bool
    license: str = ""  # of its weights, where it is not the library's own


def _releases() -> dict[str, Release]:
    releases = {}
    for method in ("simclr", "barlow", "vicreg", "dino"):
        for ending, layer in (("trunk", "backbone"), ("head", "projector")):
            encoder = published.config(method, layer)
            releases[f"rcdm-{method}-{ending}"] = Release(f"rcdm_ema_{method}_{ending}.pt", encoder)
    return releases | {"rcdm-supervised": Release("rcdm_ema_supervised.pt", published.config("supervised"))}


RELEASES = _releases()


def bundled_folder() -> Path:
    """Where the library keeps the weights it ships with."""
    return native.BUNDLED


def bundled_path(name: str) -> Path:
    """File of a bundled model."""
    return bundled_folder() / f"{name}.safetensors"


def list_bundled() -> list[str]:
    """Names of the bundled models, sorted."""
    names = (path.stem for path in bundled_folder().glob("*.safetensors"))
    return sorted(name for name in names if not name.endswith(ENCODER_ENDING))


def model_names() -> dict[str, KnownModel]:
    """Every model that `load` knows by name, bundled ones first."""
    models = {}
    for name in list_bundled():
        path = bundled_path(name)
        models[name] = KnownModel(name, "bundled", _about_bundled(path), str(path), True)
    for name, release in RELEASES.items():
        copy = downloads.cached(release.file)
        encoder = release.encoder
        about = f"128 px, {encoder.source} {encoder.layer}, {encoder.dim} dimensions"
        place = str(copy or release.url)
        models[name] = KnownModel(name, "published", about, place, copy is not None, RELEASE_LICENSE)
    return models


def suggestion(name: str) -> str:
    """The close and the known names, as the end of an error message."""
    known = [*list_bundled(), *RELEASES]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Known names: {', '.join(known)}"


def _about_bundled(path: Path) -> str:
    try:
        config = from_json(ModelConfig, storage.read_metadata(path)[MODEL_KEY], str(path))
    except (OSError, KeyError, ConfigError) as error:
        return f"unreadable ({doors.said(error)})"
    encoder = config.encoder
    seen = f"{encoder.source} {encoder.layer}, " if encoder is not None else ""
    shape = config.unet.condition_map
    taken = f"map of {' x '.join(map(str, shape))}" if shape else f"{config.unet.representation_dim} dimensions"
    return f"{config.unet.image_size} px, {seen}{taken}"
