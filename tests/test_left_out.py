"""Readouts on left-out images: by fitting without each, on noise, and on what only a non-linear one reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcdm_fast.metrics import left_out
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.metrics.slopes import slope


def explained(inputs: Tensor, targets: Tensor) -> Interval:
    error, alone = left_out.errors(inputs, targets)
    return slope((alone - error).numpy(), alone.numpy())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [3, 70])  # fewer than there are rows, and more
def test_errors_are_those_of_maps_that_were_fitted_without_the_group(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, rows, penalty = 20, 3, 0.1
    x = drawn(groups, rows, width) + 3
    y = x[..., :2] @ drawn(2, 2, seed=1) + drawn(groups, rows, 2, seed=2) + 5
    monkeypatch.setattr(left_out, "PENALTIES", (penalty,))
    error, alone = left_out.errors(x, y)
    flat = x.flatten(0, 1)
    z = (x - flat.mean(0)) / flat.std(0, correction=0)
    for group in (0, 7, 19):
        rest = torch.arange(groups) != group
        a, b = z[rest].flatten(0, 1), y[rest].flatten(0, 1)
        off = a.mean(0)
        gram = (a - off).T @ (a - off) + penalty * groups * rows * torch.eye(width, dtype=torch.float64)
        weight = torch.linalg.solve(gram, (a - off).T @ (b - b.mean(0)))
        missed = y[group] - b.mean(0) - (z[group] - off) @ weight
        assert float(error[group]) == pytest.approx(float(missed.square().sum()), rel=1e-8)
        assert float(alone[group]) == pytest.approx(float((y[group] - b.mean(0)).square().sum()), rel=1e-8)


@pytest.mark.parametrize("width", [8, 60, 300])
def test_noise_is_not_read(width: int) -> None:
    """Of many inputs and many penalties, one by which the noise would be read best is not chosen."""
    values = [explained(drawn(100, 2, width, seed=seed), drawn(100, 2, 1, seed=99 - seed)) for seed in range(12)]
    mean = sum(each.value for each in values) / 12
    assert mean < 0.001
    assert sum(each.low > 0 for each in values) <= 1


def test_what_is_there_is_read() -> None:
    x = drawn(200, 3, 10)
    y = x[..., :1] + drawn(200, 3, 1, seed=1)
    found = explained(x, y)
    assert found.value == pytest.approx(0.5, abs=0.1)
    assert found.high - found.low < 0.15
    assert explained(x, x[..., :2]).low > 0.999


def test_a_product_of_place_and_change_is_read_by_waves_alone() -> None:
    before, change = drawn(300, 4), drawn(300, 3, 4, seed=1)
    y = before[:, None, :1] * change[..., :1]
    assert explained(change, y).high < 0.02
    assert explained(left_out.waves(before, change, 256), y).low > 0.2
    assert explained(left_out.waves(before, 1e-3 * change, 256), y).low > 0.2  # however small changes are


def test_what_does_not_move_is_not_read_whatever_else_is_known() -> None:
    before = drawn(100, 6)
    y = before[:, None, :1] * torch.tensor([0.5, 1.0], dtype=torch.float64)[:, None]  # known from the place alone
    rounding = 1e-7 * drawn(100, 2, 6, seed=1)
    assert float(left_out.waves(before, rounding, 64, floor=1e-5).abs().max()) == 0
    for inputs in (torch.zeros(100, 2, 6), left_out.waves(before, 0 * rounding, 64)):
        error, alone = left_out.errors(inputs, y)
        torch.testing.assert_close(error, alone)
    error, alone = left_out.errors(rounding, y, floor=1e-5)
    torch.testing.assert_close(error, alone)
    assert not torch.equal(left_out.errors(rounding, y)[0], alone)
