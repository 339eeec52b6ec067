"""Placements of steps: the cheapest way by trying all, costs by DDIM itself, and what `rcdm tune` says."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast import solver_fit
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion import solvers
from rcdm_fast.diffusion.schedule import Schedule, place
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.metrics import intervals
from rcdm_fast.solver_fit import FitConfig, Placed, cheapest, fit
from tests import small

QUICK = FitConfig(nfe=(4, 6), candidates=12, resamples=200, batch_size=5)
KINDS: dict[str, dict[str, Any]] = {
    "representations": {},
    "labels": {"representation_dim": 0, "num_classes": 3},
    "nothing": {"representation_dim": 0},
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trajectories may judge."""
    monkeypatch.setattr(solver_fit, "LEAST", 8)


def test_enough_trajectories_are_asked_for_that_something_can_be_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fewest that are accepted so many judge as an interval needs."""
    monkeypatch.undo()
    assert len(range(0, solver_fit.LEAST, solver_fit.HELD_OUT)) == intervals.LEAST


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_the_cheapest_way_is_the_one_of_all(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    step, last = rng.uniform(0, 1, (7, 7)), rng.uniform(0, 1, 7)

    def cost(way: tuple[int, ...]) -> float:  # ascending
        return float(sum(step[i, j] for j, i in itertools.pairwise(way)) + last[way[0]])

    every = [(*rest, 6) for rest in itertools.combinations(range(6), count - 1)]
    found = cheapest(step, last, count)
    assert tuple(found) in every
    assert cost(tuple(found)) == pytest.approx(min(map(cost, every)))


def test_a_step_costs_how_far_ddim_lands_from_the_trajectory(generator: torch.Generator) -> None:
    base = Schedule.make(small.SCHEDULE)
    grid = Schedule(base.config, place(base.alpha_bar, 6, "karras"))
    states, outputs = (torch.randn(6, 3, 3, 8, 8, generator=generator) for _ in range(2))
    images, kept = torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1, torch.tensor([True, False, True])
    costs = solver_fit.Costs(grid)
    costs.add(states, outputs, images, kept)

    def led(i: int, *lower: int) -> list[Tensor]:
        """Where DDIM leads from candidate i by steps to others."""
        seen: list[Tensor] = []
        steps = Schedule(base.config, tuple(sorted(grid.timesteps[k] for k in (i, *lower))))
        options = SolverOptions(observer=lambda step, x: seen.append(x.clone()))
        solvers.ddim(lambda x, k: outputs[5 - i], states[5 - i], steps, options, lambda step: torch.zeros(0))
        return seen

    for i, j in ((5, 4), (5, 0), (3, 1)):
        alpha = float(base.alpha_bar[int(grid.timesteps[j])]) ** 0.5
        apart = ((led(i, j)[0] - states[5 - j]) / alpha).flatten(1).norm(dim=1)
        assert costs.mean[i, j] == pytest.approx(float(apart[[0, 2]].mean()), rel=1e-4)
    ends = (led(2)[0] - images).flatten(1).norm(dim=1)
    assert costs.last[2] == pytest.approx(float(ends[[0, 2]].mean()), rel=1e-4)


@pytest.mark.parametrize(
    "kind", [pytest.param(each, marks=pytest.mark.long if each != "labels" else ()) for each in KINDS]
)
def test_a_placement_is_measured_as_it_will_be_used(kind: str) -> None:
    model = small.model(**KINDS[kind])
    h = torch.randn(12, small.DIM) if kind == "representations" else None
    label = torch.arange(12) % 3 if kind == "labels" else None
    done: list[tuple[int, int]] = []
    found = fit(model, QUICK, h, label, 12, lambda *each: done.append(each))
    assert done[-1][0] == done[-1][1] == 12 + 2 * (4 + 6)
    given: dict[str, Any] = {"h": h, "label": label, "items": range(12), "per": 1}
    base = Schedule.make(model.config.schedule)
    grid = ",".join(map(str, place(base.alpha_bar, 12, "karras")))
    want = model.sample(**given, steps=f"at:{grid}", solver="dpmpp_2m")[:, 0]
    held = slice(0, None, solver_fit.HELD_OUT)
    for each in found:
        times = [int(part) for part in each.found.removeprefix("at:").split(",")]
        assert len(times) == each.nfe
        assert times[-1] == 999
        for steps, error in ((each.found, each.error), (each.nfe, each.own_error)):
            got = model.sample(**given, steps=steps, solver="ipndm")[:, 0]
            apart = (got - want)[held].flatten(1).norm(dim=1) / want[held].flatten(1).norm(dim=1)
            assert error.value == pytest.approx(float(apart.mean()), rel=1e-3)
        assert each.difference.value == pytest.approx(each.error.value - each.own_error.value)
        assert each.steps == (each.found if each.better else str(each.nfe))
    if kind == "representations":
        fewer = torch.randn(8, small.DIM)
        few = [fit(model, dataclasses.replace(QUICK, seed=seed), fewer) for seed in (0, 0, 1)]
        assert few[0] == few[1] != few[2]


def test_what_is_held_out_has_no_part_in_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    add = solver_fit.Costs.add

    def noted(own: solver_fit.Costs, states: Tensor, outputs: Tensor, images: Tensor, part: Tensor) -> None:
        kept.extend(part.tolist())
        add(own, states, outputs, images, part)

    monkeypatch.setattr(solver_fit.Costs, "add", noted)
    fit(small.quick_model(), QUICK, torch.randn(11, small.DIM))
    assert kept == [row % 4 != 0 for row in range(11)]


def test_only_what_is_better_beyond_doubt_is_recommended() -> None:
    def placed(error: float, own: float, spread: float) -> Placed:
        noise = np.linspace(-spread, spread, 40)
        return solver_fit._placed(5, "at:0,999", np.full(40, error) + noise, np.full(40, own), QUICK)

    assert placed(0.1, 0.2, 0.01).steps == "at:0,999"
    assert placed(0.2, 0.1, 0.01).steps == "5"
    assert placed(0.19, 0.2, 0.5).steps == "5"
    assert placed(0.1, 0.2, 0.01).difference.value == pytest.approx(-0.1)


def test_what_is_refused() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"nfe": ()}, "nothing to find"),
        ({"nfe": (3,)}, "ipndm takes 4 evaluations or more"),
        ({"nfe": (61,)}, "fewer than the 61"),
        ({"solver": "heun"}, "heun evaluates twice"),
        ({"solver": "ancestral"}, "ancestral draws fresh noise"),
        ({"solver": "ipdnm"}, "solver"),
        ({"resamples": 99}, "resamples must be at least 100"),
    )
    for changes, match in wrong:
        with pytest.raises(ConfigError, match=match):
            FitConfig(**changes)
    with pytest.raises(ConfigError, match="at least 8 trajectories, got 7: one in 4 judges them"):
        fit(small.quick_model(), QUICK, torch.randn(7, small.DIM))
    student = small.quick_model()
    student.config = dataclasses.replace(student.config, student_steps=(100, 900))
    with pytest.raises(ConfigError, match="is a student"):
        fit(student, QUICK, torch.randn(8, small.DIM))
    with pytest.raises(ConfigError, match="2000 candidates of 1000"):
        fit(small.quick_model(), dataclasses.replace(QUICK, candidates=2000), torch.randn(8, small.DIM))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = ((small.make_images(10, size=32) + 1) * 127.5).round().to(torch.uint8)
    np.save(tmp_path / "data.npy", pixels.permute(0, 2, 3, 1).numpy())
    words = ["tune", "cifar10-simclr-head", "--data", str(tmp_path / "data.npy"), "--nfe", "4", "--device", "cpu"]
    words += ["--candidates", "6", "--trajectories", "8", "--json", str(tmp_path / "steps.json")]
    assert main(words) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "steps.json").read_text())
    (only,) = written["placements"]
    assert written["solver"] == "ipndm"
    assert only["nfe"] == 4
    assert only["steps"] in out
    assert main(["tune", "cifar10-simclr-head", "--device", "cpu"]) == 2
    assert "give images with --data" in capsys.readouterr().err
    assert main([*words, "--trajectories", "11"]) == 2
    assert "11 trajectories of 10 images" in capsys.readouterr().err


def test_trajectories_are_those_of_the_seed_in_batches_of_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = small.quick_model(), torch.randn(8, small.DIM)
    made, schedule = solver_fit.Asked, Schedule.make(small.SCHEDULE, 2)
    asked = {
        seed: made(model, h, None, 8, seed, 3).images(schedule, solvers.ddim, torch.tensor([6, 1])) for seed in (0, 4)
    }
    for seed, images in asked.items():
        want = model.sample(h, items=range(8), per=1, steps=2, solver="ddim", seed=seed)[[6, 1], 0]
        torch.testing.assert_close(images, want, atol=1e-4, rtol=0)
    assert not torch.equal(asked[0], asked[4])
    batches = [rows for rows, _ in made(model, h, None, 8, 0, 3).batches(schedule, solvers.ddim)]
    assert batches == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert [rows for rows, _ in made(model, h, None, 8, 0, 5).batches(schedule, solvers.ddim, most=4)] == [
        slice(0, 4), slice(4, 8),
    ]  # fmt: skip
    given: list[tuple[int, int]] = []

    class Noted(solver_fit.Asked):
        def __init__(self, *arguments: Any) -> None:
            given.append(arguments[-2:])
            super().__init__(*arguments)

    monkeypatch.setattr(solver_fit, "Asked", Noted)
    fit(model, dataclasses.replace(QUICK, nfe=(4,), candidates=5, seed=6, batch_size=7), h)
    assert given == [(6, 7)]


def test_a_placement_is_held_against_the_solver_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own steps, its own way to run; the progress counts both, for every number of evaluations."""
    model, h = small.quick_model(), torch.randn(8, small.DIM)
    done: list[tuple[int, int]] = []
    found = fit(
        model,
        FitConfig(nfe=(2, 3), solver="ddim", candidates=6, resamples=100),
        h,
        progress=lambda *each: done.append(each),
    )
    assert done == [(6, 16), (8, 16), (10, 16), (13, 16), (16, 16)]
    want = model.sample(h, items=range(8), per=1, steps="at:" + grid_of(6), solver="dpmpp_2m")[::4, 0]
    for each in found:
        for steps, error in ((each.nfe, each.own_error), (each.found, each.error)):
            got = model.sample(h, items=range(8), per=1, steps=steps, solver="ddim")[::4, 0]
            apart = (got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
            assert error.value == pytest.approx(float(apart.mean()), rel=1e-3)


def grid_of(count: int) -> str:
    return ",".join(map(str, place(Schedule.make(small.SCHEDULE).alpha_bar, count, "karras")))
