"""The same question without a decoder: can a linear map read the changed property off the representation?

Samples show what a decoder draws; a decoder that was trained for a short time draws less than h holds. A ridge
regression from h to the property, fitted on other images at all magnitudes, is the control: where it recovers a
change and the samples do not, the decoder is to blame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast.analysis import properties
from rcdm_fast.analysis.augment import Augmentation
from rcdm_fast.analysis.recovery import Changes
from rcdm_fast.config import ConfigError
from rcdm_fast.encoders import Encoder
from rcdm_fast.metrics.ridge import Moments

MIN_READERS = 50  # images to fit on; below, a map from a hundred numbers is mostly noise
RIDGE = 0.01  # penalty per image, on standardized h


def read(encoder: Encoder, each: Augmentation, fitted_on: Tensor, sources: Tensor) -> Changes:
    """Changes of the property in sources, beside those that the map predicts from their representations.

    Args:
        encoder: makes the representations.
        each: the augmentation.
        fitted_on: images [G,3,H,W] in [-1,1] that the map is fitted on, none of them a source.
        sources: images [S,3,H,W].

    Raises:
        ConfigError: too few images to fit on.
    """
    if len(fitted_on) < MIN_READERS:
        raise ConfigError(f"a linear readout is fitted on at least {MIN_READERS} other images, got {len(fitted_on)}")
    prop = properties.find(each.changes)

    def versions(images: Tensor) -> tuple[Tensor, Tensor]:
        """Representations [V,N,D] and properties [V,N] of the images as they are and at every magnitude."""
        all_of_them = [images, *(each(images, magnitude) for magnitude in each.magnitudes)]
        h = torch.stack([encoder.encode(version).double().cpu() for version in all_of_them])
        return h, torch.stack([prop(version) for version in all_of_them])

    h, target = versions(fitted_on)
    predict = _Readout(h.flatten(0, 1), target.flatten())
    h, actual = versions(sources)
    predicted = predict(h.flatten(0, 1)).view(actual.shape)
    in_images = prop.change(actual[:1, :, None], actual[1:, :, None])
    in_readout = prop.change(predicted[:1, :, None], predicted[1:, :, None])
    return Changes(in_images.T, in_readout.T, prop.strength(actual[0]), prop.period)


class _Readout:
    """h [N,D] -> value [N] (real or complex), fitted by least squares with a penalty."""

    def __init__(self, h: Tensor, values: Tensor) -> None:
        self.mean, deviation = h.mean(dim=0), h.std(dim=0)
        self.deviation = deviation.clamp_min(1e-6 * float(deviation.max()) + 1e-12)
        self.complex = values.is_complex()
        numbers = torch.view_as_real(values) if self.complex else values[:, None]
        moments = Moments(h.shape[1] + 1, numbers.shape[1])
        moments.add(self._inputs(h), numbers.double())
        self.solution = moments.solve(RIDGE)

    def __call__(self, h: Tensor) -> Tensor:
        numbers = self._inputs(h) @ self.solution
        return torch.view_as_complex(numbers) if self.complex else numbers[:, 0]

    def _inputs(self, h: Tensor) -> Tensor:
        return F.pad(((h - self.mean) / self.deviation).double(), (0, 1), value=1.0)
