"""Weights and graphs: models and encoders in every form that is loaded, flags, and files of engines."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import config as configs
from rcdm_fast import encoders, storage
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.encoders import EncoderError, native
from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import GraphError
from rcdm_fast.models import checkpoint, flags
from rcdm_fast.models.checkpoint import CheckpointError
from rcdm_fast.storage import StorageError
from tests import small
from tests.fuzz.kind import Door, Errors, Kind

CPU = torch.device("cpu")
ENCODER: Errors = (EncoderError, ConfigError, StorageError)
MODEL: Errors = (CheckpointError, *ENCODER)
LATER: Errors = (SamplingError,)
SHAPE: dict[str, Any] = {"stem": 8, "widths": [8, small.DIM], "blocks": [1, 1], "projector": [8, 4]}


def model(encoder: EncoderConfig | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights of the small network."""
    schedule = dataclasses.replace(small.SCHEDULE, diffusion_steps=100)
    return ModelConfig(small.UNET, schedule, encoder, "small", {"steps": 3}), dict(small.network().state_dict())


def encoder(path: Path) -> EncoderConfig:
    """Write a native encoder; its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallResNet(**SHAPE).eval()
    config = EncoderConfig(f"file:{path.name}", image_size=16, dim=small.DIM, architecture=SHAPE)
    native.save(path, network, config, {"steps": 3})
    return config


def _native(folder: Path) -> None:
    config, weights = model()
    checkpoint.save_model(folder / "model.safetensors", config, weights)
    checkpoint.save_model(folder / "half.safetensors", config, weights, torch.bfloat16)


def _published(folder: Path) -> None:
    _, weights = model()
    plain = flags.flags_from_configs(small.UNET, small.SCHEDULE)
    for name, state in (("bare", weights), ("parallel", {f"module.{key}": each for key, each in weights.items()})):
        (folder / name).mkdir()
        torch.save(state, folder / name / "model.pt")
        storage.write_json(folder / name / "flags.json", plain)
    torch.save(weights, folder / "bare" / "model.pt", _use_new_zipfile_serialization=False)


def _hub(folder: Path) -> None:
    place = folder / "hub"
    place.mkdir()
    config, weights = model(encoder(place / "encoder.safetensors"))
    checkpoint.save_model(place, config, weights)


def _diffusers(folder: Path) -> None:
    from rcdm_fast.exporters import diffusers

    config, weights = model()
    network = small.network()
    network.load_state_dict(weights)
    diffusers.write(folder / "exported", Job(network, config, None, "fp32"))


def _flags(folder: Path) -> None:
    _published(folder)


def _encoder(folder: Path) -> None:
    encoder(folder / "encoder.safetensors")


TIMM = "timm:test_resnet"


def _weights(folder: Path) -> None:
    """Weights of a small network of timm, wrapped as training scripts do."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = timm.create_model(TIMM.removeprefix("timm:")).state_dict()
    torch.save(state, folder / "bare.pt")
    torch.save({"state_dict": state, "epoch": 3, "args": {"lr": 0.1}}, folder / "wrapped.pth")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    storage.save_tensors(folder / "weights.safetensors", state, {})


def _transformers(folder: Path) -> None:
    import transformers

    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **shape))
    network.save_pretrained(folder / "vit")
    processor: Any = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(folder / "vit")


def _onnx(folder: Path) -> None:
    from rcdm_fast.exporters.encoder import export_encoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallResNet(**SHAPE).eval()
    config = EncoderConfig("module", image_size=16, dim=small.DIM)
    export_encoder(folder / "encoder.onnx", encoders.ImageEncoder(network.backbone, config))


def _graph(folder: Path) -> None:
    from rcdm_fast.exporters.onnx import export_network

    config, _ = model()
    export_network(folder / "network.onnx", small.network(), config, "fp32")


def _openvino(folder: Path) -> None:
    from rcdm_fast.exporters import openvino

    config, _ = model()
    openvino.write(folder / "exported", Job(small.network(), config, None, "fp32"))


