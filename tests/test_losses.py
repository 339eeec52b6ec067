"""The loss and the averages by hand: edge bins of the likelihood, weights of images, the early ramp of an average."""

from __future__ import annotations

import math

import pytest
import torch

from rcdm_fast.config import Prediction, ScheduleConfig
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.training.ema import Ema
from rcdm_fast.training.losses import DiffusionLoss, LossConfig, Weighting, _discrete_log_likelihood
from tests import small


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


@pytest.mark.parametrize("gamma", [0.5, 5.0, 40.0])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "clamped_snr"])
def test_weights_by_hand(weighting: Weighting, prediction: Prediction, gamma: float) -> None:
    """Of an error of one in what is predicted: 1, or what that is of an error in x0 times the capped ratio."""
    schedule = Schedule.make(ScheduleConfig(1000, "linear", prediction))
    loss = DiffusionLoss(schedule, LossConfig(weighting, gamma))
    x0, eps = small.make_images(5), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 40, 200, 500, 999])
    alpha_bar = schedule.alpha_bar[t.numpy()]
    signal, noise = (torch.from_numpy(each**0.5).float()[:, None, None, None] for each in (alpha_bar, 1 - alpha_bar))
    truth = {"eps": eps, "x0": x0, "v": signal * eps - noise * x0}[prediction]
    found = loss(truth + 1, x0, signal * x0 + noise * eps, eps, t)
    for place, kept in enumerate(alpha_bar):
        ratio = kept / (1 - kept)
        of_x0 = {"eps": (1 - kept) / kept, "x0": 1.0, "v": 1 - kept}[prediction]  # error of x0, squared
        capped = min(max(ratio, 1.0) if weighting == "clamped_snr" else ratio, gamma)
        want = 1.0 if weighting == "uniform" else of_x0 * capped
        assert float(found["each"][place]) == pytest.approx(want, rel=1e-4)
    assert float(found["mse"]) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_bound_by_hand(prediction: Prediction, generator: torch.Generator) -> None:
    """Of two Gaussians in float64, in bits; at t = 0 of an 8-bit value (Nichol and Dhariwal 2021, section 3.1)."""
    schedule = Schedule.make(ScheduleConfig(50, "cosine", prediction, "learned_range"))
    loss = DiffusionLoss(schedule, LossConfig(vlb_weight=0.25))
    x0, eps = small.make_images(4), torch.randn(4, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 1, 20, 49])
    x_t, output = loss.noisy(x0, eps, t), 0.3 * torch.randn(4, 6, 8, 8, generator=generator)
    kept = schedule.alpha_bar[0]
    truth = {"eps": eps, "x0": x0, "v": kept**0.5 * eps - (1 - kept) ** 0.5 * x0}[prediction]
    output[0, :3] = truth[0] + 0.05 * output[0, :3]  # a likelihood that float32 can hold
    found = loss(output, x0, x_t, eps, t)
    bits = []
    for n, step in enumerate(t.tolist()):
        before, kept = schedule.alpha_bar_prev[step], schedule.alpha_bar[step]
        beta, said = 1 - kept / before, output[n, :3].double()
        image, noisy = x0[n].double(), x_t[n].double()
        guess = {
            "x0": said, "eps": (noisy - (1 - kept) ** 0.5 * said) / kept**0.5,
            "v": kept**0.5 * noisy - (1 - kept) ** 0.5 * said,
        }[prediction]  # fmt: skip
        means = [
            (before**0.5 * beta * x + (1 - beta) ** 0.5 * (1 - before) * noisy) / (1 - kept) for x in (image, guess)
        ]
        fraction = (output[n, 3:].double() + 1) / 2
        low, high = schedule.posterior_log_variance[step], math.log(beta)
        normal = torch.distributions.Normal(means[1], (0.5 * (fraction * high + (1 - fraction) * low)).exp())
        if step:
            true = torch.distributions.Normal(means[0], math.exp(0.5 * low))
            each = torch.distributions.kl_divergence(true, normal)
        else:
            lower, upper = (normal.cdf(image + side / 255) for side in (-1, 1))
            lower, upper = lower.masked_fill(image < -0.999, 0), upper.masked_fill(image > 0.999, 1)
            each = -(upper - lower).clamp_min(1e-12).log()
        bits.append(float(each.mean()) / math.log(2))
    assert float(found["vlb"]) == pytest.approx(sum(bits) / 4, rel=1e-3)
    if prediction != "v":
        simple = (output[:, :3] - (eps if prediction == "eps" else x0)).square().flatten(1).mean(dim=1)
        torch.testing.assert_close(found["each"], simple + 0.25 * torch.tensor(bits), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
def test_importance_weighs_images(learned: bool, generator: torch.Generator) -> None:
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
    weight = torch.tensor([0.5, 2.0, 0.0, 0.75])  # their mean is not one
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
