"""The loss and the averages by hand: edge bins of the likelihood, weights of pictures, the early ramp of an average."""

from __future__ import annotations

import pytest
import torch

from rcdm_fast.config import ScheduleConfig
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.training.ema import Ema
from rcdm_fast.training.losses import DiffusionLoss, LossConfig, _discrete_log_likelihood


@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.999, 0.0, 0.5, 0.999, 1.0, 1.3])
@pytest.mark.parametrize("deviation", [0.002, 0.05, 0.7])
def test_the_likelihood_of_all_levels_sums_to_one_at_the_edges_too(mean: float, deviation: float) -> None:
    """The first and the last bin reach to infinity (Ho et al. 2020, equation 13)."""
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    log = torch.full_like(levels, deviation).log()
    found = _discrete_log_likelihood(levels, torch.full_like(levels, mean), log).exp()
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)
    lowest = torch.special.ndtr(torch.tensor((-1 + 1 / 255 - mean) / deviation, dtype=torch.float64))
    highest = 1 - torch.special.ndtr(torch.tensor((1 - 1 / 255 - mean) / deviation, dtype=torch.float64))
    assert float(found[0]) == pytest.approx(float(lowest), abs=1e-9)
    assert float(found[-1]) == pytest.approx(float(highest), abs=1e-9)


@pytest.mark.parametrize("learned", [False, True])
def test_importance_weighs_pictures(learned: bool, generator: torch.Generator) -> None:
    schedule = Schedule.make(ScheduleConfig(20, "cosine", variance="learned_range" if learned else "fixed_large"))
    loss = DiffusionLoss(schedule, LossConfig())
    x0, eps = (torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1 for _ in range(2))
    t = torch.tensor([0, 5, 10, 19])
    output = torch.randn(4, 6 if learned else 3, 4, 4, generator=generator)
    x_t = loss.noisy(x0, eps, t)
    plain = loss(output, x0, x_t, eps, t)
    torch.testing.assert_close(plain["loss"], plain["each"].mean())
    if not learned:
        torch.testing.assert_close(plain["each"], (output - eps).square().flatten(1).mean(dim=1))
    weight = torch.tensor([0.5, 2.0, 0.0, 1.5])
    weighed = loss(output, x0, x_t, eps, t, weight)
    torch.testing.assert_close(weighed["each"], plain["each"])
    torch.testing.assert_close(weighed["loss"], (weight * plain["each"]).sum() / 4)
    assert abs(float(weighed["loss"] - plain["loss"])) > 0.01
    output.requires_grad_()
    loss(output, x0, x_t, eps, t, weight)["loss"].backward()
    assert output.grad is not None
    assert not output.grad[2].any()


def test_an_average_follows_faster_at_first() -> None:
    """By hand: decay (1 + step) / (10 + step) until that passes the decay asked for."""
    weights = {"w": torch.tensor([0.0])}
    average = Ema(weights, 0.9)
    want, decays = 0.0, []
    for step in range(1, 121):
        weights["w"] += 1.0
        average.update(weights, step)
        decays.append(min(0.9, (1 + step) / (10 + step)))
        want = decays[-1] * want + (1 - decays[-1]) * step
        assert float(average.tensors["w"]) == pytest.approx(want, rel=1e-5)
    assert decays[0] == 2 / 11
    assert decays[78] < 0.9 == decays[79]  # (1 + 80) / (10 + 80) is 0.9
