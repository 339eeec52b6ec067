"""Where numbers come from: which weights, images, versions and command made them, so that they can be made again.

Every JSON file of a measurement carries what `made_by` says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import benchmarking
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import Encoder
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.model import Model
from rcdm_fast.version import __version__

_NAMED = re.compile(r"=/(?:[^,;/]+/)*([^,;/]+)/?")  # an absolute path within a word: --json=/a/b.json, fp8=/a/b,bf16


def made_by(
    models: Sequence[Model] = (),
    data: Mapping[str, ImageSet | None] | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """What made a measurement, as plain JSON values.

    Args:
        models: the models in question.
        data: sets of images by what they are for; those that are None are left out.
        device: where it was measured; by default the first model's, and the CPU without any.

    Returns:
        date (UTC), command, version and git revision of the library, device and versions of packages, every model's and
        its encoder's hash, and fingerprints of the data.
    """
    device = device or (models[0].device if models else torch.device("cpu"))
    sets = {name: images for name, images in (data or {}).items() if images is not None}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(),
        "rcdm_fast": __version__,
        "git": git_revision(),
        **benchmarking.facts(device),
        "models": [of_model(model) for model in models],
        "data": {name: {"fingerprint": each.fingerprint, "images": len(each)} for name, each in sets.items()},
    }


def command() -> str:
    """The words of this process's command, as a shell takes them.

    ``rcdm`` stands for whatever file the command lies in, and of absolute paths only the last part: results are
    shared, and where somebody keeps files is nobody's business.
    """
    name, *words = sys.argv or [""]
    words = [os.path.basename(word.rstrip("/")) if os.path.isabs(word) else _NAMED.sub(r"=\1", word) for word in words]
    called = "rcdm" if Path(name).name in ("rcdm", "__main__.py") else name
    return shlex.join([called, *words])


def of_model(model: Model) -> dict[str, Any]:
    """A model's name and hash (of weights, network and schedule), those of its encoder, and what evaluates it.

    An engine that was calibrated is named by the SHA-256 of its files, too.
    """
    found: dict[str, Any] = {
        "name": model.config.name,
        "weights": hash_of(model.config.unet, model.unet.state_dict(), model.config.schedule),
        "engine": model.engine.name,
        "precision": model.engine.precision,
    }
    if model.engine.digests:
        found["calibrated"] = list(model.engine.digests)
    if model.encoder is not None:
        found["encoder"] = {"source": model.encoder.config.source, "hash": encoder_hash(model.encoder)}
    return found


def encoder_hash(encoder: Encoder) -> str:
    """SHA-256 of an encoder's input convention, and of its weights if it is a PyTorch module."""
    network = getattr(encoder, "network", None)
    weights = network.state_dict() if isinstance(network, nn.Module) else {}
    return described_hash(dataclasses.asdict(encoder.config), weights)


def described_hash(described: Any, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of plain values and of weights as float32."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + b"\0")
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def git_revision() -> str | None:
    """Of the checkout that this code runs from, with "+" if files differ from it; None without git or a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            found = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() if found.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # installed into an environment of another one
        return None
    revision = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return revision if revision is None or not changed else f"{revision}+"
