"""How far samples follow what a representation keeps, measured where the truth is known.

Items of a world are drawn again with one factor changed at a time. From what an oracle that keeps a subset of factors
says of each, a decoder draws samples, and all factors are read off these. With z the place of a value (a number; cosine
and sine of degrees; one of a choice's corners), the slope of a factor is

    sum <z(true, changed) - z(true), z(read, changed) - z(read)> / sum |z(true, changed) - z(true)|^2

over items, changed values and noise. It is 1 where samples follow entirely and 0 where they do not; for a choice it is
(accuracy - chance) / (1 - chance) if errors are evenly spread, and for a factor read with noise of its own nothing is
lost. Its interval is a bootstrap over items, since values and noise of one item are not independent.

Makes no verdict of a slope: that is a rule's to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.analysis.common import ExperimentConfig
from rcdm_fast.analysis.recovery import check_sources
from rcdm_fast.checks import ConfigError, Count, Range
from rcdm_fast.data.world import Factor, World
from rcdm_fast.diffusion.sampling_config import PER_VERSION
from rcdm_fast.encoders.oracle_code import Code
from rcdm_fast.images import from_uint8
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model

Read = Callable[[Tensor], Tensor]  # float [N,3,S,S] in [-1,1] -> factors, float64 [N,F]


class Sampler(Protocol):
    """What draws images of items of which some factors are kept."""

    def __call__(self, factors: Tensor, kept: Sequence[str], noise: Sequence[int]) -> Tensor:
        """Factors float64 [N,F], a key of the noise for each -> float [N,3,S,S] in [-1,1]."""


@dataclass(frozen=True, kw_only=True)
class SlopesConfig(ExperimentConfig):
    """Settings.

    Attributes:
        sources: items; at least 20.
        values: drawn anew for each factor of each item, from its whole range.
        noises: times that all of it is drawn, each from noise of its own.
        shared: whether an item and its changed versions are drawn from the same noise. A representation that drops a
            factor entirely then gives the very same sample, and the slope is exactly 0; without, its samples vary.
    """

    sources: Count = 64
    per: Count = PER_VERSION
    values: Annotated[Count, Range(1, 1000)] = 4
    noises: Annotated[Count, Range(1, 1000)] = 2
    shared: bool = False


@dataclass(frozen=True)
class Cell:
    """The slope of one factor where an oracle keeps `subset`; `kept` is the truth."""

    subset: tuple[str, ...]
    factor: str
    kept: bool
    slope: Interval


def cells(
    sampler: Sampler,
    read: Read,
    world: World,
    subsets: Sequence[Sequence[str]],
    config: SlopesConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """A slope for every subset and each of the world's first eight factors.

    Args:
        sampler: a decoder (`DecoderSampler`), or one whose truth is known (`IdealSampler`).
        read: reads factors off images; what it reads badly has a smaller slope.
        world: whose first items are the sources.
        subsets: names of the factors that are kept (`oracle_code.subsets`).
        config: settings.
        progress: called with (subsets done, subsets in all).

    Raises:
        ConfigError: fewer than 20 sources, more than the world has, or a reader that gives something else.
    """
    config = config or SlopesConfig()
    check_sources(config.sources, len(world))
    plan = _Plan.make(world, config)
    found: list[Cell] = []
    for done, subset in enumerate(subsets):
        tops = np.zeros((len(plan.places), config.sources))
        for number in range(config.noises):
            drawn = sampler(plan.factors, tuple(subset), plan.noise(number, config.shared))
            answer = read(drawn)
            if answer.shape != plan.factors.shape:
                raise ConfigError(f"factors that were read are {list(answer.shape)}, not {list(plan.factors.shape)}")
            tops += plan.products(answer)
        bottoms = config.noises * plan.products(plan.factors)
        for place, top, bottom in zip(plan.places, tops, bottoms, strict=True):
            name = world.about[place].name
            found.append(Cell(tuple(subset), name, name in subset, _slope(top, bottom, config)))
        if progress is not None:
            progress(done + 1, len(subsets))
    return found


def _slope(top: np.ndarray, bottom: np.ndarray, config: SlopesConfig) -> Interval:
    """Ratio of sums over sources [S], with its interval."""
    counts = intervals.resampled(len(top), config.resamples, config.seed)
    return intervals.of(top.sum() / bottom.sum(), (counts @ top) / np.maximum(counts @ bottom, 1e-12))


@dataclass(frozen=True)
class _Plan:
    """Sources, each followed by its changed versions; one row of factors for each image.

    Attributes:
        world, config: as given.
        factors: float64 [S (1 + 8 values), F].
        places: of the factors that are changed.
    """

    world: World
    config: SlopesConfig
    factors: Tensor
    places: range

    @staticmethod
    def make(world: World, config: SlopesConfig) -> _Plan:
        sources = world.factors(range(config.sources))
        places = range(min(8, len(world.about)))
        rows = sources[:, None].repeat(1, 1 + len(places) * config.values, 1)
        rng = np.random.default_rng([config.seed, 2])
        for number, place in enumerate(places):
            uniform = torch.from_numpy(rng.random((config.sources * config.values, len(world.about))))
            anew = world.scaled(uniform)[:, place].view(config.sources, config.values)
            if world.about[place].kind == "choice":  # another one: the same would change nothing
                count = world.about[place].high
                other = 1 + torch.floor(uniform[:, place] * (count - 1)).view(config.sources, config.values)
                anew = (sources[:, place : place + 1] + other) % count
            start = 1 + number * config.values
            rows[:, start : start + config.values, place] = anew
        return _Plan(world, config, rows.flatten(0, 1), places)

    @property
    def _each(self) -> int:
        return 1 + len(self.places) * self.config.values

    def noise(self, number: int, shared: bool) -> list[int]:
        """Keys of the noise of all rows, the `number`-th time."""
        rows = range(len(self.factors))
        first = number * len(self.factors)
        return [first + (row // self._each if shared else row) for row in rows]

    def products(self, read: Tensor) -> np.ndarray:
        """<true change, read change>, summed over each source's values; float64 [places, S]."""
        out = []
        for number, place in enumerate(self.places):
            factor, start = self.world.about[place], 1 + number * self.config.values
            changes = []
            for factors in (self.factors, read):
                z = _place(factors[:, place], factor).view(self.config.sources, self._each, -1)
                changes.append(z[:, start : start + self.config.values] - z[:, :1])
            out.append((changes[0] * changes[1]).sum(dim=(1, 2)))
        return torch.stack(out).numpy()


