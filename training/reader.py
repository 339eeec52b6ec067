"""Train a reader of factors on images of a world that are drawn for it: no image comes twice.

The batch of step k is made of the world's items k B .. k B + B - 1, so a resumed run sees what it would have seen. How
well every factor is read is measured on another world, of the next seed, and stands in the file.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from rcdm_fast import host, storage
from rcdm_fast.checks import Count, LearningRate, NotNegative, Range
from rcdm_fast.data.world import World
from rcdm_fast.encoders import factor_reader
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.errors import RunError
from rcdm_fast.images import from_uint8
from rcdm_fast.training import resume
from rcdm_fast.training.config import InBatches
from rcdm_fast.training.pretrain import learning_rate
from rcdm_fast.training.state import RunFolder

log = logging.getLogger(__name__)

FREE = ("name", "save_every")
_LOGGED = 50


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
    progress: Callable[[int, int, float], None] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Path, dict[str, float]]:
    """Train, resume if `out` holds an unfinished run, and write `out`/NAME.safetensors (float16).

    Args:
        config, out: the run.
        progress: called with (steps done, steps in all, loss).
        device: where the network is; images are drawn on the CPU.

    Returns:
        The file, and how well each factor is read on held-out images by what it holds, in [0,1].

    Raises:
        RunError: another run in `out`, or one that is under way; a loss that is no finite number.
        ConfigError: a size that no reader has.
        StorageError: a file cannot be written; the last state that was stays.
    """
    folder = RunFolder(out)
    target = folder.path / f"{config.name}.safetensors"
    with folder.locked():
        storage.check_writable(target)
        torch.manual_seed(config.seed)
        reader = FactorReader(config.world, config.size).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        _run(config, reader, folder, progress)
        measured = held_out(factor_reader.rounded(reader).eval(), config.held_out, config.seed + 1)
        folder.log(measured)
        factor_reader.save(target, reader, {"run": dataclasses.asdict(config), "scores": measured})
    return target, measured


def _run(
    config: ReaderConfig, reader: FactorReader, folder: RunFolder, progress: Callable[[int, int, float], None] | None
) -> None:
    settings = dataclasses.asdict(config)
    known = resume.as_before(folder.path, settings, FREE)
    state = folder.open(known)
    if known != settings:
        resume.keep(folder.path, settings)
    optimizer = torch.optim.AdamW(reader.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    step = 0
    if state is not None:
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        log.info("resumed at step %d of %d", step, config.steps)
    world = World(config.world, config.images, config.size, config.seed)
    device = next(reader.parameters()).device
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.steps, 0.03, config.learning_rate)
        factors = world.factors(range(step * config.batch_size, (step + 1) * config.batch_size))
        seen = from_uint8(world.render(factors)).contiguous(memory_format=torch.channels_last)
        loss = reader.loss(seen.to(device), factors)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} at step {step}; the last state in {folder.path} is from before")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if progress is not None:
            progress(step, config.steps, value)
        if step % _LOGGED == 0 or step == config.steps:
            folder.log({"step": step, "loss": round(value, 5), "images": step * config.batch_size})
        if step % config.save_every == 0 or step == config.steps:
            kept = {"reader": reader.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            folder.save(step, kept)


def held_out(reader: FactorReader, count: int, seed: int) -> dict[str, float]:
    """How well a reader reads each factor of a world's first `count` items, in [0,1], rounded to four digits."""
    world = World(reader.world, count, reader.size, seed)
    true, read = [], []
    for _, factors, pixels in world.blocks():
        true.append(factors)
        read.append(reader.read(from_uint8(pixels)))
    return {name: round(value, 4) for name, value in reader.scores(torch.cat(true), torch.cat(read)).items()}
