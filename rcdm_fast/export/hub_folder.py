"""A folder as a repository of the Hugging Face hub holds it: ``model.safetensors``, ``config.json``, ``README.md``.

The weights file describes itself; ``config.json`` repeats its description for readers and for the hub. The README is a
model card with the hub's metadata header. An encoder that lives in a file of its own is copied beside the model.

Knows nothing about the hub's own interface (`rcdm_fast.hub`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rcdm_fast import checkpoint, encoders, hub, names, storage
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.encoders import Encoder, sources
from rcdm_fast.export.graph import DTYPES
from rcdm_fast.export.job import Job
from rcdm_fast.unet import UNet

PRECISIONS = ("fp32", "fp16", "bf16")
TAGS = ("diffusion", "representation-learning", "interpretability", "rcdm")
LICENCES = {"CC-BY-NC 4.0": "cc-by-nc-4.0", "MIT": "mit"}  # how a description begins -> the hub's identifier


def missing_packages() -> list[str]:
    """None: only sending a folder needs huggingface_hub."""
    return []


def write(out: Path, job: Job) -> list[Path]:
    """`save` for `rcdm export --to hub`."""
    job.say("writing weights and model card")
    config = job.config
    if job.encoder is not None:
        config = dataclasses.replace(config, encoder=job.encoder.config)
    return save(out, job.network, config, job.precision)


def save(
    out: Path, network: UNet, config: ModelConfig, precision: str = "fp32", licence: str = "", repository: str = ""
) -> list[Path]:
    """Write the folder; `rcdm_fast.load` reads it back.

    Args:
        out: the folder; files of the same names are replaced.
        network: its weights are written.
        config: what the model says about itself. An encoder whose source is a local file is copied.
        precision: of the weights on disk.
        licence: identifier of the weights' licence on the hub ("mit", "cc-by-4.0"); by default what the model itself
            says about it, if anything.
        repository: ``org/name`` for the card's example; by default the example reads the folder.

    Raises:
        ConfigError: unknown precision.
        CheckpointError: weights that are not finite in that precision.
        StorageError: the folder cannot be written, or the encoder's file not be read.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"weights are saved in {', '.join(PRECISIONS)}; got {precision!r}")
    files = []
    if config.encoder is not None:
        encoder, copies = _encoder_beside(out, config.encoder)
        config = dataclasses.replace(config, encoder=encoder)
        files += copies
    files.append(checkpoint.save_model(out, config, network.state_dict(), DTYPES[precision]))
    description = {"library_name": "rcdm_fast", "model_type": "rcdm", **dataclasses.asdict(config)}
    storage.write_json(out / "config.json", description)
    parameters = sum(value.numel() for value in network.parameters())
    text = card(config, parameters, precision, licence, repository)
    with storage.atomic(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [*files, out / "config.json", out / "README.md"]


def _encoder_beside(out: Path, encoder: EncoderConfig) -> tuple[EncoderConfig, list[Path]]:
    """The encoder's configuration, and its file copied into the folder, where it is a local file."""
    if not encoder.source.startswith(("file:", "onnx:")):
        return encoder, []
    source, _ = sources.parse(encoder.source, encoders.OPTIONS)
    original = Path(source.name)
    copied = out / ("encoder.onnx" if source.family == "onnx" else "encoder.safetensors")
    if original.absolute() != copied.absolute():
        try:
            content = original.read_bytes()
        except OSError as error:
            raise storage.StorageError(f"{original}: the encoder cannot be read ({error.strerror})") from error
        with storage.atomic(copied) as temporary:
            temporary.write_bytes(content)
    return dataclasses.replace(encoder, source=f"{source.family}:{copied.name}"), [copied]


def card(config: ModelConfig, parameters: int, precision: str, licence: str, repository: str) -> str:
    """The model card: metadata header, then the bundled model's own card or one made of the configuration."""
    name = config.name or "rcdm"
    own = names.bundled_folder() / f"{name}.md"
    bundled = name in names.list_bundled() and own.is_file()
    stated = str(config.info.get("licence", "MIT" if bundled else ""))
    licence = licence or next((known for start, known in LICENCES.items() if stated.startswith(start)), "")
    header = ["---", "library_name: rcdm_fast", "pipeline_tag: image-to-image"]
    header += [f"license: {json.dumps(licence)}"] if licence else []
    header += ["tags:", *(f"- {tag}" for tag in TAGS), "---", ""]
    body = own.read_text(encoding="utf-8").rstrip() if bundled else _describe(name, config, parameters, precision)
    return "\n".join([*header, body, "", *_example(config, repository), ""])


def _describe(name: str, config: ModelConfig, parameters: int, precision: str) -> str:
    unet, schedule, encoder = config.unet, config.schedule, config.encoder
    lines = [f"# {name}", ""]
    if unet.representation_dim:
        lines.append(
            f"A representation-conditioned diffusion model (RCDM): {unet.image_size}-pixel pictures from "
            f"representations of {unet.representation_dim} numbers."
        )
    else:
        lines.append(f"A diffusion model of {unet.image_size}-pixel pictures.")
    lines += [
        "",
        f"* **Network**: ADM UNet, {parameters / 1e6:.2f} M parameters; stored as {precision}; predicts "
        f"{schedule.prediction}; {schedule.noise_schedule} schedule, {schedule.diffusion_steps} steps.",
    ]
    if encoder is not None:
        lines.append(
            f"* **Encoder**: `{encoder.source}`, layer {encoder.layer}; pictures of {encoder.image_size} px, mean "
            f"{_plain(encoder.mean)}, std {_plain(encoder.std)}."
            + (" It was given in Python and is not in this repository." if encoder.source == "module" else "")
        )
    training = [f"{key.replace('_', ' ')} {value}" for key, value in config.info.items() if _short(value)]
    if training:
        lines.append(f"* **Training**: {'; '.join(training)}.")
    return "\n".join(lines)


def _short(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 200)


def _plain(values: Sequence[float]) -> str:
    distinct = list(dict.fromkeys(values))
    return str(distinct[0]) if len(distinct) == 1 else ", ".join(map(str, values))


def _example(config: ModelConfig, repository: str) -> list[str]:
    known = config.encoder is not None and config.encoder.source != "module"
    lines = [
        "## Use",
        "",
        "```python",
        "import rcdm_fast",
        "",
        f"model = rcdm_fast.load({json.dumps(repository or '.')})",
    ]
    if config.unet.representation_dim:
        lines.append('h = model.encode("photo.jpg")' if known else "h = ...  # [R, D]: the encoder's representations")
        lines.append("pictures = model.sample(h, per=8, steps=50)  # [R, 8, 3, H, W] in [-1, 1]")
    elif config.unet.num_classes:
        lines.append("pictures = model.sample(label=torch.tensor([0, 1]), per=8)  # [2, 8, 3, H, W] in [-1, 1]")
        lines.insert(3, "import torch")
    else:
        lines.append("pictures = model.sample(per=8)  # [1, 8, 3, H, W] in [-1, 1]")
    return [*lines, "```"]


class HubMethods:
    """What `Model` shares with other models of the hub's ecosystem."""

    config: ModelConfig
    unet: UNet
    _encoder: Encoder | EncoderConfig | None

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, precision: str = "fp32", licence: str = ""
    ) -> list[Path]:
        """Write ``model.safetensors``, ``config.json`` and a model card; see `export.hub_folder.save`.

        The encoder is not built for this; a local encoder file is copied. Returns the files written.
        """
        return save(Path(folder), self.unet, self._saved_config(), precision, licence)

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
        from rcdm_fast import pipeline

        wanted: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        wanted |= {"force_download": force_download, "local_files_only": local_files_only}
        asked = {key: value for key, value in wanted.items() if value}
        here = Path(source).expanduser().exists() or str(source) in names.model_names()
        if isinstance(source, str) and not here and hub.ID.fullmatch(source):
            source = hub.fetch(source, **asked)
        elif asked:
            raise ConfigError(f"{source}: {', '.join(asked)} are for hub ids, and this is none")
        model: Any = pipeline.load(source, **options)
        return model  # type: ignore[no-any-return]

    def push_to_hub(
        self,
        repository: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        precision: str = "fp32",
        licence: str = "",
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
            licence: of the weights, as the hub writes it ("mit").
            revision: branch to commit to.
            create_pr: open a pull request instead.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            HubError: huggingface_hub is missing, access is refused, or no connection.
        """
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), self.unet, self._saved_config(), precision, licence, repository)
            options = {"revision": revision, "create_pr": create_pr, "commit_message": commit_message}
            return hub.send(Path(folder), repository, token, private, **options)

    def _saved_config(self) -> ModelConfig:
        """The configuration with the encoder that is used now."""
        used = self._encoder
        if used is None:
            return self.config
        config = used if isinstance(used, EncoderConfig) else used.config
        return dataclasses.replace(self.config, encoder=config)
