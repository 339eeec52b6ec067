"""Scales for convolutions in fp8 (e4m3), calibrated on trajectories: one small file beside the model.

A scale for every input channel of every inner 3x3 convolution (`models/fp8.py` says what is computed with them). Layers
are put back into floating point as for int8 (`fallback.py`), judged on the emulation; a network of which more than half
had to stay there gets no file. Weights are not in it: whoever runs it rounds the model's own, of which it has the hash.

Judged by the images of held-out representations (PSNR). What becomes of ranks needs a gallery: ``rcdm compare MODEL
--engines eager:fp8=FILE --data IMAGES --max-mrr-loss 2`` says it.

Knows nothing about running a network with it (`engines/eager.py`, which emulates it, and `engines/native.py`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rcdm_fast import storage
from rcdm_fast.benchmarking import relative_l2
from rcdm_fast.config import ModelConfig
from rcdm_fast.doors import door, printable
from rcdm_fast.exporters import fallback
from rcdm_fast.exporters.calibration import Evaluate
from rcdm_fast.exporters.fallback import Layer, Quantized, Trajectories
from rcdm_fast.exporters.graph import truth
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import PREFIX, GraphError, GraphInfo, check_belongs, graph_info
from rcdm_fast.models import fp8
from rcdm_fast.models.unet import UNet

PRECISIONS = ("fp8",)
FILE = "fp8.safetensors"
WHAT = ("fp8", "inner 3x3 convolutions")
KEPT = (
    f"{PREFIX}kept"  # names of the layers in floating point, the worst first, each with the error that it would bring
)
PSNR = f"{PREFIX}psnr_db"


def missing_packages() -> list[str]:
    """None."""
    return []


@dataclass(frozen=True)
class Calibrated:
    """What a file says.

    Attributes:
        scales: of input channels, float32 [I] each, powers of two, by the convolutions' names.
        kept: inner 3x3 convolutions in floating point, the worst first.
        psnr_db: of images beside float32's, of representations that nothing was calibrated on.
        file: that says so.
        digest: SHA-256 of the file that was read; empty where it is yet to be written.
    """

    scales: Mapping[str, Tensor]
    kept: tuple[Layer, ...]
    psnr_db: float
    file: Path
    digest: str = ""

    def in_words(self) -> str:
        """Which layers run in fp8."""
        return Quantized(None, self.kept, len(self.scales) + len(self.kept), self.psnr_db, WHAT).kept_in_words()


def write(out: Path, job: Job) -> list[Path]:
    """Write ``fp8.safetensors``.

    Raises:
        ConfigError: too few representations to calibrate with.
        ExportError: too far from float32 with half of the convolutions in floating point; nothing is written.
        StorageError: the file cannot be written.
    """
    fallback.conditions(job)
    found = calibrate(job)
    save(Calibrated(found.model, found.kept, found.psnr_db, out / FILE), job.network, job.config)
    return [out / FILE]


def save(found: Calibrated, network: UNet, config: ModelConfig) -> None:
    """Write the file that `found` names. Raises `StorageError` where that cannot be."""
    metadata = {
        **graph_info(network, config, "fp8").as_metadata(),
        KEPT: json.dumps([[layer.name, layer.error] for layer in found.kept]),
        PSNR: json.dumps(found.psnr_db),
    }
    storage.save_tensors(found.file, found.scales, metadata)


def calibrate(job: Job) -> Quantized[dict[str, Tensor]]:
    """Scales of a network (`Calibrated.scales`), and the layers that stay in floating point.

    Raises:
        ConfigError, ExportError: as of `write`.
    """
    network = copy.deepcopy(job.network).cpu().float().eval().requires_grad_(False)
    schedule = job.config.schedule

    def evaluation(scales: Mapping[str, Tensor]) -> Evaluate:
        return truth(fp8.emulated(network, scales), schedule)

    largest: dict[str, Tensor] = {}
    drawn = fallback.trajectories(truth(network, schedule), job, truth(_watched(network, largest), schedule))
    scales = {name: fp8.input_scale(largest[name]) for name in fp8.inner_convolutions(network)}
    layers = _ranked(evaluation, scales, drawn)
    return fallback.fall_back(
        layers,
        lambda kept: {layer.name: scales[layer.name] for layer in layers[kept:]},
        lambda chosen: drawn.psnr_of(evaluation(chosen)),
        WHAT,
        job.report,
    )


def _watched(network: UNet, largest: dict[str, Tensor]) -> UNet:
    """A copy that keeps the largest size of every input channel of its inner convolutions; copies of it do, too."""
    watched = copy.deepcopy(network)

    def keep(name: str, x: Tensor) -> None:
        now = x.abs().amax(dim=(0, 2, 3))
        largest[name] = torch.maximum(largest[name], now) if name in largest else now

    for name, convolution in fp8.inner_convolutions(watched).items():
        convolution.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
    return watched


@torch.inference_mode()
def _ranked(
    evaluation: Callable[[Mapping[str, Tensor]], Evaluate], scales: Mapping[str, Tensor], drawn: Trajectories
) -> list[Layer]:
    """All inner 3x3 convolutions, the one that brings the largest error alone first."""
    inputs = drawn.some()
    want = evaluation({})(*inputs)[:, :3]
    found = [
        Layer(name, relative_l2(evaluation({name: scale})(*inputs)[:, :3], want)) for name, scale in scales.items()
    ]
    return sorted(found, key=lambda layer: -layer.error)


def read(path: Path, network: UNet, config: ModelConfig) -> Calibrated:
    """Read a file that `write` wrote for this model.

    Raises:
        GraphError: of another model or version, or its content makes no sense.
        StorageError: missing, damaged, or something else.
    """
    where = printable(path)
    tensors, metadata = storage.read_tensors(path), storage.read_metadata(path)
    info = GraphInfo.from_metadata(metadata, where)
    if info.precision != "fp8":
        raise GraphError(f"{where}: exported in {printable(info.precision)}, asked for is fp8")
    check_belongs(info, network, config, where)
    with door(GraphError, f"{where}: damaged; export it again"):
        kept = tuple(Layer(str(name), float(error)) for name, error in json.loads(metadata[KEPT]))
        psnr_db = float(metadata[PSNR])
        convolutions = fp8.inner_convolutions(network)
        names = [layer.name for layer in kept]
        if sorted([*tensors, *names]) != sorted(convolutions):
            raise GraphError(f"{where}: damaged (its layers are not the network's); export it again")
        for name, scale in tensors.items():
            _check_scale(scale, convolutions[name], f"{where}: damaged (scales of {printable(name)}")
    return Calibrated(tensors, kept, psnr_db, path, storage.sha256(path))


def _check_scale(scale: Tensor, convolution: nn.Conv2d, what: str) -> None:
    if scale.dtype != torch.float32 or tuple(scale.shape) != (convolution.in_channels,):
        raise GraphError(f"{what} are {scale.dtype} {list(scale.shape)}); export it again")
    if not bool((scale > 0).all()) or not bool((scale.frexp().mantissa == 0.5).all()):
        raise GraphError(f"{what} are no powers of two); export it again")
    least = torch.finfo(torch.float32).tiny
    if bool((scale < least).any()) or bool((1 / scale < least).any()):
        raise GraphError(f"{what} are too small or too large for float32 to divide by); export it again")
