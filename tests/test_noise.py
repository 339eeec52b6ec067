"""Noise keyed by (seed, item, sample, step)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from rcdm_fast.diffusion import noise

SHAPE = (3, 8, 8)


def test_an_image_has_the_same_noise_in_any_company() -> None:
    keys = [(4, 0), (7, 2), (-3, 1)]
    together = noise.keyed_noise(11, keys, 0, SHAPE, "cpu")
    for row, key in enumerate(keys):
        assert torch.equal(together[row], noise.keyed_noise(11, [key], 0, SHAPE, "cpu")[0])


def test_every_part_of_the_key_matters() -> None:
    keys = [(seed, item, sample, step) for seed in (0, 1) for item in (0, 1) for sample in (0, 1) for step in (0, 1)]
    drawn = [noise.keyed_normal(*key, 64).tobytes() for key in keys]
    assert len(set(drawn)) == len(keys)


def test_items_on_both_sides_of_zero_differ() -> None:
    items = [-(2**63), -2, -1, 0, 1, 2, 2**63 - 1]
    drawn = {noise.keyed_normal(3, item, 0, 0, 64).tobytes() for item in items}
    assert len(drawn) == len(items)
    samples = {noise.keyed_normal(3, 0, sample, 0, 64).tobytes() for sample in range(5)}
    steps = {noise.keyed_normal(3, 0, 0, step, 64).tobytes() for step in range(5)}
    assert len(samples | steps) == 9  # sample 0 at step 0 is in both


def test_the_bits_are_these() -> None:
    """Pinned: a change here changes every image that anyone has made from a seed."""
    values = noise.keyed_normal(2021, 5, 3, 1, 1000)
    assert values.dtype == np.float32
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "6ca679af095b5ad0"


def test_it_is_normal() -> None:
    values = np.concatenate([noise.keyed_normal(0, item, 0, 0, 3072) for item in range(100)]).astype(np.float64)
    count = len(values)
    assert abs(values.mean()) < 4 / np.sqrt(count)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96 / count)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(count)
    halves = values.reshape(100, 2, -1)
    assert abs(np.corrcoef(halves[:, 0].ravel(), halves[:, 1].ravel())[0, 1]) < 4 / np.sqrt(count / 2)
    assert np.isfinite(values).all()


def test_odd_counts() -> None:
    assert len(noise.keyed_normal(0, 0, 0, 0, 7)) == 7


def test_extreme_keys() -> None:
    assert np.isfinite(noise.keyed_normal(2**64 - 1, -(2**63), 2**40, 10**6, 10)).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "0"])
def test_impossible_seeds(seed: object) -> None:
    with pytest.raises(ValueError, match="seed"):
        noise.check_seed(seed)


def test_seeds_up_to_both_ends() -> None:
    assert [noise.check_seed(seed) for seed in (0, 1, 2**64 - 1)] == [0, 1, 2**64 - 1]


def test_the_shape_is_the_images() -> None:
    found = noise.keyed_noise(3, [(1, 0), (1, 2)], 5, (2, 3, 4), "cpu")
    assert (found.shape, found.dtype) == ((2, 2, 3, 4), torch.float32)
    assert np.array_equal(found[1].flatten().numpy(), noise.keyed_normal(3, 1, 2, 5, 24))
