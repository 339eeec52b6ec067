"""Pre-train a small encoder (backbone + projector): SimCLR, VICReg, Barlow Twins, BYOL, DINO, or supervised.

The methods themselves are in `ssl_methods` and `ssl_momentum`, their settings in `pretrain_config`; here is the loop
that all of them share: AdamW (where most of the papers use LARS), linear warm-up and cosine decay, bf16 autocast,
optional torch.compile; exact resume.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import host, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import BatchOrder, ImageSet, fits, step_generator
from rcdm_fast.devices import sent
from rcdm_fast.encoders import native
from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.errors import RunError
from rcdm_fast.metrics import probes
from rcdm_fast.training import resume
from rcdm_fast.training.pretrain_config import PretrainConfig as PretrainConfig
from rcdm_fast.training.ssl_methods import BarlowTwins, Method, SimCLR, Supervised, VICReg
from rcdm_fast.training.ssl_momentum import BYOL, DINO
from rcdm_fast.training.state import RunFolder

log = logging.getLogger(__name__)

FREE = ("name", "save_every", "compile")  # what a run may be resumed with other values of
_COLLAPSED = 0.01  # spread (see `Method`) below which a run is warned about


_METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "simclr": SimCLR,
    "vicreg": VICReg,
    "barlow": BarlowTwins,
    "byol": BYOL,
    "dino": DINO,
}


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Linear warm-up over `warmup` x `steps`, then cosine decay to zero."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@host.guarded(gradients=True, random=True)
def pretrain(
    config: PretrainConfig,
    train: ImageSet,
    out: str | Path,
    test: ImageSet | None = None,
    device: str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME-encoder.safetensors (float16).

    Args:
        config: the run.
        train: images of `config.image_size` pixels; labels are needed by the supervised method and the probes.
        test: where given (with labels), kNN and linear-probe accuracy are measured and stored with the encoder.
        progress: called with (steps done, steps in all, loss).

    Returns:
        Path of the encoder file, and its accuracies (empty without `test`); see `accuracy`. The same network untrained
        is measured too, under names that begin with "untrained_".

    Raises:
        RunError: lightly missing, labels missing, a run of another configuration, or one that is under way, in `out`,
            or a loss or weight that is no finite number (the last state in `out` is then from before).
        ConfigError: a projector that the method or the classes do not fit.
        StorageError: a file cannot be written; the last state that was stays.
    """
    chosen = _method(config, train)
    folder = RunFolder(out)
    with folder.locked():
        storage.check_writable(_target(folder, config))
        return _pretrain(config, chosen, train, folder, test, device, progress)


