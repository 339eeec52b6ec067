"""Solvers fitted to a model: what their numbers mean, by a loop; who is served by them and who is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast.config import ConfigError, FittedSolver, ModelConfig, ScheduleConfig, from_json, to_json
from rcdm_fast.diffusion import conditioning, fitted, registry
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.schedule import Floats, Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.engines import onnx_runtime
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from tests import small
from tests.tolerances import ENGINE_FP32_L2

BASE = ScheduleConfig(prediction="x0")


def refuse(i: int) -> Tensor:
    raise AssertionError(f"noise was drawn at step {i}")


def some(nfe: int, config: ScheduleConfig = BASE, seed: int = 0, weights: str = "") -> FittedSolver:
    """Numbers near those of a solver, all of them moved."""
    rng = np.random.default_rng(seed)
    numbers = fitted.initial(config, tuple(np.linspace(5, 999, nfe)))
    numbers[:nfe] += rng.normal(0, 0.3, nfe)
    numbers[nfe : 2 * nfe] = rng.normal(-2, 3, nfe)
    numbers[2 * nfe :] += rng.normal(0, 0.05, nfe * (nfe + 1))
    return FittedSolver(nfe, tuple(numbers.tolist()), weights)


def serving(*nfe: int) -> Model:
    """A small model with solvers fitted for so many evaluations."""
    model = small.model()
    own = tuple(some(each, model.config.schedule, each, model.weights) for each in nfe)
    model.config = dataclasses.replace(model.config, fitted=own)
    return model


def log_alpha_bar(t: float) -> float:
    """Of the linear schedule, linear between its timesteps; by hand."""
    logs = np.cumsum(np.log(1 - np.linspace(1e-4, 2e-2, 1000)))
    return float(np.interp(t, np.arange(1000), logs))


def by_hand(nfe: int, numbers: Floats, x: Floats, network: Any) -> tuple[Floats, list[float], list[float]]:
    """The definition, state by state: the image, the times of the formula and those that the network was asked at."""
    logits, offsets, of_x, of_x0 = np.split(numbers, np.cumsum([nfe, nfe, nfe * (nfe + 1) // 2]))
    gaps = np.exp(logits) / np.exp(logits).sum() * (1 - nfe * 1e-4) + 1e-4
    times = [999 * (1 - gaps[:i].sum()) for i in range(nfe)]
    asked = [min(max(t + d, 0), 999) for t, d in zip(times, offsets, strict=True)]
    logs = np.array([log_alpha_bar(t) for t in times])
    alpha, sigma = np.exp(logs / 2), np.sqrt(1 - np.exp(logs))
    snr = np.log(alpha / sigma)
    nodes, fractions = np.polynomial.legendre.leggauss(30)
    states, estimates, place = [x], [], 0
    for i in range(nfe):
        estimates.append(network(states[i], asked[i]))
        if i == nfe - 1:
            new = estimates[i].copy()
        else:
            # sigma' / sigma x + sigma' times the integral of e^l x0(l), x0 a parabola through the last three
            new = sigma[i + 1] / sigma[i] * states[i]
            first = max(0, i - 2)
            at = (snr[i] + snr[i + 1]) / 2 + nodes * (snr[i + 1] - snr[i]) / 2
            for j in range(first, i + 1):
                others = [m for m in range(first, i + 1) if m != j]
                basis = np.prod([(at - snr[m]) / (snr[j] - snr[m]) for m in others], axis=0)
                integral = (fractions * np.exp(at) * basis).sum() * (snr[i + 1] - snr[i]) / 2
                new = new + sigma[i + 1] * integral * estimates[j]
        for j in range(i + 1):
            new = new + of_x[place + j] * states[j] + of_x0[place + j] * estimates[j]
        place += i + 1
        states.append(new)
    return states[-1], times, asked


@pytest.mark.parametrize("nfe", [2, 4, 10])  # with 10 a step has more terms than the operator takes
def test_what_the_numbers_mean(nfe: int) -> None:
    own = some(nfe)
    schedule = fitted.schedule(BASE, own)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    asked: list[int] = []

    def predict(x: Tensor, k: int) -> Tensor:
        asked.append(k)
        assert schedule.asked is not None
        return (x * 0.9).tanh() * (0.5 + schedule.asked[k] / 2000)

    free = SolverOptions(clip=False)
    got = fitted.solver(BASE, own)(predict, x, schedule, free, refuse)
    want, times, seen = by_hand(nfe, np.array(own.numbers), x.numpy(), lambda x, t: np.tanh(x * 0.9) * (0.5 + t / 2000))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-9)
    np.testing.assert_allclose(schedule.timesteps, times[::-1], atol=1e-9)
    np.testing.assert_allclose(schedule.network_timesteps, seen[::-1], atol=1e-9)
    np.testing.assert_allclose(schedule.alpha_bar, np.exp([log_alpha_bar(t) for t in times[::-1]]), rtol=1e-12)
    assert asked == list(reversed(range(nfe)))
    double = FittedSolver(nfe, (*own.numbers[:-1], own.numbers[-1] + 1), "")  # of the last estimate
    for options, top in ((SolverOptions(), 1.0), (SolverOptions(clip=False), 1.5)):
        beyond = fitted.solver(BASE, double)(lambda x, k: torch.full_like(x, 0.9), x * 0, schedule, options, refuse)
        assert (float(beyond.max()) == 1) if top == 1 else (float(beyond.max()) > top)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_it_begins_as_a_known_solver(prediction: Any) -> None:
    config = ScheduleConfig(prediction=prediction, noise_schedule="cosine")
    steps = Schedule(config, (60, 200, 400, 600, 850, 999))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def predict(x: Tensor, k: int) -> Tensor:
        return (x * 0.9).tanh() + k / 7

    starts = {"dpmpp_3m": fitted.initial(config, steps.timesteps)}
    for name in ("ddim", "dpmpp_2m", "unipc_2", "unipc_3", "unipc_2_bh1", "deis", "ipndm"):
        starts[name] = fitted.like(steps, registry.find(name).run)
    for name, numbers in starts.items():
        own = FittedSolver(6, tuple(numbers.tolist()), "")
        want = registry.find(name).run(predict, x, steps, SolverOptions(), refuse)
        got = fitted.solver(config, own)(predict, x, fitted.schedule(config, own), SolverOptions(), refuse)
        torch.testing.assert_close(got, want, atol=1e-9, rtol=0)


def test_the_network_is_asked_at_timesteps_that_there_are() -> None:
    numbers = torch.from_numpy(fitted.initial(BASE, (300.0, 999.0)))
    numbers[2:4] = torch.tensor([7.5, -2000])
    assert fitted.resolve(BASE, 2, numbers).asked.tolist() == [999, 0]


@pytest.mark.parametrize("nfe", [2, 5])
def test_numbers_are_found_again(nfe: int) -> None:
    """From what they say; steps, times and weights that none of the known solvers has."""
    want = fitted.resolve(BASE, nfe, torch.tensor(some(nfe).numbers, dtype=torch.float64))
    got = fitted.resolve(BASE, nfe, fitted.numbers_of(BASE, want.times, want.asked, want.weights))
    for name, value in want._asdict().items():
        torch.testing.assert_close(getattr(got, name), value, atol=1e-9, rtol=0)


def test_who_is_served() -> None:
    model, h = serving(5, 8), torch.randn(2, small.DIM, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    evaluate = model.engine.evaluate

    def counting(batch: Batch, x: Tensor, k: int) -> Tensor:
        calls.append(k)
        return evaluate(batch, x, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.engine, "evaluate", counting)
        for steps, kind in ((5, "fitted"), ("8", "fitted"), (6, "deis"), ("uniform5", "deis"), (2, "ddim")):
            calls.clear()
            got = model.sample(h, per=1, steps=steps)
            assert calls == list(reversed(range(int(str(steps).removeprefix("uniform")))))
            assert torch.equal(got, model.sample(h, per=1, steps=steps, solver=kind))
    own = model.config.fitted[0]
    assert model.request(h, steps=5).chosen.label == f"fitted:{own.digest}"
    assert model.request(h, steps=5, solver="ddim").chosen.label == "ddim"
    assert f"5 ({own.digest}), 8 (" in model.describe()
    for other, kind in (({"eta": 0.5}, "ddim"), ({"clip": False}, "deis")):
        assert model.request(h, steps=5, **other).chosen.name == kind
    chosen = registry.choose(model.config, "auto", 5, SolverOptions(), guided=True)
    assert chosen.name == "deis"
    model.config = dataclasses.replace(model.config, representation_dropout=0.1)
    assert model.request(h, steps=5, guidance=1.0).chosen.name == "fitted"
    assert model.request(h, steps=5, guidance=2.0).chosen.name == "deis"
    assert "fitted" not in small.model().describe()


def test_who_is_refused() -> None:
    model, h = serving(5, 8), torch.zeros(1, small.DIM)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"steps": 6}, "fitted for 5, 8 evaluations, not for 6"),
        ({"steps": "logsnr5"}, "fitted for 5, 8 evaluations, not for 'logsnr5'"),
        ({"eta": 0.5}, "eta is a setting of ddim; a fitted solver has none, so it must be 0, got 0.5"),
        ({"clip": False}, "without x0 estimates out of bounds, so clip must be True"),
        ({"solver": "fited"}, "no solver called 'fited'.*did you mean fitted"),
    )
    for given, message in refused:
        with pytest.raises(ConfigError, match=message):
            model.sample(h, **{"steps": 5, "solver": "fitted", **given})
    with pytest.raises(ConfigError, match="without guidance, so it must be 1"):
        registry.choose(model.config, "fitted", 5, guided=True)
    model.config = dataclasses.replace(model.config, representation_dropout=0.1)
    with pytest.raises(ConfigError, match="without guidance, so it must be 1"):
        model.sample(h, steps=5, solver="fitted", guidance=2.0)
    with pytest.raises(ConfigError, match="has no fitted solver: make one with `rcdm tune"):
        small.model().sample(h, steps=5, solver="fitted")
    later = dataclasses.replace(model.config.fitted[0], version=2)
    with pytest.raises(ConfigError, match="of version 2, known here are those up to 1"):
        registry.choose(dataclasses.replace(model.config, fitted=(later,)), "fitted", 5)
    foreign = small.model()
    with torch.no_grad():
        next(foreign.unet.parameters()).add_(1e-3)
    foreign.config = model.config
    for solver in ("auto", "fitted"):
        with pytest.raises(ConfigError, match=r"for 5 evaluations belongs to other weights.*fit it again"):
            foreign.sample(h, steps=5, solver=solver)
    assert foreign.sample(h, steps=6, per=1).isfinite().all()


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    model, h = serving(5), torch.randn(1, small.DIM, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(model.config, encoder=None)
    path = checkpoint.save_model(tmp_path / "tuned.safetensors", config, model.unet.state_dict())
    loaded = rcdm_fast.load(path, device="cpu", engine="eager")
    assert loaded.config.fitted == model.config.fitted
    assert torch.equal(loaded.sample(h, steps=5, per=2), model.sample(h, steps=5, per=2))
    assert loaded.weights == model.weights  # which do not depend on the numbers
    old = json.loads(to_json(config))
    del old["fitted"]
    assert from_json(ModelConfig, json.dumps(old)).fitted == ()
    assert repr(dataclasses.replace(config, fitted=())) == repr(config)  # exports are kept by it
    own = config.fitted[0]
    with pytest.raises(ConfigError, match="fitted for 5 evaluations has 40 numbers, got 39"):
        dataclasses.replace(own, numbers=own.numbers[1:])
    with pytest.raises(ConfigError, match="finite"):
        dataclasses.replace(own, numbers=(float("nan"), *own.numbers[1:]))
    with pytest.raises(ConfigError, match=r"several solvers fitted for one number of evaluations: \[5, 5\]"):
        dataclasses.replace(config, fitted=(own, own))
    moved = dataclasses.replace(own, numbers=(own.numbers[0] + 1e-9, *own.numbers[1:]))
    assert moved.digest != own.digest == dataclasses.replace(own, info={"error": 1}).digest


def test_manifests_name_its_numbers(tmp_path: Path) -> None:
    model, h = serving(5), torch.randn(3, small.DIM, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "h.npy", h.numpy())
    local.run(model, tmp_path / "h.npy", tmp_path / "job", JobConfig(per=1, steps=5))
    (part,) = (tmp_path / "job" / "manifest").iterdir()
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    assert {row["solver"] for row in rows} == {f"fitted:{model.config.fitted[0].digest}"}
    assert {row["nfe"] for row in rows} == {5}
    other = dataclasses.replace(some(5, model.config.schedule, 9), weights=model.weights)
    model.config = dataclasses.replace(model.config, fitted=(other,))
    with pytest.raises(ConfigError, match=r"holds another job: .*fitted"):
        local.run(model, tmp_path / "h.npy", tmp_path / "job", JobConfig(per=1, steps=5))
    model.config = dataclasses.replace(model.config, fitted=())
    with pytest.raises(ConfigError, match=r"holds another job: .*solver"):
        local.run(model, tmp_path / "h.npy", tmp_path / "job", JobConfig(per=1, steps=5))
    local.run(model, tmp_path / "h.npy", tmp_path / "plain", JobConfig(per=1, steps=5, solver="deis"))
    settled = local.run(model, tmp_path / "h.npy", tmp_path / "plain", JobConfig(per=1, steps=5))  # what auto is there
    assert settled.complete


def test_other_engines_ask_between_timesteps(tmp_path: Path) -> None:
    model, h = serving(4), torch.randn(3, small.DIM, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(model.config, encoder=None)
    path = checkpoint.save_model(tmp_path / "tuned.safetensors", config, model.unet.state_dict())
    want = model.sample(h, steps=4, per=1)
    asked = fitted.resolve(config.schedule, 4, torch.tensor(config.fitted[0].numbers, dtype=torch.float64)).asked
    own = registry.choose(config, "fitted", 4, SolverOptions(), False).schedule
    assert conditioning.make_plan(model.unet, own, h, None).timesteps == pytest.approx(asked.flip(0).tolist())
    assert own.timesteps != pytest.approx(asked.flip(0).tolist())  # other times than the formula's
    native = rcdm_fast.load(path, device="cpu", engine="native", precision="fp32").sample(h, steps=4, per=1)
    assert float((native - want).norm() / want.norm()) < ENGINE_FP32_L2
    assert not torch.allclose(want, model.sample(h, steps=4, per=1, solver="ddim"), atol=0.05)
    between = Schedule(model.config.schedule, (0, 400.5, 999))
    batch = conditioning.make_plan(model.unet, between, h, None).batch(torch.arange(3))
    x = torch.zeros(3, 3, 8, 8)
    _, whole, fraction = onnx_runtime.graph_inputs(batch, x, 1)[:3]
    assert (whole.tolist(), fraction.tolist()) == ([400] * 3, [0.5] * 3)
    with pytest.raises(ConfigError, match=r"whole timesteps only, asked for is t = 400\.5"):  # a file of before
        onnx_runtime.check_timesteps(batch, 1, path)


@pytest.mark.parametrize("changes", [{"guidance": 2.0}, {"eta": 0.5}, {"clip": False}], ids=str)
def test_a_job_of_what_nothing_is_fitted_for_takes_the_usual_solver(changes: dict[str, Any], tmp_path: Path) -> None:
    model = serving(5)
    model.config = dataclasses.replace(model.config, representation_dropout=0.1)  # else it cannot be guided
    np.save(tmp_path / "h.npy", np.ones((1, small.DIM), np.float32))
    local.run(model, tmp_path / "h.npy", tmp_path / "job", JobConfig(per=1, steps=5, **changes))
    (row,) = (tmp_path / "job" / "manifest.jsonl").read_text().splitlines()
    wanted = "ddim" if "eta" in changes else "deis"
    assert json.loads(row)["solver"].partition(" ")[0] == wanted
    assert json.loads((tmp_path / "job" / "job.json").read_text())["settings"]["solver"] == wanted
