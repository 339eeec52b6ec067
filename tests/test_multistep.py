"""Multistep solvers: orders of convergence where the score is known, rivals' trajectories, what they refuse."""

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
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from tests import small

WEIGHTS, MEANS, DEVIATIONS = (0.4, 0.6), (-0.6, 0.5), (0.3, 0.4)  # of values, independent of each other
FREE = SolverOptions(clip=False)


def posterior_mean(x: Tensor, alpha_bar: float) -> Tensor:
    """E[x0 | x] for values of the mixture."""
    signal, noise = math.sqrt(alpha_bar), 1 - alpha_bar
    logs, means = [], []
    for weight, mean, deviation in zip(WEIGHTS, MEANS, DEVIATIONS, strict=True):
        total = alpha_bar * deviation**2 + noise
        logs.append(math.log(weight) - 0.5 * math.log(total) - (x - signal * mean) ** 2 / (2 * total))
        means.append(mean + signal * deviation**2 / total * (x - signal * mean))
    fraction = torch.softmax(torch.stack(logs), dim=0)
    return (fraction * torch.stack(means)).sum(dim=0)


class Ladder:
    """A schedule with any signal at its steps, of a network that gives x0."""

    config = ScheduleConfig(prediction="x0")

    def __init__(self, log_snr: np.ndarray) -> None:  # halves of it: log(alpha / sigma), falling
        self.alpha_bar = 1 / (1 + np.exp(-2 * log_snr))
        self.alpha_bar_prev = np.append(1.0, self.alpha_bar[:-1])

    def __len__(self) -> int:
        return len(self.alpha_bar)


def flow(x: Tensor, begin: float, end: float, steps: int = 4000) -> Tensor:
    """The probability flow from one log(alpha / sigma) to another, by Runge and Kutta in y = x / sigma."""

    def slope(y: Tensor, at: float) -> Tensor:
        alpha_bar = 1 / (1 + math.exp(-2 * at))
        return math.exp(at) * posterior_mean(y * math.sqrt(1 - alpha_bar), alpha_bar)

    def sigma(at: float) -> float:
        return math.sqrt(1 / (1 + math.exp(2 * at)))

    y, h = x / sigma(begin), (end - begin) / steps
    for i in range(steps):
        at = begin + i * h
        k1 = slope(y, at)
        k2 = slope(y + h / 2 * k1, at + h / 2)
        k3 = slope(y + h / 2 * k2, at + h / 2)
        k4 = slope(y + h * k3, at + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * sigma(end)


def error(name: str, steps: int, x: Tensor, exact: Tensor, begin: float, end: float) -> float:
    schedule: Any = Ladder(np.linspace(end, begin, steps + 1))
    seen: list[Tensor] = []
    options = SolverOptions(clip=False, observer=lambda i, x: seen.append(x))
    registry.find(name).run(lambda x, k: posterior_mean(x, float(schedule.alpha_bar[k])), x, schedule, options, refuse)
    return float((seen[steps - 1] - exact).norm() / exact.norm())


def refuse(i: int) -> Tensor:
    raise AssertionError(f"noise was drawn at step {i}")


BEGIN, END = -6.0, 1.5


@pytest.fixture(scope="module")
def flowed() -> tuple[Tensor, Tensor]:
    """Where the flow begins, and where it ends."""
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, flow(x, BEGIN, END)


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("deis", 3), ("unipc_2", 3), ("unipc_3", 4)]
)
def test_order_of_convergence(name: str, order: int, flowed: tuple[Tensor, Tensor]) -> None:
    """Between two finite signals, in steps that are even in log(alpha / sigma).

    The first steps are of lower order, which hardly matters where nearly all is noise and x0 does not move.
    """
    errors = [error(name, steps, *flowed, BEGIN, END) for steps in (80, 160, 320)]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert all(abs(each - order) < 0.2 for each in orders), (orders, errors)


