"""Learned solvers: gradients by differences, what is held out, interruptions, what is kept and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import sealed, solver_learning, solver_lesson, solver_starts
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, FittedSolver
from rcdm_fast.diffusion import fitted, registry
from rcdm_fast.diffusion.schedule import Schedule, place
from rcdm_fast.metrics import intervals
from rcdm_fast.metrics.intervals import Interval
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.solver_fit import Asked
from rcdm_fast.solver_learning import LearnConfig, Learned, learn
from rcdm_fast.storage import StorageError
from tests import small

QUICK = LearnConfig(nfe=(2,), steps=2, candidates=5, batch_size=6, resamples=200)
KINDS: dict[str, dict[str, Any]] = {
    "representations": {},
    "labels": {"representation_dim": 0, "num_classes": 3},
    "nothing": {"representation_dim": 0},
}

OTHER_SETTINGS: tuple[dict[str, Any], ...] = ({"seed": 1}, {"candidates": 6})


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trajectories may judge."""
    monkeypatch.setattr(solver_learning, "LEAST", 16)


def given(kind: str, count: int = 16) -> dict[str, Any]:
    h = torch.randn(count, small.DIM, generator=torch.Generator().manual_seed(0))
    return {
        "h": h if kind == "representations" else None,
        "label": torch.arange(count) % 3 if kind == "labels" else None,
        "trajectories": count,
    }


def smooth(kind: str, of_time: float = 0.0) -> Model:
    """A model whose network gives x0, and sees little of the time: one with random weights turns wildly with it."""
    unet = small.network(**KINDS[kind])
    with torch.no_grad():
        for parameter in unet.time_embed.parameters():
            parameter.mul_(of_time)
    return Model.from_network(unet, dataclasses.replace(small.SCHEDULE, prediction="x0"))


def lesson(model: Model, kind: str = "representations") -> solver_lesson.Lesson:
    conditions = given(kind)
    ask = Asked(model, conditions["h"], conditions["label"], 16, 0, 8)
    own = Schedule.make(model.config.schedule, 9, "logsnr")
    wanted = ask.images(own, registry.find("dpmpp_2m").run)
    return solver_lesson.Lesson(model, ask, wanted)


