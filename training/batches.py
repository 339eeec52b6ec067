"""What a step of training works on: images, noise, timesteps and representations, as one process sees them.

Every random number of step k depends on (seed, k) alone, and belongs to the whole batch: resumed runs and runs in
several processes draw the same ones. What no loss can change may be drawn ahead, while a GPU works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import BatchOrder, ImageSet, fits, step_generator
from rcdm_fast.devices import sent
from rcdm_fast.training import distributed, masks, representations, timesteps
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.views import Views


@dataclass(frozen=True)
class Standardization:
    """h -> (h - mean) / std, folded into and out of the first linear layer W, b.

    With h the layer may be given `code_dim` more numbers, zero in use (`views.py`): weights for raw h have no columns
    for them, and get columns of zeros back. Of maps `mean` and `std` are those of channels, [C]: each goes over a
    channel's `positions`, and into both layers that maps lead into.
    """

    mean: Tensor
    std: Tensor
    code_dim: int = 0
    positions: int = 1

    def __call__(self, h: Tensor) -> Tensor:
        """Standardized representations."""
        mean, std = (each.repeat_interleave(self.positions) for each in (self.mean, self.std))
        return (h - mean) / std

    def fold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights for raw h from weights for standardized h."""
        found = dict(state)
        for name in _entries(state):
            weight = state[f"{name}.weight"][:, : len(self.std)] / self.std
            found |= {f"{name}.weight": weight, f"{name}.bias": state[f"{name}.bias"] - weight @ self.mean}
        return found

    def unfold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `fold`."""
        found = dict(state)
        for name in _entries(state):
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            inside = torch.cat([weight * self.std, weight.new_zeros((len(weight), self.code_dim))], dim=1)
            found |= {f"{name}.weight": inside, f"{name}.bias": bias + weight @ self.mean}
        return found


def _entries(state: Mapping[str, Tensor]) -> list[str]:
    """The linear layers that representations lead into."""
    return [name for name in ("ssl_emb", "ssl_deep.0", "map_film.project") if f"{name}.weight" in state]


@dataclass(frozen=True)
class _Drawn:
    """What a step needs and what no loss can change; tensors of N images on the process's device."""

    step: int
    x0: Tensor
    eps: Tensor
    h: Tensor


@dataclass(frozen=True)
class Batch:
    """What one process works on in a step; tensors of N images on its device."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    importance: Tensor
    h: Tensor
    all_t: Tensor  # of the whole batch, on the CPU

    def part(self, place: slice) -> Batch:
        x0, eps, t, importance, h = (value[place] for value in (self.x0, self.eps, self.t, self.importance, self.h))
        return Batch(x0, eps, t, importance, h, self.all_t)

    def __len__(self) -> int:
        return len(self.t)


class Batches:
    """The batches of a run; see the module.

    Args:
        config: the run.
        data: images.
        bank: their representations in every view, float32 [V,N,D]. Both move to a GPU that has room.
        dist: the processes.
    """

    def __init__(self, config: TrainConfig, data: ImageSet, bank: Tensor, dist: distributed.Processes) -> None:
        self._config, self._dist = config, dist
        self.views = Views(config.random_flip, config.augmented_views)
        shape = config.unet.condition_map
        if shape and (config.masked_parts or config.augmented_views):
            raise ConfigError("maps have neither masked_parts nor augmented_views: both change vectors")
        if config.masked_parts:
            masks.check(config.masked_parts, bank)
        mean, std = representations.standardization(bank[: self.views.still], shape)
        if not config.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        positions = math.prod(shape[1:])
        self.standard = Standardization(mean, std, self.views.code_dim, positions)
        cpu = torch.device("cpu")
        bank_device = dist.device if fits(dist.device, data.pixels, bank) else cpu
        data_device = dist.device if fits(dist.device, data.pixels) else cpu
        self.data, self.bank = data.to(data_device), bank.to(bank_device)
        self._near = Standardization(mean.to(bank_device), std.to(bank_device), positions=positions)
        self.order = BatchOrder(len(data), config.batch_size, config.seed)
        self.timesteps = timesteps.make(config.timesteps, config.schedule.diffusion_steps)
        self._ahead: _Drawn | None = None

    def draw(self, step: int) -> Batch:
        """This process's fraction of the batch of a step."""
        ahead, self._ahead = self._ahead, None
        drawn = ahead if ahead is not None and ahead.step == step else self._drawn(step)
        count = self._config.batch_size
        _, generator = self._seen(step)
        all_t, importance = self.timesteps.draw(count, generator)
        own = self._dist.fraction(count)
        t, importance = (sent(value[own], self._dist.device) for value in (all_t, importance))
        return Batch(drawn.x0, drawn.eps, t, importance, drawn.h, all_t)

    def look_ahead(self, step: int) -> None:
        """Draw what no loss can change of a step that comes next; nothing waits for it."""
        self._ahead = self._drawn(step)

    def _seen(self, step: int) -> tuple[Tensor, torch.Generator]:
        """The views of a step's batch, int64 [N], and the generator of its further numbers."""
        generator = step_generator(self._config.seed, step)
        return self.views.draw(self._config.batch_size, generator), generator

    def _drawn(self, step: int) -> _Drawn:
        """Images, noise and representations of a step, on their way to the device: nothing waits for it."""
        config, device = self._config, self._dist.device
        index = self.order(step)
        view, generator = self._seen(step)
        self.timesteps.draw(
            len(index), generator
        )  # what comes before the noise; `draw` draws it, once losses are known
        size = config.unet.image_size
        eps = torch.randn((len(index), 3, size, size), generator=generator)
        own = self._dist.fraction(len(index))
        index, view, eps = (value[own] for value in (index, view, eps))
        there = self.data.pixels.device
        index, view = sent(index, there), sent(view, there)
        x0, code = self.views.see(self.data.floats(index), view, index)
        there = self.bank.device
        h = self._near(self.bank[view.to(there), index.to(there)])
        if config.masked_parts:
            generator = step_generator(config.seed, step, masks.STREAM)
            h = h * sent(masks.drawn(config.masked_parts, config.batch_size, generator, config.unmasked)[own], there)
        if config.representation_dropout:
            dropped = torch.rand(config.batch_size, generator=step_generator(config.seed, step, stream=2))[own]
            null = self._near(torch.zeros_like(h))
            h = torch.where(sent(dropped < config.representation_dropout, there)[:, None], null, h)
        h, code = sent(h, device), sent(code, device)
        return _Drawn(step, sent(x0, device), sent(eps, device), torch.cat([h, code], dim=1))
