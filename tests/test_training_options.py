"""What a run may be told: parts of batches, averages, steps drawn by loss; and what stops it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast import provenance, storage
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.data.image_set import BatchOrder, step_generator
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.images import image_sheet, to_pil
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.training import distributed, fused_unet, loop, sample_grids, timesteps
from rcdm_fast.training.batches import Batches
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.loop import learning_rate
from rcdm_fast.training.losses import DiffusionLoss, LossConfig
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.run import Run
from rcdm_fast.training.sample_grids import FixedBatch
from rcdm_fast.training.state import Paused, RunFolder
from rcdm_fast.training.train import train
from tests import small, training_process

DATA = training_process.data()


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    path = tmp_path_factory.mktemp("encoder") / "tiny-encoder.safetensors"
    native.save(path, config.network(), config.encoder(), {})
    return path


def make_run(encoder_file: Path, **changes: object) -> Run:
    config = training_process.config(str(encoder_file), **changes)
    bank = torch.randn(2, len(DATA), small.DIM, generator=torch.Generator().manual_seed(0))
    return Run(config, small.UNET, DATA, bank, distributed.Processes())


def curve(run: Run, steps: int = 4) -> list[float]:
    return [run.advance()["loss"] for _ in range(steps)]


def test_parts_of_a_batch_and_recomputed_blocks_change_nothing(encoder_file: Path) -> None:
    want = curve(make_run(encoder_file))
    for changes in ({"micro_batch": 5}, {"micro_batch": 16}, {"activation_checkpointing": True}):
        assert curve(make_run(encoder_file, **changes)) == pytest.approx(want, rel=1e-5)


def test_recomputing_blocks_calls_them_twice(encoder_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counting(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(block: nn.Module, *inputs: Tensor) -> Tensor:
            calls.append(block)
            return forward(block, *inputs)

        return counted

    monkeypatch.setattr(rcdm_fast.models.unet.ResBlock, "forward", counting(rcdm_fast.models.unet.ResBlock.forward))
    monkeypatch.setattr(fused_unet, "res_block", counting(fused_unet.res_block))
    run = make_run(encoder_file, activation_checkpointing=True)
    run.advance()
    blocks = [module for module in run.network.modules() if isinstance(module, rcdm_fast.models.unet.ResBlock)]
    assert sorted(map(id, calls)) == sorted(2 * [*map(id, blocks)])


@pytest.mark.long
def test_the_published_loss_curve(encoder_file: Path) -> None:
    """Twenty steps against a loop in plain autograd on the same images, steps and noise."""
    run = make_run(encoder_file, images=16 * 20)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(run.config.seed)
        network = rcdm_fast.models.unet.UNet(small.UNET)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), run.config.learning_rate, weight_decay=0.0)
    schedule = Schedule.make(run.config.schedule)
    loss, order = DiffusionLoss(schedule, run.config.loss), BatchOrder(len(DATA), 16, 0)
    alpha_bar = torch.from_numpy(schedule.alpha_bar)
    want = []
    for step in range(20):
        index, generator = order(step), step_generator(0, step)
        mirrored = torch.rand(16, generator=generator) < 0.5
        t = torch.randint(1000, (16,), generator=generator)
        eps = torch.randn(16, 3, 8, 8, generator=generator)
        x0 = DATA.floats(index)
        x0 = torch.stack([x.flip(2) if flip else x for x, flip in zip(x0, mirrored, strict=True)])
        signal, noise = (
            value.float()[:, None, None, None] for value in (alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt())
        )
        x_t = signal * x0 + noise * eps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 20, run.config.warmup, run.config.learning_rate)
        terms = loss(
            network(x_t, t.float(), run.batches.standard(run.batches.bank[mirrored.long(), index])), x0, x_t, eps, t
        )
        optimizer.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        want.append(float(terms["loss"].detach()))
    got = curve(run, 20)
    assert got == pytest.approx(want, rel=1e-4)
    assert want[-1] < 0.97 * want[0]


def test_constant_rates_warm_up_and_stay(encoder_file: Path) -> None:
    run = make_run(encoder_file, images=16 * 10, lr_schedule="constant", warmup=0.3)
    lr_schedule = []
    for _ in range(10):
        lr_schedule.append(run._rate())
        run.step += 1
    assert lr_schedule[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert lr_schedule[3:] == [1e-3] * 7


def test_several_averages_are_written(encoder_file: Path, tmp_path: Path) -> None:
    config = training_process.config(str(encoder_file), ema=0.5, ema_decays=(0.0, 0.99))
    path = train(config, DATA, tmp_path)
    files = sorted(file.name for file in tmp_path.glob("tiny*.safetensors"))
    assert files == ["tiny-ema0.99.safetensors", "tiny-ema0.safetensors", "tiny.safetensors"]
    kinds = [storage.read_tensors(tmp_path / name)["time_embed.0.weight"] for name in files]
    assert not torch.equal(kinds[0], kinds[1])
    assert not torch.equal(kinds[1], kinds[2])
    assert rcdm_fast.load(path).config.info["ema"] == 0.5
    assert rcdm_fast.load(tmp_path / files[0]).config.info["ema"] == 0.99
    state = torch.load(max(tmp_path.glob("state-*.pt")), weights_only=True)
    assert len(state["emas"]) == 3


def test_steps_drawn_by_their_loss() -> None:
    chosen = timesteps.LossAwareSteps(4)
    generator = torch.Generator().manual_seed(0)
    assert chosen.probabilities().tolist() == [0.25] * 4
    for _ in range(timesteps.HISTORY + 3):
        chosen.learn(torch.arange(4), torch.tensor([1.0, 1.0, 2.0, 4.0]))
    fraction = chosen.probabilities()
    torch.testing.assert_close(fraction, torch.tensor([1, 1, 2, 4], dtype=torch.float64) / 8, atol=1e-3, rtol=0)
    steps, weights = chosen.draw(40_000, generator)
    assert float((steps == 3).double().mean()) == pytest.approx(0.5, abs=0.02)
    losses = torch.tensor([1.0, 1.0, 2.0, 4.0])[steps]
    assert float((weights * losses).mean()) == pytest.approx(2.0, rel=0.02)  # the mean over all steps alike
    again = timesteps.LossAwareSteps(4)
    again.restore(chosen.state())
    assert torch.equal(again.probabilities(), fraction)


@pytest.mark.parametrize("falling", [False, True])
def test_the_last_losses_of_a_step_count_by_their_mean_square(falling: bool) -> None:
    chosen = timesteps.LossAwareSteps(2)
    given = sorted((float(loss) for loss in range(1, timesteps.HISTORY + 4)), reverse=falling)
    for loss in given:
        chosen.learn(torch.tensor([0, 1]), torch.tensor([loss, 1.0]))
    first, second = chosen.probabilities().tolist()
    last = given[-timesteps.HISTORY :]
    assert first / second == pytest.approx((sum(loss**2 for loss in last) / len(last)) ** 0.5, rel=0.01)


def test_a_loss_that_is_not_finite_stops_the_run(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training_process.config(str(encoder_file))
    terms = Run._terms

    def broken(self: Run, part: object) -> dict[str, Tensor]:
        found = terms(self, part)  # type: ignore[arg-type]
        return {**found, "loss": found["loss"] * float("nan")} if self.step == 4 else found

    monkeypatch.setattr(Run, "_terms", broken)
    with pytest.raises(RunError, match=r"the loss is nan at step 5; the last good state is in"):
        train(config, DATA, tmp_path)
    state = torch.load(max(tmp_path.glob("state-*.pt")), weights_only=True)
    assert state["step"] == 4
    assert all(bool(value.isfinite().all()) for value in state["network"].values())
    monkeypatch.setattr(Run, "_terms", terms)
    assert train(config, DATA, tmp_path).exists()


def test_a_gradient_that_is_not_finite_names_its_layer(encoder_file: Path) -> None:
    run = make_run(encoder_file)
    run.advance()
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    handle = run.network.get_parameter("out.2.weight").register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match=r"the gradient is not finite at step 2: out\.2\.weight"):
        run.advance()
    handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())


def test_out_of_memory_splits_the_batch_once(
    encoder_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want = curve(make_run(encoder_file))
    terms = Run._terms

    def fits(limit: int) -> None:
        def limited(self: Run, part: object) -> dict[str, Tensor]:
            if len(part) > limit:  # type: ignore[arg-type]
                raise torch.OutOfMemoryError("CUDA out of memory")
            return terms(self, part)  # type: ignore[arg-type]

        monkeypatch.setattr(Run, "_terms", limited)

    fits(8)
    with caplog.at_level(logging.WARNING):
        assert curve(make_run(encoder_file)) == pytest.approx(want, rel=1e-5)
    assert caplog.text.count("the batch is computed 8 images at a time") == 1
    fits(5)
    with pytest.raises(RunError, match="out of memory at step 1 with 8 images at once; set a smaller micro_batch"):
        make_run(encoder_file).advance()


def test_a_damaged_state_gives_way_to_the_one_before(encoder_file: Path, tmp_path: Path) -> None:
    config = training_process.config(str(encoder_file))
    whole = storage.read_tensors(train(config, DATA, tmp_path / "whole"))
    path = train(config, DATA, tmp_path / "cut")
    newest = max((tmp_path / "cut").glob("state-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    path.unlink()
    got = storage.read_tensors(train(config, DATA, tmp_path / "cut"))
    assert all(torch.equal(got[name], whole[name]) for name in whole)
    for file in (tmp_path / "cut").glob("state-*.pt"):
        file.write_bytes(b"no")
    with pytest.raises(RunError, match=r"no state can be read: state-000000006\.pt"):
        train(config, DATA, tmp_path / "cut")


def test_a_full_disk_keeps_the_last_state(encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = training_process.config(str(encoder_file))
    save = torch.save

    def full(state: dict[str, object], path: Path) -> None:
        if state["step"] == 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(storage.StorageError, match=r"state-000000004\.pt: cannot be written \(No space left"):
        train(config, DATA, tmp_path)
    assert [file.name for file in tmp_path.iterdir() if "state" in file.name] == ["state-000000002.pt"]


def test_a_cut_log_line_and_lost_steps_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({"name": "a"})
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 1.0})
    folder.save(2, {"step": 2})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert folder.open({"name": "a"}) == {"step": 2}
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_wrong_settings(encoder_file: Path) -> None:
    def config(**changes: object) -> TrainConfig:
        return training_process.config(str(encoder_file), **changes)

    for changes, message in (
        ({"images": 8}, "at least one batch of 16"),
        ({"micro_batch": -1}, "micro_batch must be at least 0"),
        ({"save_every": 0}, "at least 1"),
        ({"ema": 1.0}, "ema must be at least 0 and less than 1, got 1"),
        ({"ema_decays": (0.999,)}, "given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**changes)
    with pytest.raises(ConfigError, match="start them with torchrun"):
        distributed.Processes(sharding="fully_shard")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        make_run(encoder_file, precision="fp16")
    dist = distributed.Processes()
    dist.size = 3
    with pytest.raises(ConfigError, match="a batch of 16 cannot be split evenly over 3"):
        dist.fraction(16)


def test_a_start_describes_itself(encoder_file: Path, tmp_path: Path) -> None:
    train(training_process.config(str(encoder_file)), DATA, tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert row["step"] == 0
    assert row["processes"] == 1
    assert "torch" in row["versions"]
    assert row["git"] == provenance.git_revision()  # None in a copy that is no checkout
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_run_in_pieces_gives_the_same_weights(encoder_file: Path, tmp_path: Path) -> None:
    config = training_process.config(str(encoder_file), save_every=1000, images=16 * 4)
    skipped = dataclasses.replace(DATA, skipped=("a.png: no image", "b.png: truncated"))
    whole = train(config, DATA, tmp_path / "whole")
    for piece in range(1, config.steps):
        with pytest.raises(Paused, match=f"0 minutes are over at step {piece} of {config.steps}"):
            train(config, skipped, tmp_path / "pieces", minutes=0)
    path = train(config, skipped, tmp_path / "pieces", minutes=0)
    want, got = storage.read_tensors(whole), storage.read_tensors(path)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert (tmp_path / "pieces" / "skipped.txt").read_text() == "a.png: no image\nb.png: truncated\n"
    assert not (tmp_path / "whole" / "skipped.txt").exists()


def test_what_does_not_change_the_weights_may_change_on_resume(encoder_file: Path, tmp_path: Path) -> None:
    def config(**changes: object) -> TrainConfig:
        return training_process.config(str(encoder_file), images=32, **changes)

    expected = train(config(), DATA, tmp_path / "whole")
    with pytest.raises(Paused):
        train(config(micro_batch=8), DATA, tmp_path / "parts", minutes=1e-9)
    with pytest.raises(RunError, match="another configuration"):
        train(config(learning_rate=0.5), DATA, tmp_path / "parts")
    changed = config(name="other", weights="bf16", save_every=1, micro_batch=4, activation_checkpointing=True)
    found = train(changed, DATA, tmp_path / "parts")
    assert found.name == "other.safetensors"
    want, got = (checkpoint.load_model(path)[1] for path in (expected, found))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-2, rtol=1e-2)
    kept = json.loads((tmp_path / "parts/config.json").read_text())
    assert (kept["name"], kept["weights"], kept["micro_batch"]) == ("other", "bf16", 4)


def test_dropout_does_not_depend_on_random_numbers_drawn_elsewhere(encoder_file: Path, tmp_path: Path) -> None:
    unet = dataclasses.replace(small.UNET, representation_dim=0, dropout=0.3)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        file = train(training_process.config(str(encoder_file), images=32, unet=unet), DATA, tmp_path / str(seed))
        found.append(checkpoint.load_model(file)[1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


FLAT: dict[str, Any] = {"unet": dataclasses.replace(small.UNET, representation_dim=0, channel_mult=(1,))}


def test_a_step_asks_the_network_and_weighs_its_error_as_the_settings_say(encoder_file: Path) -> None:
    """Timesteps on the network's scale, the weighting asked for, images by how often they come; all losses are kept."""
    schedule = dataclasses.replace(small.SCHEDULE, diffusion_steps=500, rescale_timesteps=True)
    weighting = LossConfig("min_snr", gamma=3.0, vlb_weight=0.5)
    run = make_run(encoder_file, schedule=schedule, loss=weighting, timesteps="loss_aware")
    run.network.load_state_dict(small.network().state_dict())  # a fresh one does not look at t
    known = torch.arange(1.0, 501)[:, None].expand(-1, timesteps.HISTORY).double()
    run.batches.timesteps.restore({"losses": known, "counts": torch.full((500,), timesteps.HISTORY)})
    batch = run.batches.draw(0)
    chance = (batch.t + 1).double() / sum(range(501)) * 0.999 + 0.001 / 500
    loss = DiffusionLoss(Schedule.make(schedule), weighting)
    x_t = loss.noisy(batch.x0, batch.eps, batch.t)
    with torch.no_grad():
        output = run.network(x_t, 2 * batch.t.float(), batch.h)  # 500 steps, counted to 1000
    each = loss(output, batch.x0, x_t, batch.eps, batch.t)["each"].double()
    assert run.advance()["loss"] == pytest.approx(float((each / (500 * chance)).mean()), rel=1e-4)
    kept = run.batches.timesteps.state()["losses"]
    for t, value in zip(batch.t.tolist(), each.tolist(), strict=True):
        assert float((kept[t] - value).abs().min()) < 1e-4 * value


