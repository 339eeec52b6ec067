"""Feature spaces in which distributions of images are compared: an encoder's, or the Inception network's.

The published FID and Inception Score are defined by one network with one set of weights (the Inception of 2015, ported
from TensorFlow) and one way to resize. That network is torch-fidelity's, its weights a file that the user has and whose
hash is checked; nothing is downloaded. In any other space the same formulas give other numbers, which is why a space
knows whether it is Inception's.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.encoders import Encoder
from rcdm_fast.errors import install
from rcdm_fast.images import from_uint8

BATCH = 64
SHA256_START = "6726825d"  # pytorch-fid's and torch-fidelity's file of the weights bears it in its name

Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 [N,3,H,W] -> features [N,2048], logits [N,1008]."""


@dataclass(frozen=True)
class FeatureSpace:
    """Where features come from: exactly one of the two.

    Attributes:
        name: what to call it in a report.
        encoder: any encoder; its representations are the features.
        inception: the Inception network.
    """

    name: str
    encoder: Encoder | None = None
    inception: Network | None = None

    def of(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features, and Inception's logits if it is Inception.

        Args:
            pixels: uint8 [N,3,H,W].

        Returns:
            float32 [N,D] and float32 [N,1008] (or None), on the CPU.
        """
        features, logits = [], []
        for part in pixels.split(BATCH):
            if self.encoder is not None:
                features.append(self.encoder.encode(from_uint8(part)).cpu())
            elif self.inception is not None:
                found, classes = self.inception(part)
                features.append(found.float().cpu())
                logits.append(classes.float().cpu())
        return torch.cat(features), torch.cat(logits) if logits else None


def of_encoder(encoder: Encoder) -> FeatureSpace:
    """The representations of an encoder."""
    config = encoder.config
    return FeatureSpace(f"{config.source}, layer {config.layer}" if config.layer else config.source, encoder=encoder)


def called(encoder: Encoder) -> str:
    """Source, layer and, if any, pooling: a map is another space than its mean."""
    pooling = encoder.config.pooling
    return of_encoder(encoder).name + (f", pooling {pooling}" if pooling != "none" else "")


def of_inception(weights: str | Path, device: str | torch.device = "cpu") -> FeatureSpace:
    """The Inception network of the published FID and Inception Score.

    Args:
        weights: the state_dict that pytorch-fid and torch-fidelity use.
        device: where it runs.

    Raises:
        ConfigError: torch-fidelity is not installed; no such file, or not these weights.
    """
    path = Path(weights)
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file (pt_inception-2015-12-05-{SHA256_START}.pth is expected)")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(SHA256_START):
        raise ConfigError(
            f"{path}: not the weights that FID is defined by (its SHA-256 begins with {digest[:8]}, theirs with "
            f"{SHA256_START}); other networks are named with --features"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ConfigError(f"Inception features need torch-fidelity: {install('metrics')} ({error})") from error
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would run any code in the file
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error
    network.to(device).eval()

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            features, logits = network(pixels.to(device))
        return features, logits

    return FeatureSpace(f"Inception, {path.name}", inception=run)
