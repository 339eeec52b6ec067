"""Schedules and respacing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcdm_fast.config import ConfigError, NoiseSchedule, ScheduleConfig
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.schedule import PLACEMENTS, Placement, Schedule, betas_of, network_timestep, place, respace
from tests import small


@pytest.mark.parametrize("steps", [25, 100, 1000, 4000])
def test_linear_betas_keep_their_total_whatever_the_step_count(steps: int) -> None:
    betas = betas_of("linear", steps)
    assert betas.dtype == np.float64
    assert betas.sum() == pytest.approx(1000 * (1e-4 + 2e-2) / 2, rel=1e-9)


def test_cosine_alpha_bar_follows_its_formula() -> None:
    steps = 1000
    alpha_bar = np.cumprod(1 - betas_of("cosine", steps))
    time = (np.arange(steps) + 1) / steps
    expected = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar[:-1], expected[:-1], rtol=1e-9)
    assert betas_of("cosine", steps)[-1] == 0.999


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 37, 50, 250, 999, 1000])
def test_any_number_of_steps(count: int) -> None:
    kept = respace(1000, count)
    assert len(kept) == count == len(set(kept))
    assert list(kept) == sorted(kept)
    assert kept == respace(1000, str(count))
    assert kept[0] == 0
    if count > 1:
        assert kept[-1] == 999
        gaps = np.diff(kept)
        assert gaps.max() - gaps.min() <= 1


def test_published_texts() -> None:
    assert respace(1000, "ddim25") == tuple(range(0, 1000, 40))
    assert respace(1000, "") == tuple(range(1000))
    sections = respace(300, "10,15,20")
    assert [sum(start <= t < start + 100 for t in sections) for start in (0, 100, 200)] == [10, 15, 20]
    assert sections[9] == 99
    assert sections[10] == 100


def test_steps_that_sections_do_not_share_evenly_go_to_the_first_ones() -> None:
    """As published: 10 steps in three sections are 4, 3 and 3."""
    assert respace(10, "4,3,3") == tuple(range(10))
    assert respace(11, "4,4,3") == tuple(range(11))
    assert respace(10, "2,2,2") == (0, 3, 4, 6, 7, 9)
    for spec in ("3,4,3", "3,3,4"):
        with pytest.raises(ConfigError, match="4 steps out of a section of 3"):
            respace(10, spec)


@pytest.mark.parametrize("spec", ["ddim300", "ddim", "0", "-3", "fast", "10,x", "1001", "600,10", 0, "ddim0"])
def test_impossible_texts_are_refused_by_name(spec: int | str) -> None:
    with pytest.raises(ConfigError, match=str(spec).split(",")[0]):
        respace(1000, spec)


def test_respaced_schedule_keeps_alpha_bar() -> None:
    config = ScheduleConfig()
    full, short = Schedule.make(config), Schedule.make(config, 17)
    np.testing.assert_array_equal(short.alpha_bar, full.alpha_bar[np.array(short.timesteps)])
    np.testing.assert_allclose(np.cumprod(1 - short.betas), short.alpha_bar, rtol=1e-12)
    assert short.alpha_bar_prev[0] == 1
    assert short.alpha_bar_next[-1] == 0


def test_posterior_is_bayes_rule() -> None:
    """Mean and variance of q(x_{k-1} | x_k, x0) from the product of two Gaussians."""
    schedule = Schedule.make(ScheduleConfig(noise_schedule="cosine"), 20)
    of_x0, of_x = schedule.posterior_mean_coefficients
    for k in range(1, 20):
        beta, previous = schedule.betas[k], schedule.alpha_bar_prev[k]
        precision = (1 - beta) / beta + 1 / (1 - previous)
        assert schedule.posterior_variance[k] == pytest.approx(1 / precision)
        assert of_x0[k] == pytest.approx(np.sqrt(previous) / (1 - previous) / precision)
        assert of_x[k] == pytest.approx(np.sqrt(1 - beta) / beta / precision)


def test_one_step_schedule_has_finite_numbers() -> None:
    schedule = Schedule.make(ScheduleConfig(), 1)
    for values in (
        schedule.posterior_log_variance,
        *schedule.log_variance_bounds,
        *schedule.posterior_mean_coefficients,
    ):
        assert np.isfinite(values).all()


def test_rescaled_timesteps() -> None:
    config = ScheduleConfig(diffusion_steps=4000, rescale_timesteps=True)
    assert network_timestep(config, 4000 - 1) == pytest.approx(999.75)
    assert network_timestep(ScheduleConfig(diffusion_steps=4000), 3999) == 3999
    assert Schedule.make(config, 2).network_timesteps == (0.0, 999.75)


def test_variances_that_are_not_learned() -> None:
    """The posterior's (small) or beta (large); the first step, whose posterior has none, takes the next one's."""
    for steps in (2, 5):
        large = Schedule.make(ScheduleConfig(diffusion_steps=1000, variance="fixed_large"), steps)
        small = Schedule.make(ScheduleConfig(diffusion_steps=1000, variance="fixed_small"), steps)
        posterior = large.betas[1:] * (1 - large.alpha_bar[:-1]) / (1 - large.alpha_bar[1:])
        want = [posterior[0], *posterior]
        assert [small.fixed_log_variance(k) for k in range(steps)] == pytest.approx(np.log(want))
        assert [large.fixed_log_variance(k) for k in range(steps)] == pytest.approx(np.log([want[0], *large.betas[1:]]))


def test_a_linear_schedule_reaches_a_beta_of_one_at_20_steps() -> None:
    with pytest.raises(ConfigError, match="more than 20 diffusion steps"):
        betas_of("linear", 20)
    assert betas_of("linear", 21)[-1] == pytest.approx(1000 / 21 * 0.02)


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("placement", ["quadratic", "logsnr", "karras"])
@pytest.mark.parametrize("count", [1, 2, 5, 10, 60, 250, 999, 1000])
def test_placed_steps_are_distinct_and_reach_both_ends(count: int, placement: str, noise_schedule: str) -> None:
    config = ScheduleConfig(noise_schedule=noise_schedule)  # type: ignore[arg-type]
    steps = Schedule.make(config, f"{placement}{count}").timesteps
    assert len(steps) == count == len(set(steps))
    assert list(steps) == sorted(steps)
    assert steps[-1] == 999
    assert count == 1 or steps[0] == 0
    assert steps == Schedule.make(config, count, placement).timesteps  # type: ignore[arg-type]
    assert steps == Schedule.make(config, str(count), placement).timesteps  # type: ignore[arg-type]


def test_where_placed_steps_lie() -> None:
    """Even in t^(1/2), and in the logarithm of the signal over the noise, as far as whole timesteps allow."""
    assert Schedule.make(ScheduleConfig(), "quadratic5").timesteps == (0, 62, 250, 562, 999)
    schedule = Schedule.make(ScheduleConfig(), "logsnr8")
    snr = np.log(schedule.alpha_bar / (1 - schedule.alpha_bar))
    gaps = -np.diff(snr)
    assert gaps[3:] == pytest.approx([(snr[0] - snr[-1]) / 7] * 4, rel=0.02)  # those before are rounded to timesteps
    assert gaps == pytest.approx([(snr[0] - snr[-1]) / 7] * 7, rel=0.25)
    assert place(np.array([0.9, 0.5, 0.1]), 3, "logsnr") == (0, 1, 2)
    with pytest.raises(ConfigError, match="4 steps out of 3"):
        place(np.array([0.9, 0.5, 0.1]), 4, "logsnr")


def test_a_placement_is_that_of_the_text_if_it_names_one() -> None:
    config = ScheduleConfig()
    uniform = Schedule.make(config, 10).timesteps
    assert Schedule.make(config, "uniform10", "logsnr").timesteps == uniform
    for one in (1, "1", "uniform1", "logsnr1"):  # from noise: at the first timestep x_T would be taken for an image
        assert Schedule.make(config, one, "uniform").timesteps == (999,)
    assert Schedule.make(config, "ddim25", "logsnr").timesteps == respace(1000, "ddim25")
    assert Schedule.make(config, "4,3", "logsnr").timesteps == respace(1000, "4,3")
    assert Schedule.make(config, "", "logsnr").timesteps == tuple(range(1000))
    for wrong in ("logsnr", "logsnr0", "logsnr-3", "quadraticx", "logsnr1.5", "snr10"):
        with pytest.raises(ConfigError, match="steps"):
            Schedule.make(config, wrong)
    for many in ("logsnr1001", "uniform1001"):
        with pytest.raises(ConfigError, match="1001"):
            Schedule.make(config, many)


@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_karras_steps_are_even_in_the_seventh_root_of_sigma(noise_schedule: NoiseSchedule) -> None:
    schedule = Schedule.make(ScheduleConfig(noise_schedule=noise_schedule), "karras9")
    assert (schedule.timesteps[0], schedule.timesteps[-1]) == (0, 999)
    base = Schedule.make(ScheduleConfig(noise_schedule=noise_schedule)).alpha_bar
    sigma = np.sqrt((1 - base) / base)
    ends = sigma[0] ** (1 / 7), sigma[-1] ** (1 / 7)
    wanted = [(ends[0] + (ends[1] - ends[0]) * i / 8) ** 7 for i in range(9)]
    for t, each in zip(schedule.timesteps, wanted, strict=True):
        nearest = int(np.abs(np.log(sigma) - np.log(each)).argmin())
        assert abs(t - nearest) <= 2


def test_timesteps_can_be_named_one_by_one() -> None:
    assert Schedule.make(ScheduleConfig(), "at:999, 0,250", "logsnr").timesteps == (0, 250, 999)
    assert Schedule.make(ScheduleConfig(diffusion_steps=30), "at:29").timesteps == (29,)
    for wrong in ("at:", "at:1,,2", "at:-1", "at:1.5", "at:x", "at:1,2,", "at:٣"):
        with pytest.raises(ConfigError, match="expected timesteps after 'at:'"):
            Schedule.make(ScheduleConfig(), wrong)
    for wrong in ("at:1,1", "at:0,1000", "at:999999999"):
        with pytest.raises(ConfigError, match=r"different and in 0\.\.999"):
            Schedule.make(ScheduleConfig(), wrong)


def test_named_timesteps_are_sampled_as_any_others() -> None:
    model, h = small.model(), torch.randn(2, small.DIM)
    uniform = Schedule.make(model.config.schedule, 4).timesteps
    text = "at:" + ",".join(map(str, uniform))
    for solver in ("ddim", "deis"):
        want = model.sample(h, per=1, steps="uniform4", solver=solver)
        assert torch.equal(model.sample(h, per=1, steps=text, solver=solver), want)
    with pytest.raises(ConfigError, match="takes a number of evaluations"):
        model.sample(h, per=1, steps="at:0,500,999", solver="heun")
    with pytest.raises(ConfigError, match="at least 4, got 3"):
        model.sample(h, per=1, steps="at:0,500,999", solver="ipndm")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_in_the_text_holds_for_every_solver(placement: Placement) -> None:
    """Heun asks twice in every step but the last: 9 evaluations are 5 steps, which lie where the text says."""
    alpha_bar = Schedule.make(ScheduleConfig()).alpha_bar
    for solver, known in registry.SOLVERS.items():
        made = registry.schedule(ScheduleConfig(), solver, f"{placement}9")
        assert made.timesteps == place(alpha_bar, 5 if known.twice else 9, placement), solver
        plain = registry.schedule(ScheduleConfig(), solver, 9)
        assert plain.timesteps == place(alpha_bar, 5 if known.twice else 9, known.placement), solver
