"""Variances at fixed h: numbers, directions and their shares of real images and of all samples, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.analysis.spread import fraction, fractions, heat, spread
from rcdm_fast.config import ConfigError

RED, GREEN, BLUE, GRAY = (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (0.0, 0.0, 0.0)


def flat(*colors: tuple[float, float, float]) -> Tensor:
    """Images of one color each, [N,3,4,4]."""
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 4, 4)


def test_directions_vary_by_the_pairs_of_samples() -> None:
    """1 - cos of the angle between two samples, the mean over all pairs: hues are 0, 120 or 240 degrees here."""
    samples = torch.stack([flat(RED, GREEN, BLUE), flat(RED, RED, GREEN), flat(BLUE, BLUE, BLUE)])
    real = flat(RED, GREEN)
    found = spread(samples, real)
    assert found.within["hue"].tolist() == pytest.approx([1.5, 1.0, 0.0], abs=1e-9)
    assert found.between["hue"] == pytest.approx(1.5)
    pairs = {"red": 3, "green": 2, "blue": 4}  # of nine samples
    same = sum(count * (count - 1) / 2 for count in pairs.values())
    assert found.overall["hue"] == pytest.approx(1 - (same - 0.5 * (36 - same)) / 36)


def test_shares_are_of_real_images_or_of_all_samples() -> None:
    dark, light = (-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)
    samples = torch.stack([flat(GRAY, light), flat(dark, dark)])
    real = flat((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
    found = spread(samples, real)
    within = [0.125, 0.0]  # unbiased: of 0 and 0.5; of two equal ones
    overall = float(np.var([0, 0.5, -0.5, -0.5], ddof=1))
    assert found.within["pixels"].tolist() == pytest.approx(within)
    assert (found.between["pixels"], found.overall["pixels"]) == pytest.approx((2, overall))
    assert [each.flatten().unique().tolist() for each in found.maps] == [[0.125], [0.0]]
    counts = np.array([[1.0, 1.0], [3.0, 1.0]])
    mean = np.array([0.125 / 2, 0.125 * 3 / 4])
    assert fraction(found, "pixels", counts).tolist() == pytest.approx((mean / 2).tolist())
    assert fraction(found, "pixels", counts, own=True).tolist() == pytest.approx((mean / overall).tolist())
    # brightness is counted from 0 to 1: a quarter of the variance, and the same shares
    assert fraction(found, "brightness", counts).tolist() == pytest.approx((mean / 2).tolist())
    told = {own: fractions(found, counts, own)["pixels"].value for own in (False, True)}
    assert told == pytest.approx({False: mean[0] / 2, True: mean[0] / overall})


def test_where_real_images_are_all_alike_there_is_no_share() -> None:
    samples = torch.stack([flat(GRAY, RED), flat(GREEN, BLUE)])
    found = spread(samples, flat(GRAY, GRAY, GRAY))
    counts = np.ones((4, 2))
    assert fraction(found, "pixels", counts).tolist() == [0] * 4
    assert fractions(found, counts)["pixels"].value == 0
    assert fraction(found, "pixels", counts, own=True).tolist() != [0] * 4
    with pytest.raises(ConfigError, match="at least 2"):
        spread(samples, flat(GRAY))


def test_the_scale_of_a_map_ends_where_it_is_told_to() -> None:
    maps = torch.tensor([[[0.0, 0.5]], [[1.0, 2.0]]])
    assert heat(maps, 3.0)[1, :, 0, 0].tolist() == pytest.approx([1, -1, -1])
    assert heat(maps, 3.0)[0, 0, 0].tolist() == pytest.approx([-1, 0])
