"""Samples of representations, and where they lie when they are encoded again: distances to h and to real pictures.

Shared by experiments; knows nothing about what they claim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError
from rcdm_fast.pipeline import Model
from rcdm_fast.training.evaluate import squared_distances

CHUNK = 16  # representations that are sampled together


class Sampling(Protocol):
    """The settings that decide samples; see `Model.sample`."""

    @property
    def samples(self) -> int:
        """Of each representation."""

    @property
    def steps(self) -> int | str:
        """Network evaluations."""

    @property
    def solver(self) -> str:
        """Its name."""

    @property
    def seed(self) -> int:
        """Of all noise."""

    @property
    def batch_size(self) -> int:
        """Pictures per network evaluation."""


@dataclass(frozen=True)
class Reencoded:
    """S representations, P samples of each.

    Attributes:
        h: float32 [S,D].
        pictures: samples, float32 [S,P,3,H,W].
        again: their representations, float32 [S,P,D].
    """

    h: Tensor
    pictures: Tensor
    again: Tensor

    def distances(self) -> Tensor:
        """Of each sample's representation from h, float64 [S,P]."""
        found: Tensor = (self.again.double() - self.h.double()[:, None]).norm(dim=2)
        return found


def draw(
    model: Model, h: Tensor, items: Tensor, config: Sampling, told: Callable[[int], None] = lambda done: None
) -> Reencoded:
    """Sample and encode again.

    Args:
        model: a model with an encoder.
        h: float32 [S,D].
        items: keys of the noise, int64 [S].
        config: what to sample.
        told: called with the number of representations done.

    Raises:
        ConfigError: the model has no encoder.
    """
    if model.encoder is None:
        raise ConfigError("samples are encoded again: the model's encoder is needed; give one with --encoder")
    pictures, again = [], []
    for start in range(0, len(h), CHUNK):
        part = slice(start, start + CHUNK)
        drawn = model.sample(
            h[part],
            items=items[part],
            per=config.samples,
            steps=config.steps,
            solver=config.solver,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        again.append(model.encoder.encode(drawn.flatten(0, 1)).cpu().view(*drawn.shape[:2], -1))
        pictures.append(drawn.cpu())
        told(min(start + CHUNK, len(h)))
    return Reencoded(h.cpu(), torch.cat(pictures), torch.cat(again))


def to_gallery(h: Tensor, gallery: Tensor, own: Tensor | None = None) -> Tensor:
    """Distances of representations to those of a gallery; float [S,D], [G,D] -> float64 [S,G].

    Args:
        h: whose distances.
        gallery: to which.
        own: places in the gallery that are the representations themselves, int64 [S]; they count as infinitely far.
    """
    found = squared_distances(h, gallery).clamp_min(0).sqrt().double()
    if own is not None:
        found[torch.arange(len(h)), own] = torch.inf
    return found


def ranks(again: Tensor, h: Tensor, gallery: Tensor, own: Tensor | None = None) -> Tensor:
    """Rank of h among itself and a gallery, by distance to each sample; from 1, ties count half; float64 [S,P].

    Args:
        again: representations of samples, [S,P,D].
        h: [S,D].
        gallery: [G,D].
        own: places of h in the gallery, int64 [S], which are left out.
    """
    found = []
    for row in range(len(h)):
        mine = to_gallery(again[row], h[row : row + 1])
        others = to_gallery(again[row], gallery, None if own is None else own[row].expand(again.shape[1]))
        found.append(1 + (others < mine).double().sum(dim=1) + 0.5 * (others == mine).double().sum(dim=1))
    return torch.stack(found)