def _place(values: Tensor, factor: Factor) -> Tensor:
    """z of values [N]; float64 [N, 1 or more], see the module."""
    if factor.kind == "choice":
        return torch.nn.functional.one_hot(values.long(), int(factor.high)).double()
    if factor.kind == "circle":
        turns = torch.deg2rad(values.double())
        return torch.stack([turns.cos(), turns.sin()], dim=1)
    return values.double()[:, None]


@dataclass(frozen=True)
class IdealSampler:
    """What a perfect decoder would draw: kept factors as they are, all others anew at random, rendered.

    Attributes:
        world: whose images.
        seed: of the factors that are drawn.
        follows: the probability with which a kept factor is followed; if it is not, it is drawn anew, too.
    """

    world: World
    seed: int = 0
    follows: float = 1.0

    def factors(self, factors: Tensor, kept: Sequence[str], noise: Sequence[int]) -> Tensor:
        """What is rendered; float64 [N,F]."""
        uniform, dice = [], []
        for key in noise:
            rng = np.random.default_rng([self.seed, key])
            uniform.append(rng.random(len(self.world.about)))
            dice.append(rng.random(len(self.world.about)))
        anew = self.world.scaled(torch.from_numpy(np.stack(uniform)))
        followed = torch.from_numpy(np.stack(dice)) < self.follows
        known = torch.tensor([name in kept for name in self.world.names])
        return torch.where(followed & known, factors, anew)

    def __call__(self, factors: Tensor, kept: Sequence[str], noise: Sequence[int]) -> Tensor:
        """See `Sampler`."""
        return from_uint8(self.world.render(self.factors(factors, kept, noise)))


@dataclass(frozen=True)
class DecoderSampler:
    """A decoder that was trained on masked codes (configuration ``shapes-oracle``), given an oracle's.

    Attributes:
        model: the decoder; its representations are masked codes of `world`.
        world: whose factors.
        config: steps, seed and batch size of sampling.

    Raises:
        ConfigError: a model of other representations.
    """

    model: Model
    world: World
    config: ExperimentConfig = dataclasses.field(default_factory=ExperimentConfig)

    def __post_init__(self) -> None:
        wanted = Code(self.world.world, (), masked=True).dim
        if self.model.config.unet.representation_dim != wanted:
            given = self.model.config.unet.representation_dim
            raise ConfigError(
                f"masked codes of world:{self.world.world} have {wanted} numbers, the model takes {given}"
            )

    def __call__(self, factors: Tensor, kept: Sequence[str], noise: Sequence[int]) -> Tensor:
        """See `Sampler`."""
        code = Code(self.world.world, tuple(kept), masked=True)
        h = code(self.world.checked(factors), self.world.seed)
        drawn = self.model.sample(h, self.config, items=list(noise), batch_size=self.config.batch_size)
        return drawn[:, 0].cpu()
