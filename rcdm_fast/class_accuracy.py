"""How well an encoder tells classes apart: neighbors and a linear probe, fitted on some images and asked of others.

What `rcdm encoders SPEC --data A --test-data B` prints, of any encoder and any of its layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rcdm_fast.data.image_set import ImageSet, check_classes, check_unseen
from rcdm_fast.encoders import Encoder
from rcdm_fast.metrics import intervals, probes
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.training import representations


@dataclass(frozen=True)
class ClassAccuracy:
    """Fractions of test images whose class is named, in [0,1], each with its 95 % score interval (Wilson).

    Attributes:
        knn: by the 200 nearest neighbors, weighted by cosine similarity (Wu et al. 2018).
        linear: by multinomial logistic regression on standardized representations.
        classes: how many there are.
        images, test_images: how many these were fitted on, and asked of.
    """

    knn: Interval
    linear: Interval
    classes: int
    images: int
    test_images: int


def measure(encoder: Encoder, known: ImageSet, test: ImageSet) -> ClassAccuracy:
    """Accuracies of an encoder's representations.

    Args:
        encoder: any; a map is taken as a row of numbers.
        known: labeled images, among which neighbors are looked for, and which the probe is fitted on.
        test: other labeled images, of the same classes.

    Raises:
        ConfigError: images without labels or of other classes, or test images that are among the known ones.
    """
    check_classes(test, known)
    check_unseen(known, test)
    assert known.labels is not None
    assert test.labels is not None
    bank, queries = representations.compute(encoder, known), representations.compute(encoder, test)
    probe = probes.fit_linear_probe(bank, known.labels)
    with torch.no_grad():
        named = probe(queries).argmax(dim=1)
    right = (probes.knn_classes(bank, known.labels, queries) == test.labels, named == test.labels)
    knn, linear = (intervals.fraction(each.double().numpy()) for each in right)
    return ClassAccuracy(knn, linear, len(test.classes), len(known), len(test))