def moved_about(ours: solver_lesson.Lesson) -> Tensor:
    """Numbers for three evaluations, all of them other than a known solver's."""
    numbers = torch.from_numpy(fitted.initial(ours.base, (30.4, 400.3, 999)))
    numbers[3:6] = torch.tensor([-20.0, 3.0, 5.0])
    numbers[6:] += 0.05 * torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return numbers


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_slopes_are_those_of_the_distance(prediction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving things by little changes the distance as the slopes say; steps matter unless the network says x0."""
    model = smooth("representations", of_time=0.1)
    model.config = dataclasses.replace(
        model.config, schedule=dataclasses.replace(model.config.schedule, prediction=prediction)
    )
    ours, few = lesson(model), torch.tensor([1, 2, 7])
    numbers = moved_about(ours)
    monkeypatch.setattr(solver_lesson, "OF_WEIGHT", 3e-4)
    monkeypatch.setattr(solver_lesson, "OF_TIME", 0.1)
    done: list[float] = []
    found = ours.equations(3, numbers, few, done.append)
    assert done[-1] == 1
    assert found.distance == pytest.approx(ours.distance(3, numbers, few), rel=1e-5)
    parts = {"weights": (0, 9, 3e-4), "asked": (9, 12, 0.1)} | ({} if prediction == "x0" else {"steps": (12, 14, 0.1)})
    assert len(found.slope) == max(end for _, end, _ in parts.values())
    torch.testing.assert_close(found.curvature, found.curvature.T, rtol=1e-5, atol=1e-7)
    for name, (start, end, step) in parts.items():
        along = torch.zeros(len(found.slope), dtype=torch.float64)
        along[start:end] = found.slope[start:end] / found.slope[start:end].norm()
        up, down = (ours.distance(3, ours.moved(3, numbers, sign * step * along), few) for sign in (1, -1))
        assert float(found.slope @ along) == pytest.approx((up - down) / (2 * step), rel=0.06), name


def test_a_time_at_the_end_is_moved_back_for_its_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, few = lesson(smooth("representations", of_time=0.6)), torch.tensor([1, 2, 7])
    numbers = moved_about(ours)
    numbers[3] = 0.0  # the first is asked for at the last timestep, behind which there is none
    monkeypatch.setattr(solver_lesson, "OF_TIME", 0.1)
    found = ours.equations(3, numbers, few, lambda _: None)
    back = torch.zeros(len(found.slope), dtype=torch.float64)
    back[9] = -0.1
    less = ours.distance(3, ours.moved(3, numbers, back), few) - ours.distance(3, numbers, few)
    assert abs(less) > 1e-5
    assert float(found.slope[9]) == pytest.approx(less / -0.1, rel=0.1)


def test_many_slopes_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = lesson(small.quick_model())
    numbers, done = moved_about(ours), list[float]()
    whole = ours.equations(3, numbers, ours.learning, lambda _: None)
    monkeypatch.setattr(solver_lesson, "_AT_ONCE_BYTES", 5 * 14 * 4 * 3 * 8 * 8)
    parts = ours.equations(3, numbers, ours.learning, done.append)
    assert done == [5 / 12, 10 / 12, 1]
    torch.testing.assert_close(parts.slope, whole.slope, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parts.curvature, whole.curvature, rtol=1e-3, atol=1e-3)


def test_what_is_held_out_has_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = lesson(small.quick_model())
    assert ours.choosing.tolist() == [0, 8]
    assert ours.judged.tolist() == [4, 12]
    assert ours.learning.tolist() == [place for place in range(16) if place % 4]
    parts = [solver_learning._drawn(ours, 2, QUICK, [0.1] * step) for step in range(8)]
    assert {len(set(part.tolist())) for part in parts} == {6}
    assert set(torch.cat(parts).tolist()) == set(ours.learning.tolist())
    assert torch.equal(parts[3], solver_learning._drawn(ours, 2, QUICK, [0.1] * 3))
    assert len(solver_learning._drawn(ours, 2, QUICK, [0.1, 0.019])) == 12
    seen: list[list[int]] = []
    images = ours._ask.batches

    def noted(schedule: Any, solver: Any, places: Tensor, most: int = 32) -> Any:
        seen.append(places.tolist())
        return images(schedule, solver, places, most)

    monkeypatch.setattr(ours._ask, "batches", noted)
    run = {"step": 0, "numbers": moved_about(ours), "damping": 1.0, "gains": [], "distance": 9.0}
    found = ours.equations(3, moved_about(ours), parts[0], lambda _: None)
    solver_learning._stepped(ours, 3, run, found)
    assert seen == [parts[0].tolist(), ours.learning.tolist()]


class Stopped(Exception):
    pass


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    model, state = smooth("representations"), tmp_path / "state"

    def stop(nfe: int, fraction: float, least: float) -> None:
        if fraction > 0.5:
            raise Stopped

    whole = learn(model, QUICK, model.weights, **given("representations"), state=tmp_path / "other")
    with pytest.raises(Stopped):
        learn(model, QUICK, model.weights, **given("representations"), state=state, progress=stop)
    stages: list[float] = []
    again = learn(
        model,
        QUICK,
        model.weights,
        **given("representations"),
        state=state,
        progress=lambda nfe, fraction, least: stages.append(fraction),
    )
    assert stages == [1.0, 1.0]
    assert again == whole
    best = sealed.load(state)["data"]["runs"][2]["best"]
    assert torch.equal(best, sealed.load(tmp_path / "other")["data"]["runs"][2]["best"])


def test_a_state_that_cannot_be_used_gives_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, h = tmp_path / "state", torch.zeros(16, 2)
    keys = [solver_learning._key(QUICK, "a", h, None, 16)]
    keys += [solver_learning._key(dataclasses.replace(QUICK, **each), "a", h, None, 16) for each in OTHER_SETTINGS]
    keys += [solver_learning._key(QUICK, "b", h, None, 16), solver_learning._key(QUICK, "a", h + 1, None, 16)]
    assert len(set(keys)) == 5
    assert solver_learning._key(dataclasses.replace(QUICK, nfe=(3,), minutes=1, steps=9), "a", h, None, 16) == keys[0]
    kept = solver_learning._Kept(file, keys[0])
    kept.data = {"wanted": torch.ones(2)}
    kept.save()
    assert torch.equal(solver_learning._Kept(file, keys[0]).data["wanted"], torch.ones(2))
    with caplog.at_level(logging.WARNING, "rcdm_fast"):
        assert not solver_learning._Kept(file, keys[1]).data
        assert "of another run; learning begins anew" in caplog.text
        file.write_bytes(file.read_bytes()[:-300])
        assert not solver_learning._Kept(file, keys[0]).data
    assert f"{file}: cannot be read" in caplog.text or "damaged" in caplog.text


def test_it_learns_and_only_what_is_better_is_kept() -> None:
    model = smooth("nothing")
    config = dataclasses.replace(QUICK, steps=4)
    seen: list[float] = []
    (found,) = learn(
        model, config, model.weights, **given("nothing"), progress=lambda nfe, fraction, least: seen.append(least)
    )
    assert seen[-1] < 0.8 * seen[0]  # of what choices are made by, from where it began
    assert (found.solver is not None) == (found.difference.high < 0)
    assert found.difference.value == pytest.approx(found.error.value - found.other_error.value)
    assert found.other[0] in registry.SOLVERS
    assert registry.schedule(model.config.schedule, *found.other)


def test_what_may_be_by_chance_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smooth("nothing")
    config = dataclasses.replace(QUICK, steps=1)
    for high, kept in ((0.05, False), (-0.05, True)):
        difference = Interval(-0.1, -0.2, high)
        monkeypatch.setattr(solver_learning, "bootstrap", lambda *_, difference=difference: difference)
        (found,) = learn(model, config, model.weights, **given("nothing"))
        assert (found.solver is not None) == kept


def test_a_file_has_what_was_learned_and_what_there_was_before(tmp_path: Path) -> None:
    """By numbers of evaluations, in their order; a new one takes the place of one for as many."""
    model = small.quick_model()
    four, six, seven, other = (
        FittedSolver(nfe, (value,) * (nfe * (nfe + 3)), model.weights)
        for nfe, value in ((4, 0.1), (6, 0.2), (7, 0.3), (6, 0.4))
    )
    model.config = dataclasses.replace(model.config, encoder=None, name="m", fitted=(four, six))
    one = Interval(0.1, 0.1, 0.1)
    learned = [Learned(each.nfe, each, one, ("ddim", "4"), one, one, 1) for each in (seven, other)]
    learned.append(Learned(5, None, one, ("ddim", "5"), one, one, 1))
    config, tensors = checkpoint.load_model(solver_learning.save(tmp_path / "m.safetensors", model, learned))
    assert [(each.nfe, each.numbers) for each in config.fitted] == [
        (each.nfe, each.numbers) for each in (four, other, seven)
    ]
    assert dataclasses.replace(config, fitted=()) == dataclasses.replace(model.config, fitted=())
    assert all(torch.equal(value, model.unet.state_dict()[name]) for name, value in tensors.items())


def test_where_it_begins() -> None:
    """At least as near as the best training-free solver, or as the model's own from before."""
    model = smooth("representations")
    ours = lesson(model)
    rivals = solver_starts.rivals(ours, 4)
    assert {name for name, _ in rivals} == {
        *("ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "unipc_2_bh1", "unipc_3_bh1", "deis", "ipndm")
    }
    times = place(Schedule.make(ours.base).alpha_bar, 9, "karras")
    data = {"times": list(times), "step": torch.ones(9, 9), "last": torch.ones(9)}
    begun = solver_starts.starts(ours, 4, data, rivals, ())
    assert 1 < len(begun) <= 3
    errors = [error for error, _ in begun]
    assert errors == [ours.validate(4, numbers) for _, numbers in begun] == sorted(errors)
    assert errors[-1] <= 2 * errors[0]
    start = begun[0][1]
    assert ours.validate(4, start) <= min(rivals.values()) + 2e-3  # the end lies 0.2 timesteps before the first
    better = start + 0.0
    better[-1] += 0.01
    before = FittedSolver(4, tuple(better.tolist()), model.weights)
    want = min((start, better), key=lambda each: ours.validate(4, each))
    assert torch.equal(solver_starts.starts(ours, 4, data, rivals, [before])[0][1], want)
    worse = dataclasses.replace(before, numbers=tuple(np.ones(28).tolist()))
    assert torch.equal(solver_starts.starts(ours, 4, data, rivals, [worse, before])[0][1], want)


def test_it_goes_on_from_where_a_first_step_leads_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nearest before learning need not be; what was tried counts as a step, and its time as learning's."""
    model = smooth("representations")
    ours = lesson(model)
    near, far = moved_about(ours), moved_about(ours) + 0.01
    after = {False: 0.5, True: 0.2}

    def learned(_lesson: Any, _nfe: int, _config: Any, run: dict[str, Any], _tell: Any) -> dict[str, Any]:
        return {"step": 1, "distance": after[torch.equal(run["numbers"], far)]}

    monkeypatch.setattr(solver_learning, "_learned", learned)
    told: list[float] = []
    run = solver_learning._scouted(
        ours, 3, QUICK, [(0.4, near), (0.6, far)], lambda _nfe, fraction, least: told.append(least)
    )
    assert torch.equal(run["numbers"], far)
    assert (run["step"], run["distance"]) == (1, 0.2)
    assert run["seconds"] > 0
    assert told == [0.4, 0.4]
    alone = solver_learning._scouted(ours, 3, QUICK, [(0.4, near)], None)
    assert (alone["step"], alone["distance"]) == (0, ours.distance(3, near, ours.learning))


def test_what_is_refused() -> None:
    for changes, match in (
        ({"nfe": ()}, "give each number"),
        ({"nfe": (5, 5)}, "once"),
        ({"nfe": (1,)}, r"nfe\[0\] must be in 2..32, got 1"),
        ({"nfe": (33,)}, r"nfe\[0\] must be in 2..32, got 33"),
        ({"nfe": (5,)}, "the teacher has 5 evaluations"),
        ({"minutes": 0}, "minutes"),
        ({"resamples": 99}, "resamples must be at least 100"),
    ):
        with pytest.raises(ConfigError, match=match):
            dataclasses.replace(QUICK, **changes)
    model = small.quick_model()
    with pytest.raises(ConfigError, match="evaluation_batch must be at least 1"):
        dataclasses.replace(QUICK, evaluation_batch=0)
    with pytest.raises(ConfigError, match="at least 16 trajectories, got 15: one in 8 judges it"):
        learn(model, QUICK, model.weights, **given("representations", 15))
    coarse = small.quick_model()
    coarse.engine.precision = "bf16"
    with pytest.raises(ConfigError, match="differences of images, in fp32, not in bf16"):
        learn(coarse, QUICK, model.weights, **given("representations"))
    student = small.quick_model()
    student.config = dataclasses.replace(student.config, student_steps=(100, 900))
    with pytest.raises(ConfigError, match="is a student"):
        learn(student, QUICK, student.weights, **given("representations"))
    with pytest.raises(ConfigError, match="2000 candidates of 1000"):
        learn(model, dataclasses.replace(QUICK, candidates=2000), model.weights, **given("representations"))


def whole_model(folder: Path) -> Path:
    model = small.model(**KINDS["labels"])
    return checkpoint.save_model(folder / "model.safetensors", model.config, model.unet.state_dict())


def full_disk(*_: Any) -> Path:
    raise StorageError("no space left")


def test_the_command_writes_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = whole_model(tmp_path), tmp_path / "tuned.safetensors"
    asked: dict[str, Any] = {}

    def found(model: Model, config: LearnConfig, weights: str, h: Any, label: Tensor, *rest: Any) -> list[Learned]:
        asked.update(config=config, weights=weights, label=label, count=rest[0], state=rest[1], begin=rest[3])
        rest[1].write_bytes(b"kept")
        rest[2](5, 0.5, 0.1)
        numbers = fitted.initial(model.config.schedule, tuple(np.linspace(9, 999, 5)))
        own = rcdm_fast.config.FittedSolver(5, tuple(numbers.tolist()), weights)
        one = Interval(0.1, 0.05, 0.2)
        return [
            Learned(5, own, one, ("ipndm", "logsnr5"), one, one, 7),
            Learned(8, None, one, ("deis", "logsnr8"), one, one, 7),
        ]

    monkeypatch.setattr(solver_learning, "learn", found)
    words = ["tune", str(path), "--nfe", "5,8", "--minutes", "0.5", "--out", str(out), "--trajectories", "20"]
    with monkeypatch.context() as changed:
        changed.setattr(solver_learning, "save", full_disk)
        assert main([*words, "--device", "cpu"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert asked["state"].read_bytes() == b"kept"  # for another try
    assert main([*words, "--device", "cpu", "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    tuned = rcdm_fast.load(out, device="cpu")
    assert asked["config"] == LearnConfig((5, 8), 0.5)
    assert asked["label"].tolist() == [row % 3 for row in range(20)]
    assert asked["weights"] == tuned.weights
    assert not asked["state"].exists()
    assert [each.nfe for each in tuned.config.fitted] == [5]
    assert tuned.config.fitted[0].digest in said
    assert "ipndm logsnr5" in said
    assert "not better beyond doubt" in said
    written = json.loads((tmp_path / "found.json").read_text())["solvers"]
    assert [each["solver"] is None for each in written] == [False, True]
    assert tuned.sample(label=[0], steps=5, per=1).isfinite().all()
    assert asked["begin"] == ()
    assert main([*words, "--device", "cpu", "--init", str(out)]) == 0
    assert asked["begin"] == tuned.config.fitted


def test_the_command_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = whole_model(tmp_path), tmp_path / "tuned.safetensors"
    words = ["tune", str(path), "--nfe", "2", "--minutes", "0.001", "--out", str(out), "--trajectories", "16"]
    words += ["--candidates", "5", "--device", "cpu"]
    code = main(words)
    said = capsys.readouterr()
    assert code == (0 if out.exists() else 2)
    assert ("no learned solver is better" in said.err) != out.exists()
    for wrong, message in (
        (["--solver", "ddim"], "--solver is placed where no --out is given"),
        (["--out", str(tmp_path / "tuned.pt")], "a model is written as .safetensors"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["tune", str(path), "--minutes", "3"]) == 2
    assert "name the file that they are to be written into with --out" in capsys.readouterr().err
    assert main(["tune", str(path), "--init", "cifar10-simclr-trunk"]) == 2
    assert "--init is where learning begins; name the file to write into with --out" in capsys.readouterr().err


def test_what_is_chosen_is_judged_by_other_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rivals and the best numbers by one half of what is held out, errors that are told by the other."""
    model = smooth("nothing")
    asked: list[list[int]] = []
    errors, validated = solver_lesson.Lesson.errors, list[list[int]]()
    drawn = solver_lesson.Lesson._drawn

    def noted(own: solver_lesson.Lesson, schedule: Any, solver: Any, places: Tensor) -> Any:
        asked.append(places.tolist())
        return errors(own, schedule, solver, places)

    def images(own: solver_lesson.Lesson, nfe: int, numbers: Tensor, places: Tensor) -> Tensor:
        validated.append(places.tolist())
        return drawn(own, nfe, numbers, places)

    batches: list[int] = []

    def ask(*arguments: Any) -> Asked:
        batches.append(arguments[-1])
        return Asked(*arguments)

    monkeypatch.setattr(solver_learning, "Asked", ask)
    monkeypatch.setattr(solver_learning, "SOLVERS", {"ddim": registry.SOLVERS["ddim"]})
    monkeypatch.setattr(solver_lesson.Lesson, "errors", noted)
    monkeypatch.setattr(solver_lesson.Lesson, "_drawn", images)
    monkeypatch.setattr(solver_learning, "_descend", lambda *_: None)
    learn(model, dataclasses.replace(QUICK, evaluation_batch=3), model.weights, **given("nothing"))
    assert batches == [3]
    assert asked[-2:] == [[4, 12]] * 2
    assert all(places == [0, 8] for places in asked[:-2])
    assert [4, 12] not in validated


def test_a_solver_says_what_it_was_measured_against(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smooth("nothing")
    monkeypatch.setattr(solver_starts, "SOLVERS", {"ddim": registry.SOLVERS["ddim"]})
    values = iter((Interval(-0.1, -0.2, -0.05), Interval(0.3, 0.2, 0.4), Interval(0.4, 0.3, 0.5)))
    monkeypatch.setattr(solver_learning, "bootstrap", lambda *_: next(values))
    start = torch.from_numpy(fitted.initial(model.config.schedule, (300.0, 999.0)))
    monkeypatch.setattr(solver_learning, "starts", lambda *_: [(0.5, start)])
    monkeypatch.setattr(solver_learning, "_descend", lambda lesson, nfe, config, run, *_: run.update(step=7))
    config = dataclasses.replace(QUICK, steps=1, seed=2)
    (found,) = learn(model, config, model.weights, **given("nothing"))
    assert found.solver is not None
    assert (found.error.value, found.other_error.value, found.steps) == (0.3, 0.4, 7)
    assert found.solver.info == {
        "error": 0.3,
        "training_free": " ".join(found.other),
        "training_free_error": 0.4,
        "learning_steps": 7,
        "teacher_evaluations": 5,
        "seed": 2,
    }
    assert (found.solver.nfe, found.solver.weights, found.solver.version) == (2, model.weights, fitted.VERSION)


def test_the_best_numbers_are_kept_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that help where it is learned and not where choices are made."""
    ours = lesson(small.quick_model())
    first, second, third = (torch.full((10,), value, dtype=torch.float64) for value in (0.0, 1.0, 2.0))
    run: dict[str, Any] = {"step": 0, "numbers": first, "best": first, "least": 0.5, "damping": 1.0, "gains": []}
    run |= {"distance": 1.0, "seconds": 0.0}
    following = iter(((second, 0.4), (third, 0.9)))
    error = {1.0: 0.4, 2.0: 0.9}
    monkeypatch.setattr(ours, "equations", lambda *_: None)
    monkeypatch.setattr(ours, "validate", lambda nfe, numbers: error[float(numbers[0])])

    def stepped(lesson: Any, nfe: int, run: dict[str, Any], found: Any) -> dict[str, Any]:
        return {"numbers": next(following)[0], "step": run["step"] + 1, "gains": [*run["gains"], 0.1]}

    monkeypatch.setattr(solver_learning, "_stepped", stepped)
    saved: list[int] = []
    told: list[float] = []
    solver_learning._descend(
        ours, 2, QUICK, run, lambda nfe, fraction, least: told.append(least), lambda: saved.append(run["step"])
    )
    assert (float(run["best"][0]), float(run["numbers"][0]), run["least"]) == (1.0, 2.0, 0.4)
    assert saved == [1, 2]
    assert told[-1] == 0.4


def test_it_ends_when_three_steps_gain_nothing() -> None:
    ours = lesson(small.quick_model())
    for gains, ended in (([0.1, 0.0, 0.0, 0.0], True), ([0.002, 0.0, 0.0], False), ([0.0, 0.0], False)):
        run: dict[str, Any] = {"step": 0, "gains": gains, "least": 1.0, "seconds": 0.0, "numbers": torch.zeros(10)}

        def equations(*_: Any) -> Any:
            raise Stopped

        ours.equations = equations  # type: ignore[method-assign, assignment]
        config = dataclasses.replace(QUICK, steps=0)
        if ended:
            solver_learning._descend(ours, 2, config, run, None, lambda: None)
        else:
            with pytest.raises(Stopped):
                solver_learning._descend(ours, 2, config, run, None, lambda: None)


@pytest.mark.parametrize("exact", [True, False])
def test_a_model_is_written_in_16_bits_where_that_loses_nothing(exact: bool, tmp_path: Path) -> None:
    model = small.quick_model()
    model.config = dataclasses.replace(model.config, encoder=None, name="m")
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.copy_(parameter.half().float())
        if not exact:
            next(model.unet.parameters()).view(-1)[-1] += 1e-5
    path = solver_learning.save(tmp_path / "m.safetensors", model, [])
    _, tensors = checkpoint.load_model(path)
    assert all(torch.equal(value.float(), model.unet.state_dict()[name]) for name, value in tensors.items())
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    assert (path.stat().st_size < 3 * count) is exact


def test_numbers_of_other_weights_are_no_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = smooth("nothing"), list[Any]()
    own = tuple(
        FittedSolver(nfe, (0.1,) * (nfe * (nfe + 3)), weights, version)
        for nfe, weights, version in ((2, model.weights, 1), (3, "others", 1), (4, model.weights, 2))
    )
    one = Interval(0.1, 0.1, 0.1)

    def noted(lesson: Any, nfe: int, config: Any, weights: str, kept: Any, before: Any, progress: Any) -> Learned:
        seen.append(before)
        return Learned(nfe, None, one, ("ddim", "2"), one, one, 0)

    monkeypatch.setattr(solver_learning, "_one", noted)
    model.config = dataclasses.replace(model.config, fitted=own)
    learn(model, dataclasses.replace(QUICK, nfe=(2, 3, 4)), model.weights, **given("nothing"))
    assert seen == [[own[0]], [], []]


def test_other_beginnings_are_looked_at_where_learning_was_over(tmp_path: Path) -> None:
    """A run that went on to its end without them is begun anew with them, and goes on with the same ones."""
    model, state = smooth("nothing"), tmp_path / "state"
    learn(model, QUICK, model.weights, **given("nothing"), state=state)
    held = sealed.load(state)["data"]["runs"][2]
    times = place(Schedule.make(model.config.schedule).alpha_bar, 2, "karras")
    other = FittedSolver(2, tuple(fitted.initial(model.config.schedule, times).tolist()), "of another model")
    for number in range(2):  # the second time there is nothing left to do
        told: list[tuple[float, ...]] = []
        learn(
            model, QUICK, model.weights, **given("nothing"), state=state, begin=[other],
            progress=functools.partial(lambda into, *done: into.append(done), told),
        )  # fmt: skip
        now = sealed.load(state)["data"]["runs"][2]
        assert now["begun"] == [other.digest]
        assert ([fraction for _, fraction, _ in told] == [1.0]) == bool(number)
    assert held["begun"] == []


def test_learning_may_begin_with_solvers_of_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever weights they belong to; those of another version of the form are left aside."""
    model, seen = smooth("nothing"), list[Any]()
    one, other = Interval(0.1, 0.1, 0.1), FittedSolver(3, (0.1,) * 18, "of another model")

    def noted(lesson: Any, nfe: int, config: Any, weights: str, kept: Any, before: Any, progress: Any) -> Learned:
        seen.append(before)
        return Learned(nfe, None, one, ("ddim", "2"), one, one, 0)

    monkeypatch.setattr(solver_learning, "_one", noted)
    both = [other, dataclasses.replace(other, version=2)]
    learn(model, dataclasses.replace(QUICK, nfe=(2, 3)), model.weights, **given("nothing"), begin=both)
    assert seen == [[], [other]]


def test_solvers_of_another_model_are_asked_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = smooth("nothing")
    own = FittedSolver(3, (0.1,) * 18, "w"), FittedSolver(4, (0.1,) * 28, "w")
    other = dataclasses.replace(model.config, fitted=own)
    schedule = dataclasses.replace(other.schedule, noise_schedule="cosine")
    known = {"m": other, "none": model.config, "cosine": dataclasses.replace(other, schedule=schedule)}
    monkeypatch.setattr(checkpoint, "load_model", lambda name: (known[name], {}))
    assert solver_learning.beginnings(model, "m", (3, 4)) == own
    assert not caplog.text
    assert solver_learning.beginnings(model, "m", (2, 4)) == own[1:]
    assert "m has no learned solver for 2 evaluations; these begin without one" in caplog.text
    with pytest.raises(ConfigError, match=r"m has no learned solver for 2, 5 evaluations to begin with .it has 3, 4."):
        solver_learning.beginnings(model, "m", (2, 5))
    with pytest.raises(ConfigError, match="it has none"):
        solver_learning.beginnings(model, "none", (2,))
    with pytest.raises(ConfigError, match="solvers of cosine are for 1000 cosine steps, not for 1000 linear ones"):
        solver_learning.beginnings(model, "cosine", (4,))


def test_enough_trajectories_are_asked_for_that_something_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fewest that are accepted so many judge as an interval needs."""
    monkeypatch.undo()
    model = small.quick_model()
    ask = Asked(model, torch.zeros(1, small.DIM), None, 1, 0, 8)
    taught = solver_lesson.Lesson(model, ask, torch.zeros(solver_learning.LEAST, 1))
    assert len(taught.judged) == intervals.LEAST
