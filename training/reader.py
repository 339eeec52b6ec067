"""Train a reader of factors on images of a world that are drawn for it: no image comes twice.

The batch of step k is made of the world's items k B .. k B + B - 1, so a resumed run sees what it would have seen. How
well every factor is read is measured on another world, of the next seed, and stands in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from rcdm_fast import host, storage
from rcdm_fast.checks import Count, LearningRate, NotNegative, Range
from rcdm_fast.data.world import World
from rcdm_fast.encoders import factor_reader
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.images import from_uint8
from rcdm_fast.training import loop
from rcdm_fast.training.config import InBatches
from rcdm_fast.training.state import RunFolder

FREE = ("name", "save_every")


@dataclass(frozen=True)
class ReaderConfig(InBatches):
    """A run.

    Attributes:
        name: of the file.
        world, size, seed: which images; seeds are at most 2^64 - 2.
        images: seen in all, in batches of `batch_size`.
        held_out: how many images of the next seed the scores are measured on.
    """

    name: str = "shapes-reader"
    world: Literal["shapes", "textured"] = "shapes"
    size: Annotated[int, Range(8, 512)] = 32
    images: Annotated[int, Range(1, 10_000_000)] = 100_000
    batch_size: Count = 64
    learning_rate: LearningRate = 2e-3
    weight_decay: NotNegative = 1e-4
    held_out: Annotated[int, Range(2, 1_000_000)] = 2000
    seed: Annotated[int, Range(0, 2**64 - 2)] = 0
    save_every: Count = 200


@host.guarded(gradients=True, random=True)
def train(
    config: ReaderConfig,
    out: str | Path,
    progress: loop.Progress | None = None,
    device: str | torch.device = "cpu",
    minutes: float | None = None,
) -> tuple[Path, dict[str, float]]:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME.safetensors (float16).

    Args:
        config, out: the run.
        progress: called with (steps done, steps in all, loss).
        device: where the network is; images are drawn on the CPU.
        minutes: stop once this call has worked for so long, with a state to go on from; at least one step is done.

    Returns:
        The file, and how well each factor is read on held-out images by what it holds, in [0,1].

    Raises:
        Paused: `minutes` ended before the run.
        RunError: another run in `out`, or one that is under way; a loss that is no finite number.
        ConfigError: a size that no reader has.
        StorageError: a file cannot be written; the last state that was stays.
    """
    deadline = loop.Deadline(minutes)
    folder = RunFolder(out)
    target = folder.path / f"{config.name}.safetensors"
    with folder.locked():
        storage.check_writable(target)
        torch.manual_seed(config.seed)
        reader = FactorReader(config.world, config.size).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        run = _Run(config, reader)
        loop.restored(run, loop.begin(folder, dataclasses.asdict(config), FREE), config)
        loop.walk(run, folder, config, progress, deadline=deadline)
        measured = held_out(factor_reader.rounded(reader).eval(), config.held_out, config.seed + 1)
        folder.log(measured)
        factor_reader.save(target, reader, {"run": dataclasses.asdict(config), "scores": measured})
    return target, measured


class _Run:
    """The moving parts: the network and its optimizer."""

    def __init__(self, config: ReaderConfig, reader: FactorReader) -> None:
        self.config, self.reader = config, reader
        self.optimizer = torch.optim.AdamW(reader.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self.world = World(config.world, config.images, config.size, config.seed)
        self.step = 0

    def advance(self) -> dict[str, float]:
        """One optimizer step; the loss."""
        config, step = self.config, self.step
        loop.set_rate(self.optimizer, loop.learning_rate(step, config.steps, 0.03, config.learning_rate))
        factors = self.world.factors(range(step * config.batch_size, (step + 1) * config.batch_size))
        seen = from_uint8(self.world.render(factors)).contiguous(memory_format=torch.channels_last)
        loss = self.reader.loss(seen.to(next(self.reader.parameters()).device), factors)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {"loss": round(float(loss.detach()), 5)}

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"reader": self.reader.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.reader.load_state_dict(state["reader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


def held_out(reader: FactorReader, count: int, seed: int) -> dict[str, float]:
    """How well a reader reads each factor of a world's first `count` items, in [0,1], rounded to four digits."""
    world = World(reader.world, count, reader.size, seed)
    true, read = [], []
    for _, factors, pixels in world.blocks():
        true.append(factors)
        read.append(reader.read(from_uint8(pixels)))
    return {name: round(value, 4) for name, value in reader.scores(torch.cat(true), torch.cat(read)).items()}
