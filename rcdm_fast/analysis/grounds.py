"""Where a change of h moves pixels: around the object, or in it.

Bordes et al. (2021, section 5.3) set the dimensions that an image's neighbors share to zero, and see the background
go while the object stays. Here that is held against as many random dimensions. Pixels are compared before and after
with the same noise: the ground is the outer eighth of the image on every side, the object its middle half. Photographs
of other makings have their object elsewhere; nothing is said of those.

Sees samples and fractions: knows nothing about models or how h was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rcdm_fast.analysis import common
from rcdm_fast.analysis.common import ExperimentConfig
from rcdm_fast.analysis.result import Finding, Table, cell_text
from rcdm_fast.config import ConfigError
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Floats

LOST = -0.1  # fraction of samples: what may be lost of the class, beyond the control's loss, where it counts as kept

METHOD = (
    "Ground and object: root mean square change of pixels in the outer eighth on every side (G) and in the middle half "
    "(O), with the same noise; (G - O) / (G + O) is 1 where the ground alone changes, -1 where the object alone does. "
    "The ground goes and the object stays: that is surely larger than with the control, and the class is surely lost "
    f"in less than {-100 * LOST:.0f} points of a hundred more than with it."
)


@dataclass(frozen=True)
class Moved:
    """What one change of dimensions did, beside a control; S sources.

    Attributes:
        name: of the change.
        lean, control: towards the ground, float64 [S], of the change and of its control.
        kept, kept_control: fraction of samples with the source's class, float64 [S]; None without labels.
    """

    name: str
    lean: Floats
    control: Floats
    kept: Floats | None
    kept_control: Floats | None


def lean(before: Tensor, after: Tensor) -> Floats:
    """(G - O) / (G + O) of the changes G of the ground and O of the object, mean over samples; 0 where nothing changes.

    Args:
        before, after: samples with the same noise, float32 [S,P,3,H,W] in [-1,1].

    Returns:
        float64 [S], -1 (the object alone) to 1 (the ground alone).

    Raises:
        ConfigError: images of under 8 pixels, which have no such parts.
    """
    height, width = before.shape[-2:]
    if min(height, width) < 8:
        raise ConfigError(f"ground and object are distinguished from 8 pixels on, got {width} x {height}")
    inner = torch.zeros(height, width, dtype=torch.bool)
    inner[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    outer = torch.ones(height, width, dtype=torch.bool)
    outer[height // 8 : height - height // 8, width // 8 : width - width // 8] = False
    square = (after.double() - before.double()).square()
    ground, middle = (square[..., mask].mean(dim=(2, 3)).sqrt() for mask in (outer, inner))
    total = ground + middle
    found = (ground - middle) / torch.where(total > 0, total, 1.0)
    return found.mean(dim=1).numpy()


def table(moved: Sequence[Moved], config: ExperimentConfig) -> Table:
    """A row for each change."""
    rows = tuple(
        (
            each.name,
            common.interval(each.lean, config),
            common.interval(each.control, config),
            common.interval(each.lean - each.control, config),
        )
        for each in moved
    )
    note = "1: the ground alone changes; -1: the middle alone does; 0: both alike."
    return Table("ground", "Where pixels change", ("manipulation", "ground", "control", "difference"), rows, note)


def finding(moved: Moved, config: ExperimentConfig) -> Finding:
    """Whether the ground goes and the object stays, by the rule in `METHOD`."""
    gain = common.interval(moved.lean - moved.control, config)
    text = f"the ground changes by {cell_text(gain)} more than with random dimensions (1: it alone does)"
    group = "common dimensions hold the ground and not the object"
    claim = f"{moved.name}: the ground goes and the object stays"
    if moved.kept is None or moved.kept_control is None:
        return Finding(claim, None, f"{text}; without labels nothing tells whether the object stays", group, moved.name)
    lost = intervals.fraction_difference(moved.kept, moved.kept_control)
    text += f"; the class is kept {common.percent(lost)} more often than with these"
    return Finding(claim, common.all_hold((common.above(gain), common.above(lost, LOST))), text, group, moved.name)
