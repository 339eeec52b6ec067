"""Views of the images of a training set: as they are, mirrored, and moved by random affine maps.

A moved image is paired with its own representation, so every map adds a pair (image, representation) to learn from.
The network is told the map beside the representation, and asked for none when it samples: what it draws then looks
like the images themselves (the augmentation of Karras et al. 2022, appendix F.2, without turns by large angles). As
what it is told is zero then, finished weights have no trace of it (`batches.Standardization`).

The map of an image in a view never changes, so representations of all views can be computed once.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CODE_DIM = 7  # numbers: whether the image was moved, and the map's six, each about as large as 1
PLAIN = 0.25  # fraction of a batch that is not moved
VERSION = 1  # of the maps; named by files of representations

_MAPS = 65536
_STEP = 7919  # from view to view; a prime, so that maps of views differ
_ZOOM, _STRETCH, _TURN, _SHIFT = 0.25, 0.12, 8.0, 0.2  # deviations: octaves, octaves, degrees, half image sides
_LIMIT = 2.5  # deviations
_SAME = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_SCALES = (0.2, 0.14, 0.14, 0.2, 0.2, 0.2)  # about the deviations of the six numbers of a map from those of none


@dataclass(frozen=True)
class Views:
    """See the module; numbered: 0 the images, 1 mirrored ones (if `flips`), then `augmented` ones, by turns mirrored.

    Attributes:
        flips: whether there are mirrored ones.
        augmented: how many views are moved.
    """

    flips: bool
    augmented: int = 0

    @property
    def still(self) -> int:
        """Views in which images are not moved."""
        return 1 + self.flips

    def __len__(self) -> int:
        return self.still + self.augmented

    @property
    def code_dim(self) -> int:
        """How many numbers the network is told about a map."""
        return CODE_DIM if self.augmented else 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A view for each image of a batch; int64 [count]."""
        view = torch.zeros(count, dtype=torch.int64)
        if self.flips:
            view = (torch.rand(count, generator=generator) < 0.5).long()
        if not self.augmented:
            return view
        moved = torch.rand(count, generator=generator) >= PLAIN
        which = torch.randint(self.still, len(self), (count,), generator=generator)
        return torch.where(moved, which, view)

    def see(self, images: Tensor, view: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are seen in views, and what the network is told.

        Args:
            images: float [N,3,S,S] in [-1,1].
            view: int64 [N] on the images' device.
            index: int64 [N] there, the images' numbers in their set.

        Returns:
            The same shape and range; float32 [N,CODE_DIM], or [N,0] without augmented views.
        """
        if self.flips:
            images = torch.where((view % 2 == 1)[:, None, None, None], images.flip(3), images)
        if not self.augmented:
            return images, images.new_zeros((len(images), 0))
        moved = view >= self.still
        place = (index + _STEP * view) % _MAPS
        maps = _maps(images.device)[place].view(-1, 2, 3)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        seen = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        images = torch.where(moved[:, None, None, None], seen.clamp(-1, 1), images)
        return images, _codes(images.device)[place] * moved[:, None]


@functools.lru_cache(maxsize=4)
def _maps(device: torch.device) -> Tensor:
    """Affine maps from places of the seen image to places of the image, in halves of its side; float32 [_MAPS,6]."""
    numbers = torch.randn(_MAPS, 5, generator=torch.Generator().manual_seed(VERSION)).clamp(-_LIMIT, _LIMIT)
    zoom, stretch, turn, right, down = numbers.unbind(1)
    width = 2 ** (_ZOOM * zoom + _STRETCH * stretch)
    height = 2 ** (_ZOOM * zoom - _STRETCH * stretch)
    cos, sin = torch.cos(math.radians(_TURN) * turn), torch.sin(math.radians(_TURN) * turn)
    rows = [cos * width, -sin * height, _SHIFT * right, sin * width, cos * height, _SHIFT * down]
    return torch.stack(rows, dim=1).to(device)


@functools.lru_cache(maxsize=4)
def _codes(device: torch.device) -> Tensor:
    """What the network is told about each map; float32 [_MAPS,CODE_DIM]."""
    same, scales = torch.tensor([_SAME, _SCALES])
    scaled = (_maps(torch.device("cpu")) - same) / scales
    return torch.cat([torch.ones_like(scaled[:, :1]), scaled], dim=1).to(device)
