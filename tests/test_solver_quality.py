"""What solvers do to samples: against made-up samples with known answers, and as the command prints and draws it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdm_fast import evaluation, solver_quality
from rcdm_fast.cli import bench, main
from rcdm_fast.config import ConfigError, FittedSolver
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.diffusion import fitted
from rcdm_fast.diffusion.registry import SOLVERS
from rcdm_fast.images import from_uint8, to_uint8
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from rcdm_fast.report import solver_plot
from rcdm_fast.solver_quality import BASELINE, Quality, QualityConfig, SolverCase
from tests import small

PIXELS = ((small.make_images(30) * 0.5 + 1) * 127.5).round().to(torch.uint8)
DATA = ImageSet(PIXELS, None, (), (), fingerprint(PIXELS, None))
CONFIG = QualityConfig(sources=10, per=4, references=4, resamples=200)
NOISY = {"ddim": 0.1, "ipndm": 0.0, "ancestral": 0.4}  # how far samples are from the flow's end


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose samples are the sources', with fixed noise that depends on the solver."""
    made = small.quick_model()
    asked: list[dict[str, Any]] = []

    def sample(h: Tensor, *, items: Tensor, per: int, solver: str, steps: Any, seed: int, **_: Any) -> Tensor:
        asked.append({"solver": solver, "steps": steps, "per": per, "items": items.tolist(), "seed": seed})
        generator = torch.Generator().manual_seed(7)
        every = (torch.rand(30, 4, 3, 8, 8, generator=generator) * 2 - 1)[items, :per]
        return DATA.floats(items)[:, None] + NOISY.get(solver, 0.0) * every

    monkeypatch.setattr(made, "sample", small.asked(sample))
    monkeypatch.setattr(made, "asked", asked, raising=False)
    return made


def test_distance_ranks_and_variance_of_samples_that_are_known(model: Model) -> None:
    fractions: list[float] = []
    wanted = [SolverCase("ipndm", 10), BASELINE, SolverCase("ancestral", 10)]
    rows = solver_quality.measure(model, DATA, wanted, CONFIG, lambda found, fraction: fractions.append(fraction))
    assert [(row.solver, row.steps, row.nfe) for row in rows] == [
        ("ddim", "50", 50),
        ("ipndm", "10", 10),
        ("ancestral", "10", 10),
    ]
    base, exact, loose = rows
    assert exact.error is not None
    assert base.error is not None
    assert exact.error.value == 0
    want = []
    noise = torch.rand(30, 4, 3, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1
    sources = torch.linspace(0, 29, 10).round().long()
    for source in sources[torch.linspace(0, 9, 4).round().long()]:
        image = DATA.floats(source[None])[0]
        want.append(float((0.1 * noise[source, 0]).norm() / image.norm()))
    assert base.error.value == pytest.approx(np.mean(want), rel=0.02)
    assert loose.error is None  # its noise is fresh in every step: it does not follow the flow
    assert base.variance.value == 1
    assert exact.variance.value < 0.01
    assert loose.variance.value == pytest.approx(16, rel=0.1)
    assert base.mrr_change == intervals.alone(0)  # of ten sources there is no interval
    assert loose.mrr.value < base.mrr.value
    assert loose.mrr_change.value == pytest.approx(loose.mrr.value / base.mrr.value - 1)
    assert all(row.frechet is not None and row.frechet >= 0 for row in rows)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    asked = model.asked  # type: ignore[attr-defined]
    (reference,) = [each for each in asked if each["solver"] == "dpmpp_2m"]
    assert reference["steps"] == "uniform1000"
    assert reference["per"] == 1
    assert reference["items"] == sources[[0, 3, 6, 9]].tolist()
    assert {each["seed"] for each in asked} == {0}


def test_all_are_drawn_with_the_seed_that_is_asked_for(model: Model) -> None:
    """The reference too, else all were far from it."""
    solver_quality.measure(model, DATA, [BASELINE, SolverCase("ipndm", 10)], dataclasses.replace(CONFIG, seed=5))
    asked: list[dict[str, Any]] = model.asked  # type: ignore[attr-defined]
    assert {each["solver"] for each in asked} == {"ddim", "ipndm", "dpmpp_2m"}
    assert {each["seed"] for each in asked} == {5}


def test_held_against_another_solver(model: Model) -> None:
    """Changes are from the first row, whichever that is; the published recipe's solver takes fresh noise."""
    first = solver_quality.baseline(model, "ancestral:10")
    assert first == SolverCase("ancestral", 10)
    base, usual = solver_quality.measure(model, DATA, [SolverCase("ddim", 50), first], CONFIG, first_case=first)
    assert (base.solver, base.mrr_change.value, base.variance.value) == ("ancestral", 0, 1)
    assert base.error is None
    assert usual.mrr_change.value == pytest.approx(usual.mrr.value / base.mrr.value - 1)
    assert usual.mrr_change.value > 0
    assert usual.variance.value == pytest.approx(1 / 16, rel=0.1)


@pytest.mark.parametrize("text", ["", "ancestral", ":100", "ancestral:", "ddin:10", "ddim:0", "fitted:5"])
def test_a_baseline_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError):
        solver_quality.baseline(small.quick_model(), text)


