"""How faithful samples are to the representation they were drawn from, and how like real images they are.

Every sample is re-encoded; the gallery of real representations is ranked by squared distance to it, and the rank of
the source image's own representation is counted (1 is best; Bordes et al. 2021, section 4.1). Ties count half.
Chance is a rank drawn uniformly from the gallery. Intervals are over source images, since samples of one are not
independent; of under 20 there are none. The distance of samples to h stands beside that of real neighbors, as in the
paper. Distributions are compared in a feature space that the caller names (`encoders/features.py`).

Beside them stand the same numbers of the sources themselves, blurred by one pixel: MRR depends on how an encoder takes
what no decoder can help, so it compares decoders in the space of one encoder (`rank_by`), not encoders. Variance over
the samples of one representation is what it leaves open; classes are read by a linear probe on another encoder.
Samples are drawn once (`draw`) and every measurement reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rcdm_fast import host
from rcdm_fast.checks import ConfigError, Count, CountOrNone, Resamples
from rcdm_fast.data.image_set import ImageSet, check_classes, evenly
from rcdm_fast.diffusion.sampling_config import PER_SOURCE, SamplingConfig
from rcdm_fast.encoders import Encoder, features
from rcdm_fast.encoders.features import FeatureSpace, of_encoder
from rcdm_fast.images import blur_images, from_uint8, to_uint8
from rcdm_fast.metrics import distributions, intervals, probes
from rcdm_fast.metrics.distributions import Distribution
from rcdm_fast.metrics.intervals import Interval, bootstrap
from rcdm_fast.metrics.nearest import rank_of, squared_distances
from rcdm_fast.model import Model
from rcdm_fast.training import representations

NEIGHBORS = (1, 5, 10)
BLUR = 1.0  # pixels
PART = 256  # images that are encoded at a time


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(SamplingConfig):
    """What to measure.

    Attributes:
        sources: source images, spread evenly over the gallery; 0 means 256, or the whole gallery if it is smaller.
        per: samples of each; how they are drawn as in `SamplingConfig`.
        gallery: real images that a sample is ranked among, spread evenly, one of each photograph; 0 means all.
        batch_size: images per network evaluation.
        resamples: bootstrap draws behind the 95 % intervals.
    """

    sources: CountOrNone = 0
    per: Count = PER_SOURCE
    gallery: CountOrNone = 0
    batch_size: Count = 64
    resamples: Resamples = 2000


@dataclass(frozen=True)
class Recognized:
    """How often a linear probe reads a source's class.

    Attributes:
        encoder: what the probe was fitted on.
        samples: fraction of samples whose class is their source's, in [0,1].
        sources: fraction of the sources themselves that are read rightly.
    """

    encoder: str
    samples: Interval
    sources: Interval


@dataclass(frozen=True)
class Faithfulness:
    """What `evaluate` measured.

    Attributes:
        mrr: mean reciprocal rank of the source, in (0,1].
        mean_rank: mean rank of the source, from 1.
        distance: mean squared distance between a sample's representation and its source's, h where the model's own
            encoder ranks.
        nearest: mean squared distance between the source's representation and the nearest other real one.
        chance_mrr, chance_mean_rank: of a rank drawn at random.
        gallery, sources, samples: sizes.
        reciprocal_ranks: of every source, the mean over its samples.
        nearest_real: mean squared distance between the source's representation and the k-th nearest other real one, by
            k (1, 5, 10, as far as the gallery goes).
        distribution: distances of distributions, if a feature space was given.
        blurred_mrr, blurred_mean_rank, blurred_distance: the same of the sources themselves, blurred by one pixel
            (Gaussian): what samples that are perfect but for that would have, with this encoder. It differs so
            much between encoders that their MRRs say nothing about which of them keeps more.
        variance: of a pixel's value in [-1,1] over the samples of one source (unbiased); None for one sample each.
        recognized: classes, if a probe was asked for.
        x0_errors: by timestep, if they were asked for (`denoising.py`).
        ranked_by: the encoder whose representations ranks and distances compare.
    """

    mrr: Interval
    mean_rank: Interval
    distance: Interval
    nearest: float
    chance_mrr: float
    chance_mean_rank: float
    gallery: int
    sources: int
    samples: int
    reciprocal_ranks: tuple[float, ...] = field(repr=False)
    nearest_real: dict[int, Interval] = field(default_factory=dict)
    distribution: Distribution | None = None
    blurred_mrr: Interval | None = None
    blurred_mean_rank: Interval | None = None
    blurred_distance: Interval | None = None
    variance: Interval | None = None
    recognized: Recognized | None = None
    x0_errors: dict[int, Interval] = field(default_factory=dict)
    ranked_by: str = ""


@dataclass(frozen=True)
class Drawn:
    """Samples and what they are compared with; S sources, P samples of each, G gallery images.

    Attributes:
        encoder: what made the representations; the model's own, or another that ranks samples.
        real: the gallery's images and labels.
        gallery: their representations by it, float32 [G,D].
        sources: places of the sources in the gallery, int64 [S].
        images: samples, uint8 [S,P,3,H,W].
        representations: of the samples before they were rounded to 8 bits, float32 [S,P,D].
    """

    encoder: Encoder
    real: ImageSet
    gallery: Tensor
    sources: Tensor
    images: Tensor
    representations: Tensor

    @property
    def labels(self) -> Tensor | None:
        """The source's label of every sample, int64 [S*P]; None if the data has no labels."""
        if self.real.labels is None:
            return None
        return self.real.labels[self.sources].repeat_interleave(self.images.shape[1])


