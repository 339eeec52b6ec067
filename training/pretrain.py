"""Pre-train a small encoder (backbone + projector): SimCLR, VICReg, Barlow Twins, BYOL, DINO, or supervised.

The methods themselves are in `ssl_methods` and `ssl_momentum`, their settings in `pretrain_config`; here is the loop
that all of them share: AdamW (where most of the papers use LARS), linear warm-up and cosine decay, bf16 autocast,
optional torch.compile; exact resume.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcdm_fast import host, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import BatchOrder, ImageSet, check_classes, fits, step_generator
from rcdm_fast.devices import sent
from rcdm_fast.encoders import native
from rcdm_fast.encoders.small_resnet import SmallResNet
from rcdm_fast.errors import RunError
from rcdm_fast.metrics import probes
from rcdm_fast.training import loop, resume
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


@host.guarded(gradients=True, random=True)
def pretrain(
    config: PretrainConfig,
    train: ImageSet,
    out: str | Path,
    test: ImageSet | None = None,
    device: str = "cpu",
    progress: loop.Progress | None = None,
    minutes: float | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME-encoder.safetensors (float16).

    Args:
        config: the run.
        train: images of `config.image_size` pixels; labels are needed by the supervised method and the probes.
        test: where given (with labels), kNN and linear-probe accuracy are measured and stored with the encoder.
        progress: called with (steps done, steps in all, loss).
        minutes: stop once this call has worked for so long, with a state to go on from; at least one step is done.

    Returns:
        Path of the encoder file, and its accuracies (empty without `test`); see `accuracy`. The same network untrained
        is measured too, under names that begin with "untrained_".

    Raises:
        Paused: `minutes` ended before the run.
        RunError: labels missing, a run of another configuration, or one that is under way, in `out`,
            or a loss or weight that is no finite number (the last state in `out` is then from before).
        ConfigError: a projector that the method or the classes do not fit, or `test` has other classes.
        StorageError: a file cannot be written; the last state that was stays.
    """
    deadline = loop.Deadline(minutes)
    chosen = _method(config, train)
    if test is not None:  # hours later it would be too late
        _check_probed(train, test)
    folder = RunFolder(out)
    with folder.locked():
        storage.check_writable(_target(folder, config))
        config = dataclasses.replace(config, bf16=resume.bf16(folder.path, config.bf16, device))
        run = _Run(config, chosen, train, torch.device(device))
        settings = {**dataclasses.asdict(config), "data": train.fingerprint}
        loop.restored(run, loop.begin(folder, settings, FREE), config)
        loop.walk(run, folder, config, progress, deadline=deadline)
        network = run.method.result(run.network)
        measured: dict[str, float] = {}
        if test is not None:
            measured = accuracy(network, run.data, test)
            untrained = accuracy(config.network(), run.data, test)
            measured.update({f"untrained_{name}": value for name, value in untrained.items()})
            folder.log(measured)
        info: dict[str, Any] = {"run": dataclasses.asdict(config), "data": train.fingerprint, "accuracy": measured}
        native.save(_target(folder, config), network, config.encoder(), info, torch.float16)
        return _target(folder, config), measured


class _Run:
    """The moving parts: the network, the method with what it learns itself, and the optimizer of both."""

    def __init__(self, config: PretrainConfig, chosen: type[Method], data: ImageSet, device: torch.device) -> None:
        self.config, self.device = config, device
        self.data = data.to(device) if fits(device, data.pixels) else data  # and is augmented there
        self.network = config.network().to(device).to(memory_format=torch.channels_last).train()
        self.method = chosen(config, self.network).to(device).train()
        trained = [*self.network.parameters(), *(item for item in self.method.parameters() if item.requires_grad)]
        self.optimizer = torch.optim.AdamW(trained, config.learning_rate, weight_decay=config.weight_decay)
        self.step = 0
        self._forward: nn.Module = self.network
        if config.compile:
            self._forward = torch.compile(self.network, dynamic=False)  # type: ignore[assignment]
            for child in self.method.children():
                if isinstance(child, SmallResNet):
                    child.compile(dynamic=False)
        self._order = BatchOrder(len(data), config.batch_size, config.seed)
        self._ahead: tuple[list[Tensor], Tensor | None] | None = None

    def _drawn(self, step: int) -> tuple[list[Tensor], Tensor | None]:
        index, data = self._order(step), self.data
        images = data.floats(sent(index, data.pixels.device))
        views = [sent(view, self.device) for view in self.method.views(images, step_generator(self.config.seed, step))]
        return views, None if data.labels is None else sent(data.labels[index], self.device)

    def advance(self) -> dict[str, float]:
        """One optimizer step; the loss, and the spread of the outputs."""
        config, method, step = self.config, self.method, self.step
        loop.set_rate(self.optimizer, loop.learning_rate(step, config.steps, config.warmup, config.learning_rate))
        views, labels = self._ahead if self._ahead is not None else self._drawn(step)
        loss = method.loss(self._forward, views, labels, step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.device.type == "cuda":
            self._ahead = self._drawn(step + 1)  # while the GPU works; the next line waits for it
        value = float(loss.detach())
        loop.check_finite(value, step)
        method.before_step(step)
        self.optimizer.step()
        method.after_step(self.network, step)
        self.step += 1
        terms = {"loss": round(value, 5)}
        if self.step % loop.LOGGED == 0 or self.step == config.steps:
            terms["spread"] = round(float(method.spread), 5)
            if terms["spread"] < _COLLAPSED:
                log.warning("step %d: the outputs have collapsed (spread %.2g)", self.step, terms["spread"])
        return terms

    def state(self) -> dict[str, Any]:
        """What a resume needs. Raises `RunError` rather than hand out weights that are no numbers."""
        states = {"network": self.network.state_dict(), "method": self.method.state_dict()}
        for name, tensor in (*states["network"].items(), *states["method"].items()):
            if not bool(tensor.isfinite().all()):
                raise RunError(f"{name} is not finite after {self.step} steps; the last state is from before")
        return {**states, "optimizer": self.optimizer.state_dict(), "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state.get("method", {}))  # runs from before other methods were known have none
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


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


def _check_probed(train: ImageSet, test: ImageSet) -> tuple[Tensor, Tensor]:
    """The labels of both. Raises `RunError` where there are none, and `ConfigError` where they mean other classes."""
    if train.labels is None or test.labels is None:
        raise RunError("accuracy needs labels: put the images into one sub-folder per class")
    check_classes(test, train)
    return train.labels, test.labels


def accuracy(network: SmallResNet, train: ImageSet, test: ImageSet) -> dict[str, float]:
    """kNN and linear-probe accuracy of the backbone and of the projector, in [0,1].

    Raises:
        RunError: images without labels.
        ConfigError: other classes in `test` than in `train`.
    """
    known, wanted = _check_probed(train, test)
    results: dict[str, float] = {}
    pairs = zip(("backbone", "projector"), features(network, train), features(network, test), strict=True)
    for name, bank, queries in pairs:
        results[f"{name}_knn"] = round(probes.knn_accuracy(bank, known, queries, wanted), 4)
        results[f"{name}_linear"] = round(probes.linear_probe_accuracy(bank, known, queries, wanted), 4)
    return results
