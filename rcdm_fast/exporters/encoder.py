"""Encoders as ONNX: ``image`` [N,3,S,S] in [-1,1] -> ``representation`` [N,D].

Normalization, the chosen layer, pooling and L2 normalization are in the graph; resizing and cropping are not, because
photographs have all sizes. The file says how its images are to be made (`EncoderConfig` in its metadata, with mean
and std 0.5, since it normalizes by itself), so that ``onnx:PATH`` reads it back as an encoder.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import config as configs
from rcdm_fast.config import EncoderConfig
from rcdm_fast.encoders import Encoder, ImageEncoder, modes
from rcdm_fast.encoders.errors import reason
from rcdm_fast.encoders.native import METADATA_KEY
from rcdm_fast.encoders.onnx_models import OnnxNetwork
from rcdm_fast.exporters.onnx import CHECKED_BATCHES, PREFIX, ExportError, check_close, run_onnxruntime, written
from rcdm_fast.storage import StorageError, atomic

INPUT = "image"
OUTPUT = "representation"
TOLERANCE = 1e-5  # relative L2 error against PyTorch
WITHOUT = "leave the encoder out with --no-encoder (encoder=False)"


class EncoderGraph(nn.Module):
    """What is exported; the encoder's own module is registered here so that its weights are found."""

    def __init__(self, encoder: ImageEncoder, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._represent = encoder.represent

    def forward(self, image: Tensor) -> Tensor:
        """Float32 [N,3,S,S] in [-1,1] -> float32 [N,D]."""
        return self._represent(image)


def export_encoder(path: str | os.PathLike[str], encoder: Encoder) -> Path:
    """Write an encoder as ONNX, with a dynamic batch, after comparing it with PyTorch.

    Args:
        path: of the ``.onnx`` file.
        encoder: on any device; it is on the CPU meanwhile and goes back where it was.

    Returns:
        `path`.

    Raises:
        ExportError: packages are missing, the encoder cannot be exported, or the exported numbers differ by more than
            `TOLERANCE`; nothing is left at `path`.
        StorageError: the file cannot be written.
    """
    target = Path(path)
    if not isinstance(encoder, ImageEncoder):
        raise ExportError(f"{type(encoder).__name__}: only encoders made by rcdm_fast.encoders are exported; {WITHOUT}")
    if encoder.map_shape:
        raise ExportError(
            f"{encoder.config.source}: gives maps, and a file with representations says no shape; {WITHOUT}"
        )
    network, device, home = encoder.network, encoder.device, encoder.home
    encoder.to("cpu")
    try:
        if isinstance(network, OnnxNetwork):
            _copy(target, encoder, network)
        elif isinstance(network, nn.Module):
            with modes.evaluating(network):
                _export(target, encoder, network)
        else:
            kind = getattr(network, "__name__", type(network).__name__)
            raise ExportError(f"the encoder is a Python function ({kind}), no module; {WITHOUT}")
    finally:
        encoder.to(device)
        if home != device and isinstance(network, nn.Module):
            network.to(home)
    return target


def convention(config: EncoderConfig) -> EncoderConfig:
    """What the exported file states: images as the encoder sees them, nothing left to do to its output."""
    half = (0.5, 0.5, 0.5)
    return dataclasses.replace(
        config,
        layer="backbone",
        pooling="none",
        mean=half,
        std=half,
        normalize=False,
        architecture={},
        channel_order="rgb",
        layout="auto",
    )


def _metadata(config: EncoderConfig) -> dict[str, str]:
    version = importlib.metadata.version("rcdm_fast")
    return {METADATA_KEY: configs.to_json(convention(config)), f"{PREFIX}version": version}


def _export(target: Path, encoder: ImageEncoder, network: nn.Module) -> None:
    example = (_images(encoder.config, 2),)
    try:
        encoder.encode(example[0])  # a network that fails is not the exporter's fault
        graph = EncoderGraph(encoder, network).eval()
        with written(target, graph, example, (INPUT,), OUTPUT, _metadata(encoder.config)) as temporary:
            _check(temporary, encoder)
    except (ExportError, StorageError):
        raise
    except Exception as error:  # the exporter's own classes, and whatever a network raises while it is traced
        why = reason(error.__cause__ or error)
        raise ExportError(f"{encoder.config.source}: cannot be exported ({why}); {WITHOUT}") from error


def _check(path: Path, encoder: ImageEncoder) -> None:
    run = run_onnxruntime(path)
    for batch in CHECKED_BATCHES:
        images = _images(encoder.config, batch)
        check_close(run({INPUT: images.numpy()}), encoder.encode(images), TOLERANCE, f"{path.name}, batch {batch}")


def _images(config: EncoderConfig, count: int) -> Tensor:
    size = config.image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count)) * 2 - 1


def _copy(target: Path, encoder: ImageEncoder, network: OnnxNetwork) -> None:
    """An encoder that is an ONNX file already: the same graph with our names and metadata, if it computes it all."""
    import onnx

    config = encoder.config
    model = onnx.load(network.path)
    graph = model.graph
    faults = {
        "reorders colors outside the graph": config.channel_order != "rgb",
        "normalizes outside the graph (mean and std are not 0.5)": config.mean + config.std != (0.5,) * 6,
        "pools outside the graph": config.pooling != "none",
        "divides by the L2 norm outside the graph": config.normalize,
        "has a fixed batch": network.batch is not None,
        "takes its colors last": network.channels_last,
        "is cut inside the graph": network.is_cut,
        "has several outputs": len(graph.output) != 1,
        "is not float32": {_type(value) for value in (graph.input[0], graph.output[0])} != {onnx.TensorProto.FLOAT},
        "does not give [N,D]": len(graph.output[0].type.tensor_type.shape.dim) != 2,
    }
    found = [fault for fault, here in faults.items() if here]
    if found:
        raise ExportError(f"{config.source}: cannot be copied, because it {' and '.join(found)}; {WITHOUT}")
    _rename(graph, {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT})
    onnx.helper.set_model_props(model, {**network.metadata, **_metadata(config)})
    with atomic(target) as temporary:
        onnx.save(model, str(temporary))
        _check(temporary, encoder)


def _type(value: Any) -> int:
    return int(value.type.tensor_type.elem_type)


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Give the graph's input and output other names, wherever they are used."""
    for value in (graph.input[0], graph.output[0]):
        value.name = names[value.name]
    for node in graph.node:
        for place in (node.input, node.output):
            for number, name in enumerate(place):
                place[number] = names.get(name, name)
