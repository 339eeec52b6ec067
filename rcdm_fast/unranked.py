"""What can be said of samples where nobody has the encoder: representations came without it, and samples get none.

Ranks and distances need it and are left out by name. What is left: variance over samples, distributions in another
feature space, classes read by a probe on another encoder, and errors of x0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import evaluation, host
from rcdm_fast.checks import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.denoising import x0_errors
from rcdm_fast.encoders import Encoder
from rcdm_fast.encoders.features import FeatureSpace
from rcdm_fast.evaluation import EvaluateConfig, Recognized
from rcdm_fast.images import to_uint8
from rcdm_fast.metrics.distributions import Distribution
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.model import Model

LEFT_OUT = (
    "MRR and mean rank of the source",
    "squared distance of samples to the source",
    "MRR of the source, blurred",
)


@dataclass(frozen=True)
class Samples:
    """Samples of representations from elsewhere; S sources, P samples of each.

    Attributes:
        real: images that they are compared with, G of them.
        sources: places of the sources among those, int64 [S].
        images: uint8 [S,P,3,H,W].
        h: representations of the sources, float32 [S,D].
    """

    real: ImageSet
    sources: Tensor
    images: Tensor
    h: Tensor

    @property
    def labels(self) -> Tensor | None:
        """The source's label of every sample, int64 [S*P]; None if the data has no labels."""
        if self.real.labels is None:
            return None
        return self.real.labels[self.sources].repeat_interleave(self.images.shape[1])


@dataclass(frozen=True)
class Unranked:
    """What was measured; see `evaluation.Faithfulness` for what is called the same there.

    Attributes:
        left_out: what needs the encoder.
    """

    sources: int
    samples: int
    variance: Interval | None = None
    distribution: Distribution | None = None
    recognized: Recognized | None = None
    x0_errors: dict[int, Interval] = field(default_factory=dict)
    left_out: tuple[str, ...] = LEFT_OUT


@host.guarded(gradients=True, random=True)
def draw(
    model: Model,
    data: ImageSet,
    h: Tensor,
    config: EvaluateConfig,
    progress: Callable[[int, int], None] | None = None,
    guide: Model | None = None,
) -> Samples:
    """Samples of the representations of source images, spread as in `evaluation.draw`.

    Args:
        model: takes representations of that width.
        data: images, and `h`: a representation of each, float32 [N,D].
        config: sizes and solver.
        progress: called with (sources done, sources in all).
        guide: as in `Model.sample`.

    Raises:
        ConfigError: another number of representations, or fewer images than asked for.
    """
    if len(h) != len(data):
        raise ConfigError(f"{len(h)} representations for {len(data)} images")
    size, count = evaluation.counts(data, config)
    chosen, sources = data.spread(size), evenly(count, size)
    own = h[chosen][sources]
    drawn: list[Tensor] = []
    for part in torch.arange(count).split(max(1, config.batch_size // config.per)):
        images = model.sample(own[part], config, items=sources[part], batch_size=config.batch_size, guide=guide)
        drawn.append(to_uint8(images).cpu())
        if progress is not None:
            progress(sum(map(len, drawn)), count)
    return Samples(data.subset(chosen), sources, torch.cat(drawn), own)


def measure(
    model: Model,
    drawn: Samples,
    config: EvaluateConfig,
    *,
    space: FeatureSpace | None = None,
    reference: Tensor | None = None,
    probe: tuple[Encoder, ImageSet] | None = None,
    denoising: bool = False,
) -> Unranked:
    """All that needs no encoder of the model's.

    Args:
        model: that drew them.
        drawn: samples.
        config: seed and bootstrap draws.
        space: where distributions are compared.
        reference: real images for that, uint8 [N,3,H,W], in place of the data's.
        probe: an encoder, and labeled images that a linear probe on it is fitted on.
        denoising: also errors of x0.

    Raises:
        ConfigError: too few images, or images without labels for a probe.
    """
    per = drawn.images.shape[1]
    rng = np.random.default_rng(config.seed)
    variance = bootstrap(evaluation.variances(drawn.images), config.resamples, rng) if per > 1 else None
    distribution = None if space is None else evaluation.compare(drawn, space, config.seed, reference)
    recognized = None if probe is None else evaluation.recognition(drawn, *probe)
    errors = x0_errors(model, drawn.real, drawn.sources, seed=config.seed, h=drawn.h) if denoising else {}
    return Unranked(len(drawn.sources), per, variance, distribution, recognized, errors)
