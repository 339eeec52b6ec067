"""What ``auto`` is, and what is taken where nobody says how samples are drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rcdm_fast
from rcdm_fast.analysis import registry as experiments
from rcdm_fast.analysis.interpolate import InterpolateConfig
from rcdm_fast.analysis.invert import InvertConfig
from rcdm_fast.analysis.nearness import NearnessConfig
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, FittedSolver
from rcdm_fast.data import sources
from rcdm_fast.diffusion import auto, fitted, registry
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.report import build
from tests import small


@pytest.mark.parametrize(
    ("given", "solver", "evaluations"),
    [
        ({}, "deis", 10),
        ({"steps": "10"}, "deis", 10),
        ({"steps": " 12 "}, "deis", 12),
        ({"steps": 3}, "deis", 3),
        ({"steps": "at:0,400,999"}, "deis", 3),
        ({"steps": "quadratic5"}, "deis", 5),
        ({"steps": "uniform3"}, "deis", 3),
        ({"clip": False}, "deis", 10),
        ({"steps": 2}, "ddim", 2),
        ({"steps": "1"}, "ddim", 1),
        ({"steps": "at:0,999"}, "ddim", 2),
        ({"steps": "karras2"}, "ddim", 2),
        ({"eta": 0.5}, "ddim", 10),
        ({"steps": "ddim10"}, "ddim", 10),
        ({"steps": "3,2,1"}, "ddim", 6),
        ({"steps": ""}, "ddim", 1000),
    ],
    ids=str,
)
def test_what_auto_is(given: dict[str, Any], solver: str, evaluations: int) -> None:
    model, h = small.quick_model(), torch.zeros(1, small.DIM)
    chosen = model.request(h, **given).chosen
    assert (chosen.name, chosen.evaluations) == (solver, evaluations)
    if evaluations < 20:
        assert torch.equal(model.sample(h, per=1, **given), model.sample(h, per=1, **{**given, "solver": solver}))


@pytest.mark.parametrize("steps", ["quadratc5", "0", "1001", "1e1", "at:", "at:5,5", "ddim999", "10,", ","])
def test_steps_that_are_none_are_refused(steps: str) -> None:
    """With the message that a named solver has."""
    with pytest.raises(ConfigError) as named:
        registry.schedule(small.SCHEDULE, "deis" if steps[:4] != "ddim" and "," not in steps[:3] else "ddim", steps)
    with pytest.raises(ConfigError) as found:
        small.quick_model().request(torch.zeros(1, small.DIM), steps=steps)
    assert str(found.value) == str(named.value)


def test_inversion_has_a_default_of_its_own() -> None:
    """DDIM in 50 steps, which leads back; a configuration says how many it has, and keywords say otherwise."""
    model, images = small.quick_model(), small.make_images(2)
    h = model.encode(images)
    usual = model.invert(images, h)
    assert torch.equal(usual, model.invert(images, h, steps=50, solver="ddim"))
    few = model.invert(images, h, SamplingConfig())
    assert torch.equal(few, model.invert(images, h, steps=10))
    assert not torch.equal(few, usual)


def test_an_experiment_draws_all_its_models_alike() -> None:
    """A solver fitted to one of them is not another's; students are drawn as they were distilled; a name is kept."""
    plain = small.quick_model().config
    timesteps = tuple(np.linspace(9, 999, 10))
    own = FittedSolver(10, tuple(fitted.initial(small.SCHEDULE, timesteps).tolist()), "")
    tuned = dataclasses.replace(plain, fitted=(own,))
    student = dataclasses.replace(plain, student_steps=(10, 999))
    assert auto.settled(tuned, SamplingConfig()).solver == "fitted"
    assert auto.settled(plain, SamplingConfig(guidance=2.0)).solver == "deis"
    assert auto.settled(student, SamplingConfig(steps=2)).solver == "student"
    for models in ((tuned,), (tuned, plain), (plain, tuned)):
        assert auto.settled_for_all(models, SamplingConfig()).solver == "deis"
        assert auto.settled_for_all(models, SamplingConfig(eta=0.5)).solver == "ddim"
        assert auto.settled_for_all(models, SamplingConfig(solver="heun", steps=9)).solver == "heun"
    assert auto.settled_for_all((plain, student), SamplingConfig(steps=2)).solver == "auto"


def test_results_name_the_solver() -> None:
    data = sources.of_array(small.make_images(20, 32), 8)
    model = small.quick_model()
    for steps, solver in ((3, "deis"), (2, "ddim")):
        found = rcdm_fast.analyze(model, "distances", data, sources=20, per=2, steps=steps)
        assert found.settings["solver"] == solver


def test_a_report_leaves_every_experiment_its_steps() -> None:
    job = experiments.Job(small.quick_model(), settings={"seed": 3})
    assert job.configured(InvertConfig, "invert").steps == 50
    assert job.configured(InterpolateConfig, "interpolate").steps == 10


@pytest.mark.parametrize(("solver", "own"), [("heun", True), ("deis", True), ("unipc_2", False)])
def test_a_report_by_a_solver_without_a_way_back_inverts_by_its_own(
    solver: str, own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks: list[Any] = []
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    monkeypatch.setattr(build, "build", lambda given, out, **_: tasks.extend(given) or out)  # type: ignore[func-returns-value]
    np.savez(tmp_path / "d.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    words = ["report", "m", "--data", str(tmp_path / "d.npz"), "--experiments", "invert,distances", "--solver", solver]
    assert main([*words, "--out", str(tmp_path / "r.html")]) == 0
    configs = [
        each.job.configured(kind, each.name) for each, kind in zip(tasks, (InvertConfig, NearnessConfig), strict=True)
    ]
    assert [each.solver for each in configs] == ["ddim" if own else solver, solver]


def test_auto_of_an_inversion_is_its_own_solver() -> None:
    data = sources.of_array(small.make_images(20, 32), 8)
    found = rcdm_fast.analyze(small.quick_model(), "invert", data, sources=20, steps=2, solver="auto")
    assert found.settings["solver"] == "ddim"
