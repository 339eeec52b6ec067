"""Students: nearer to their teacher than it is to itself in as few evaluations, exact resume, and how they are used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.cli import main
from rcdm_fast.config import (
    ConfigError,
    EncoderConfig,
    FittedSolver,
    ModelConfig,
    ScheduleConfig,
    UNetConfig,
    from_json,
    to_json,
)
from rcdm_fast.data.image_set import ImageSet, step_generator
from rcdm_fast.data.sources import open_data
from rcdm_fast.diffusion import multistep, solvers
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.images import to_uint8
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.models import checkpoint
from rcdm_fast.training import distill as module
from rcdm_fast.training import trajectories
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.distill import DistillConfig, Judged, distill
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.state import Paused
from rcdm_fast.training.train import train
from rcdm_fast.training.trajectories import Conditions
from tests import small
from tests.mixture import refuse
from tests.tolerances import BATCH_SPLIT_ABS

WORLD = "world:shapes?count=256&size=8&seed=0"
UNET = UNetConfig(8, 32, (1,), num_res_blocks=1, attention_resolutions=())
QUICK: dict[str, Any] = {"nfe": 2, "between": 1, "batch_size": 16, "random_flip": False}


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return open_data(WORLD, 8)


@pytest.fixture(scope="module")
def teacher(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of images of the world and what is known about them."""
    oracle = EncoderConfig("oracle:shapes?factors=all&count=256&size=8", image_size=8)
    config = TrainConfig(
        "teacher", UNET, ScheduleConfig(), oracle, images=1280, batch_size=16, precision="fp32", sheet_every=0,
        learning_rate=3e-3, ema=0.9, weights="fp32", random_flip=False, compile=False,
    )  # fmt: skip
    return train(config, data, tmp_path_factory.mktemp("teacher"))


class Made(NamedTuple):
    path: Path
    judged: Judged
    losses: list[float]


@pytest.fixture(scope="module")
def student(teacher: Path, data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Made:
    losses: list[float] = []
    config = DistillConfig("few", str(teacher), trajectories=640, learning_rate=1e-3, judged=16, **QUICK)
    folder = tmp_path_factory.mktemp("student")
    return Made(*distill(config, data, folder, progress=lambda done, total, loss: losses.append(loss)), losses)


def tensors(path: Path) -> dict[str, Tensor]:
    return checkpoint.load_model(path)[1]


@pytest.mark.long
def test_the_loss_falls(student: Made) -> None:
    assert len(student.losses) == 40
    assert np.mean(student.losses[-10:]) < 0.85 * np.mean(student.losses[:10])
    rows = [json.loads(line) for line in (student.path.parent / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40]
    assert rows[-1]["loss"] == student.losses[-1]


@pytest.mark.long
def test_it_is_nearer_than_the_teacher_in_as_few(student: Made, teacher: Path, data: ImageSet) -> None:
    """By its own judgment, and by `Model.sample` from other noise: the map from noise to images is kept."""
    few, many = (rcdm_fast.load(path, device="cpu", engine="eager") for path in (student.path, teacher))
    at = "at:" + ",".join(map(str, few.config.student_steps))
    judged = student.judged
    assert set(judged.teacher_distances) == {f"ddim {at}", "ddim", "dpmpp_2m", "unipc_2", "unipc_2_bh1"}
    assert judged.distance.value < 0.9 * min(each.value for each in judged.teacher_distances.values())
    assert 0.5 < judged.variance < 2
    assert few.config.info["distance"]["value"] == judged.distance.value
    assert few.config.info["trajectories"] == 640
    h = few.encode(data.floats(slice(100, 108)))
    truth = many.sample(h, per=4, steps=30, solver="dpmpp_2m", seed=9)

    def apart(images: Tensor) -> float:
        return float(((images - truth).flatten(2).norm(dim=2) / truth.flatten(2).norm(dim=2)).mean())

    own = apart(few.sample(h, per=4, steps=2, seed=9))
    for solver, steps in (("ddim", at), ("ddim", 2), ("unipc_2", 2), ("dpmpp_2m", "quadratic2")):
        assert own < 0.95 * apart(many.sample(h, per=4, steps=steps, solver=solver, seed=9)), (solver, steps)
    assert own < 0.6 * apart(few.sample(h, per=4, steps=2, seed=8))  # another noise is another image


@pytest.mark.long
def test_how_a_student_is_used(student: Made, data: ImageSet, tmp_path: Path) -> None:
    model = rcdm_fast.load(student.path, device="cpu", engine="eager")
    own = model.config.student_steps
    h = model.encode(data.floats(slice(0, 2)))
    images = model.sample(h, per=2, steps=2)
    assert torch.equal(images, model.sample(h, per=2, steps="2", solver="student"))
    assert torch.equal(images, model.sample(h, per=2, steps=f"at:{own[0]},{own[1]}", solver="ddim"))
    assert not torch.equal(images, model.sample(h, per=2, steps=2, solver="ddim"))
    assert model.request(h, steps=2).chosen.label == "student"
    assert f"student  distilled for 2 evaluations, at timesteps {own[1]}, {own[0]}" in model.describe()
    native = rcdm_fast.load(student.path, device="cpu", engine="native", precision="fp32")
    torch.testing.assert_close(native.sample(h, per=2, steps=2), images, atol=BATCH_SPLIT_ABS, rtol=0)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "was distilled for 2 evaluations, not for 10: ask for steps=2, or name a solver"),
        ({"steps": 1}, "not for 1"),
        ({"steps": 3, "solver": "student"}, "not for 3"),
        ({"steps": "uniform2"}, "not for 'uniform2'"),
        ({"steps": 2, "eta": 0.5}, "used as it was distilled"),
        ({"steps": 2, "clip": False}, "used as it was distilled"),
    )
    for given, message in refused:
        with pytest.raises(ConfigError, match=message):
            model.sample(h, per=1, **given)
    with pytest.raises(ConfigError, match="invert with the model that it learned from"):
        model.invert(data.floats(slice(0, 1)), h[:1], steps=2)
    np.save(tmp_path / "h.npy", h.numpy())
    assert local.run(model, tmp_path / "h.npy", tmp_path / "job", JobConfig(per=1, steps=2)).complete
    assert json.loads((tmp_path / "job" / "job.json").read_text())["settings"]["solver"] == "student"


