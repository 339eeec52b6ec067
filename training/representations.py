"""Representations of a training set, computed once and mapped into memory.

The cache is keyed by encoder and data, so another encoder or another folder never reuses it, and the same encoder on
another machine, which rounds otherwise, does. It is an ordinary
.npy file, float32 [V,N,D], filled block by block: each process computes its part, an interrupted pass goes
on where it was, and the finished file can be opened by numpy and shared by runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.config import ConfigError, UNetConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import Encoder
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.representation_file import RepresentationFile
from rcdm_fast.training.views import VERSION, Views

log = logging.getLogger(__name__)

BLOCK = 4096  # images after which what was computed is on disk
_NAMED = "representations-"  # how names of files begin
_COMPARED = 32  # images by which an encoder is known again on another machine
_MACHINES = 1e-4  # relative L2 by which machines differ in float32; another step of training differs by more
_ROUNDING = 1e-6  # of a mean: float32 numbers that differ by less are the same


def compute(
    encoder: Encoder, data: ImageSet, views: Views | None = None, view: int = 0, first: int = 0, batch: int = 500
) -> Tensor:
    """Representations of all images, in one of their views; float32 [N,D] on the CPU.

    An image that is larger in its source is seen as it is there (`ImageSet.seen`).

    Args:
        encoder, data: see above.
        views, view: how the images are seen; as they are without.
        first: the number in the set of `data`'s first image.
        batch: images at once.
    """
    parts = []
    for start in range(0, len(data), batch):
        images = data.seen(slice(start, start + batch), encoder)
        if views is not None:
            images = images.to(encoder.device)
            index = torch.arange(first + start, first + start + len(images), device=images.device)
            images, _ = views.see(images, torch.full_like(index, view), index)
        parts.append(encoder.encode(images).cpu())
    return torch.cat(parts)


def cached(
    encoder: Encoder,
    data: ImageSet,
    folder: str | Path,
    views: Views,
    dist: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Representations of all images in all views, float32 [V,N,D]; mapped from a file in `folder`.

    Args:
        encoder, data, folder, views: see above.
        dist: the processes; all of them call this, and each computes its fraction of the blocks. None: this one alone,
            also where others were started with it.
        progress: called with (representations there, representations in all) of this process's part.

    Raises:
        StorageError: the file cannot be written, or is not what it says.
    """
    dist = dist or Processes(size=1)
    probe, described = _answers(encoder, data)
    ending = "-flips" if views.flips else ""
    if views.augmented:
        ending += f"-augmented{views.augmented}-v{VERSION}"
    name = f"{_NAMED}{known(encoder, data, folder, ending)}{ending}"
    dist.wait()  # until all have seen the same files: what is damaged is taken away next
    cache = RepresentationFile(Path(folder) / f"{name}.npy", len(views), len(data), BLOCK)
    with dist.leader_first():
        if dist.leads:
            cache.check()
    if not cache.complete:
        log.info("%d representations of %d images are computed once, into %s", len(views), len(data), cache.path)
        with dist.leader_first():
            cache.begin(probe.shape[1], dist.leads)
        own = list(cache.blocks())[dist.rank :: dist.size]
        for number, (view, start, stop) in enumerate(own):
            if not cache.has(view, start, stop):
                cache.write(view, start, compute(encoder, data.part(start, stop), views, view, start))
            if progress is not None:
                progress(number + 1, len(own))
        dist.wait()
        with dist.leader_first():
            about = {"encoder": json.loads(described), "data": data.fingerprint, "identity": data.identity}
            cache.finish(about, dist.leads)
    return cache.open()


def digest(h: Tensor) -> str:
    """What tells representations that were computed elsewhere, [N,D], from others: 16 hex digits."""
    return hashlib.sha256(f"{list(h.shape)}".encode() + h.contiguous().numpy().tobytes()).hexdigest()[:16]


def identity(
    encoder: Encoder | None, data: ImageSet, given: bool, h: Tensor | None = None, folder: str | Path | None = None
) -> dict[str, str]:
    """What tells a run's representations from others where the encoder's name does not.

    An encoder may be `given` as it is, or be code in a file; or its representations `h` come without it. Those that the
    run's `folder` has from another machine are its own (`known`).
    """
    if h is not None:
        return {"representations": digest(h)}
    assert encoder is not None
    if not given and not encoder.config.source.startswith("python:"):
        return {}
    return {"answers": key(encoder, data) if folder is None else known(encoder, data, folder)}


def check_given(h: Tensor, data: ImageSet) -> None:
    """Raise `ConfigError` unless representations from elsewhere are finite float32 [N,D] or [N,C,h,w], one an image."""
    if h.ndim not in (2, 4) or h.dtype != torch.float32 or len(h) != len(data) or not h[:1].numel():
        raise ConfigError(f"representations are float32 [{len(data)},D] for {len(data)} images, got {list(h.shape)}")
    if not bool(h.isfinite().all()):
        raise ConfigError("the representations contain NaN or infinity")


