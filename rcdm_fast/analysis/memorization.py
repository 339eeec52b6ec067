"""Are samples copies of training images? How near they come to one, beside how near images come that never were there.

Distances, in pixels and in representations, are told in units of what the sources, real images that the model was not
trained on, have to their nearest training image. Two things can make a sample near without a copy: the data may hold
near copies itself, which the sources show, and a sample may be average. In many dimensions the mean of all
images is 1/sqrt(2) = 0.71 times as far from each of them as they are from each other; half is nearer than averaging
explains.

A sample that lies at its source is as far from training images as that source, whatever the decoder has memorized.
Where samples do so, in pixels or in representations, nothing is claimed there.

Finds copies of the images it is given, and of no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig
from rcdm_fast.analysis.result import Cell, Finding, Table, cell_text
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.metrics import intervals, nearest
from rcdm_fast.metrics.intervals import Floats, Interval

COPY = 0.5  # of the usual distance; see above
TOLERATED = 0.05  # fraction of samples nearer than that, beyond the fraction of sources; 75 sources can tell so much

CLAIM = "samples are no copies of training images"
METHOD = (
    "Copies: the distance from a sample to the nearest training image, in pixels and in representations, over the mean "
    "of that distance for the sources, which the model was not trained on. No copies: the ratio of means is surely "
    f"above {COPY} (a sample as average as the mean of all images comes no nearer than about 0.7 in many dimensions), "
    f"and the fraction of samples under {COPY} surely passes that of sources by less than {100 * TOLERATED:.0f} points "
    "of a hundred. Copies: one of both is surely on the other side. Open, too, where samples lie at their own sources "
    f"(surely above {COPY} of the usual distance is asked): they would be as far from training images in any case."
)
NOT_ASKED = "not looked for: that needs the images that the model was trained on (--train-data); no others tell"


@dataclass(frozen=True)
class Copies:
    """How near samples and held-out real images are to training images, in units of the latter's mean distance.

    Attributes:
        space: what distances are between: "pixels" or "representations".
        samples, real: distance to the nearest training image.
        ratio: of the means, the same sources drawn for both.
        near, near_real: fraction nearer than `COPY`.
        excess: the first minus the second, in pairs.
        own: distance of samples to their own source.
    """

    space: str
    samples: Interval
    real: Interval
    ratio: Interval
    near: Interval
    near_real: Interval
    excess: Interval
    own: Interval

    def finding(self) -> Finding:
        """Whether samples are no copies, by the rule in `METHOD`."""
        holds = common.all_hold((common.above(self.ratio, COPY), common.below(self.excess, TOLERATED)))
        near, near_real = common.percent(self.near), common.percent(self.near_real)
        measured = (
            f"distance to the nearest training image {cell_text(self.ratio)} of that of held-out real images; "
            f"{near} of samples are under {COPY}, {near_real} of held-out real images"
        )
        if holds and common.above(self.own, COPY) is not True:
            holds = None
            measured += f"; but samples lie at their own sources ({cell_text(self.own)}), so they could be no nearer"
        return Finding(f"{CLAIM}, by {self.space}", holds, measured, CLAIM, f"by {self.space}")


def search(
    drawn: Sequence[Tensor], real: Sequence[Tensor], training: ImageSet, known: Tensor, config: ExperimentConfig
) -> list[Copies]:
    """Distances of samples and of their sources to training images, in pixels and in representations.

    Args:
        drawn: samples, float32 [S,P,3,H,W] in [-1,1], and their representations, [S,P,D].
        real: the sources, float32 [S,3,H,W] in [-1,1], which the model was not trained on, and their h, [S,D].
        training: the images that it was trained on, of the same size.
        known: their representations [G,D].
        config: for the intervals.

    Raises:
        ConfigError: images of another size, or all sources are training images, so there is no unit.
    """
    size = tuple(drawn[0].shape[2:])
    if tuple(training.pixels.shape[1:]) != size or tuple(real[0].shape[1:]) != size:
        raise ConfigError(
            f"training images of {tuple(training.pixels.shape[1:])} cannot be compared with samples of {size}"
        )
    to_training = (
        [nearest.pixel_distance(images, training.pixels) for images in (drawn[0].flatten(0, 1), real[0])],
        [nearest.distance(h, known) for h in (drawn[1].flatten(0, 1), real[1])],
    )
    found = []
    for space, (near, usual), samples, source in zip(
        ("pixels", "representations"), to_training, drawn, real, strict=True
    ):
        scale = nearest.SAME * float(source.double().flatten(1).norm(dim=1).mean())
        own = (samples.double() - source.double()[:, None]).flatten(2).norm(dim=2)
        found.append(compared(space, near.view(own.shape).numpy(), usual.numpy(), own.numpy(), scale, config))
    return found


def compared(space: str, samples: Floats, real: Floats, own: Floats, scale: float, config: ExperimentConfig) -> Copies:
    """What distances say.

    Args:
        space: of the distances.
        samples: from samples to their nearest training image, [S,P].
        real: from sources, [S].
        own: from samples to their sources, [S,P].
        scale: a mean of `real` that is no more than rounding.
        config: for the intervals.

    Raises:
        ConfigError: `real` is nothing but rounding.
    """
    usual = float(real.mean())
    if usual <= scale:
        raise ConfigError(
            f"all sources are training images, by {space}: copies are looked for with images that are none"
        )
    samples, real, own = samples / usual, real / usual, own / usual
    means, near, near_real = samples.mean(axis=1), (samples < COPY).mean(axis=1), (real < COPY).astype(np.float64)
    rng = np.random.default_rng(config.seed)
    return Copies(
        space,
        common.interval(means, config),
        common.interval(real, config),
        intervals.ratio(means, real, config.resamples, rng),
        common.fraction(near),
        common.fraction(near_real),
        intervals.fraction_difference(near, near_real),
        common.interval(own.mean(axis=1), config),
    )


def table(found: Sequence[Copies]) -> Table:
    """A row for samples and one for real images, in each space."""
    rows: list[tuple[Cell, ...]] = []
    for each in found:
        rows.append((f"samples, {each.space}", each.samples, each.near))
        rows.append((f"held-out images, {each.space}", each.real, each.near_real))
        rows.append((f"samples to source, {each.space}", each.own, None))
    note = (
        "In units of the mean distance from a source, an image that the model was not trained on, to the nearest one."
    )
    columns = ("of", "distance", f"fraction under {COPY}")
    return Table("copies", "Distance to the nearest training image", columns, tuple(rows), note)