@pytest.mark.parametrize("steps", [(3, 3), (5, 2), (1000,), (-1, 4)])
def test_timesteps_that_no_student_has(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="student"):
        ModelConfig(small.UNET, small.SCHEDULE, student_steps=steps)
    config = ModelConfig(small.UNET, small.SCHEDULE, student_steps=(3, 500))
    assert from_json(ModelConfig, to_json(config)) == config


@pytest.mark.long
def test_an_interrupted_run_goes_on_to_the_same_weights(teacher: Path, data: ImageSet, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise Stop

    config = DistillConfig("few", str(teacher), trajectories=64, judged=2, save_every=2, **QUICK)
    whole, _ = distill(config, data, tmp_path / "whole")
    with pytest.raises(Stop):
        distill(config, data, tmp_path / "cut", progress=stop)
    seen: list[int] = []
    resumed, _ = distill(config, data, tmp_path / "cut", progress=lambda done, *_: seen.append(done))
    assert seen == [3, 4]
    ours, theirs = tensors(resumed), tensors(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(ours["out.2.weight"], tensors(teacher)["out.2.weight"])
    with pytest.raises(RunError, match="nfe"):
        distill(dataclasses.replace(config, nfe=3), data, tmp_path / "cut")


KINDS: dict[str, dict[str, Any]] = {
    "labels": {"representation_dim": 0, "num_classes": 3},
    "nothing": {"representation_dim": 0},
}


def saved(folder: Path, **changes: Any) -> Path:
    model = small.model(**changes)
    return checkpoint.save_model(folder / "model.safetensors", model.config, model.unet.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_models_without_representations(kind: str, tmp_path: Path) -> None:
    """With a learned variance, which the student does not learn."""
    path = saved(tmp_path, **KINDS[kind])
    known, tensors = checkpoint.load_model(path)
    own = FittedSolver(2, (0.0,) * 10, rcdm_fast.load(path, device="cpu").weights)
    checkpoint.save_model(path, dataclasses.replace(known, fitted=(own,)), tensors)
    config = DistillConfig("few", str(path), nfe=3, trajectories=4, batch_size=4, between=0, judged=2)
    made, judged = distill(config, None, tmp_path / "run")
    model = rcdm_fast.load(made, device="cpu")
    label = [0, 2] if kind == "labels" else None
    assert model.sample(label=label, steps=3, per=2).isfinite().all()
    assert {"dpmpp_3m", "heun"} < judged.teacher_distances.keys()
    assert model.config.info["teacher_evaluations"] == 5
    assert model.config.fitted == (), "solvers belong to the teacher's weights"


def test_a_run_does_not_go_on_with_other_code_of_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    code = "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return {} * x.mean((2, 3))\n"
    (tmp_path / "net.py").write_text(code.format(1))
    images = ImageSet(to_uint8(small.make_images(16)), None, (), (), "made-up")
    encoder = EncoderConfig(f"python:{tmp_path / 'net.py'}:Net", image_size=8)
    path, trusted = saved(tmp_path, representation_dim=3), [encoder.source]
    changes: dict[str, Any] = {"batch_size": 4, "between": 0, "judged": 2, "encoder": encoder}
    config = DistillConfig("few", str(path), nfe=2, trajectories=8, **changes)
    with pytest.raises(Paused):
        distill(config, images, tmp_path / "run", minutes=0, trusted=trusted)
    (tmp_path / "net.py").write_text(code.format(2))
    with pytest.raises(RunError, match="answers"):
        distill(config, images, tmp_path / "run")
    (tmp_path / "net.py").write_text(code.format(1))
    assert distill(config, images, tmp_path / "run")[0].exists()


def test_its_steps_are_those_of_the_solver() -> None:
    """Step after step from where it has come to, clipped; and the teacher's states are those of its solver."""
    network, schedule = small.network(), small.SCHEDULE
    own = trajectories.student_steps(schedule, 3, "logsnr")
    grid = trajectories.teacher_schedule(schedule, own, 2)
    assert {0, *own, 999} <= set(grid.timesteps)
    assert len(grid) == 5 + 4 * 2
    walk = Schedule(schedule, own)
    generator = torch.Generator().manual_seed(0)
    given = Conditions(torch.randn(2, small.DIM, generator=generator), None)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    predict = trajectories.predict_with(network, walk, given)
    seen: list[Tensor] = []
    with torch.no_grad():
        solvers.ddim(predict, x, walk, SolverOptions(observer=lambda i, x: seen.append(x)), refuse)
        y = x
        for i, k in enumerate((2, 1, 0)):
            y = trajectories.student_step(y, predict(y, k), walk, k)
            torch.testing.assert_close(y, seen[i], atol=1e-5, rtol=1e-5)
    states = trajectories.teacher_states(network, grid, own, x, given)
    by_timestep: dict[float, Tensor] = {}

    def note(i: int, x: Tensor) -> None:
        k = len(grid) - 2 - i
        by_timestep[grid.timesteps[k] if k >= 0 else -1] = x

    with torch.no_grad():
        asked = trajectories.predict_with(network, grid, given)
        multistep.dpmpp_2m(asked, x, grid, SolverOptions(observer=note), refuse)
    for state, t in zip(states, (own[1], own[0], -1), strict=True):
        torch.testing.assert_close(state, by_timestep[t])


def test_what_is_clipped_can_still_come_back() -> None:
    x0 = torch.tensor([-2.0, -2, 0, 2, 2], requires_grad=True)
    clipped = trajectories._Clipped.apply(x0)
    assert clipped.tolist() == [-1, -1, 0, 1, 1]
    clipped.backward(torch.tensor([1.0, -1, 1, 1, -1]))  # descent goes the other way
    assert x0.grad is not None
    assert x0.grad.tolist() == [0, -1, 1, 1, 0]


@pytest.mark.long
def test_what_is_refused(teacher: Path, student: Made, data: ImageSet, tmp_path: Path) -> None:
    for changes, message in (
        ({"nfe": 1}, r"nfe must be in 2..5, got 1"),
        ({"nfe": 6}, r"nfe must be in 2..5, got 6"),
        ({"placement": "logsnrr"}, "did you mean logsnr"),
        ({"trajectories": 15, "batch_size": 16}, r"trajectories \(15\) must make at least one batch of 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            DistillConfig("few", "m", **changes)
    config = DistillConfig("few", str(teacher), trajectories=48, judged=2, **QUICK)
    for path, images, message in (
        (teacher, None, "takes representations: give images with --data"),
        (student.path, data, "is a student itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill(dataclasses.replace(config, model=str(path)), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step [23]"):
        distill(dataclasses.replace(config, learning_rate=1e37, warmup=0.0), data, tmp_path / "wild")
    assert not (tmp_path / "wild" / "few.safetensors").exists()


@pytest.mark.long
def test_it_is_judged_by_noise_that_it_has_not_seen(
    tmp_path: Path, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, representation_dim=0)
    drawn: list[tuple[int, Tensor]] = []
    draw = module.Run.draw

    def seen(run: module.Run, generator: torch.Generator, count: int, per: int = 1) -> tuple[Tensor, Conditions]:
        seed = generator.initial_seed()
        x, given = draw(run, generator, count, per)
        drawn.append((seed, x))
        return x, given

    monkeypatch.setattr(module.Run, "draw", seen)
    config = DistillConfig("few", str(path), trajectories=8, judged=2, **{**QUICK, "between": 0, "batch_size": 4})
    distill(config, data, tmp_path / "run")
    *learned, (seed, judged) = drawn
    assert len(learned) == 2
    assert seed not in [each for each, _ in learned]
    apart = torch.cdist(judged.flatten(1), torch.cat([x for _, x in learned]).flatten(1))
    assert float(apart.min()) > 1


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, representation_dim=0)
    words = ["distill", str(path), "--nfe", "2", "--out", str(tmp_path / "mine"), "--device", "cpu"]
    words += ["--set", "trajectories=4", "--set", "batch_size=4", "--set", "between=0", "--set", "judged=2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "the student" in said
    assert "unipc_2" in said
    assert "variance at a fixed representation" in said
    made = rcdm_fast.load(tmp_path / "mine" / "mine.safetensors", device="cpu")
    assert made.config.name == "mine"
    assert len(made.config.student_steps) == 2
    assert main(words) == 0  # finished: judged again, and the same file
    assert main([*words, "--nfe", "7"]) == 2
    assert "nfe must be in 2..5, got 7" in capsys.readouterr().err


def begun(folder: Path, bank: Tensor | None = None, **changes: Any) -> module.Run:
    """The moving parts of a student of a small model, without representations unless there is a bank."""
    kind = {"representation_dim": 0} if bank is None else {"num_classes": 5}
    path = saved(folder, channel_mult=(1,), **kind)
    settings = {"nfe": 2, "between": 0, "trajectories": 16, "batch_size": 4, "judged": 3, "seed": 6, **changes}
    return module.Run(DistillConfig("few", str(path), **settings), *checkpoint.load_model(path), bank, "cpu")


def test_a_step_of_learning_by_hand(tmp_path: Path) -> None:
    """The student goes on from where it has come to; mean differences of x / alpha, of all of its steps alike."""
    run = begun(tmp_path, learning_rate=1e-3, warmup=0.0)
    run.advance()  # so that it is no more the teacher
    x, given = run.draw(step_generator(6, 1), 4)
    walk = Schedule(small.SCHEDULE, run.own)
    seen: list[Tensor] = []
    with torch.no_grad():
        predict = trajectories.predict_with(run.student, walk, given)
        solvers.ddim(predict, x, walk, SolverOptions(observer=lambda i, x: seen.append(x)), refuse)
    wanted = trajectories.teacher_states(run.teacher, run.grid, run.own, x, given)
    alpha_bar = Schedule.make(small.SCHEDULE).alpha_bar
    reached = [alpha_bar[run.own[0]], 1.0]
    losses = [
        float((ours - theirs).abs().mean()) / kept**0.5
        for ours, theirs, kept in zip(seen, wanted, reached, strict=True)
    ]
    terms = run.advance()
    assert terms["loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert terms["last"] == pytest.approx(losses[1], rel=1e-3)
    assert abs(losses[0] - losses[1]) > 0.1 * losses[1]


def test_it_is_judged_by_the_average_in_pairs(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with torch.no_grad():
        for value in run.average.tensors.values():
            value.mul_(1.1)  # unlike the student, which still is the teacher
    x, given = run.draw(step_generator(6, 0, 1), 3, per=2)
    network = small.network(representation_dim=0, channel_mult=(1,))
    network.load_state_dict(run.average.whole())
    made = trajectories.images(network, solvers.ddim, Schedule(small.SCHEDULE, run.own), x, given)
    truth = trajectories.teacher_states(run.teacher, run.grid, run.own, x, given)[-1]
    judged = run.judge()
    apart = [float((one - other).norm() / other.norm()) for one, other in zip(made, truth, strict=True)]
    assert judged.distance.value == pytest.approx(np.mean(apart), rel=1e-3)
    spread = [float((images[::2] - images[1::2]).square().mean()) for images in (made, truth)]
    assert judged.variance == pytest.approx(spread[0] / spread[1], rel=1e-3)
    assert abs(judged.variance - 1) > 0.01
    own = judged.teacher_distances[f"ddim at:{','.join(map(str, run.own))}"]
    assert own.value < judged.distance.value


def test_what_is_drawn_for_the_same_stands_side_by_side(tmp_path: Path) -> None:
    """Two in a row of one representation and label, from noise of their own; of all views and images."""
    bank = torch.arange(2.0 * 7 * small.DIM).view(2, 7, small.DIM)
    run = begun(tmp_path, bank)
    x, (h, label) = run.draw(step_generator(0, 0), 60, per=2)
    assert h is not None
    assert label is not None
    assert torch.equal(h[::2], h[1::2])
    assert torch.equal(label[::2], label[1::2])
    assert {tuple(row) for row in h.tolist()} == {tuple(row) for row in bank.flatten(0, 1).tolist()}
    assert set(label.tolist()) == set(range(5))
    assert len(x.flatten(1).unique(dim=0)) == 120


def test_settings_reach_the_student_and_its_file(data: ImageSet, tmp_path: Path) -> None:
    encoders = []
    for seed in (0, 1):
        tiny = PretrainConfig("tiny", image_size=8, stem=8, widths=(8,), blocks=(1,), projector=(8, 4), seed=seed)
        file = tmp_path / f"{seed}.safetensors"
        native.save(file, tiny.network(), tiny.encoder(), {})
        encoders.append(EncoderConfig(f"file:{file}", image_size=8))
    old, new = encoders
    model = small.model(channel_mult=(1,), representation_dim=8)
    known = dataclasses.replace(model.config, encoder=old)
    path = checkpoint.save_model(tmp_path / "model.safetensors", known, model.unet.state_dict())
    config = DistillConfig(
        "few", str(path), new, nfe=2, placement="uniform", between=0, trajectories=4, batch_size=4, judged=2,
        weights="fp16",
    )  # fmt: skip
    few = data.subset(torch.arange(20))
    made, _ = distill(config, few, tmp_path / "run")
    assert {value.dtype for value in storage.read_tensors(made).values()} == {torch.float16}
    found = checkpoint.load_model(made)[0]
    own = trajectories.student_steps(small.SCHEDULE, 2, "uniform")
    assert found.student_steps == own != trajectories.student_steps(small.SCHEDULE, 2, "logsnr")
    assert found.encoder is not None
    assert found.encoder.source == new.source
    (file,) = (tmp_path / "run").glob("representations-*.npy")
    seen = few.floats(slice(None))
    want = [rcdm_fast.encoders.build(new).encode(images) for images in (seen, seen.flip(3))]
    torch.testing.assert_close(torch.from_numpy(np.load(file)), torch.stack(want), atol=1e-4, rtol=1e-4)


def test_states_of_before_are_taken(tmp_path: Path) -> None:
    """In which what is learned had the name of who learns it."""
    run = begun(tmp_path)
    run.advance()
    state = run.state()
    state["student"] = state.pop("trained")
    again = begun(tmp_path)
    again.restore(state)
    assert again.step == 1
    assert all(torch.equal(value, run.trained[name]) for name, value in again.trained.items())


def test_it_stops_after_minutes_and_goes_on(teacher: Path, data: ImageSet, tmp_path: Path) -> None:
    config = DistillConfig("few", str(teacher), trajectories=48, judged=16, **QUICK)
    with pytest.raises(Paused, match="0 minutes are over at step 1 of 3"):
        distill(config, data, tmp_path, minutes=0)
    seen: list[int] = []
    distill(config, data, tmp_path, progress=lambda step, *_: seen.append(step), minutes=60)
    assert seen == [2, 3]
