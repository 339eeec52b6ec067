"""Representations of a training set, computed once and kept beside the run.

The cache is keyed by encoder and data, so another encoder or another folder never reuses it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.encoders import Encoder
from rcdm_fast.training.data import ImageSet


def compute(encoder: Encoder, data: ImageSet, flipped: bool = False, batch: int = 500) -> Tensor:
    """Representations of all pictures (mirrored left-right if `flipped`); float32 [N,D] on the CPU."""
    parts = []
    for start in range(0, len(data), batch):
        pictures = data.floats(slice(start, start + batch))
        parts.append(encoder.encode(pictures.flip(3) if flipped else pictures).cpu())
    return torch.cat(parts)


def cached(encoder: Encoder, data: ImageSet, folder: str | Path, flips: bool) -> Tensor:
    """Representations [V,N,D] with V = 2 (as they are, mirrored) if `flips`, else 1; read from `folder` if there."""
    probe = encoder.encode(data.floats(slice(0, 2))).cpu()
    described = json.dumps(dataclasses.asdict(encoder.config), sort_keys=True, default=str)
    key = hashlib.sha256(described.encode() + probe.numpy().tobytes() + data.fingerprint.encode()).hexdigest()[:16]
    path = Path(folder) / f"representations-{key}{'-flips' if flips else ''}.safetensors"
    if path.exists():
        return storage.read_tensors(path)["representations"]
    views = [compute(encoder, data)] + ([compute(encoder, data, flipped=True)] if flips else [])
    result = torch.stack(views)
    storage.save_tensors(path, {"representations": result}, {"encoder": described, "data": data.fingerprint})
    return result


def standardisation(representations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and standard deviation [D] (at least 1e-3 of the largest) over all but the last dimension."""
    flat = representations.flatten(0, -2)
    mean, std = flat.mean(dim=0), flat.std(dim=0)
    return mean, std.clamp_min(1e-3 * float(std.max()))