def test_the_sde_solver_has_the_exact_mean_and_variance() -> None:
    """Of a Gaussian: mean and variance of what is drawn, after 200 steps."""
    deviation, mean = 0.4, 0.3
    generator = torch.Generator().manual_seed(0)
    schedule = Schedule.make(ScheduleConfig(prediction="x0"), 200, "logsnr")

    def predict(x: Tensor, k: int) -> Tensor:
        alpha_bar = float(schedule.alpha_bar[k])
        total = alpha_bar * deviation**2 + 1 - alpha_bar
        return mean + math.sqrt(alpha_bar) * deviation**2 / total * (x - math.sqrt(alpha_bar) * mean)

    x = torch.randn(60_000, dtype=torch.float64, generator=generator).view(1, 1, 200, 300)
    noise = lambda i: torch.randn(x.shape, dtype=torch.float64, generator=generator)  # noqa: E731
    out = multistep.dpmpp_2m_sde(predict, x, schedule, FREE, noise)
    assert float(out.mean()) == pytest.approx(mean, abs=0.005)
    assert float(out.std()) == pytest.approx(deviation, rel=0.01)
    again = multistep.dpmpp_2m_sde(predict, x, schedule, FREE, noise)
    assert float(torch.corrcoef(torch.stack([out.flatten(), again.flatten()]))[0, 1]) < 0.2  # x_T is forgotten
    same = multistep.dpmpp_2m(predict, x, schedule, FREE, refuse)
    assert float(torch.corrcoef(torch.stack([same.flatten(), x.flatten()]))[0, 1]) > 0.999  # here it is not


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
        scheduler = diffusers.UniPCMultistepScheduler(**common, solver_order=int(name[-1]), solver_type="bh2")
    scheduler.set_timesteps(steps)
    ours = "eps" if prediction == "epsilon" else "v"
    return scheduler, Schedule(ScheduleConfig(prediction=ours), tuple(sorted(scheduler.timesteps.tolist())))  # type: ignore[arg-type]


# diffusers hands tensors to NumPy's functions, thousands of times for DEIS
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc_2", "unipc_3", "deis"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_trajectories_of_diffusers(name: str, prediction: str) -> None:
    """Whole for those of second order; diffusers ends the others with lower orders than they have here."""
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


def test_evaluations_are_those_asked_for() -> None:
    """Of every solver, counted at the engine; heun refuses even numbers and names their neighbors."""
    model, h = small.model(), torch.zeros(1, small.DIM)
    counted: list[int] = []
    evaluate = model.engine.evaluate

    def counting(batch: Batch, x: Tensor, k: int) -> Tensor:
        counted.append(len(x))
        return evaluate(batch, x, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.engine, "evaluate", counting)
        for name in registry.SOLVERS:
            for steps in (5, 9, "quadratic7"):
                counted.clear()
                model.sample(h, per=2, steps=steps, solver=name)
                wanted = int(str(steps).removeprefix("quadratic"))
                assert counted == [2] * wanted, (name, steps)
                assert model.request(h, steps=steps, solver=name).evaluations == wanted
    with pytest.raises(ConfigError, match="an odd number of times: 7 or 9, not 8"):
        model.sample(h, steps=8, solver="heun")
    for wrong in ("ddim25", "3,4"):
        with pytest.raises(ConfigError, match="heun takes a number of evaluations"):
            model.sample(h, steps=wrong, solver="heun")


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


def test_what_they_refuse() -> None:
    model, h = small.model(), torch.zeros(1, small.DIM)
    for name, steps, message in (
        ("dpmpp_2m", 1, "dpmpp_2m goes on from 2 steps, so it needs at least 2, got 1; or use ddim"),
        ("dpmpp_3m", 2, "at least 3, got 2"),
        ("dpmpp_2m", "logsnr1", "at least 2"),
        ("dpmpp_2m", 1001, "asks for 1001 of 1000 steps"),
        ("dpmpp", 5, r"no solver called 'dpmpp'.*did you mean"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.sample(h, steps=steps, solver=name)
    for name in ("dpmpp_2m", "dpmpp_2m_sde"):
        with pytest.raises(ConfigError, match=f"eta is a setting of ddim; {name} has none"):
            model.sample(h, steps=5, solver=name, eta=0.5)


@pytest.mark.parametrize("name", sorted(set(registry.SOLVERS) - {"ddim", "ancestral"}))
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
