"""What adapting and distilling share: both go on from a finished model, and keep one average of what they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast import storage
from rcdm_fast.checks import Checked, Count, Fraction, FractionBelowOne, LearningRate, Positive, Seed
from rcdm_fast.config import EncoderConfig
from rcdm_fast.training import ema
from rcdm_fast.training.config import Precision
from rcdm_fast.training.loop import learning_rate, set_rate
from rcdm_fast.training.state import RunFolder

FREE = ("name", "weights", "save_every")  # what a run may be resumed with other values of


@dataclass(frozen=True)
class TuneConfig(Checked):
    """How a run goes on from a finished model.

    Attributes:
        name: name of the model that is made, written into its file.
        model: name, file, folder or hub id of the model that is begun with.
        encoder: what gives representations.
        batch_size: images or trajectories per step.
        learning_rate: peak, after a linear warm-up over `warmup` of the run; cosine decay to zero.
        ema: decay per step of the averaged weights, reached gradually ((1 + step) / (10 + step) before).
        random_flip: mirror images at random, with the mirrored image's own representation.
        save_every: in steps.
        weights: how the finished weights are stored.
    """

    name: str
    model: str
    encoder: EncoderConfig | None = None
    batch_size: Count = 32
    learning_rate: LearningRate = 1e-3
    warmup: Fraction = 0.03
    ema: FractionBelowOne = 0.99
    clip_norm: Positive = 1.0
    random_flip: bool = True
    seed: Seed = 0
    save_every: Count = 100
    weights: Precision = "fp32"

    def target(self, folder: RunFolder) -> Path:
        """The finished file. Raises `StorageError` where it cannot be written."""
        path = folder.path / f"{self.name}.safetensors"
        storage.check_writable(path)
        return path


class Tuned:
    """What is learned, its average, the optimizer and the step counter.

    Args:
        config, steps: how, and optimizer steps in all.
        trained: the tensors that are learned, by name.
        optimizer: makes the optimizer of them.
    """

    def __init__(
        self,
        config: TuneConfig,
        steps: int,
        trained: Mapping[str, Tensor],
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    ) -> None:
        self._settings, self._steps = config, steps
        self.trained = dict(trained)
        self.average = ema.Ema(self.trained, config.ema)
        self.optimizer = optimizer(list(self.trained.values()))
        self.step = 0

    def learn(self) -> float:
        """Step along the gradients, which are there; their norm before it was clipped."""
        config = self._settings
        norm = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), config.clip_norm)
        set_rate(self.optimizer, learning_rate(self.step, self._steps, config.warmup, config.learning_rate))
        self.optimizer.step()
        self.step += 1
        self.average.update(self.trained, self.step)
        return float(norm)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs beside the model it began with."""
        return {
            "step": self.step,
            "trained": {name: value.detach() for name, value in self.trained.items()},
            "average": self.average.tensors,
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.step = int(state["step"])
        before = state["trained" if "trained" in state else "student"]  # the name in distilling runs of before
        for name, value in self.trained.items():
            value.copy_(before[name])
        self.average.copy_(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
