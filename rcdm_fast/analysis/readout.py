"""The same question without a decoder: can the change of a property be read off the change of the representation?

Samples show what a decoder draws; a decoder that was trained for a short time draws less than h holds. Two readouts of
the change from x to Tx are the control, ridge regressions on left-out images (`metrics/left_out.py`): a linear one of
h(Tx) - h(x), and a non-linear one of random functions of h(x) and h(Tx) that are 0 where h does not move. What stays
when T is done says nothing of T, however well it goes together with the property from image to image.

A circular property is a complex number z. The linear readout is asked for z(Tx) - z(x), which is linear in a cosine and
a sine; the other one for z(Tx) conj z(x) / |z(x)|, the turn itself, for which h need not say where it began.

How far h moves at all is told in squared distances to the nearest other image. A representation that moves as far as
another one, and of which less is read, has not become invariant: it holds the change in a form that is harder to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcdm_fast.analysis import properties
from rcdm_fast.analysis.augment import Augmentation
from rcdm_fast.config import ConfigError
from rcdm_fast.encoders import Encoder
from rcdm_fast.metrics import left_out, nearest, slopes
from rcdm_fast.metrics.intervals import Floats, Interval

MIN_READERS = 50  # images; below, a map from a hundred numbers is mostly noise
WAVES = 256  # of the non-linear readout
LINEAR, BENT = "linear", "non-linear"
_AT_ONCE = 256  # images that are changed and encoded


@dataclass(frozen=True)
class Readout:
    """What one augmentation does to the representations of N images, and what is read of it.

    Attributes:
        moved: |h(Tx) - h(x)|^2, mean over magnitudes; float64 [N].
        unit: squared distance of h(x) to that of the nearest other image; [N].
        gained: by readout, the squared error of the mean change less that of the readout; [N]. May be empty.
        spread: by readout, the squared error of the mean change; [N].
    """

    moved: Floats
    unit: Floats
    gained: dict[str, Floats]
    spread: dict[str, Floats]

    @property
    def movement(self) -> Interval:
        """Mean of `moved` over that of `unit`, with its interval over images."""
        return slopes.slope(self.moved, self.unit)

    def explained(self, name: str) -> Interval:
        """Cross-validated R^2 of a readout with its interval over images: 1 reads all, 0 no more than the mean does."""
        return slopes.slope(self.gained[name], self.spread[name])

    @property
    def all_explained(self) -> tuple[Interval, ...]:
        """R^2 of every readout; empty if there is none."""
        return tuple(self.explained(name) for name in self.gained)

    @property
    def best(self) -> Interval | None:
        """The largest R^2 of a readout; None if there is none."""
        return max(self.all_explained, key=lambda each: each.value, default=None)


def difference(a: Readout, b: Readout, name: str) -> Interval:
    """R^2 of a less that of b with its interval, the same images in both. Raises `ConfigError` for others."""
    spread = a.spread[name]
    if spread.shape != b.spread[name].shape or not np.allclose(spread, b.spread[name]):
        raise ConfigError("a difference of readouts needs the same images on both sides")
    return slopes.slope(a.gained[name] - b.gained[name], spread)


class Reader:
    """Images that readouts are fitted and judged on, each left out in turn, and their representations.

    Args:
        encoder: makes the representations.
        images: [N,3,H,W] in [-1,1]; at least two.
        fits: whether anything is fitted, which takes `MIN_READERS` images; else only the movement is measured.
        seen: the same images as the encoder sees them, [N,3,s,s]; `images` without.

    Raises:
        ConfigError: too few images to fit on, or all images have the same representation.
    """

    def __init__(self, encoder: Encoder, images: Tensor, fits: bool = True, seen: Tensor | None = None) -> None:
        if fits and len(images) < MIN_READERS:
            raise ConfigError(f"a readout is fitted on at least {MIN_READERS} images, got {len(images)}")
        self.encoder, self.images, self.fits = encoder, images, fits
        self.seen = images if seen is None else seen
        self.h = self._encoded(self.seen)
        self.unit = nearest.apart(self.h, self.h).square()

    def _encoded(self, images: Tensor) -> Tensor:
        return self.encoder.encode(images).double().cpu()

    def _changed(self, each: Augmentation, versions: Sequence[Tensor]) -> Iterator[Tensor]:
        """Representations [N,D] of what becomes of the images at every magnitude, `versions` at their own size."""
        for magnitude, version in zip(each.magnitudes, versions, strict=True):
            if self.seen is self.images:
                yield self._encoded(version)
            else:
                yield torch.cat([self._encoded(each(part, magnitude)) for part in self.seen.split(_AT_ONCE)])

    def read(self, each: Augmentation) -> Readout:
        """What the augmentation moves, and how much of its property's change is read."""
        prop = properties.find(each.changes)
        versions = [each(self.images, magnitude) for magnitude in each.magnitudes]
        change = torch.stack(list(self._changed(each, versions)), dim=1) - self.h[:, None]  # [N,M,D]
        moved = change.square().sum(dim=2).mean(dim=1)
        gained, spread = {}, {}
        if self.fits:
            before, after = prop(self.images)[:, None], torch.stack([prop(version) for version in versions], dim=1)
            rounding = nearest.SAME * float(self.h.square().mean().sqrt())
            bent = left_out.waves(self.h, change, WAVES, rounding)
            turned = _turned(before, after) if before.is_complex() else after - before
            for name, inputs, target in ((LINEAR, change, after - before), (BENT, bent, turned)):
                targets = torch.view_as_real(target) if target.is_complex() else target[..., None]
                error, alone = left_out.errors(inputs, targets, rounding if name == LINEAR else 0.0)
                gained[name], spread[name] = (alone - error).numpy(), alone.numpy()
        return Readout(moved.numpy(), self.unit.numpy(), gained, spread)


def _turned(before: Tensor, after: Tensor) -> Tensor:
    """How far directions turn, [N,1] and [N,M] -> complex128 [N,M]; 0 where there was none."""
    return after * before.conj() / before.abs().clamp_min(1e-12)
