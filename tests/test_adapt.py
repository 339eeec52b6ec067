"""Adapters: the closed form, the frozen decoder, folding, exact resume, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.images import save_image, to_pil, to_uint8
from rcdm_fast.metrics.ridge import Moments, Ridge, ridge
from rcdm_fast.models import checkpoint
from rcdm_fast.training import adapt as adapting
from rcdm_fast.training import representations
from rcdm_fast.training.adapt import DOWN, UP, AdaptConfig, Run, adapt
from rcdm_fast.training.losses import DiffusionLoss, LossConfig
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.state import Paused
from rcdm_fast.training.views import Views
from tests import small

WIDTHS = {"old": 8, "new": 16}


@pytest.fixture(scope="module")
def data() -> ImageSet:
    pixels = to_uint8(small.make_images(64))
    return ImageSet(pixels, None, (), tuple(Path(f"{number}.png") for number in range(64)), "made-up")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderConfig]:
    """Two encoders of different width."""
    folder = tmp_path_factory.mktemp("encoders")
    result = {}
    for seed, (name, width) in enumerate(WIDTHS.items()):
        made = PretrainConfig(name=name, image_size=8, stem=8, widths=(8, width), blocks=(1, 1), projector=(8, 4))
        torch.manual_seed(seed)
        path = folder / f"{name}.safetensors"
        native.save(path, made.network(), made.encoder(), {})
        result[name] = EncoderConfig(f"file:{path}", image_size=8)
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, EncoderConfig]) -> Path:
    """A small model for the old encoder, trained with a loss of its own."""
    network = small.network(representation_dim=WIDTHS["old"])
    info = {"run": {"loss": dataclasses.asdict(LossConfig("min_snr", gamma=3.0))}}
    config = ModelConfig(network.config, small.SCHEDULE, encoders["old"], "small", info)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    return checkpoint.save_model(path, config, network.state_dict())


@pytest.fixture
def config(model: Path, encoders: dict[str, EncoderConfig]) -> AdaptConfig:
    return AdaptConfig(
        "adapted", str(model), encoders["new"], steps=6, batch_size=16, bf16=False, save_every=2, warmup=0.2
    )


def tensors(path: Path) -> dict[str, Tensor]:
    return checkpoint.load_model(path)[1]


def test_ridge_recovers_a_linear_map(generator: torch.Generator) -> None:
    truth, offset = torch.randn(5, 3, generator=generator), torch.randn(5, generator=generator)
    x = torch.randn(2, 200, 3, generator=generator) + 2
    found = ridge(x, x @ truth.T + offset, torch.eye(5), torch.zeros(5))
    torch.testing.assert_close(found.weight.float(), truth, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.bias.float(), offset, atol=5e-3, rtol=1e-3)
    assert found.explained > 0.9999


def test_the_penalty_leaves_the_bias_alone(generator: torch.Generator) -> None:
    x = torch.nn.functional.pad(torch.randn(50, 3, generator=generator).double(), (0, 1), value=1.0)
    sums = Moments(4, 2)
    sums.add(x - x.mean(dim=0) + torch.tensor([0.0, 0, 0, 1]), torch.tensor([[100.0, -7.0]]).double().expand(50, 2))
    solved = sums.solve(1e6)
    assert solved[:3].abs().max() < 1e-3
    assert solved[3].tolist() == pytest.approx([100, -7])


def test_ridge_of_noise_explains_nothing_and_shrinks(generator: torch.Generator) -> None:
    x = torch.randn(1, 60, 40, generator=generator)
    y = torch.randn(1, 60, 4, generator=generator)
    found = ridge(x, y, torch.eye(4), torch.zeros(4))
    assert found.explained < 0.3
    assert found.penalty == 1.0
    with pytest.raises(RunError, match="at least 2"):
        ridge(x[:, :1], y[:, :1], torch.eye(4), torch.zeros(4))


def test_the_same_encoder_gives_the_same_conditioning(
    config: AdaptConfig, data: ImageSet, encoders: dict[str, EncoderConfig], model: Path, tmp_path: Path
) -> None:
    """The closed form alone, folded into weights for raw representations."""
    same = dataclasses.replace(config, encoder=encoders["old"], steps=0)
    after, before = tensors(adapt(same, data, tmp_path)), tensors(model)
    h = rcdm_fast.encoders.build(encoders["old"]).encode(data.floats(slice(0, 64)))
    got, want = (h @ each["ssl_emb.weight"].T + each["ssl_emb.bias"] for each in (after, before))
    assert float((got - want).norm() / (want - want.mean(dim=0)).norm()) < 1e-2


def test_only_the_map_changes(config: AdaptConfig, data: ImageSet, model: Path, tmp_path: Path) -> None:
    path = adapt(config, data, tmp_path)
    before, after = tensors(model), tensors(path)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "ssl_emb.weight",
        "ssl_emb.bias",
    }
    assert after["ssl_emb.weight"].shape == (128, WIDTHS["new"])
    loaded = rcdm_fast.load(path)
    assert loaded.config.unet.representation_dim == WIDTHS["new"]
    assert loaded.config.info["adapted_from"] == "small"
    assert loaded.config.info["run"]["loss"]["weighting"] == "min_snr"  # that of the model's own training
    h = loaded.encode(data.floats(slice(0, 2)))
    assert loaded.sample(h, per=2, steps=3).isfinite().all()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert {"loss", "mse", "gradient_norm"} <= set(rows[-1])


@pytest.mark.parametrize(("lora_targets", "part"), [("film", "emb_layers.1.weight"), ("all", ".weight")])
def test_low_rank_updates_fold_into_the_weights(
    config: AdaptConfig, data: ImageSet, model: Path, tmp_path: Path, lora_targets: str, part: str
) -> None:
    changes = {"rank": 2, "lora_targets": lora_targets, "learning_rate": 0.01}
    after = tensors(adapt(dataclasses.replace(config, **changes), data, tmp_path))  # type: ignore[arg-type]
    changed = 0
    for name, value in tensors(model).items():
        if name.startswith("ssl_emb") or torch.equal(value, after[name]):
            continue
        changed += 1
        assert name.endswith(part)
        singular = torch.linalg.svdvals((after[name] - value).flatten(1).double())
        assert singular[2:].sum() < 1e-4 * singular.sum()
    assert changed > 3


@pytest.mark.long
def test_training_lowers_the_loss_of_the_closed_form(
    config: AdaptConfig, data: ImageSet, tmp_path: Path, generator: torch.Generator
) -> None:
    trained = dataclasses.replace(config, steps=80, learning_rate=0.03, ema=0.9, random_flip=False, save_every=1000)
    losses = []
    x0 = data.floats(slice(0, 64)).repeat(4, 1, 1, 1)
    t = torch.randint(1000, (256,), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    for steps in (0, 80):
        path = adapt(dataclasses.replace(trained, steps=steps), data, tmp_path / str(steps))
        loaded = rcdm_fast.load(path, engine="eager")
        loss = DiffusionLoss(Schedule.make(small.SCHEDULE), LossConfig("min_snr", gamma=3.0))
        x_t = loss.noisy(x0, eps, t)
        with torch.no_grad():
            output = loaded.network(x_t, t, loaded.encode(x0))
        losses.append(float(loss(output, x0, x_t, eps, t)["loss"]))
    assert losses[1] < 0.99 * losses[0]


def made(config: AdaptConfig, data: ImageSet, bank: Tensor) -> Run:
    """The moving parts, from a map that knows nothing yet."""
    described, frozen = checkpoint.load_model(config.model)
    settings = dataclasses.replace(config, loss=LossConfig())
    width = len(frozen["ssl_emb.bias"])
    start = Ridge(torch.zeros(width, bank.shape[2]).double(), frozen["ssl_emb.bias"].double(), 1.0, 0.0)
    return Run(settings, described, frozen, start, data, bank, "cpu")


def test_weights_are_the_averages_of_all_steps(config: AdaptConfig, data: ImageSet, generator: torch.Generator) -> None:
    config = dataclasses.replace(config, rank=1, learning_rate=0.05, ema=0.3)
    bank = torch.randn(2, len(data), WIDTHS["new"], generator=generator)
    run = made(config, data, bank)
    average = {name: value.detach().clone() for name, value in run.trained.items()}
    for step in range(1, 5):
        run.advance()
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in run.trained.items():
            average[name] = decay * average[name] + (1 - decay) * value.detach()
    written = run.weights()
    torch.testing.assert_close(written["ssl_emb.weight"], average["ssl_emb.weight"])
    assert not torch.allclose(written["ssl_emb.weight"], run.trained["ssl_emb.weight"], atol=1e-4)
    layer = next(name.removesuffix(UP) for name in average if name.endswith(UP))
    torch.testing.assert_close(written[layer], run.frozen[layer] + average[layer + UP] @ average[layer + DOWN])


def test_mirrored_images_have_representations_of_their_own(
    config: AdaptConfig, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = torch.arange(20, 36)
    bank = torch.stack([torch.arange(64.0), -torch.arange(64.0)])[..., None].expand(-1, -1, WIDTHS["new"])
    run, images, given = made(config, data, bank), list[Tensor](), list[Tensor]()
    noisy = run.loss.noisy

    def noised(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        images.append(x0)
        return noisy(x0, eps, t)

    def called(network: torch.nn.Module, state: dict[str, Tensor], seen: tuple[Tensor, ...]) -> Any:
        given.append(seen[2])
        return functional_call(network, state, seen)

    monkeypatch.setattr(run, "order", lambda step: index)
    monkeypatch.setattr(run.loss, "noisy", noised)
    monkeypatch.setattr(adapting, "functional_call", called)
    run.advance()
    mirrored = given[0][:, 0] < 0
    assert 0 < int(mirrored.sum()) < 16
    assert given[0][:, 0].abs().tolist() == index.tolist()
    plain = data.floats(index)
    torch.testing.assert_close(images[0], torch.where(mirrored[:, None, None, None], plain.flip(3), plain))


@pytest.mark.parametrize("rank", [0, 2])
def test_adapting_resumes_exactly(config: AdaptConfig, data: ImageSet, tmp_path: Path, rank: int) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, loss: float) -> None:
        if done == 5:
            raise Stop

    config = dataclasses.replace(config, rank=rank)
    whole = tensors(adapt(config, data, tmp_path / "whole"))
    with pytest.raises(Stop):
        adapt(config, data, tmp_path / "cut", progress=stop)
    settings, decoder = tmp_path / "cut" / "config.json", checkpoint.load_model(config.model)
    named = hash_of(decoder[0].unet, decoder[1], decoder[0].schedule)
    assert storage.read_json(settings)["decoder"] == named
    if rank:  # a run of before, when decoders had another hash
        digest = hashlib.sha256(json.dumps(sorted(decoder[1])).encode())
        for name in sorted(decoder[1]):
            digest.update(decoder[1][name].numpy().tobytes())
        text, named = settings.read_text(), digest.hexdigest()[:16]
        settings.write_text(text.replace(storage.read_json(settings)["decoder"], named))
    seen: list[int] = []
    resumed = tensors(adapt(config, data, tmp_path / "cut", progress=lambda done, *_: seen.append(done)))
    assert seen == [5, 6]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert storage.read_json(settings)["decoder"] == named
    with pytest.raises(RunError, match="learning_rate"):
        adapt(dataclasses.replace(config, learning_rate=0.5), data, tmp_path / "cut")


def test_what_cannot_be_adapted(
    config: AdaptConfig, data: ImageSet, encoders: dict[str, EncoderConfig], tmp_path: Path
) -> None:
    def saved(name: str, encoder: EncoderConfig | None, steps: tuple[int, ...] = (), **changes: object) -> str:
        network = small.network(**changes)
        made = ModelConfig(network.config, small.SCHEDULE, encoder, name, student_steps=steps)
        return str(checkpoint.save_model(tmp_path / f"{name}.safetensors", made, network.state_dict()))

    def refused(error: type[Exception], match: str, images: ImageSet = data, **changes: object) -> None:
        with pytest.raises(error, match=match):
            adapt(dataclasses.replace(config, **changes), images, tmp_path / "run")  # type: ignore[arg-type]

    refused(ConfigError, "no new encoder", encoder=None)
    refused(ConfigError, "no representations", model=saved("plain", None, representation_dim=0))
    refused(ConfigError, "class labels", model=saved("labels", encoders["old"], num_classes=3))
    refused(ConfigError, "is a student", model=saved("student", encoders["old"], (100, 900), representation_dim=8))
    refused(ConfigError, "--old-encoder", model=saved("nameless", None, representation_dim=8))
    refused(checkpoint.CheckpointError, "unknown model", model="nobody")
    bigger = dataclasses.replace(data, pixels=data.pixels.repeat(1, 1, 2, 2))
    refused(RunError, "images are 16 px", bigger)
    refused(ConfigError, "rank must be at least 0, got -1", rank=-1)
    assert not (tmp_path / "run").exists()
    refused(ConfigError, "gives 16 dimensions", old_encoder=encoders["new"])
    nothing = dataclasses.replace(config, learning_rate=1e37)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step 2"):
        adapt(nothing, data, tmp_path / "nan")
    assert not list((tmp_path / "nan").glob("*.safetensors.tmp"))
    assert not (tmp_path / "nan" / "adapted.safetensors").exists()


def test_representations_of_both_encoders_are_kept(config: AdaptConfig, data: ImageSet, tmp_path: Path) -> None:
    adapt(dataclasses.replace(config, steps=0), data, tmp_path)
    kept = list(tmp_path.glob("representations-*-flips.npy"))
    assert len(kept) == 2
    widths = {np.load(path).shape[-1] for path in kept}
    assert widths == set(WIDTHS.values())
    assert representations.cached(rcdm_fast.encoders.build(config.encoder), data, tmp_path, Views(True)).shape[1] == 64  # type: ignore[arg-type]


def test_from_the_command_line(
    model: Path,
    encoders: dict[str, EncoderConfig],
    data: ImageSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        save_image(to_pil(data.floats(slice(number, number + 1))[0]), folder / f"{number:02d}.png")
    arguments = ["adapt", str(model), "--data", str(folder), "--set", "steps=2", "--set", "batch_size=4"]
    new = ["--encoder", encoders["new"].source]
    assert main([*arguments, *new, "--out", str(tmp_path / "mine"), "--set", "rank=1"]) == 0
    assert rcdm_fast.load(tmp_path / "mine" / "mine.safetensors").config.name == "mine"
    assert "finished" in capsys.readouterr().out
    assert main([*arguments, "--encoder", "file:/nowhere", "--out", str(tmp_path / "b")]) != 0
    assert "/nowhere" in capsys.readouterr().err


def test_a_file_says_how_it_was_adapted(config: AdaptConfig, data: ImageSet, model: Path, tmp_path: Path) -> None:
    """With a loss and a precision of its own; the log begins with what the closed form is worth."""
    own = dataclasses.replace(config, loss=LossConfig("uniform"), weights="fp16", steps=2, warmup=0.0)
    path = adapt(own, data, tmp_path)
    assert {value.dtype for value in storage.read_tensors(path).values()} == {torch.float16}
    info = checkpoint.load_model(path)[0].info
    assert info["run"]["loss"]["weighting"] == "uniform"
    assert (info["steps"], info["images_seen"]) == (2, 32)
    first, last = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["step"], first["explained"], first["penalty"] > 0) == (0, info["explained"], True)
    assert (last["step"], last["images"]) == (2, 32)


def test_a_step_asks_the_network_and_weighs_its_error_as_the_model_says(
    config: AdaptConfig, data: ImageSet, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Timesteps on the network's scale, and the loss that the model was trained with."""
    described, frozen = checkpoint.load_model(config.model)
    schedule = dataclasses.replace(small.SCHEDULE, diffusion_steps=500, rescale_timesteps=True)
    weighting = LossConfig("min_snr", gamma=3.0, vlb_weight=0.5)
    start = Ridge(torch.zeros(128, 16).double(), frozen["ssl_emb.bias"].double(), 1.0, 0.0)
    bank = torch.randn(2, len(data), WIDTHS["new"], generator=generator)
    settings, described = dataclasses.replace(config, loss=weighting), dataclasses.replace(described, schedule=schedule)
    run = Run(settings, described, frozen, start, data, bank, "cpu")
    asked, answered, noised = list[tuple[Tensor, ...]](), list[Tensor](), list[tuple[Tensor, ...]]()
    noisy = run.loss.noisy

    def called(network: torch.nn.Module, state: dict[str, Tensor], seen: tuple[Tensor, ...]) -> Any:
        asked.append(seen)
        answered.append(functional_call(network, state, seen))
        return answered[0]

    monkeypatch.setattr(run.loss, "noisy", lambda *given: noised.append(given) or noisy(*given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(adapting, "functional_call", called)
    terms = run.advance()
    ((x0, eps, t),) = noised
    assert int(t.max()) < 500
    assert torch.equal(asked[0][1], 2.0 * t)
    loss = DiffusionLoss(Schedule.make(schedule), weighting)
    want = loss(answered[0].detach(), x0, loss.noisy(x0, eps, t), eps, t)
    assert {name: terms[name] for name in ("loss", "mse", "vlb")} == pytest.approx(
        {name: float(want[name]) for name in ("loss", "mse", "vlb")}, rel=1e-4
    )


def test_all_that_adapting_draws_is_of_its_seed(
    config: AdaptConfig, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the images, what is done to them, and the factors of updates to begin with."""
    bank = torch.zeros(2, len(data), WIDTHS["new"])

    class Enough(Exception):
        pass

    def drawn(seed: int) -> dict[str, Tensor]:
        run = made(dataclasses.replace(config, seed=seed, rank=1), data, bank)
        found: list[Tensor] = []

        def noisy(*given: Tensor) -> Tensor:
            found.extend(given)
            raise Enough

        monkeypatch.setattr(run.loss, "noisy", noisy)
        with pytest.raises(Enough):
            run.advance()
        down = next(value for name, value in run.trained.items() if name.endswith(DOWN))
        assert run.order is not None
        return {"order": run.order(0), "down": down.detach(), "eps": found[1], "t": found[2]}

    first, other, again = drawn(1), drawn(2), drawn(1)
    assert {name for name, value in first.items() if torch.equal(value, other[name])} == set()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_it_stops_after_minutes_and_goes_on(data: ImageSet, config: AdaptConfig, tmp_path: Path) -> None:
    with pytest.raises(Paused, match="0 minutes are over at step 1 of 6"):
        adapt(config, data, tmp_path, minutes=0)
    seen: list[int] = []
    adapt(config, data, tmp_path, progress=lambda step, *_: seen.append(step), minutes=60)
    assert seen == [2, 3, 4, 5, 6]
