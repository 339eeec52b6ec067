"""A model in a folder of diffusers, as `rcdm_fast.export` writes it, read back bit for bit.

Knows nothing about how it is written (`exporters/diffusers.py`).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from torch import Tensor

from rcdm_fast import config as configs
from rcdm_fast import doors, storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.errors import install
from rcdm_fast.models import diffusers_pipeline
from rcdm_fast.models.diffusers_pipeline import EMBEDDING
from rcdm_fast.models.diffusers_unet import convert_back, settings
from rcdm_fast.models.unet import UNet

CONFIG = "rcdm_fast.json"


def missing_packages() -> list[str]:
    """Packages that are not installed."""
    there = importlib.util.find_spec("diffusers") is not None
    return [] if there else [f"diffusers ({install('diffusers')})"]


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and tensors of an exported folder, bit for bit those that were written.

    Raises:
        ConfigError: diffusers is missing, or the folder is incomplete or damaged.
    """
    if missing_packages():
        raise ConfigError(f"{folder}: reading a diffusers folder needs {missing_packages()[0]}")
    try:
        doors.regular_folder(folder)
        config = configs.from_json(ModelConfig, (folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
        network = UNet(config.unet)
        if config.unet.representation_dim:
            network.ssl_emb.load_state_dict(storage.read_tensors(folder / EMBEDDING))
        _check_structure(folder, config)
        convert_back(diffusers_pipeline.load_unet(folder), network)
    except Exception as error:  # OSError, and what diffusers and safetensors raise about damaged files
        raise ConfigError(f"{folder}: no complete diffusers export ({' '.join(str(error).split())[:300]})") from error
    return config, dict(network.state_dict())


def _check_structure(folder: Path, config: ModelConfig) -> None:
    """Diffusers builds what the folder's other file says, however large: it must be the network of the first."""
    stated = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    differing = [key for key, value in settings(config.unet).items() if stated.get(key) != value]
    if differing:
        raise ValueError(f"unet/config.json is of another network than {CONFIG}: {', '.join(differing)}")
