"""Are samples copies of real images? How near they come to one, beside how near other real images come.

Distances are told in units of what held-out real images have to their nearest gallery image. Two things can make a
sample near without a copy: the data may hold near copies itself, which the held-out images show, and a sample may be
average. In many dimensions the mean of all images is 1/sqrt(2) = 0.71 times as far from each of them as they are from
each other; half is nearer than averaging explains.

Finds copies of the images it is given, and of no others. Sees representations only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig
from rcdm_fast.analysis.result import Cell, Finding, Table, cell_text
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals, nearest
from rcdm_fast.metrics.intervals import Floats, Interval

COPY = 0.5  # of the usual distance; see above
TOLERATED = 0.05  # fraction of samples nearer than that, beyond the fraction of real images

METHOD = (
    "Copies: the distance from a sample to the nearest gallery image, over the mean of that distance for sources, "
    f"which are real and not in the gallery. No copies: the ratio of means is surely above {COPY} (a sample as average "
    "as the mean of all images comes no nearer than about 0.7 in many dimensions), and the fraction of samples under "
    f"{COPY} surely passes that of real images by less than {100 * TOLERATED:.0f} points of a hundred. Copies: one "
    "of both is surely on the other side. Only copies of images in the data are found: give the training images to "
    "look for copies of those."
)


@dataclass(frozen=True)
class Copies:
    """How near samples and held-out real images are to the gallery, in units of the latter's mean distance.

    Attributes:
        samples, real: distance to the nearest gallery image.
        ratio: of the means, the same sources drawn for both.
        near, near_real: share nearer than `COPY`.
        excess: the first minus the second, in pairs.
    """

    samples: Interval
    real: Interval
    ratio: Interval
    near: Interval
    near_real: Interval
    excess: Interval

    def finding(self) -> Finding:
        """Whether samples are no copies, by the rule in `METHOD`."""
        verdicts = common.above(self.ratio, COPY), common.below(self.excess, TOLERATED)
        near, near_real = common.percent(self.near), common.percent(self.near_real)
        measured = (
            f"distance to the nearest gallery image {cell_text(self.ratio)} of that of real images; "
            f"{near} of samples are under {COPY}, {near_real} of real images"
        )
        return Finding("samples are no copies of gallery images", common.all_hold(verdicts), measured)

    def table(self) -> Table:
        """A row for samples, one for real images."""
        rows: tuple[tuple[Cell, ...], ...] = (
            ("samples", self.samples, self.near),
            ("held-out real images", self.real, self.near_real),
        )
        note = "In units of the mean over held-out real images, which are the sources."
        columns = ("of", "distance", f"share under {COPY}")
        return Table("copies", "Distance to the nearest gallery image", columns, rows, note)


def search(again: Tensor, h: Tensor, gallery: Tensor, config: ExperimentConfig) -> Copies:
    """Distances of samples and of their sources to the gallery.

    Args:
        again: representations of samples, [S,P,D].
        h: of the sources, real images that are not in the gallery, [S,D].
        gallery: [G,D].
        config: for the intervals.

    Raises:
        ConfigError: all sources have the representation of a gallery image, so there is no unit.
    """
    real = nearest.distance(h, gallery)
    samples = nearest.distance(again.flatten(0, 1), gallery).view(again.shape[:2])
    usual = float(real.mean())
    if usual <= nearest.SAME * float(h.double().norm(dim=1).mean()):
        raise ConfigError("all sources have the representation of another image: no distance to compare with")
    real, samples = real / usual, samples / usual
    means, near, near_real = (
        each.numpy() for each in (samples.mean(dim=1), (samples < COPY).double().mean(dim=1), (real < COPY).double())
    )
    return Copies(
        common.interval(means, config),
        common.interval(real.numpy(), config),
        _ratio(means, real.numpy(), config),
        common.interval(near, config),
        common.interval(near_real, config),
        common.interval(near - near_real, config),
    )


def _ratio(top: Floats, bottom: Floats, config: ExperimentConfig) -> Interval:
    """mean(top) / mean(bottom) with its interval; a resample in which all of bottom is zero gives a large one."""
    return intervals.ratio(top, bottom, config.resamples, np.random.default_rng(config.seed))
