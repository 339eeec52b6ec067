"""Solvers and steps that there are not: one clear error each, with what may have been meant, wherever one is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcdm_fast.analysis.common import ExperimentConfig
from rcdm_fast.app.playground import Settings
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, from_dict
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.evaluation import EvaluateConfig
from rcdm_fast.images import save_image, to_pil
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.solver_fit import FitConfig
from tests import small

H = torch.zeros(1, small.DIM)
SOLVERS = (("dpmp_2m", "dpmpp_2m"), ("unipc_4", "unipc_[23]"), ("DDIM", "ddim"), ("huen", "heun"), ("fited", "fitted"))
STEPS: tuple[tuple[str, Any, str], ...] = (  # solver, steps, what is said
    ("ddim", 0, "steps must be at least 1, got 0"),
    ("ddim", "0", "must be positive"),
    ("ddim", 1001, "asks for 1001 steps out of a section of 1000"),
    ("ddim", "quadratic1001", "'quadratic1001': asks for 1001 of 1000 steps"),
    ("ddim", "at:0,1000", r"must be different and in 0..999"),
    ("ddim", "at:", "expected timesteps after 'at:', such as at:0,250,999"),
    ("ddim", "ddim999", "no integer stride gives 999 of 1000 steps; use 999 instead"),
    ("ddim", "quadratc10", "expected an int, .*; did you mean quadratic?"),
    ("ddim", "logsnnr10", "did you mean logsnr?"),
    ("ddim", "karas10", "did you mean karras?"),
    ("ddim", "unifrom10", "did you mean uniform?"),
    ("ddim", "ddmi25", "did you mean ddim?"),
    ("ddim", "xyz10", r"expected an int, 'N', 'ddimN', 'uniformN'.*'at:t,t'$"),
    ("ddim", True, "steps must be a whole number, got True"),
    ("dpmpp_2m", 1, "goes on from 2 steps, so it needs at least 2, got 1; or use ddim"),
    ("dpmpp_2m_sde", 1, "at least 2, got 1"),
    ("dpmpp_3m", 2, "at least 3, got 2"),
    ("unipc_2", "logsnr1", "at least 2, got 1"),
    ("unipc_2_bh1", 1, "at least 2, got 1"),
    ("unipc_3", 2, "at least 3, got 2"),
    ("unipc_3_bh1", "at:0,999", "at least 3, got 2"),
    ("deis", 2, "at least 3, got 2"),
    ("ipndm", 3, "at least 4, got 3"),
    ("dpmpp_2m", 1001, "asks for 1001 of 1000 steps"),
    ("heun", 4, "an odd number of times: 3 or 5, not 4"),
    ("student", 4, "this model is no student: make one with `rcdm distill MODEL`"),
    ("fitted", 4, "has no fitted solver: make one with `rcdm tune MODEL"),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """The model, two representations, a photograph."""
    folder = tmp_path_factory.mktemp("files")
    config = dataclasses.replace(model.config, encoder=None)
    save_image(to_pil(small.make_images(1)[0]), folder / "a.png")
    np.save(folder / "h.npy", np.zeros((2, small.DIM), np.float32))
    file = checkpoint.save_model(folder / "m.safetensors", config, model.unet.state_dict())
    return str(file), str(folder / "h.npy"), str(folder / "a.png")


@pytest.mark.parametrize(("wrong", "meant"), SOLVERS)
def test_an_unknown_solver_in_python(model: Model, wrong: str, meant: str) -> None:
    """Wherever one is named, before anything is computed."""
    said = f"did you mean {meant}"
    for config in (SamplingConfig, JobConfig, EvaluateConfig, ExperimentConfig):
        with pytest.raises(ConfigError, match=said):
            config(solver=wrong)
        with pytest.raises(ConfigError, match=said):
            from_dict(config, {"solver": wrong})
    with pytest.raises(ConfigError, match=said):
        Settings(model="m", solver=wrong)
    with pytest.raises(ConfigError, match=said):
        FitConfig(solver=wrong)  # type: ignore[arg-type]
    for call in (model.sample, model.request):
        with pytest.raises(ConfigError, match=said):
            call(H, solver=wrong, steps=5)
    with pytest.raises(ConfigError, match=said):
        registry.choose(model.config, wrong, 5)


@pytest.mark.parametrize(
    "words",
    [
        "sample PHOTO --solver huen",
        "interpolate PHOTO PHOTO --solver huen",
        "generate h.npy --solver huen",
        "evaluate m --data d --solver huen",
        "compare MODEL --data d --solver huen",
        "bench MODEL --solver huen",
        "tune m --solver huen",
    ],
)
def test_an_unknown_solver_in_a_command(
    words: str, files: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One line, and nothing is written; where no model is needed to know, the model is not looked for."""
    monkeypatch.chdir(tmp_path)
    assert main(words.replace("MODEL", files[0]).replace("PHOTO", files[2]).split()) == 2
    said = capsys.readouterr().err
    assert "huen" in said
    assert "did you mean heun?" in said
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("solver", "steps", "message"), STEPS)
def test_steps_that_there_are_not(model: Model, solver: str, steps: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample(H, per=1, solver=solver, steps=steps)


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [each for each in STEPS if each[1] in (0, 1001, "quadratc10", 4, 3) and each[0] in ("ddim", "heun", "ipndm")],
)
def test_steps_that_there_are_not_in_a_command(
    solver: str, steps: Any, message: str, files: tuple[str, str, str], tmp_path: Path, capsys: Any
) -> None:
    file, h, _ = files
    words = ["generate", h, "--model", file, "--out", str(tmp_path / "job"), "--device", "cpu"]
    assert main([*words, "--solver", solver, "--steps", str(steps)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rcdm: ")
    assert re.search(message, said.strip())
    assert not (tmp_path / "job").exists()


def test_one_evaluation(model: Model) -> None:
    """Is enough for those that go on from nothing."""
    for name, known in registry.SOLVERS.items():
        if known.least == 1:
            assert model.sample(H, per=1, solver=name, steps=1).isfinite().all()
    for solver, steps in (("ddim", 1), ("ancestral", 1), ("heun", 1), ("ddim", "quadratic1")):
        assert model.request(H, solver=solver, steps=steps).evaluations == 1


def test_as_many_evaluations_as_timesteps(model: Model) -> None:
    for name in ("ddim", "dpmpp_2m"):
        assert model.request(H, solver=name, steps=1000).schedule.timesteps == tuple(range(1000))
