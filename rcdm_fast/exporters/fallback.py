"""What quantized exports share: trajectories to calibrate with and to check, and the fall-back by layer.

Layers are ranked by the error that each brings alone, and the worst ones stay in floating point, as few as bring the
images of representations that nothing was calibrated on close enough to float32.

Knows nothing about how anything is rounded (`openvino_int8.py`, `fp8.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rcdm_fast.benchmarking import psnr_db
from rcdm_fast.config import ConfigError
from rcdm_fast.exporters import calibration
from rcdm_fast.exporters.calibration import Evaluate
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import ExportError

PSNR_DB = 43.0  # of the final images against float32, DDIM in 25 steps; below it the rank of the source image suffers
MOST_KEPT = 0.5  # of the convolutions; with more in floating point 8 bits gain nothing over 16
HELD_OUT = 4  # every fourth trajectory is kept for the check
RANKED = 24  # network inputs on which layers are compared
MADE_UP = 32  # trajectories of a model that takes no representation

Made = TypeVar("Made")


@dataclass(frozen=True)
class Layer:
    """A convolution: its name in PyTorch, the error that rounding it alone brings, its name in another runtime.

    `error` is relative L2 of the network's eps.
    """

    name: str
    error: float
    node: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.error:.1e})"


@dataclass(frozen=True)
class Quantized(Generic[Made]):
    """A quantized network, the layers that were kept in floating point (worst first), and how it was judged.

    Attributes:
        model: as `fall_back` was told to make it.
        kept: worst first.
        layers: how many could be quantized.
        psnr_db: of images of held-out representations beside float32's.
        what: precision, and what is in it: "int8", "inner convolutions".
    """

    model: Made
    kept: tuple[Layer, ...]
    layers: int
    psnr_db: float
    what: tuple[str, str]

    def kept_in_words(self) -> str:
        """For the file and for reports."""
        precision, convolutions = self.what
        if not self.kept:
            return f"all {self.layers} {convolutions} in {precision}"
        worst = ", ".join(layer.name for layer in self.kept)
        return f"{self.layers - len(self.kept)} of {self.layers} {convolutions} in {precision}, all but {worst}"


@dataclass(frozen=True)
class Trajectories:
    """What a network is calibrated with and checked on.

    Attributes:
        used: what it was given on the trajectories to calibrate with, [M,...] each; see `calibration.collect`.
        psnr_of: of the images of held-out representations by another evaluation beside this network's, in dB.
    """

    used: tuple[Tensor, ...]
    psnr_of: Callable[[Evaluate], float]

    def some(self) -> tuple[Tensor, ...]:
        """A few of `used`, evenly, to compare layers on."""
        places = torch.linspace(0, len(self.used[0]) - 1, min(RANKED, len(self.used[0]))).long()
        return tuple(value[places] for value in self.used)


def conditions(job: Job) -> Tensor | None:
    """Representations or labels that trajectories are drawn for; None for an unconditional network.

    Raises:
        ConfigError: too few representations.
    """
    unet = job.config.unet
    if not unet.representation_dim:
        return torch.arange(MADE_UP) % unet.num_classes if unet.num_classes else None
    if job.representations is None or len(job.representations) < HELD_OUT:
        raise ConfigError(
            f"{job.precision} is calibrated on trajectories of real representations: give at least "
            f"{HELD_OUT} images (--data FOLDER, or calibrate=... in Python)"
        )
    return job.representations.cpu().float()


def trajectories(network: Evaluate, job: Job, watched: Evaluate | None = None) -> Trajectories:
    """Draw them with the network itself.

    Args:
        network: evaluates it in float32.
        job: what is exported, from which representations.
        watched: the same, in place of `network` on the trajectories to calibrate with alone.

    Raises:
        ConfigError: see `conditions`.
    """
    given = conditions(job)
    count = MADE_UP if given is None else len(given)
    held = torch.arange(count) % HELD_OUT == HELD_OUT - 1
    job.report(f"drawing {count} trajectories to calibrate with and to check")
    to_use, to_check = ((None, int(part.sum())) if given is None else (given[part], 0) for part in (~held, held))
    _, used = calibration.collect(watched or network, job.config, *to_use)
    want = calibration.draw(network, job.config, *to_check)
    return Trajectories(used, lambda evaluate: psnr_db(calibration.draw(evaluate, job.config, *to_check), want))


def fall_back(
    layers: Sequence[Layer],
    make: Callable[[int], Made],
    psnr_of: Callable[[Made], float],
    what: tuple[str, str],
    report: Callable[[str], None],
    rough: Callable[[int], Made] | None = None,
) -> Quantized[Made]:
    """The network with the fewest layers in floating point that is close enough to float32.

    Args:
        layers: all that can be quantized, the one whose rounding costs most first.
        make: the network with so many of them, from the first on, in floating point.
        psnr_of: of its images beside float32's, in dB.
        what: see `Quantized`.
        report: takes one line about progress.
        rough: a cheaper network to search with; None searches with `make`.

    Raises:
        ExportError: too far from float32 with half of the layers in floating point; names the worst ones.
    """
    most = int(MOST_KEPT * len(layers))
    for kept in range(fewest(most, lambda kept: psnr_of((rough or make)(kept)) >= PSNR_DB), most + 1):
        made = make(kept)
        found = Quantized(made, tuple(layers[:kept]), len(layers), psnr_of(made), what)
        report(f"{what[0]}: PSNR {found.psnr_db:.1f} dB with {found.kept_in_words()}")
        if found.psnr_db >= PSNR_DB:
            return found
    worst = ", ".join(str(layer) for layer in layers[: max(1, most)])
    raise ExportError(
        f"{what[0]} changes the images too much (PSNR {found.psnr_db:.1f} dB, needed {PSNR_DB:g}) even with these "
        f"layers, the worst by the relative error that each brings, in floating point: {worst}"
    )


def fewest(most: int, enough: Callable[[int], bool]) -> int:
    """The smallest number of 0..most that is enough, or `most`; takes it that more never makes it worse."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