def test_all_that_a_run_draws_is_of_its_seed(encoder_file: Path) -> None:
    """Weights, the order of the images, noise and timesteps, and which representations are dropped."""

    def drawn(seed: int) -> dict[str, Tensor]:
        run = make_run(encoder_file, seed=seed, representation_dropout=0.5)
        batch = run.batches.draw(1)
        null = -run.batches.standard.mean / run.batches.standard.std
        dropped = torch.isclose(batch.h, null, atol=1e-5).all(dim=1)
        assert 0 < int(dropped.sum()) < 16
        weights = run.network.get_parameter("time_embed.0.weight").detach()
        return {"weights": weights, "order": run.batches.order(1), "eps": batch.eps, "t": batch.t, "dropped": dropped}

    first, other, again = drawn(1), drawn(2), drawn(1)
    assert {name for name, value in first.items() if torch.equal(value, other[name])} == set()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_dropout_has_numbers_of_its_own_in_every_step_process_and_run(encoder_file: Path) -> None:
    unet = dataclasses.replace(small.UNET, representation_dim=0, dropout=0.3)
    run = make_run(encoder_file, unet=unet)

    def numbers(step: int, rank: int = 0, seed: int = 0) -> tuple[float, ...]:
        run.step, run.dist.rank, run.config = step, rank, dataclasses.replace(run.config, seed=seed)
        with run._own_dropout():
            return tuple(torch.rand(3).tolist())

    assert numbers(4) == numbers(4)
    assert len({numbers(4), numbers(5), numbers(4, rank=1), numbers(4, seed=1)}) == 4


