"""The map from one encoder to another's conditioning: numpy's solution, the penalty's choice, what is explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast.errors import RunError
from rcdm_fast.metrics import ridge as module
from rcdm_fast.metrics.ridge import HELD_OUT, PENALTIES, ridge


def made(count: int, noise: float, views: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs [V,N,5], old representations [V,N,4] that depend on them, weight [3,4] and bias [3]."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(views, count, 5, generator=generator)
    old = inputs @ torch.randn(5, 4, generator=generator) + noise * torch.randn(views, count, 4, generator=generator)
    return inputs, old, torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)


def by_rows(inputs: Tensor, old: Tensor, weight: Tensor, bias: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x with a 1 behind it, y, and which rows are held out: every tenth image, in all views."""
    x = inputs.double().flatten(0, 1).numpy()
    y = (old.double() @ weight.double().T + bias.double()).flatten(0, 1).numpy()
    held = np.tile(np.arange(inputs.shape[1]) % HELD_OUT == 0, inputs.shape[0])
    return np.concatenate([x, np.ones((len(x), 1))], axis=1), y, held


def solved(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Least squares with rows of the penalty's root below, none for the constant."""
    root = np.sqrt(penalty * len(x)) * np.eye(x.shape[1])[:-1]
    left, right = np.concatenate([x, root]), np.concatenate([y, np.zeros((len(root), y.shape[1]))])
    found: np.ndarray = np.linalg.lstsq(left, right, rcond=None)[0]
    return found


@pytest.mark.parametrize(("count", "noise"), [(40, 0.1), (12, 3.0)])
def test_the_penalty_is_chosen_on_every_tenth_image_and_the_map_solved_on_all(
    count: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    given = made(count, noise)
    x, y, held = by_rows(*given)
    errors = [float(((y[held] - x[held] @ solved(x[~held], y[~held], penalty)) ** 2).sum()) for penalty in PENALTIES]
    found = ridge(*given)
    best = PENALTIES[int(np.argmin(errors))]
    assert found.penalty == best
    wanted = solved(x, y, best)
    np.testing.assert_allclose(found.weight.numpy(), wanted[:-1].T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.bias.numpy(), wanted[-1], rtol=1e-8, atol=1e-10)
    assert np.abs(wanted - solved(x[~held], y[~held], best)).max() > 1e-4, "all images are another map than nine tenths"
    spread = float(((y[held] - y[~held].mean(axis=0)) ** 2).sum())
    assert found.explained == pytest.approx(1 - min(errors) / spread, rel=1e-9)


def test_what_is_linear_is_found_and_one_image_is_refused() -> None:
    inputs, old, weight, bias = made(60, 0.0)
    found = ridge(inputs, old, weight, bias)
    assert found.penalty == PENALTIES[0]
    assert found.explained == pytest.approx(1, abs=1e-6)
    with pytest.raises(RunError, match="at least 2 images, the data has 1"):
        ridge(inputs[:, :1], old[:, :1], weight, bias)
