"""Directions along which the playground moves a representation, by name.

Two kinds. *As FLIP*: what an augmentation does to h of the photograph at hand, so that strength 1 is where the changed
photograph's h lies on average, and -1 is as far on the other side. *Data*: from images that the playground was opened
with, the difference of mean representations between much and little of a property, and principal components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast.analysis.augment import AUGMENTATIONS, Augmentation
from rcdm_fast.analysis.directions import mean_difference, principal_directions
from rcdm_fast.analysis.properties import PROPERTIES
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, evenly
from rcdm_fast.encoders import Encoder
from rcdm_fast.metrics.intervals import LEAST
from rcdm_fast.training import representations

NEUTRAL = {"zoom": 1.0, "brightness": 1.0, "solarize": 1.0}  # magnitudes that change nothing; 0 for the others
MAX_IMAGES = 2000
COMPONENTS = 4

_AS = "as "
OF_PHOTOGRAPH = tuple(_AS + name for name in AUGMENTATIONS)
_PROPERTIES = {f"data: more {name}": each for name, each in PROPERTIES.items() if each.period is None}
_COMPONENTS = tuple(f"data: component {number + 1}" for number in range(COMPONENTS))
OF_DATA = (*_PROPERTIES, *_COMPONENTS)


def magnitudes_of(augmentation: Augmentation) -> tuple[float, ...]:
    """The magnitudes of its sweep that lie on the same side of the neutral one as the last: "as brightness" is up."""
    neutral = NEUTRAL.get(augmentation.name, 0.0)
    upwards = augmentation.magnitudes[-1] > neutral
    return tuple(each for each in augmentation.magnitudes if (each > neutral) == upwards)


def of_photograph(encoder: Encoder, view: Tensor, name: str) -> Tensor:
    """Mean of h(T(x)) - h(x) over the magnitudes of an augmentation T.

    Args:
        encoder: gives h.
        view: x, float32 [1,3,H,W] in [-1,1].
        name: one of `OF_PHOTOGRAPH`.

    Returns:
        float32 [1,D].
    """
    augmentation = AUGMENTATIONS[name.removeprefix(_AS)]
    versions = torch.cat([view, *(augmentation(view, each) for each in magnitudes_of(augmentation))])
    h = encoder.encode(versions)
    return h[1:].mean(dim=0, keepdim=True) - h[:1]


def of_data(encoder: Encoder, data: ImageSet) -> dict[str, Tensor]:
    """Every direction of `OF_DATA`, float32 [1,D] on the encoder's device.

    At most `MAX_IMAGES` images, spread evenly over the data, are looked at. A component is as long as the standard
    deviation along it; there are fewer of them where a representation is narrow.

    Raises:
        ConfigError: under `LEAST` images.
    """
    if len(data) < LEAST:
        raise ConfigError(f"directions from data need at least {LEAST} images, got {len(data)}")
    chosen = data.subset(evenly(min(len(data), MAX_IMAGES), len(data)))
    gallery = representations.compute(encoder, chosen)
    images = chosen.floats(slice(None))
    found = {name: mean_difference(gallery, each(images)) for name, each in _PROPERTIES.items()}
    found.update(zip(_COMPONENTS, principal_directions(gallery, COMPONENTS), strict=False))
    return {name: direction[None].to(encoder.device) for name, direction in found.items()}