@pytest.mark.parametrize("changes", [{"representation_dropout": 0.5}, {"masked_parts": (3, 1), "standardize": False}])
def test_processes_work_on_parts_of_one_batch(changes: dict[str, Any]) -> None:
    config = training_process.config("unused", **changes)
    bank = torch.randn(2, len(DATA), small.DIM, generator=torch.Generator().manual_seed(0))
    bank[..., -2:] = 1
    whole = Batches(config, DATA, bank, distributed.Processes()).draw(1)
    parts = []
    for rank in range(4):
        dist = distributed.Processes()
        dist.size, dist.rank = 4, rank
        parts.append(Batches(config, DATA, bank, dist).draw(1))
        assert len(parts[-1]) == 4
        assert torch.equal(parts[-1].all_t, whole.t)
    for name in ("x0", "eps", "t", "importance", "h"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_parts_that_are_asked_for_now_come_before_those_of_a_state(encoder_file: Path) -> None:
    """What memory had no room for stays halved; what was asked for otherwise since is as it is asked for."""
    run = make_run(encoder_file, micro_batch=8)
    run._micro = 4
    state = run.state()
    for asked, found in ((8, 4), (2, 2), (0, 0)):
        again = make_run(encoder_file, micro_batch=asked)
        again.restore(state)
        assert again._micro == found


class Counting:
    """A run whose steps take as long as it is said, and do nothing."""

    def __init__(self, clock: list[float], took: tuple[float, ...] = ()) -> None:
        self.step, self.clock, self.took, self.asked = 0, clock, took, list[int]()

    def advance(self) -> dict[str, float]:
        self.clock[0] += self.took[self.step]
        self.step += 1
        return {"loss": self.step / 4}

    def state(self) -> dict[str, Any]:
        self.asked.append(self.step)
        return {"step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        raise AssertionError


PLAN = SimpleNamespace(steps=7, batch_size=4, save_every=3)


def test_a_loop_tells_what_was_done_since_the_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told, ended = [0.0], list[tuple[int, int, float]](), list[bool]()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def after(finished: bool) -> None:  # a sheet, say, which is no training
        ended.append(finished)
        clock[0] += 100

    run = Counting(clock, (2, 2, 2, 1, 1, 1, 0.5))
    loop.walk(run, RunFolder(tmp_path), PLAN, lambda *done: told.append(done), logged=3, after=after)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images"], row["images_per_s"], row["loss"]) for row in rows] == [
        (3, 12, 2.0, 0.75), (6, 24, 4.0, 1.5), (7, 28, 8.0, 1.75),
    ]  # fmt: skip
    assert told == [(step, 7, step / 4) for step in range(1, 8)]
    assert ended == [False] * 6 + [True]
    assert [path.name for path in RunFolder(tmp_path).states()] == ["state-000000006.pt", "state-000000007.pt"]


def test_a_process_that_does_not_lead_is_asked_and_writes_nothing(tmp_path: Path) -> None:
    """Whole tensors are put together of what every process holds."""
    run, told = Counting([0.0], (0,) * 7), list[int]()
    loop.walk(run, RunFolder(tmp_path), PLAN, lambda done, *_: told.append(done), leads=False)
    assert run.asked == [3, 6, 7]
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_a_process_stops_when_all_agree_and_not_by_its_own_clock(tmp_path: Path) -> None:
    """With a state to go on from; and nobody is asked where there is no deadline."""
    run, asked, ended = Counting([0.0], (0,) * 7), list[bool](), list[bool]()

    def agreed(over: bool) -> bool:
        asked.append(over)
        return len(asked) == 2

    late = loop.Deadline(1e-9)
    with pytest.raises(Paused, match="minutes are over at step 2 of 7"):
        loop.walk(run, RunFolder(tmp_path), PLAN, deadline=late, agreed=agreed, after=ended.append)
    assert (asked, run.asked, ended) == ([True, True], [2], [False, False])
    loop.walk(run, RunFolder(tmp_path), PLAN, deadline=loop.Deadline(None), agreed=agreed)
    assert (len(asked), run.step) == (2, 7)
    late = loop.Deadline(1000)
    assert not late.over
    wrong: Any
    for wrong in (-1.0, float("nan"), "5", 1j):
        with pytest.raises(ConfigError, match="minutes are a number from 0 on"):
            loop.Deadline(wrong)


def test_minutes_are_minutes(encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 9))  # asked thrice in a step
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    with pytest.raises(Paused, match=r"1\.2 minutes are over at step 3 of 6"):
        train(training_process.config(str(encoder_file), **FLAT), DATA, tmp_path, minutes=1.2)


