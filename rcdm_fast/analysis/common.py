"""What experiments share: settings of a run, samples and what they re-encode to, intervals over sources, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.analysis.recovery import check_sources
from rcdm_fast.checks import ConfigError, Count, Resamples
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.diffusion.sampling_config import PER_VARIANCE, SamplingConfig
from rcdm_fast.encoders import Encoder
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.model import Model

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(SamplingConfig):
    """Settings of every experiment.

    Attributes:
        batch_size: images per network evaluation.
        resamples: bootstrap draws behind the intervals.
    """

    per: Count = PER_VARIANCE
    batch_size: Count = 64
    resamples: Resamples = 2000


@dataclass(frozen=True)
class Redrawn:
    """Samples of S sources, P of each, and what the encoder says of them.

    Attributes:
        images: float32 [S,P,3,H,W] in [-1,1], on the CPU.
        representations: float32 [S,P,D], on the CPU.
    """

    images: Tensor
    representations: Tensor


def encoder_of(model: Model, what: str) -> Encoder:
    """The model's encoder; `ConfigError` if it has none. `what` begins the sentence: "inversion needs"."""
    if model.encoder is None:
        raise ConfigError(f"{what} an encoder: give the model one with --encoder")
    return model.encoder


def name_of(model: Model) -> str:
    """What readers call the model."""
    return model.config.name or "(unnamed)"


def choose_sources(data: ImageSet, asked: int, default: int = 64) -> Tensor:
    """Places of source images, spread evenly over the data, int64 [S], no two of one photograph.

    Raises `ConfigError` if there are too few.
    """
    known = data.one_of_each()
    count = asked or min(default, len(known))
    check_sources(count, len(known))
    return known[evenly(count, len(known))]


def draw(model: Model, h: Tensor, items: Tensor, config: ExperimentConfig, per: int | None = None) -> Tensor:
    """Samples of h [S,D] with the noise of items, int64 [S] -> float32 [S,P,3,H,W] on the CPU; P is `per`, if given."""
    drawn = config if per is None else config.changed(per=per)
    return model.sample(h, drawn, items=items, batch_size=config.batch_size).cpu()


def redraw(
    model: Model, h: Tensor, items: Tensor, config: ExperimentConfig, progress: Progress | None = None
) -> Redrawn:
    """Samples of h and their representations, a batch at a time.

    Args:
        model: a model with an encoder.
        h: representations, float32 [S,D].
        items: keys of their noise, int64 [S].
        config: how they are drawn.
        progress: called with (sources done, all of them).
    """
    encoder = encoder_of(model, "re-encoding samples needs")
    images: list[Tensor] = []
    again: list[Tensor] = []
    for part in torch.arange(len(h)).split(max(1, config.batch_size // config.per)):
        drawn = draw(model, h[part], items[part], config)
        again.append(encoder.encode(drawn.flatten(0, 1)).cpu().view(len(part), config.per, -1))
        images.append(drawn)
        if progress is not None:
            progress(sum(map(len, images)), len(h))
    return Redrawn(torch.cat(images), torch.cat(again))


def spread_of(samples: Tensor) -> Tensor:
    """How much the samples of one source differ: standard deviation over them, averaged over pixels and colors.

    Samples [S,P,3,H,W] in [-1,1], P >= 2 -> float64 [S] in 8-bit levels.
    """
    return samples.double().std(dim=1).mul(127.5).flatten(1).mean(dim=1)


def interval(values: np.ndarray, config: ExperimentConfig) -> Interval:
    """Mean of a number per source [S] with its 95 % bootstrap interval over sources."""
    return bootstrap(values.astype(np.float64), config.resamples, np.random.default_rng(config.seed))


def fraction(values: np.ndarray) -> Interval:
    """Mean of fractions in [0,1], one per source [S], with its 95 % score interval."""
    return intervals.fraction(values.astype(np.float64))


def difference(a: np.ndarray, b: np.ndarray, config: ExperimentConfig) -> Interval:
    """mean(a) - mean(b) of two groups that are not paired, [N] and [M], with its 95 % bootstrap interval."""
    return intervals.difference(a, b, config.resamples, np.random.default_rng(config.seed))


def above(found: Interval, level: float = 0.0) -> bool | None:
    """True if the interval lies above the level, False if below it, None if it holds the level."""
    if found.low > level:
        return True
    return False if found.high < level else None


def below(found: Interval, level: float = 0.0) -> bool | None:
    """True if the interval lies below the level, False if above it, None if it holds the level."""
    opposite = above(found, level)
    return None if opposite is None else not opposite


def all_hold(verdicts: Iterable[bool | None]) -> bool | None:
    """True if all are, False if one is, None otherwise."""
    known = list(verdicts)
    if False in known:
        return False
    return None if None in known else True


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def text(found: Interval) -> str:
    """An interval for a sentence, two places after the point: "0.52 [0.41, 0.60]"."""
    return found.text(".2f")


def percent(found: Interval) -> str:
    """A fraction for a sentence: "52 % [41, 60]"."""
    return found.text(".0f", 100, " %")
