"""What `Model` shares with other models of the hub's ecosystem: `from_pretrained`, `save_pretrained`, `push_to_hub`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any, Self

from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.encoders import Encoder
from rcdm_fast.exporters import hub_folder
from rcdm_fast.models import hub, zoo
from rcdm_fast.models.unet import UNet


class Pretrained:
    """What `Model` shares with other models of the hub's ecosystem."""

    config: ModelConfig
    unet: UNet
    _encoder: Encoder | EncoderConfig | None

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, precision: str = "fp32", license: str = ""
    ) -> list[Path]:
        """Write ``model.safetensors``, ``config.json`` and a model card; see `export.hub_folder.save`.

        The encoder is not built for this; a local encoder file is copied. Returns the files written.
        """
        return hub_folder.save(Path(folder), self.unet, self._saved_config(), precision, license)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """`rcdm_fast.load` with the hub's usual arguments.

        Args:
            source: a folder, or a hub id ``org/name``, or anything else that `load` takes.
            revision: branch, tag or commit of the repository.
            token: for private repositories; by default the stored one.
            cache_dir: in place of the hub's own cache.
            force_download: fetch again what is there.
            local_files_only: take it from the cache.
            options: encoder, device, engine, precision... of `rcdm_fast.load`.

        Raises:
            HubError: no such repository, or no connection.
            CheckpointError, ConfigError: see `rcdm_fast.load`.
        """
        wanted: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        wanted |= {"force_download": force_download, "local_files_only": local_files_only}
        asked = {key: value for key, value in wanted.items() if value}
        here = os.path.exists(os.path.expanduser(source)) or str(source) in zoo.model_names()
        if isinstance(source, str) and not here and hub.ID.fullmatch(source):
            source = hub.fetch(source, **asked, **({"token": False} if token is False else {}))
        elif asked:
            raise ConfigError(f"{source}: {', '.join(asked)} are for hub ids, and this is none")
        return cls._loaded(source, **options)

    @classmethod
    def _loaded(cls, source: str | os.PathLike[str], **options: Any) -> Self:
        """`rcdm_fast.load`, which is above."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repository: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        precision: str = "fp32",
        license: str = "",
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload an rcdm_fast model",
    ) -> str:
        """Send what `save_pretrained` writes to the Hugging Face hub, as one commit.

        Args:
            repository: ``org/name``; created if it does not exist.
            token: of an account that may write there; by default the stored one.
            private: whether a repository that is created is private.
            precision: of the weights.
            license: of the weights, as the hub writes it ("mit").
            revision: branch to commit to.
            create_pr: open a pull request instead.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            HubError: huggingface_hub is missing, access is refused, or no connection.
        """
        with tempfile.TemporaryDirectory() as folder:
            hub_folder.save(Path(folder), self.unet, self._saved_config(), precision, license, repository)
            options = {"revision": revision, "create_pr": create_pr, "commit_message": commit_message}
            return hub.send(Path(folder), repository, token, private, **options)

    def _saved_config(self) -> ModelConfig:
        """The configuration with the encoder that is used now."""
        used = self._encoder
        if used is None:
            return self.config
        config = used if isinstance(used, EncoderConfig) else used.config
        return dataclasses.replace(self.config, encoder=config)
