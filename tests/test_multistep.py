"""Multistep solvers: rivals' trajectories, what they keep, and the way back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast.config import ConfigError, ScheduleConfig
from rcdm_fast.diffusion import multistep, multistep_inversion, registry, solvers
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from tests import small
from tests.mixture import DEVIATIONS, FREE, MEANS, WEIGHTS, Ladder, posterior_mean, refuse


def test_sums_of_even_steps_are_exact_for_cubics() -> None:
    """iPNDM from its fourth step on, where eps is a cubic in sigma / alpha and steps are even in that."""
    rho = np.linspace(0.25, 3.0, 12)
    schedule: Any = Ladder(-np.log(rho))
    schedule.config = ScheduleConfig()
    cubic, integral = np.poly1d([0.3, -1.0, 0.5, 0.7]), np.poly1d([0.3, -1.0, 0.5, 0.7]).integ()
    seen: list[Tensor] = []
    options = SolverOptions(clip=False, observer=lambda i, x: seen.append(x))
    x = torch.full((1, 3, 1, 1), 2.0, dtype=torch.float64)
    multistep.ipndm(lambda x, k: torch.full_like(x, cubic(rho[k])), x, schedule, options, refuse)
    scaled = [float(x[0, 0, 0, 0]) * math.sqrt(1 + rho[10 - i] ** 2) for i, x in enumerate(seen[:-1])]  # x / alpha
    wanted = [integral(rho[10 - i]) for i in range(11)]
    np.testing.assert_allclose(np.diff(scaled)[2:], np.diff(wanted)[2:], rtol=1e-9)
    assert abs(np.diff(scaled)[0] - np.diff(wanted)[0]) > 1e-4


def pair(name: str, steps: int, prediction: str) -> tuple[Any, Schedule]:
    """A scheduler of diffusers, and a schedule of its timesteps."""
    diffusers: Any = pytest.importorskip("diffusers")
    common = {
        "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear",
        "prediction_type": prediction, "timestep_spacing": "linspace", "lower_order_final": True,
    }  # fmt: skip
    if name.startswith("dpmpp"):
        kind = "sde-dpmsolver++" if name.endswith("sde") else "dpmsolver++"
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **common, solver_order=2, algorithm_type=kind, solver_type="midpoint", final_sigmas_type="zero"
        )
    elif name == "deis":
        scheduler = diffusers.DEISMultistepScheduler(**common, solver_order=3)
    else:
        growth = "bh1" if name.endswith("bh1") else "bh2"
        scheduler = diffusers.UniPCMultistepScheduler(**common, solver_order=int(name[6]), solver_type=growth)
    scheduler.set_timesteps(steps)
    ours = "eps" if prediction == "epsilon" else "v"
    return scheduler, Schedule(ScheduleConfig(prediction=ours), tuple(sorted(scheduler.timesteps.tolist())))  # type: ignore[arg-type]


# diffusers hands tensors to NumPy's functions, thousands of times for DEIS
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc_2", "unipc_3", "unipc_2_bh1", "unipc_3_bh1", "deis"]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_trajectories_of_diffusers(name: str, prediction: str) -> None:
    """Whole for those of second order; diffusers ends the others with lower orders, and B(h) = h with no number."""
    steps = 16
    scheduler, schedule = pair(name, steps, prediction)
    assert len(schedule) == steps
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    noise = [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(steps)]
    mix = torch.randn(3, 3, generator=generator) / 2

    def network(x: Tensor, t: float) -> Tensor:
        return torch.einsum("ij,njhw->nihw", mix, x).tanh() + math.sin(t / 300)

    theirs = [x]
    for i, t in enumerate(scheduler.timesteps):
        more = {"variance_noise": noise[i]} if name.startswith("dpmpp") else {}
        theirs.append(scheduler.step(network(theirs[-1], float(t)), t, theirs[-1], **more).prev_sample)
    seen: list[Tensor] = []
    options = SolverOptions(clip=False, observer=lambda i, x: seen.append(x))

    def predict(x: Tensor, k: int) -> Tensor:
        return network(x, float(schedule.timesteps[k]))

    registry.find(name).run(predict, x, schedule, options, lambda i: noise[i])
    whole = steps if name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc_2") else steps - 2
    for i in range(whole):
        torch.testing.assert_close(seen[i], theirs[i + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_heun_is_that_of_diffusers() -> None:
    """Which works on y = x / alpha: the network sees y scaled, and every step of ours is two of theirs."""
    diffusers: Any = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")
    scheduler.set_timesteps(9)
    schedule = Schedule(ScheduleConfig(), tuple(sorted({int(t) for t in scheduler.timesteps.round().tolist()})))
    scheduler.set_timesteps(timesteps=list(reversed(schedule.timesteps)))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def network(x: Tensor, t: float) -> Tensor:
        return (x * 0.9).tanh() + math.sin(t / 300)

    y = x / math.sqrt(float(schedule.alpha_bar[-1]))
    for t in scheduler.timesteps:
        y = scheduler.step(network(scheduler.scale_model_input(y, t), float(t)), t, y).prev_sample
    calls: list[int] = []

    def predict(x: Tensor, k: int) -> Tensor:
        calls.append(k)
        return network(x, float(schedule.timesteps[k]))

    got = multistep.heun(predict, x, schedule, FREE, refuse)
    torch.testing.assert_close(got, y, atol=1e-3, rtol=1e-3)
    assert len(calls) == 2 * len(schedule) - 1 == registry.find("heun").evaluations(schedule)


def test_clipped_estimates_are_what_history_keeps() -> None:
    """The second step reads the first x0 after clipping."""
    schedule = Schedule.make(ScheduleConfig(prediction="x0"), 3, "logsnr")
    wild = torch.full((1, 3, 4, 4), 3.0)

    def run(value: Tensor, clip: bool) -> Tensor:
        return multistep.dpmpp_2m(
            lambda x, k: value, torch.zeros_like(wild), schedule, SolverOptions(clip=clip), refuse
        )

    torch.testing.assert_close(run(wild, True), run(torch.ones_like(wild), False))
    assert float(run(wild, False).max()) == pytest.approx(3)


def test_what_has_no_eta() -> None:
    model, h = small.model(), torch.zeros(1, small.DIM)
    for name in ("dpmpp_2m", "dpmpp_2m_sde"):
        with pytest.raises(ConfigError, match=f"eta is a setting of ddim; {name} has none"):
            model.sample(h, steps=5, solver=name, eta=0.5)


@pytest.mark.parametrize("name", sorted(set(registry.SOLVERS) - {"ddim", "ancestral", "unipc_2_bh1", "unipc_3_bh1"}))
def test_images_do_not_depend_on_the_batch(name: str) -> None:
    model = small.model()
    h = torch.randn(3, small.DIM, generator=torch.Generator().manual_seed(0))
    together = model.sample(h, per=2, steps=7, solver=name, seed=3)
    alone = model.sample(h[1:2], items=[1], per=2, steps=7, solver=name, seed=3, batch_size=1)
    assert torch.equal(together[1:2], alone)


def test_inversion_in_second_order() -> None:
    """Of the mixture: nearer than DDIM in as many evaluations, and four times nearer in twice as many."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 16, 16)
    first = torch.rand(shape, generator=generator) < WEIGHTS[0]
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.where(first, MEANS[0] + DEVIATIONS[0] * noise, MEANS[1] + DEVIATIONS[1] * noise)
    calls: list[int] = []

    def round_trip(steps: int, ddim: bool) -> float:
        schedule = Schedule.make(ScheduleConfig(prediction="x0"), steps, "uniform" if ddim else "quadratic")

        def predict(x: Tensor, k: int) -> Tensor:
            calls.append(k)
            return posterior_mean(x, float(schedule.alpha_bar[k]))

        calls.clear()
        way = solvers.implicit_inversion if ddim else multistep_inversion.inversion
        x_T = way(predict, x, schedule, FREE)
        assert calls == list(range(steps))
        back = registry.find("ddim" if ddim else "unipc_2").run(predict, x_T, schedule, FREE, refuse)
        return float((back - x).norm() / x.norm())

    for steps, fraction in ((10, 1.0), (15, 0.6), (25, 0.3), (50, 0.1)):
        assert round_trip(steps, ddim=False) < fraction * round_trip(steps, ddim=True), steps
    assert round_trip(100, ddim=False) < round_trip(50, ddim=False) / 3.5


def test_inversion_of_a_bundled_model() -> None:
    """Its own samples, there and back in 10 evaluations each way."""
    model = rcdm_fast.load("cifar10-simclr-head", device="cpu", precision="fp32")
    h = model.encode(small.make_images(2, size=32))
    x = model.sample(h, per=1, steps=15, solver="unipc_2")[:, 0]
    apart = {}
    for solver, steps in (("ddim", "10"), ("unipc_2", "quadratic10")):
        x_T = model.invert(x, h, steps=steps, solver=solver)
        back = model.sample(h, per=1, noise=x_T[:, None], steps=steps, solver=solver)[:, 0]
        apart[solver] = float((back - x).norm() / x.norm())
    assert apart["unipc_2"] < apart["ddim"], apart
    assert torch.equal(x_T, model.invert(x, h, steps=10, solver="unipc_2"))  # where its steps lie by default
    for given, message in (
        ({"solver": "deis"}, "solver of an inversion must be one of ddim, unipc_2"),
        ({"solver": "unipc_2", "iterations": 2}, "iterations are a setting of ddim; unipc_2 has one evaluation a step"),
        ({"solver": "unipc_2", "steps": 1}, "unipc_2 goes on from 2 steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.invert(x, h, **given)