def check_width(bank: Tensor, unet: UNetConfig, what: str, model: str) -> None:
    """Raise `ConfigError` unless representations [V,N,D] are as wide as those that a model takes."""
    if bank.shape[-1] != unet.representation_dim:
        raise ConfigError(f"{what} gives {bank.shape[-1]} dimensions, {model} expects {unet.representation_dim}")


def of_run(
    encoder: Encoder | None,
    data: ImageSet,
    folder: str | Path,
    views: Views,
    dist: Processes | None = None,
    h: Tensor | None = None,
) -> Tensor:
    """What a run is trained on, float32 [V,N,D]: `cached`, or those that were computed elsewhere, [1,N,D].

    Maps are rows of C h w numbers, on disk, too.
    """
    if h is not None:
        return h.cpu().flatten(1)[None]
    assert encoder is not None, "a run has one or the other"
    return cached(encoder, data, folder, views, dist)


def key(encoder: Encoder, data: ImageSet) -> str:
    """What tells one encoder's representations of one set from all others: 16 hex digits."""
    probe, described = _answers(encoder, data)
    return hashlib.sha256(described.encode() + probe.numpy().tobytes() + data.identity.encode()).hexdigest()[:16]


def known(encoder: Encoder, data: ImageSet, folder: str | Path, ending: str = "*") -> str:
    """The `key` under which a folder has an encoder's representations; its own if there are none.

    Another processor or GPU rounds otherwise, so that bits of a key change where a run goes on on another machine.

    Args:
        encoder, data, folder: see `cached`.
        ending: of the file's name behind the key.
    """
    own = key(encoder, data)
    files = sorted(Path(folder).glob(f"{_NAMED}{'?' * len(own)}{ending}.json"))
    keys = {file: file.name.removeprefix(_NAMED)[: len(own)] for file in files}
    if own in keys.values():
        return own
    return next((keys[file] for file in files if _near(file, encoder, data)), own)


def _near(file: Path, encoder: Encoder, data: ImageSet) -> bool:
    """Whether what a complete file has of the first images is what the encoder says of them, but for rounding."""
    try:
        about = storage.read_json(file)
        described = dataclasses.asdict(encoder.config)
        if json.dumps(about["encoder"], sort_keys=True) != json.dumps(described, sort_keys=True, default=str):
            return False
        if about.get("identity", about["data"]) != data.identity:
            return False
        stored = RepresentationFile(file.with_suffix(".npy"), int(about["shape"][0]), len(data), BLOCK).open()
    except (storage.StorageError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return False  # whoever opens it says what is wrong
    count = min(_COMPARED, len(data))
    before, now = stored[0, :count], compute(encoder, data.part(0, count))
    return before.shape == now.shape and bool((now - before).norm() <= _MACHINES * now.norm())


def _answers(encoder: Encoder, data: ImageSet) -> tuple[Tensor, str]:
    """Representations of the first two images at the set's size [2,D], and the encoder's configuration as JSON."""
    probe = encoder.encode(data.floats(slice(0, 2))).cpu()
    return probe, json.dumps(dataclasses.asdict(encoder.config), sort_keys=True, default=str)


def standardization(representations: Tensor, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Mean [D] and standard deviation [D] (at least 1e-3 of the largest) over all but the last dimension.

    Of maps of a `shape` (C,h,w) each channel has one of both, [C], over all positions, too. Where all images have the
    same representation, but for rounding, the deviations are ones, and that is logged.
    """
    if shape:
        mean, std = _of_channels(representations.flatten(0, -2), shape[0])
    else:
        flat = representations.flatten(0, -2)
        mean, std = flat.mean(dim=0), flat.std(dim=0, correction=min(1, len(flat) - 1))
    if not bool((std > _ROUNDING * mean.abs()).any()):
        log.warning("all images have the same representation: is there only one image, or has the encoder collapsed?")
        std = torch.ones_like(std)
    return mean, std.clamp_min(1e-3 * float(std.max()))


def _of_channels(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of maps [N,C h w]; block by block, because all of them may be larger than memory."""
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    blocks = [block.reshape(len(block), channels, -1) for block in rows.split(256)]
    count = sum(block.shape[0] * block.shape[2] for block in blocks)
    for block in blocks:
        total += block.double().sum(dim=(0, 2))
    mean = total / count
    for block in blocks:
        squares += (block.double() - mean[:, None]).square().sum(dim=(0, 2))
    return mean.float(), (squares / max(1, count - 1)).sqrt().float()
