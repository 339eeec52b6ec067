"""Train an RCDM: a diffusion model conditioned on the representations of a frozen encoder.

AdamW, averaged weights, autocast, fused operators or torch.compile; one process or several (`distributed.py`); exact
resume after any interruption, also in another number of processes.

With `standardize` the network is trained on (h - mean) / std and the affine map is folded into W when weights are
written, so a finished file takes raw representations and has the published structure.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from rcdm_fast import encoders as encoder_room
from rcdm_fast import host, maps, storage
from rcdm_fast.config import ConfigError, ModelConfig, UNetConfig, plain
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import Encoder
from rcdm_fast.encoders.base import map_shape
from rcdm_fast.errors import RunError
from rcdm_fast.models import checkpoint
from rcdm_fast.training import loop, memory, representations, resume, sample_grids, trust, warm_start
from rcdm_fast.training.config import DTYPES, TrainConfig
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.run import Run
from rcdm_fast.training.state import RunFolder
from rcdm_fast.training.views import Views

log = logging.getLogger(__name__)

# What a run may be resumed with other values of.
FREE = (
    "name",
    "weights",
    "save_every",
    "sheet_every",
    "micro_batch",
    "activation_checkpointing",
    "compile",
    "sharding",
)
# Settings that runs of earlier versions did not know, and what those were run with, as JSON has it.
ADDED = {"augmented_views": 0, "masked_parts": []}


@host.guarded(gradients=True, random=True)
def train(
    config: TrainConfig,
    data: ImageSet,
    out: str | Path,
    device: str = "cpu",
    progress: loop.Progress | None = None,
    minutes: float | None = None,
    trusted: Collection[str] = (),
    encoder: Encoder | None = None,
    h: Tensor | None = None,
) -> Path:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME.safetensors (averaged weights).

    A run is resumed with the same configuration; only what does not change the weights may differ (`FREE`).

    With `ema_decays` their weights are written as NAME-ema0.9999.safetensors and so on. In several processes, all of
    them call this with the same arguments. What was left out of the data is listed in `out`/skipped.txt.

    Args:
        config, data, out, device: the run.
        progress: called with (steps done, steps in all, loss).
        minutes: stop once this call has trained for so long, with a state to go on from; representations that are
            computed before count too. At least one step is done.
        trusted: sources of encoders whose code may be run (``torchhub:...``, ``python:...``), now and when the run is
            resumed.
        encoder: one that is there already, in place of the one that the configuration names: a module of the caller's
            own, say. The run is resumed with an encoder of the same answers; the finished file says that it was a
            module, and is used with it.
        h: representations of the images that were computed elsewhere, float32 [N,D] or maps [N,C,h,w], in place of an
            encoder. Images are
            seen as they are then, neither mirrored nor moved: what such an image's representation is nobody knows.

    Raises:
        Paused: `minutes` ended before the run.
        RunError: the folder holds another run, or one that is under way; a loss or gradient is not finite, out of
            memory, or the data has the wrong size.
        ConfigError: the encoder's width contradicts the network, or the processes cannot share the work.
        StorageError: a file cannot be written; the last state that was stays.
    """
    if encoder is not None:
        config = dataclasses.replace(config, encoder=encoder.config)
    if h is not None:
        config = _as_they_are(config, data, h)
    elif config.encoder is None:
        raise ConfigError("an RCDM needs an encoder, or representations; none is named in the configuration")
    if data.pixels.shape[-1] != config.unet.image_size:
        raise RunError(f"images are {data.pixels.shape[-1]} px, the network makes {config.unet.image_size} px")
    dist = Processes(device, config.sharding)
    folder = RunFolder(out)
    with folder.locked(dist.leads), memory.kept():
        if dist.leads:
            for decay in (config.ema, *config.ema_decays):
                storage.check_writable(_target(folder, config, decay))
        return _train(config, data, folder, dist, progress, minutes, trusted, encoder, h)


def _as_they_are(config: TrainConfig, data: ImageSet, h: Tensor) -> TrainConfig:
    """The run on representations from elsewhere: no encoder, and images as they are."""
    representations.check_given(h, data)
    if config.random_flip or config.augmented_views:
        log.info("images are neither mirrored nor moved: their representations were computed elsewhere")
    return dataclasses.replace(config, encoder=None, random_flip=False, augmented_views=0)


