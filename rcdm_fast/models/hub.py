"""Repositories of the Hugging Face hub: fetching a model's files, and sending a folder.

A repository holds ``model.safetensors``, which describes itself, and the encoder's file if the description names one
that lies beside it (``file:encoder.safetensors``, ``onnx:encoder.onnx``).

Knows nothing about networks, or what else is in a folder (`exporters/hub_folder.py` writes it).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from rcdm_fast import config as configs
from rcdm_fast import downloads, storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.encoders.sources import Source
from rcdm_fast.errors import RcdmError, install
from rcdm_fast.models import zoo

FILE = "model.safetensors"
ID = re.compile(r"[\w.-]+/[\w.-]+")

_BESIDE = re.compile(r"(file|onnx):([\w-][\w.-]*)")  # an encoder's file in the model's own folder
_NEEDED = f"needs huggingface_hub: {install('hub')}"


class HubError(RcdmError, OSError):
    """A repository that cannot be read or written; the message names it."""


def fetch(repository: str, **options: Any) -> Path:
    """The model file of a repository, in the hub's own cache, with the encoder's file beside it where there is one.

    Args:
        repository: ``org/name``.
        options: of ``huggingface_hub.hf_hub_download``: revision, token, cache_dir, force_download...

    Raises:
        HubError: huggingface_hub is missing, or no such repository or file, or no connection; or a file in the cache
            is not what the hub says it is.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise HubError(f"{repository}: no such file, and reading it from the Hugging Face hub {_NEEDED}") from error
    options.setdefault("local_files_only", downloads.offline())
    name = FILE
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, name, **options))
        _check(path)
        wanted = _encoder_file(path)
        if wanted and (options.get("force_download") or not os.path.isfile(path.parent / wanted)):
            name = wanted
            huggingface_hub.hf_hub_download(repository, name, **options)
        if wanted:
            _check(path.parent / wanted)
    except HubError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise HubError(
            f"{repository}: no such file, and no {name} from the Hugging Face hub ({type(error).__name__}: "
            f"{_first_line(error)})"
        ) from error
    return path


def send(folder: Path, repository: str, token: str | None, private: bool | None, **options: Any) -> str:
    """Create a repository if need be and upload a folder's files as one commit; its address.

    Args:
        folder: what to upload.
        repository: ``org/name``.
        token: of an account that may write there; by default the one that ``hf auth login`` stored.
        private: whether a repository that is created is private.
        options: of ``HfApi.upload_folder``: commit_message, revision, create_pr...

    Raises:
        HubError: huggingface_hub is missing, `repository` is no id, access is refused, or no connection.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise HubError(f"{repository}: writing to the Hugging Face hub {_NEEDED}") from error
    if not ID.fullmatch(repository):
        raise HubError(f"{repository!r} is no hub id; expected ORG/NAME")
    if downloads.offline():
        raise HubError(f"{repository}: RCDM_FAST_OFFLINE forbids the network")
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, **options))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise HubError(f"{repository}: not uploaded ({type(error).__name__}: {_first_line(error)})") from error


def with_encoder_beside(config: ModelConfig, path: str | os.PathLike[str]) -> ModelConfig:
    """The configuration with the encoder's file named by its full path, if it lies beside the model's file."""
    found = _BESIDE.fullmatch(config.encoder.source) if config.encoder is not None else None
    if config.encoder is None or found is None or not os.path.isfile(Path(path).parent / found[2]):
        return config
    source = Source(found[1], str(Path(path).parent.absolute() / found[2]))
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, source=str(source)))


def _encoder_file(path: Path) -> str | None:
    """Name of the encoder's file that a model file wants beside it; what is wrong with a model is not told here."""
    try:
        config = configs.from_json(ModelConfig, storage.read_metadata(path).get(zoo.MODEL_KEY, ""), str(path))
    except (ConfigError, storage.StorageError):
        return None
    found = _BESIDE.fullmatch(config.encoder.source) if config.encoder is not None else None
    return found[2] if found else None


def _check(path: Path) -> None:
    """Compare a file in the hub's cache with its digest, by which it is called there: LFS's SHA-256, or git's SHA-1.

    Where the cache has no links the name is an ordinary one, and nothing is known.
    """
    blob = path.resolve()
    kind = {64: "sha256", 40: "sha1"}.get(len(blob.name))
    if kind is None or not re.fullmatch(r"[0-9a-f]+", blob.name) or not blob.is_file():
        return
    digest = hashlib.new(kind, f"blob {blob.stat().st_size}\0".encode() if kind == "sha1" else b"")
    with open(blob, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != blob.name:
        raise HubError(f"{path}: damaged (its {kind} is {digest.hexdigest()}); delete {blob} to download it again")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