class Sampled(Protocol):
    """What is compared of `Drawn`, and of samples without an encoder (`unranked.py`)."""

    @property
    def real(self) -> ImageSet: ...

    @property
    def sources(self) -> Tensor: ...

    @property
    def images(self) -> Tensor: ...


@host.guarded(gradients=True, random=True)
def evaluate(
    model: Model,
    data: ImageSet,
    config: EvaluateConfig,
    progress: Callable[[int, int], None] | None = None,
    space: FeatureSpace | None = None,
    guide: Model | None = None,
    rank_by: Encoder | None = None,
) -> Faithfulness:
    """Sample, re-encode, rank, and compare distributions if a feature space is given.

    Args:
        model: a model with an encoder.
        data: gallery and source images, of the size that the model makes.
        config: sizes and solver.
        progress: called with (sources done, sources in all).
        space: where distributions are compared, gallery and samples.
        guide: as in `Model.sample`.
        rank_by: the encoder in whose space sources are ranked; None for the model's own.

    Raises:
        ConfigError: fewer images than asked for, or a model without an encoder.
    """
    gallery, sources = counts(data, config)
    if space is not None:
        check_distribution(gallery, sources)
    drawn = draw(model, data, config, progress, guide, rank_by=rank_by)
    result = faithfulness(drawn, config)
    return result if space is None else dataclasses.replace(result, distribution=compare(drawn, space, config.seed))


def counts(data: ImageSet, config: EvaluateConfig) -> tuple[int, int]:
    """Gallery and source images that `config` means for this data. Raises `ConfigError` if there are too few."""
    known = len(data.one_of_each())
    size = config.gallery or known
    count = config.sources or min(256, size)
    if size > known or count > size:
        raise ConfigError(f"{count} sources in a gallery of {size} images: the data has {known}")
    if count < 2:
        raise ConfigError(f"an interval needs at least 2 source images, got {count}")
    return size, count


