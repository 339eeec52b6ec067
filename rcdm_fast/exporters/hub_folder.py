"""A folder as a repository of the Hugging Face hub holds it: ``model.safetensors``, ``config.json``, ``README.md``.

The weights file describes itself; ``config.json`` repeats its description for readers and for the hub. The README is a
model card with the hub's metadata header. An encoder that lives in a file of its own is copied beside the model.

Knows nothing about the hub's own interface (`rcdm_fast.models.hub`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcdm_fast import doors, encoders, storage
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, plain
from rcdm_fast.encoders import sources
from rcdm_fast.exporters.graph import DTYPES, hash_of
from rcdm_fast.exporters.job import Job
from rcdm_fast.models import checkpoint, zoo
from rcdm_fast.models.unet import UNet

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "bf16")
TAGS = ("diffusion", "representation-learning", "interpretability", "rcdm")
LICENSES = {"CC-BY-NC 4.0": "cc-by-nc-4.0", "MIT": "mit"}  # how a description begins -> the hub's identifier


def missing_packages() -> list[str]:
    """None: only sending a folder needs huggingface_hub."""
    return []


def write(out: Path, job: Job) -> list[Path]:
    """`save` for `rcdm export --to hub`."""
    job.report("writing weights and model card")
    config = job.config
    if job.encoder is not None:
        config = dataclasses.replace(config, encoder=job.encoder.config)
    return save(out, job.network, config, job.precision)


def save(
    out: Path, network: UNet, config: ModelConfig, precision: str = "fp32", license: str = "", repository: str = ""
) -> list[Path]:
    """Write the folder; `rcdm_fast.load` reads it back.

    Args:
        out: the folder; files of the same names are replaced.
        network: its weights are written.
        config: what the model says about itself. An encoder whose source is a local file is copied. Solvers that were
            fitted to other weights than those stored are left out, as the log says.
        precision: of the weights on disk.
        license: identifier of the weights' license on the hub ("mit", "cc-by-4.0"); by default what the model itself
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
    stored = {name: value.to(DTYPES[precision]) for name, value in network.state_dict().items()}
    weights = hash_of(config.unet, stored, config.schedule)
    config = _with_own_solvers(config, weights, precision)
    files.append(checkpoint.save_model(out, config, network.state_dict(), DTYPES[precision]))
    description = {"library_name": "rcdm_fast", "model_type": "rcdm", **plain(config)}
    storage.write_json(out / "config.json", description)
    parameters = sum(value.numel() for value in network.parameters())
    text = card(config, parameters, precision, license, repository, weights)
    with storage.atomic(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [*files, out / "config.json", out / "README.md"]


def _with_own_solvers(config: ModelConfig, weights: str, precision: str) -> ModelConfig:
    """The configuration without solvers that were fitted to other weights, as those before rounding are."""
    own = tuple(each for each in config.fitted if each.weights == weights)
    if len(own) < len(config.fitted):
        foreign = ", ".join(str(each.nfe) for each in config.fitted if each.weights != weights)
        log.warning(
            "left out: the solvers fitted for %s evaluations, which belong to other weights than those stored in %s; "
            "save in another precision, or fit them again with `rcdm tune`", foreign, precision,
        )  # fmt: skip
    return dataclasses.replace(config, fitted=own)


def _encoder_beside(out: Path, encoder: EncoderConfig) -> tuple[EncoderConfig, list[Path]]:
    """The encoder's configuration, and its file copied into the folder, where it is a local file."""
    if not encoder.source.startswith(("file:", "onnx:")):
        return encoder, []
    source, _ = sources.parse(encoder.source, encoders.OPTIONS)
    original = Path(source.name)
    copied = out / ("encoder.onnx" if source.family == "onnx" else "encoder.safetensors")
    if original.absolute() != copied.absolute():
        try:
            content = original.read_bytes() if source.family == "file" else _whole_graph(original)
        except OSError as error:
            raise storage.StorageError(f"{original}: the encoder cannot be read ({error.strerror or error})") from error
        with storage.atomic(copied) as temporary:
            temporary.write_bytes(content)
    return dataclasses.replace(encoder, source=f"{source.family}:{copied.name}"), [copied]


def _whole_graph(path: Path) -> bytes:
    """An ONNX file's bytes, with the weights inside that lie in files beside it, as PyTorch's exporter puts them.

    Raises:
        OSError: it cannot be read.
        StorageError: what lies beside it cannot, or all of it is too large for one file.
    """
    content = path.read_bytes()
    if importlib.util.find_spec("onnx") is None and not path.with_name(f"{path.name}.data").exists():
        return content  # whoever runs a graph need not be able to take it apart
    with doors.door(storage.StorageError, f"{path}: the encoder cannot be read"):
        import onnx
        from onnx.external_data_helper import load_external_data_for_model, uses_external_data

        model = onnx.load_from_string(content)
        if not any(uses_external_data(tensor) for tensor in model.graph.initializer):
            return content
        load_external_data_for_model(model, str(path.parent))
        whole: bytes = model.SerializeToString()
        return whole


def card(config: ModelConfig, parameters: int, precision: str, license: str, repository: str, weights: str) -> str:
    """The model card: metadata header, then the bundled model's own card or one made of the configuration.

    `weights` is the hash of the model as it is stored (`graph.weights_hash`).
    """
    name = config.name or "rcdm"
    own = zoo.bundled_folder() / f"{name}.md"
    bundled = name in zoo.list_bundled() and own.is_file()
    stated = str(config.info.get("license", "MIT" if bundled else ""))
    license = license or next((known for start, known in LICENSES.items() if stated.startswith(start)), "")
    header = ["---", "library_name: rcdm_fast", "pipeline_tag: image-to-image"]
    header += [f"license: {json.dumps(license)}"] if license else []
    header += ["tags:", *(f"- {tag}" for tag in TAGS), "---", ""]
    body = own.read_text(encoding="utf-8").rstrip() if bundled else _describe(name, config, parameters, precision)
    named = f"Network, schedule and weights together have the SHA-256 `{weights}`; manifests and exports name it, too."
    return "\n".join([*header, body, "", named, "", *_example(config, repository), ""])


def _describe(name: str, config: ModelConfig, parameters: int, precision: str) -> str:
    unet, schedule, encoder = config.unet, config.schedule, config.encoder
    lines = [f"# {name}", ""]
    if unet.representation_dim:
        lines.append(
            f"A representation-conditioned diffusion model (RCDM): {unet.image_size}-pixel images from "
            f"representations of {unet.representation_dim} dimensions."
        )
    else:
        lines.append(f"A diffusion model of {unet.image_size}-pixel images.")
    lines += [
        "",
        f"* **Network**: ADM UNet, {parameters / 1e6:.2f} M parameters; stored as {precision}; predicts "
        f"{schedule.prediction}; {schedule.noise_schedule} schedule, {schedule.diffusion_steps} steps.",
    ]
    if encoder is not None:
        lines.append(
            f"* **Encoder**: `{encoder.source}`, layer {encoder.layer}; images of {encoder.image_size} px, mean "
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
    steps = f", steps={len(config.student_steps)}" if config.student_steps else ""  # a student has one number of them
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
        lines.append(f"images = model.sample(h, per=8{steps})  # [R, 8, 3, H, W] in [-1, 1]")
    elif config.unet.num_classes:
        lines.append(f"images = model.sample(label=torch.tensor([0, 1]), per=8{steps})  # [2, 8, 3, H, W] in [-1, 1]")
        lines.insert(3, "import torch")
    else:
        lines.append(f"images = model.sample(per=8{steps})  # [1, 8, 3, H, W] in [-1, 1]")
    return [*lines, "```"]