def _pretrain(
    config: PretrainConfig,
    chosen: type[Method],
    train: ImageSet,
    folder: RunFolder,
    test: ImageSet | None,
    device: str,
    progress: Callable[[int, int, float], None] | None,
) -> tuple[Path, dict[str, float]]:
    config = dataclasses.replace(config, bf16=resume.bf16(folder.path, config.bf16, device))
    where = torch.device(device)
    if fits(where, train.pixels):
        train = train.to(device)  # and is augmented there
    network = config.network().to(device).to(memory_format=torch.channels_last).train()
    method = chosen(config, network).to(device).train()
    settings = {**dataclasses.asdict(config), "data": train.fingerprint}
    known = resume.as_before(folder.path, settings, FREE)
    state = folder.open(known)
    if known != settings:
        resume.keep(folder.path, settings)
    trained = [*network.parameters(), *(item for item in method.parameters() if item.requires_grad)]
    optimizer = torch.optim.AdamW(trained, config.learning_rate, weight_decay=config.weight_decay)
    step = 0
    if state is not None:
        network.load_state_dict(state["network"])
        method.load_state_dict(state.get("method", {}))  # runs from before other methods were known have none
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        log.info("resumed at step %d of %d", step, config.steps)
    forward: nn.Module = network
    if config.compile:
        forward = torch.compile(network, dynamic=False)  # type: ignore[assignment]
        for child in method.children():
            if isinstance(child, SmallResNet):
                child.compile(dynamic=False)
    order = BatchOrder(len(train), config.batch_size, config.seed)

    def drawn(step: int) -> tuple[list[Tensor], Tensor | None]:
        index = order(step)
        images = train.floats(sent(index, train.pixels.device))
        views = [sent(view, where) for view in method.views(images, step_generator(config.seed, step))]
        return views, None if train.labels is None else sent(train.labels[index], where)

    ahead: tuple[list[Tensor], Tensor | None] | None = None
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.warmup, config.learning_rate)
        views, labels = ahead if ahead is not None else drawn(step)
        loss = method.loss(forward, views, labels, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if where.type == "cuda":
            ahead = drawn(step + 1)  # while the GPU works; the next line waits for it
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} at step {step}; the last state in {folder.path} is from before")
        method.before_step(step)
        optimizer.step()
        method.after_step(network, step)
        step += 1
        if progress is not None:
            progress(step, config.steps, value)
        if step % 50 == 0 or step == config.steps:
            spread = float(method.spread)
            if spread < _COLLAPSED:
                log.warning("step %d: the outputs have collapsed (spread %.2g)", step, spread)
            row = {"step": step, "loss": round(value, 5), "images": step * config.batch_size}
            folder.log({**row, "spread": round(spread, 5)})
        if step % config.save_every == 0 or step == config.steps:
            folder.save(step, _state(network, method, optimizer, step))
    network = method.result(network)
    measured: dict[str, float] = {}
    if test is not None:
        measured = accuracy(network, train, test)
        untrained = accuracy(config.network(), train, test)
        measured.update({f"untrained_{name}": value for name, value in untrained.items()})
        folder.log(measured)
    info: dict[str, Any] = {"run": dataclasses.asdict(config), "data": train.fingerprint, "accuracy": measured}
    native.save(_target(folder, config), network, config.encoder(), info, torch.float16)
    return _target(folder, config), measured


def _target(folder: RunFolder, config: PretrainConfig) -> Path:
    return folder.path / f"{config.name}-encoder.safetensors"


def _method(config: PretrainConfig, train: ImageSet) -> type[Method]:
    """The class of the run's method, once the data is known to suit it. Raises `RunError`, `ConfigError`."""
    if config.method == "supervised":
        if train.labels is None:
            raise RunError("supervised pre-training needs sub-folders as classes; this folder has none")
        if config.projector[-1] != len(train.classes):
            raise ConfigError(f"projector ends in {config.projector[-1]} but the data has {len(train.classes)} classes")
    return _METHODS[config.method]


def _state(network: SmallResNet, method: Method, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What a resume needs. Raises `RunError` rather than hand out weights that are no numbers."""
    for name, tensor in (*network.state_dict().items(), *method.state_dict().items()):
        if not bool(tensor.isfinite().all()):
            raise RunError(f"{name} is not finite after {step} steps; the last state is from before")
    return {
        "network": network.state_dict(),
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }


@torch.no_grad()
def features(network: SmallResNet, data: ImageSet) -> tuple[Tensor, Tensor]:
    """Backbone and projector outputs of every image, float32, evaluation mode; [N,D] and [N,P]."""
    network.eval()
    device = next(network.parameters()).device
    backbone, projector = [], []
    for start in range(0, len(data), 1000):
        trunk = network.backbone(data.floats(slice(start, start + 1000)).to(device))
        backbone.append(trunk.cpu())
        projector.append(network.projector(trunk).cpu())
    return torch.cat(backbone), torch.cat(projector)


def accuracy(network: SmallResNet, train: ImageSet, test: ImageSet) -> dict[str, float]:
    """kNN and linear-probe accuracy of the backbone and of the projector, in [0,1]."""
    if train.labels is None or test.labels is None:
        raise RunError("accuracy needs labels: put the images into one sub-folder per class")
    results: dict[str, float] = {}
    pairs = zip(("backbone", "projector"), features(network, train), features(network, test), strict=True)
    for name, bank, queries in pairs:
        results[f"{name}_knn"] = round(probes.knn_accuracy(bank, train.labels, queries, test.labels), 4)
        results[f"{name}_linear"] = round(probes.linear_probe_accuracy(bank, train.labels, queries, test.labels), 4)
    return results
