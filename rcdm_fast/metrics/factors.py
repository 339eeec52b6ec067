"""How well factors were read: one score in [0,1] for a number, a direction and a choice alike."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rcdm_fast.config import ConfigError


def score(kind: Literal["choice", "scalar", "circle"], true: Tensor, read: Tensor, choices: int = 0) -> float:
    """0: nothing of the factor was read; 1: all of it.

    Args:
        kind: ``scalar``: Pearson's correlation, 0 where it is negative. ``circle``, degrees: the length of the mean of
            exp(i (read - true)), so that a constant offset counts as read. ``choice``: (fraction of right ones -
            chance) / (1 - chance) with chance 1 / choices, 0 where it is negative.
        true, read: float [N].
        choices: how many values a choice can have.

    Raises:
        ConfigError: not two equally long rows of at least two finite numbers, or a choice among fewer than two.
    """
    if true.ndim != 1 or true.shape != read.shape or len(true) < 2:
        raise ConfigError(f"a score needs two rows of at least two numbers, got {list(true.shape)}, {list(read.shape)}")
    true, read = true.double(), read.double()
    if not bool(torch.isfinite(true).all() and torch.isfinite(read).all()):
        raise ConfigError("a score needs finite numbers")
    if kind == "circle":
        turns = torch.deg2rad(read - true)
        return float(torch.complex(turns.cos(), turns.sin()).mean().abs())
    if kind == "choice":
        if choices < 2:
            raise ConfigError(f"a choice is one of at least two values, got {choices}")
        right = float((true == read).double().mean())
        return max(0.0, (right - 1 / choices) / (1 - 1 / choices))
    true, read = true - true.mean(), read - read.mean()
    spread = math.sqrt(float(true.square().sum() * read.square().sum()))
    return max(0.0, float((true * read).sum()) / spread) if spread > 0 else 0.0
