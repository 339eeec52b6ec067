"""Native encoder files: safetensors weights of a `SmallResNet` with its `EncoderConfig` in the metadata.

The bundled encoders are such files, shipped inside the package.

Knows nothing about resizing or layers (`base.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import config as configs
from rcdm_fast import doors, storage
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.encoders.small_resnet import SmallResNet

METADATA_KEY = "rcdm_fast.encoder"
BUNDLED = Path(__file__).parent.parent / "bundled"
SUFFIX = "-encoder.safetensors"


def save(
    path: str | os.PathLike[str],
    network: SmallResNet,
    config: EncoderConfig,
    info: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a network and its convention; `info` is for the reader.

    Matrices and convolutions are stored as `dtype`, norms and biases as float32.
    """
    tensors = {
        name: tensor.to(dtype) if tensor.ndim > 1 else tensor.float()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    metadata = {METADATA_KEY: configs.to_json(config), "rcdm_fast.info": json.dumps(dict(info), sort_keys=True)}
    storage.save_tensors(path, tensors, metadata)


def load(path: str | os.PathLike[str]) -> tuple[SmallResNet, EncoderConfig]:
    """Read a native encoder file; float32, evaluation mode, strict.

    Raises:
        StorageError: missing or truncated file.
        ConfigError: a file that is no encoder of ours, or whose tensors do not fit its own configuration.
    """
    metadata = storage.read_metadata(path)
    if METADATA_KEY not in metadata:
        raise ConfigError(f"{path}: not an encoder file written by rcdm_fast")
    config = configs.from_json(EncoderConfig, metadata[METADATA_KEY], str(path))
    try:
        with torch.device("meta"):  # nothing is allocated for a network that the file's tensors do not fit
            network = SmallResNet(**config.architecture)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its architecture describes no encoder ({doors.said(error)})") from error
    tensors = {name: tensor.to(torch.float32) for name, tensor in storage.read_tensors(path).items()}
    for name in network.state_dict():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{path}: {doors.said(error)}") from error
    return network.eval(), dataclasses.replace(config, source=f"file:{path}")


def bundled() -> list[str]:
    """Names of the encoders inside the package, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in BUNDLED.glob(f"*{SUFFIX}"))


def bundled_path(name: str) -> Path:
    """The file of a bundled encoder. Raises `ConfigError`."""
    if name not in bundled():
        raise ConfigError(f"no bundled encoder {doors.printable(name)!r}; there are {', '.join(bundled()) or 'none'}")
    return BUNDLED / f"{name}{SUFFIX}"
