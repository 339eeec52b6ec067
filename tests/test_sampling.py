"""The way from one representation to another, at its edges."""

from __future__ import annotations

import pytest
import torch

from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import noise
from rcdm_fast.diffusion.sampling import interpolation_path
from tests import small


def test_parallel_representations_have_a_straight_way() -> None:
    a = torch.tensor([1.0, 2.0, -2.0])
    want = torch.tensor([1.0, 1.5, 2.0])[:, None] * a
    torch.testing.assert_close(interpolation_path(a, 2 * a, 3, "spherical"), want)
    torch.testing.assert_close(interpolation_path(a, a, 2, "spherical"), a.expand(2, 3))


def test_opposite_representations_have_no_shortest_way_along_the_sphere() -> None:
    a = torch.tensor([1.0, 2.0, -2.0])
    with pytest.raises(ConfigError, match="are opposite"):
        interpolation_path(a, -3 * a, 4, "spherical")
    torch.testing.assert_close(interpolation_path(a, -a, 3, "linear")[1], torch.zeros(3))
    nearly = -a + torch.tensor([0.0, 0.1, 0.1])
    path = interpolation_path(a, nearly, 5, "spherical")
    torch.testing.assert_close(path.norm(dim=1), torch.linspace(3, float(nearly.norm()), 5), rtol=1e-4, atol=1e-4)
    steps = (path[1:] - path[:-1]).norm(dim=1)
    assert float(steps.max() / steps.min()) < 1.1


def test_a_quarter_of_a_circle_has_equal_angles() -> None:
    path = interpolation_path(torch.tensor([0.0, 5.0]), torch.tensor([5.0, 0.0]), 4, "spherical")
    angles = torch.atan2(path[:, 0], path[:, 1]).rad2deg()
    torch.testing.assert_close(angles, torch.tensor([0.0, 30, 60, 90]), atol=1e-3, rtol=0)
    torch.testing.assert_close(path.norm(dim=1), torch.full((4,), 5.0))


@pytest.mark.parametrize("solver", ["ancestral", "dpmpp_2m_sde"])
def test_keyed_noise_is_that_of_seed_item_sample_and_step(solver: str) -> None:
    model, h = small.model(), torch.randn(2, small.DIM)
    drawn = model.sample(h, items=[7, 3], per=2, steps=3, solver=solver, seed=5)
    keys = [(item, sample) for item in (7, 3) for sample in range(2)]
    x_t, *steps = (
        noise.keyed_noise(5, keys, step, (3, 8, 8), torch.device("cpu")).view(2, 2, 3, 8, 8) for step in range(4)
    )
    given = model.sample(h, per=2, steps=3, solver=solver, noise=x_t, step_noise=torch.stack(steps))
    assert torch.equal(given, drawn)
    again = model.sample(h, per=2, steps=3, solver=solver, noise=x_t, step_noise=torch.stack([x_t, *steps[:2]]))
    assert not torch.equal(again, drawn)