def test_a_run_that_goes_on_does_not_begin_with_the_other_model_again(encoder_file: Path, tmp_path: Path) -> None:
    network = small.network(channel_mult=(1,), representation_dim=8)
    model = ModelConfig(network.config, small.SCHEDULE, None, "other")
    other = checkpoint.save_model(tmp_path / "other.safetensors", model, network.state_dict())
    config = training_process.config(str(encoder_file), **FLAT, images=16, ema=0.0, init=str(other))
    want = storage.read_tensors(train(config, DATA, tmp_path / "run"))
    assert not torch.equal(want["out.2.weight"], network.state_dict()["out.2.weight"])
    again = storage.read_tensors(train(config, DATA, tmp_path / "run"))  # the state of its last step
    assert all(torch.equal(again[name], value) for name, value in want.items())


def test_sheets_are_drawn_every_so_often_and_at_the_end(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def write(path: Path, *given: Any) -> None:
        assert given[-1] == torch.device("cpu:0"), "drawn where the network is trained"
        drawn.append(path.name)

    monkeypatch.setattr(sample_grids, "write", write)
    config = training_process.config(str(encoder_file), **FLAT, images=48, sheet_every=2)
    train(config, DATA, tmp_path, "cpu:0")
    assert drawn == [f"samples-{step:09d}.png" for step in (2, 3)]


def test_a_sheet_shows_images_of_the_whole_set_beside_samples_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.quick_model()
    h = model.encode(DATA.floats(slice(None)))
    fixed = FixedBatch.make(DATA, h, count=3, per=2)
    places = torch.tensor([0, 23, 47])
    assert torch.equal(fixed.images, DATA.floats(places))
    assert torch.equal(fixed.representations, h[places])
    assert len(FixedBatch.make(DATA.subset(torch.arange(2)), h[:2], count=8, per=6).images) == 2
    rows: list[Any] = []

    def sheet(given: Any, **more: Any) -> Any:
        rows.extend(given)
        return image_sheet(given, **more)

    monkeypatch.setattr(sample_grids, "image_sheet", sheet)
    unet = model.config.unet
    sample_grids.write(tmp_path / "a.png", unet, small.SCHEDULE, model.unet.state_dict(), fixed)
    assert (tmp_path / "a.png").exists()
    want = model.sample(h[places], per=2)
    for row, image, samples in zip(rows, fixed.images, want, strict=True):
        assert [each.tobytes() for each in row] == [to_pil(each).tobytes() for each in (image, *samples)]


def test_a_sheet_for_which_a_gpu_has_no_memory_is_drawn_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    model = small.quick_model()

    class Limited:
        @staticmethod
        def from_network(network: Any, schedule: Any, device: str) -> Model:
            asked.append(device)
            if device != "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model

    monkeypatch.setattr(sample_grids, "Model", Limited)
    fixed = FixedBatch.make(DATA, model.encode(DATA.floats(slice(None))), count=1, per=1)
    given = model.config.unet, small.SCHEDULE, model.unet.state_dict(), fixed
    sample_grids.write(tmp_path / "a.png", *given, "cuda:1")
    assert asked == ["cuda:1", "cpu"]
    assert (tmp_path / "a.png").exists()
    assert "a.png: drawn on the CPU, as cuda:1 has no memory left for it" in caplog.text
    monkeypatch.setattr(Limited, "from_network", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample_grids.write(tmp_path / "b.png", *given, "cuda:1")


def test_every_start_says_where_it_goes_on(encoder_file: Path, tmp_path: Path) -> None:
    config = training_process.config(str(encoder_file), **FLAT, images=32)
    with pytest.raises(Paused):
        train(config, DATA, tmp_path, minutes=0)
    train(config, DATA, tmp_path)
    starts = [json.loads(line)["step"] for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert starts == [0, 1]


def test_weights_and_biases_is_told_numbers_by_step_where_a_project_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, told = list[dict[str, Any]](), list[tuple[dict[str, float], int]]()
    run = SimpleNamespace(log=lambda numbers, step: told.append((numbers, step)))

    def init(**given: Any) -> SimpleNamespace:
        begun.append(given)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "wandb" else None)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    RunFolder(tmp_path / "mine").log({"step": 3, "loss": 0.5})
    assert begun == []
    monkeypatch.setenv("WANDB_PROJECT", "a project")
    folder = RunFolder(tmp_path / "mine")
    for step in (3, 4):
        folder.log({"step": step, "loss": 0.5, "note": "no number"})
    assert begun == [{"dir": str(tmp_path / "mine"), "name": "mine", "id": begun[0]["id"], "resume": "allow"}]
    assert [(numbers["loss"], step) for numbers, step in told] == [(0.5, 3), (0.5, 4)]
    assert set(told[0][0]) == {"step", "loss", "wall_s"}
    (tmp_path / "old" / "mine" / "wandb").mkdir(parents=True)  # what an earlier version's run leaves
    for place in ("mine", "other/mine", "old/mine", "odd/a b#1"):
        RunFolder(tmp_path / place).log({"step": 5})
    first, again, other, old, odd = (each["id"] for each in begun)
    assert again == first.strip() != other, "a run goes on as itself, not as one in another folder of its name"
    assert old == "mine"
    assert odd.startswith("a-b-1-")


def test_what_is_done_again_is_not_shown_twice_by_tensorboard(tmp_path: Path) -> None:
    reader = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(reader, reason="tensorboard is not installed")
    for steps in ((10, 20, 30), (20,)):  # interrupted behind step 30, its last state that of step 15
        folder = RunFolder(tmp_path)
        for step in steps:
            folder.log({"step": step, "loss": 1.0 * step})
    RunFolder(tmp_path).log({"knn": 0.5})  # what is measured at the end has no step
    shown = events.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [each.step for each in shown.Scalars("loss")] == [10, 20]