def test_a_baseline_of_steps_by_name() -> None:
    assert solver_quality.baseline(small.quick_model(), "ddim: at:0,500") == SolverCase("ddim", "at:0,500")


@pytest.mark.long
def test_the_reference_is_where_the_solvers_lead() -> None:
    """Of a real trajectory: more steps come nearer, and all of them arrive."""
    model = small.quick_model()
    model.config = dataclasses.replace(
        model.config, schedule=dataclasses.replace(model.config.schedule, diffusion_steps=60)
    )
    wanted = [SolverCase("ddim", "uniform60"), SolverCase("unipc_2", "uniform60"), SolverCase("ddim", 4)]
    config = QualityConfig(sources=3, per=2, references=3, resamples=100)
    rows = {
        (row.solver, row.steps): row.error.value
        for row in solver_quality.measure(model, DATA, wanted, config)
        if row.error
    }
    assert rows["unipc_2", "uniform60"] < rows["ddim", "uniform60"] < rows["ddim", "4"]


def test_a_schedule_of_fewer_steps_than_the_first_case_has() -> None:
    model = small.quick_model()
    model.config = dataclasses.replace(
        model.config, schedule=dataclasses.replace(model.config.schedule, diffusion_steps=30)
    )
    assert solver_quality.baseline(model) == SolverCase("ddim", 30)
    config = QualityConfig(sources=3, per=2, references=16, resamples=100)
    (only,) = solver_quality.measure(model, DATA, [], config)
    assert (only.steps, only.nfe) == ("30", 30)


def test_cases_that_are_none() -> None:
    model = small.quick_model()
    known, left_out = solver_quality.cases(model, ["all"], [3, 10])
    assert {case.solver for case in known} == set(SOLVERS)
    assert SolverCase("heun", 10) not in known
    assert SolverCase("heun", 3) in known
    assert SolverCase("ipndm", 3) not in known
    assert any("heun 10: " in line and "9 or 11" in line for line in left_out)
    assert len(known) + len(left_out) == 2 * len(SOLVERS)
    with pytest.raises(ConfigError, match="at least 4, got 3"):
        solver_quality.cases(model, ["ddim", "ipndm"], [3])
    with pytest.raises(ConfigError, match="no solver called"):
        solver_quality.cases(model, ["ddin"], [3])


def test_what_cannot_be_measured_is_named_before_anything_is_drawn() -> None:
    with pytest.raises(ConfigError, match="at least 2 of each"):
        QualityConfig(per=1)
    with pytest.raises(ConfigError, match="resamples must be at least 100"):
        QualityConfig(resamples=99)
    with pytest.raises(ConfigError, match="the data has 30"):
        solver_quality.check(small.quick_model(), DATA, QualityConfig(sources=40))
    bare = Model.from_network(small.network(), small.SCHEDULE)
    with pytest.raises(ConfigError, match="give one with --encoder"):
        solver_quality.measure(bare, DATA, [], CONFIG)


def row(solver: str, steps: str, nfe: int, value: float, error: float | None = None) -> Quality:
    one = Interval(value, value - 0.01, value + 0.01)
    apart = None if error is None else Interval(error, error, error)
    return Quality(solver, steps, nfe, apart, one, one, one, None, None)  # type: ignore[arg-type]


def test_a_plot_has_a_curve_for_every_solver_and_a_panel_for_what_was_measured() -> None:
    rows = [row(f"solver{number}", str(nfe), nfe, 0.1 * number, 0.2) for number in range(8) for nfe in (5, 10, 20)]
    rows += [row("solver0", f"logsnr{nfe}", nfe, 0.5, 0.1) for nfe in (5, 10)]
    rows += [row("fresh", "10", 10, 0.3)]
    made = solver_plot.svg(rows)
    page = ElementTree.fromstring(made)
    assert len(page.findall("{http://www.w3.org/2000/svg}svg")) == 3  # none of the Fréchet distance
    for title in ("relative distance", "MRR of the source", "variance over samples"):
        assert title in made
    error = solver_plot.table(rows, *solver_plot.PANELS[0])
    assert error is not None
    assert error.columns == (
        "network evaluations",
        *(f"solver{number}" for number in range(8)),
        "solver0 logsnr",
        "fresh",
    )
    assert [line[0] for line in error.rows] == [5, 10, 20]
    assert error.rows[2][9] is None
    assert solver_plot.way(row("ddim", "at:0,40,999", 3, 0.1)) == "ddim at:0,40,999"
    assert solver_plot.way(row("ddim", "karras12", 12, 0.1)) == "ddim karras"
    styles = [line.split("stroke=")[1].split("/>")[0] for line in made.split("<polyline")[1:]]
    assert len(set(styles)) == len(set(styles[:9])) + 1 == 10  # each curve of a panel looks different