def draw(
    model: Model,
    data: ImageSet,
    config: EvaluateConfig,
    progress: Callable[[int, int], None] | None = None,
    guide: Model | None = None,
    gallery: Tensor | None = None,
    rank_by: Encoder | None = None,
) -> Drawn:
    """Encode the gallery, unless it is given, draw samples of the sources and encode those.

    Args:
        gallery: representations of the gallery as the model takes them, float32 [G,D] or [G,C,h,w].

    Other arguments and errors as in `evaluate`; with `rank_by` and a gallery the model needs no encoder.
    """
    encoder = rank_by or model.encoder
    if encoder is None or (model.encoder is None and gallery is None):
        raise ConfigError(
            "evaluation needs the model's encoder; give one with --encoder, or the images' --representations for what "
            "can be measured without"
        )
    size, count = counts(data, config)
    real = data.subset(data.spread(size))
    sources = evenly(count, size)
    if gallery is None:
        assert model.encoder is not None
        wanted = real if rank_by is None else real.subset(sources)  # the rest is for the other encoder alone
        found = representations.compute(model.encoder, wanted)
        gallery, h = found, found[sources] if rank_by is None else found
    else:
        h = gallery[sources]
    ranked = gallery if rank_by is None else representations.compute(rank_by, real)
    drawn, again = [], []
    for place in torch.arange(count).split(max(1, config.batch_size // config.per)):
        part = sources[place]
        images = model.sample(h[place], config, items=part, batch_size=config.batch_size, guide=guide)
        again.append(encoder.encode(images.flatten(0, 1)).cpu().view(len(part), config.per, -1))
        drawn.append(to_uint8(images).cpu())
        if progress is not None:
            progress(sum(map(len, drawn)), count)
    return Drawn(encoder, real, ranked, sources, torch.cat(drawn), torch.cat(again))


def faithfulness(drawn: Drawn, config: EvaluateConfig) -> Faithfulness:
    """Ranks and distances in the space of the encoder that `drawn` names."""
    gallery, size = drawn.gallery, len(drawn.gallery)
    count, per = drawn.representations.shape[:2]
    known = [k for k in NEIGHBORS if k < size]
    ranks, distances, near = [], [], []
    for again, source in zip(drawn.representations, drawn.sources.tolist(), strict=True):
        to_gallery = squared_distances(again, gallery)
        distances.append(to_gallery[:, source])
        ranks.append(rank_of(to_gallery, source))
        to_others = squared_distances(gallery[source : source + 1], gallery)[0]
        to_others[source] = torch.inf
        near.append(to_others.topk(max(known), largest=False).values)
    rank, neighbors = torch.stack(ranks).numpy(), torch.stack(near).numpy()
    rng = np.random.default_rng(config.seed)
    reciprocal = (1 / rank).mean(axis=1)
    blurred_ranks, blurred_distances = _blurred(drawn)
    return Faithfulness(
        mrr=intervals.fraction(reciprocal),
        mean_rank=intervals.mean_rank(rank.mean(axis=1), size, config.resamples, rng),
        distance=bootstrap(torch.stack(distances).numpy().mean(axis=1), config.resamples, rng),
        nearest=float(neighbors[:, 0].mean()),
        chance_mrr=float((1 / np.arange(1, size + 1)).mean()),
        chance_mean_rank=(size + 1) / 2,
        gallery=size,
        sources=count,
        samples=per,
        reciprocal_ranks=tuple(reciprocal.tolist()),
        nearest_real={k: bootstrap(neighbors[:, k - 1], config.resamples, rng) for k in known},
        blurred_mrr=intervals.fraction(1 / blurred_ranks),
        blurred_mean_rank=intervals.mean_rank(blurred_ranks, size, config.resamples, rng),
        blurred_distance=bootstrap(blurred_distances, config.resamples, rng),
        variance=None if per < 2 else bootstrap(variances(drawn.images), config.resamples, rng),
        ranked_by=features.called(drawn.encoder),
    )


def _blurred(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Rank and squared distance of every source, blurred; [S] each."""
    ranks, own = [], []
    for part in drawn.sources.split(PART):
        seen = drawn.encoder.encode(blur_images(drawn.real.floats(part), BLUR)).cpu()
        for each, source in zip(squared_distances(seen, drawn.gallery), part.tolist(), strict=True):
            ranks.append(rank_of(each[None], source)[0])
            own.append(each[source])
    return torch.stack(ranks).numpy(), torch.stack(own).numpy()


def variances(images: Tensor) -> np.ndarray:
    """Variance of a pixel in [-1,1] over the samples of a source (unbiased), its mean; uint8 [S,P,3,H,W] -> [S]."""
    return np.stack([from_uint8(each).var(dim=0).mean().numpy() for each in images])


def recognition(drawn: Sampled, encoder: Encoder, known: ImageSet) -> Recognized:
    """How often the source's class is read off samples, by a linear probe that had no part in drawing them.

    Args:
        drawn: samples, of labeled data.
        encoder: whose representations the probe reads (multinomial logistic regression).
        known: labeled images of the same classes that the probe is fitted on, none of them a source (not checked).

    Raises:
        ConfigError: images without labels, or of other classes.
    """
    check_classes(drawn.real, known)
    assert drawn.real.labels is not None
    assert known.labels is not None
    probe = probes.fit_linear_probe(representations.compute(encoder, known), known.labels)
    labels = drawn.real.labels[drawn.sources]
    sources, per = drawn.images.shape[:2]
    of_sources = torch.cat([encoder.encode(drawn.real.floats(part)).cpu() for part in drawn.sources.split(PART)])
    seen = [encoder.encode(from_uint8(part)).cpu() for part in drawn.images.flatten(0, 1).split(PART)]
    with torch.no_grad():
        right = (probe(torch.cat(seen)).argmax(dim=1).view(sources, per) == labels[:, None]).double().mean(dim=1)
        ceiling = (probe(of_sources).argmax(dim=1) == labels).double()
    return Recognized(
        of_encoder(encoder).name,
        intervals.fraction(right.numpy()),
        intervals.fraction(ceiling.numpy()),
    )


def compare(drawn: Sampled, space: FeatureSpace, seed: int = 0, reference: Tensor | None = None) -> Distribution:
    """Distances between the distributions of samples and of real images.

    One sample of each source is taken, since those of one are not independent. Sources are not among the real
    images that samples are held against: they stand beside the samples as what real images would have. Of at most as
    many sources as half of the gallery, unless a reference is given.

    Args:
        drawn: samples; its gallery without the sources is the real set unless another is given.
        space: where features come from. If it is the encoder that `drawn` names, nothing is encoded again.
        seed: of random subsets.
        reference: real images, uint8 [N,3,H,W].

    Raises:
        ConfigError: too few images (6 of each are needed).
    """
    known = len(drawn.real) if reference is None else None
    count = _compared(known, len(drawn.sources))
    chosen = evenly(count, len(drawn.sources))
    places = drawn.sources[chosen]
    rest = torch.ones(len(drawn.real), dtype=torch.bool)
    rest[places] = False
    encoded = drawn if isinstance(drawn, Drawn) and space.encoder is drawn.encoder else None
    logits = None
    if encoded is not None:
        samples, others = encoded.representations[chosen, 0], encoded.gallery[places]
    else:
        samples, logits = space.of(drawn.images[chosen, 0])
        others, _ = space.of(drawn.real.pixels[places])
    if encoded is not None and reference is None:
        real = encoded.gallery[rest]
    else:
        real, _ = space.of(drawn.real.pixels[rest] if reference is None else reference)
    return distributions.measure(space.name, real, samples, logits, seed, others)


def _compared(gallery: int | None, sources: int) -> int:
    """How many sources take part in distances of distributions; no gallery where a reference takes its place."""
    return sources if gallery is None else min(sources, gallery // 2)


def check_distribution(gallery: int, sources: int, reference: int | None = None) -> None:
    """Raises `ConfigError` if `compare` would have too few images, before anything is drawn; numbers of each."""
    count = _compared(gallery if reference is None else None, sources)
    distributions.check_counts(gallery - count if reference is None else reference, count)


def mrr_change(got: Faithfulness, want: Faithfulness, resamples: int = 2000, seed: int = 0) -> Interval:
    """Relative change of the MRR between two ways to draw the same samples, with its interval; -0.02 is 2 % less.

    Both come from the same sources and noise, so sources are drawn in pairs: the interval is that of the change alone.
    Under 20 sources there is none.

    Raises:
        ConfigError: not the same sources, or ranked by different encoders.
    """
    if (got.sources, got.samples, got.gallery) != (want.sources, want.samples, want.gallery):
        raise ConfigError("a change of MRR needs the same sources, samples and gallery on both sides")
    if got.ranked_by != want.ranked_by:
        raise ConfigError(f"a change of MRR needs one encoder that ranks, not {got.ranked_by} and {want.ranked_by}")
    a, b = np.array(got.reciprocal_ranks), np.array(want.reciprocal_ranks)
    if len(a) < intervals.LEAST:
        return intervals.alone(a.mean() / b.mean() - 1)
    drawn = intervals.draws(len(a), resamples, np.random.default_rng(seed))
    return intervals.of(a.mean() / b.mean() - 1, a[drawn].mean(axis=1) / b[drawn].mean(axis=1) - 1)
