"""rcdm_fast: see what a vision encoder's representation keeps, with a representation-conditioned diffusion model.

    import rcdm_fast
    model = rcdm_fast.load("cifar10-simclr-wide")
    h = model.encode("photo.jpg")                                     # representations [1,D]
    images = model.sample(h, per=8)                                 # [1,8,3,H,W] in [-1,1]
    model.show("photo.jpg").save("sheet.png")                       # photo, what the encoder sees, samples
    for batch in rcdm_fast.generate(model, "photos/", per=100):       # many, as they are finished
        print(batch.ids, batch.images.shape)
    found = rcdm_fast.analyze(model, "invariance", "cifar10/test")    # the paper's experiments as numbers
    rcdm_fast.train("cifar10-simclr-trunk", "photos/", "runs/mine", encoder="timm:resnet18?pretrained=1")
    rcdm_fast.adapt("cifar10-simclr-wide", my_module, "cifar10/train", "runs/adapted")
    rcdm_fast.export(model, "onnx", "exported")                       # or openvino, tensorrt, diffusers, hub, fp8

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
    from rcdm_fast.showing import sheet
    from rcdm_fast.workflows import adapt, analyze, evaluate, train

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
    "sheet": "showing",
    "adapt": "workflows",
    "analyze": "workflows",
    "evaluate": "workflows",
    "train": "workflows",
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
    "adapt",
    "agenerate",
    "analyze",
    "evaluate",
    "export",
    "generate",
    "load",
    "save_model",
    "sheet",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rcdm_fast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