def test_the_command_measures_prints_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = ((small.make_images(8, size=32) + 1) * 127.5).round().to(torch.uint8)
    np.save(tmp_path / "data.npy", pixels.permute(0, 2, 3, 1).numpy())
    monkeypatch.setattr(solver_quality, "BASELINE", SolverCase("ddim", 3))
    monkeypatch.setattr(solver_quality, "_reference", lambda model, drawn, count, config: drawn.images[:count, 0])
    words = ["bench", "cifar10-simclr-head", "--device", "cpu", "--data", str(tmp_path / "data.npy"), "--steps", "2,3"]
    words += ["--solver", "ddim,dpmpp_2m", "--sources", "3", "--references", "2", "--no-published", "--rounds", "1"]
    words += ["--batch-size", "2", "--plot", str(tmp_path / "plot.svg"), "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "distance from the flow" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [(each["solver"], each["steps"]) for each in written["quality"]] == [
        ("ddim", "3"), ("ddim", "2"), ("dpmpp_2m", "2"), ("dpmpp_2m", "3"),
    ]  # fmt: skip
    assert len(written["rows"]) == 4
    assert written["quality"][0]["error"]["value"] > 0
    ElementTree.parse(tmp_path / "plot.svg")
    assert len(bench.quality_table([row("ddim", "3", 3, 0.5)])) == 2
    assert main(["bench", "cifar10-simclr-head", "--plot", str(tmp_path / "p.svg")]) == 2
    assert "give both" in capsys.readouterr().err


def test_what_a_model_has_of_its_own_is_a_case_too() -> None:
    """``auto`` is named as what it is; a fitted solver follows the flow, so it has a distance from it."""
    model = small.quick_model()
    own = FittedSolver(5, tuple(fitted.initial(model.config.schedule, tuple(np.linspace(9, 999, 5))).tolist()), "")
    model.config = dataclasses.replace(model.config, fitted=(own,))
    known, left_out = solver_quality.cases(model, ["all"], [5])
    assert SolverCase("fitted", 5) in known
    assert not any("student" in line for line in left_out)
    assert solver_quality.cases(model, ["auto"], [5, 6]) == ([SolverCase("fitted", 5), SolverCase("deis", 6)], [])
    model.config = dataclasses.replace(model.config, fitted=(), student_steps=(10, 999))
    known, _ = solver_quality.cases(model, ["all"], [2])
    assert SolverCase("student", 2) in known
    assert "fitted" not in {case.solver for case in known}


def test_a_case_is_drawn_and_measured_as_the_configuration_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = QualityConfig(sources=24, per=3, gallery=25, references=22, seed=6, batch_size=9, resamples=120)
    asked = dataclasses.asdict(config.of(SolverCase("ipndm", 7)))
    assert {name: asked[name] for name in ("sources", "per", "gallery", "seed", "batch_size", "resamples")} == {
        "sources": 24, "per": 3, "gallery": 25, "seed": 6, "batch_size": 9, "resamples": 120,
    }  # fmt: skip
    assert (asked["solver"], asked["steps"]) == ("ipndm", 7)
    base, loose = solver_quality.measure(model, DATA, [SolverCase("deis", 9)], config)
    assert loose.variance.value == 0
    drawn = evaluation.draw(model, DATA, config.of(BASELINE))
    spread = evaluation.variances(drawn.images)
    rng = np.random.default_rng(6)
    wanted = intervals.bootstrap(spread, 120, rng)
    assert base.variance == Interval(1, 1, 1)
    assert base.found.variance is not None
    assert base.found.variance.value == pytest.approx(wanted.value)
    assert loose.error is not None
    assert (loose.error.low, loose.error.high) == (0, 0)
    assert base.error is not None
    chosen = drawn.sources[torch.linspace(0, 23, 22).round().long()]
    noise = (torch.rand(30, 4, 3, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1)[chosen, 0]
    images = from_uint8(to_uint8(DATA.floats(chosen)))
    shown = from_uint8(to_uint8(DATA.floats(chosen) + 0.1 * noise))
    far = ((shown - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)).double().numpy()
    assert base.error == intervals.bootstrap(far, 120, np.random.default_rng(6))


def test_a_handful_of_samples_has_no_frechet_distance(model: Model) -> None:
    config = QualityConfig(sources=2, per=2, references=1, resamples=100)
    assert [row.frechet for row in solver_quality.measure(model, DATA, [], config)] == [None]
