"""rcdm_fast: see what a vision encoder's representation keeps, with a representation-conditioned diffusion model.

    import rcdm_fast
    model = rcdm_fast.load("cifar10-simclr-wide")
    pictures = model.sample(model.encode("photo.jpg"), per=8, steps=50)

Importing this package is cheap: PyTorch and everything else is imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rcdm_fast.version import __version__

if TYPE_CHECKING:
    from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig, ScheduleConfig, UNetConfig
    from rcdm_fast.diffusion.sampling import SamplingError
    from rcdm_fast.diffusion.sampling_config import SamplingConfig
    from rcdm_fast.encoders import Encoder, EncoderError
    from rcdm_fast.errors import RcdmError
    from rcdm_fast.exporting import export
    from rcdm_fast.images import ImageError
    from rcdm_fast.jobs.stream import agenerate, generate
    from rcdm_fast.model import Model, load
    from rcdm_fast.models.checkpoint import CheckpointError, save_model
    from rcdm_fast.models.hub import HubError

_HOMES = {
    "CheckpointError": "models.checkpoint",
    "save_model": "models.checkpoint",
    "ConfigError": "config",
    "EncoderConfig": "config",
    "ModelConfig": "config",
    "ScheduleConfig": "config",
    "UNetConfig": "config",
    "Encoder": "encoders",
    "EncoderError": "encoders",
    "HubError": "models.hub",
    "ImageError": "images",
    "agenerate": "jobs.stream",
    "export": "exporting",
    "generate": "jobs.stream",
    "Model": "model",
    "RcdmError": "errors",
    "SamplingConfig": "diffusion.sampling_config",
    "SamplingError": "diffusion.sampling",
    "load": "model",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Encoder",
    "EncoderConfig",
    "EncoderError",
    "HubError",
    "ImageError",
    "Model",
    "ModelConfig",
    "RcdmError",
    "SamplingConfig",
    "SamplingError",
    "ScheduleConfig",
    "UNetConfig",
    "__version__",
    "agenerate",
    "export",
    "generate",
    "load",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rcdm_fast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
