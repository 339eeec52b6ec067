"""How far samples follow what a representation keeps, measured where the truth is known.

From what an oracle that keeps a subset of factors says of a world's items, a decoder draws samples, and all factors are
read off these. With z the place of a value (a number; cosine and sine of degrees; one of a choice's corners), the slope
of a factor is that of the regression of z(read) on z(true) over items,

    sum <z(true) - mean, z(read) - mean> / sum |z(true) - mean|^2

It is 1 where samples follow entirely and 0 where they do not; for a choice it is (accuracy - chance) / (1 - chance) if
errors are evenly spread, and for a factor read with noise of its own nothing is lost. A world draws its factors
independently of each other, so its items are an experiment in which every factor is changed at random: a slope is what
a change does, as if one factor at a time were changed, and every sample counts for all of them. Each item is drawn
several times, from noise of its own. Intervals are over items.

Makes no verdict of a slope: that is a rule's to say (`rules.py`).
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
from rcdm_fast.metrics import left_out, slopes
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model

WAVES = 256  # of the non-linear readout

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
        per: samples from one key of noise; one.
        noises: samples of each, for every subset, all of noise of their own.
    """

    sources: Count = 768
    per: Annotated[int, Range(PER_VERSION, PER_VERSION)] = PER_VERSION
    noises: Annotated[Count, Range(1, 1000)] = 2


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
    factors = world.factors(range(config.sources))
    rows = factors.repeat(config.noises, 1)
    found: list[Cell] = []
    for done, subset in enumerate(subsets):
        first = done * len(rows)  # of the noise, so that subsets err independently of each other
        answer = read(sampler(rows, tuple(subset), range(first, first + len(rows))))
        if answer.shape != rows.shape:
            raise ConfigError(f"factors that were read are {list(answer.shape)}, not {list(rows.shape)}")
        for column, factor in enumerate(world.about[:8]):
            true = place(factors[:, column], factor)
            seen = place(answer[:, column], factor).view(config.noises, *true.shape).mean(dim=0)
            found.append(Cell(tuple(subset), factor.name, factor.name in subset, slope(true, seen)))
        if progress is not None:
            progress(done + 1, len(subsets))
    return found


def readouts(h: Tensor, factors: Tensor, about: Sequence[Factor], seed: int) -> dict[str, tuple[Interval, ...]]:
    """R^2 of a change of every factor from the change of h, cross-validated over pairs of items.

    Of a ridge, and of one on random cosines of h and its change as well.

    Args:
        h: representations, float [2R,D]; item R + i is the other one of the pair of item i.
        factors: float64 [2R,F or more].
        about: the factors, F of them.
        seed: of the cosines.
    """
    before, after = h.double().chunk(2)
    change = (after - before)[:, None]
    bent = torch.cat([change, left_out.waves(before, change, WAVES, seed=seed)], dim=2)
    found = {}
    for column, factor in enumerate(about):
        first, second = place(factors[:, column], factor).chunk(2)
        tried = []
        for inputs in (change, bent):
            left, spread = (each.numpy() for each in left_out.errors(inputs, (second - first)[:, None]))
            tried.append(slopes.slope(spread - left, spread))
        found[factor.name] = tuple(tried)
    return found


def slope(true: Tensor, read: Tensor) -> Interval:
    """Of the regression of z [S,Z] on z [S,Z]."""
    true, read = true - true.mean(dim=0), read - read.mean(dim=0)
    return slopes.slope((true * read).sum(dim=1).numpy(), true.square().sum(dim=1).numpy())


def place(values: Tensor, factor: Factor) -> Tensor:
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