def load(path: Path, given: Path | None = None) -> None:
    """As `rcdm sample`: load, encode where there is an encoder, draw an image in one step."""
    found = rcdm_fast.load(path, given, device="cpu", engine="eager", precision="fp32")
    unet = found.config.unet
    h = found.encode(small.make_images(1, 20)) if found.encoder is not None else torch.zeros(1, unet.representation_dim)
    label = torch.zeros(1, dtype=torch.int64) if unet.num_classes else None
    found.sample(h if unet.representation_dim else None, label=label, per=1, steps=1)


def published(path: Path) -> None:
    """A bare state dict with the flags beside it, and without."""
    load(path, path.with_name("flags.json"))


def flags_file(path: Path) -> None:
    """A file of flags alone, and for the weights beside it."""
    flags.configs_from_flags(path)
    load(path.with_name("model.pt"), path)


def encode(spec: str) -> None:
    """Build an encoder and use it."""
    h = encoders.build(spec).encode(small.make_images(1, 20))
    assert h.ndim == 2, h.shape
    assert bool(h.isfinite().all())


def reads(form: str) -> Callable[[Path], None]:
    """A door for specifications made of a path."""
    return lambda path: encode(form.format(path))


def run_graph(path: Path) -> None:
    """A network's graph in onnxruntime: opened, checked, evaluated once."""
    from rcdm_fast.engines.onnx_runtime import OnnxRuntimeEngine

    _predict(lambda: OnnxRuntimeEngine(_network(), model()[0], CPU, "fp32", path))


def run_openvino(path: Path) -> None:
    """The same in OpenVINO."""
    from rcdm_fast.engines.openvino_runtime import OpenVINOEngine

    _predict(lambda: OpenVINOEngine(_network(), model()[0], CPU, "fp32", path))


@functools.cache
def _network() -> Any:
    return small.network().eval().requires_grad_(False)


def _predict(make: Callable[[], Any]) -> None:
    engine = make()
    schedule = Schedule.make(model()[0].schedule, 2)
    plan = conditioning.make_plan(_network(), schedule, torch.zeros(1, small.DIM), None)
    engine.bind(plan, torch.zeros(1, dtype=torch.int64)).predict(torch.zeros(1, 3, 8, 8), 0)


def metadata(path: Path) -> None:
    """What commands read of a model without loading it."""
    text = storage.read_metadata(path).get("rcdm_fast.model")
    if text is not None:
        configs.from_json(ModelConfig, text, str(path))


LOAD = Door(load, MODEL, LATER)
WEIGHTS = Door(reads(f"{TIMM}?weights={{}}"), ENCODER)
KINDS = (
    Kind("model-native", _native, (LOAD, Door(metadata, (StorageError, ConfigError)))),
    Kind("model-published", _published, (Door(published, MODEL, LATER),), target="model.pt", mutable="model.pt"),
    Kind("model-recognized", _published, (LOAD,), target="model.pt", mutable="model.pt", good=False),
    Kind("model-hub-folder", _hub, (LOAD,), names=0.1),
    Kind("model-diffusers", _diffusers, (LOAD,), names=0.1),
    Kind("flags", _flags, (Door(flags_file, MODEL, LATER),), target="flags.json", mutable="flags.json"),
    Kind("encoder-native", _encoder, (Door(reads("file:{}"), ENCODER),)),
    Kind("encoder-weights", _weights, (WEIGHTS,), suffixes=(".pt", ".ckpt", ".safetensors")),
    Kind("encoder-transformers", _transformers, (Door(reads("transformers:{}"), ENCODER),), names=0.1),
    Kind("encoder-onnx", _onnx, (Door(reads("onnx:{}"), ENCODER),)),
    Kind("graph-onnx", _graph, (Door(run_graph, (GraphError, ConfigError)),)),
    Kind("graph-openvino", _openvino, (Door(run_openvino, (GraphError, ConfigError)),), target="network.xml"),
)