def _train(
    config: TrainConfig,
    data: ImageSet,
    folder: RunFolder,
    dist: Processes,
    progress: loop.Progress | None,
    minutes: float | None,
    trusted: Collection[str],
    given: Encoder | None,
    h: Tensor | None,
) -> Path:
    deadline = loop.Deadline(minutes)
    sources = trust.remembered(folder.path, trusted, dist.leads)
    encoder = given
    if encoder is None and config.encoder is not None:
        encoder = encoder_room.build(config.encoder, str(dist.device), trust_repo=config.encoder.source in sources)
    with dist.leader_first():
        settled = resume.precision(folder.path, config.precision, dist.device)
        config = dataclasses.replace(config, precision=settled)
        settings = {**plain(config), "data": data.fingerprint}
        settings |= representations.identity(encoder, data, given is not None, h, folder.path)
        known = resume.as_before(folder.path, settings, FREE)
        folder.compare(known, ADDED)  # before representations are computed in vain
    views = Views(config.random_flip, config.augmented_views)
    bank = representations.of_run(encoder, data, folder.path, views, dist, h)
    shape = map_shape(encoder) if h is None or h.ndim == 2 else tuple(h.shape[1:])
    unet = _with_width(config.unet, bank.shape[-1], shape)
    if shape:
        config = dataclasses.replace(config, unet=unet)
    run = Run(config, unet, data, bank, dist)
    with dist.leader_first():
        state = loop.begin(folder, settings, FREE, dist.leads, ADDED)
    if not loop.restored(run, state, config) and config.init:
        warm_start.start_from(run, config.init)
    if dist.leads:
        folder.describe_start(run.step, dist.device, dist.size)
        if data.skipped:
            storage.write_text(folder.path / "skipped.txt", "\n".join(data.skipped) + "\n")
    fixed = sample_grids.FixedBatch.make(data, bank[0], count=8, per=6)

    def draw_sheet(finished: bool) -> None:
        if config.sheet_every and (run.step % config.sheet_every == 0 or finished):
            _, weights = run.weights()[0]
            if dist.leads:
                file = folder.path / f"samples-{run.step:09d}.png"
                sample_grids.write(file, unet, config.schedule, weights, fixed, dist.device)

    def agreed(over: bool) -> bool:
        """Whether the time of any process is over; the same answer in all of them."""
        return float(dist.mean(torch.tensor(float(over), device=dist.device))) > 0

    loop.walk(run, folder, config, progress, leads=dist.leads, deadline=deadline, agreed=agreed, after=draw_sheet)
    described = None if encoder is None else dataclasses.replace(encoder.config, dim=bank.shape[-1])
    info = {
        "images_seen": run.step * config.batch_size,
        "steps": run.step,
        "data": data.fingerprint,
        "run": plain(config),
    }
    for decay, weights in run.weights():
        about = {**info, "ema": decay}
        model = ModelConfig(unet, config.schedule, described, config.name, about, config.representation_dropout)
        if dist.leads:
            checkpoint.save_model(_target(folder, config, decay), model, weights, DTYPES[config.weights])
    dist.wait()
    return _target(folder, config, config.ema)


def _target(folder: RunFolder, config: TrainConfig, decay: float) -> Path:
    """Where averaged weights go."""
    ending = "" if decay == config.ema else f"-ema{decay:g}"
    return folder.path / f"{config.name}{ending}.safetensors"


def _with_width(unet: UNetConfig, width: int, shape: tuple[int, ...]) -> UNetConfig:
    if unet.condition_map not in ((), shape):
        stated, given = (maps.named(each, width) for each in (unet.condition_map, shape))
        raise ConfigError(f"representations are {given}, the network expects {stated}")
    if unet.representation_dim not in (0, width):
        raise ConfigError(f"the encoder gives {width} dimensions, the network expects {unet.representation_dim}")
    return dataclasses.replace(unet, representation_dim=width, condition_map=shape)
