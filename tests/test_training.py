"""Training: data, losses, probes, exact resume, and what a finished run writes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, EncoderConfig, ScheduleConfig, from_json
from rcdm_fast.data.image_set import BatchOrder, ImageSet, step_generator
from rcdm_fast.data.sources import open_data
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.images import ImageError, from_uint8, to_uint8
from rcdm_fast.metrics import probes
from rcdm_fast.training.batches import Standardization
from rcdm_fast.training.config import InBatches, TrainConfig
from rcdm_fast.training.distill import DistillConfig
from rcdm_fast.training.loop import learning_rate
from rcdm_fast.training.losses import DiffusionLoss, LossConfig, Weighting
from rcdm_fast.training.pretrain import PretrainConfig, pretrain
from rcdm_fast.training.reader import ReaderConfig
from rcdm_fast.training.train import train
from tests import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight-pixel images that differ in color."""
    root = tmp_path_factory.mktemp("images")
    pixels = to_uint8(small.make_images(48)).permute(0, 2, 3, 1).numpy()
    for number, array in enumerate(pixels):
        name = "warm" if number % 2 else "cold"
        tinted = array.copy()
        tinted[:, :, 0 if number % 2 else 2] = 230
        path = root / name / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tinted).save(path)
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> ImageSet:
    return open_data(folder, 8)


def test_folder_becomes_a_set(folder: Path, data: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert data.pixels.shape == (48, 3, 8, 8)
    assert data.classes == ("cold", "warm")
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 24 + [1] * 24
    again = np.asarray(Image.open(data.paths[5]))
    assert np.array_equal(data.pixels[5].permute(1, 2, 0).numpy(), again)
    assert open_data(folder, 8).fingerprint == data.fingerprint
    assert data.subset(torch.tensor([1, 2])).fingerprint != data.fingerprint
    (tmp_path / "good.png").write_bytes(data.paths[0].read_bytes())
    (tmp_path / "bad.png").write_text("no")
    one = open_data(tmp_path, 8)
    assert len(one) == 1
    assert one.labels is None
    assert "bad.png" in caplog.text
    assert "1 of 2 items skipped" in caplog.text
    (tmp_path / "good.png").unlink()
    with pytest.raises(ImageError, match="none of 1"):
        open_data(tmp_path, 8)


def test_batches_cover_an_epoch_and_depend_on_the_step_alone() -> None:
    order = BatchOrder(50, 8, seed=3)
    epoch = torch.cat([order(step) for step in range(6)])
    assert len(set(epoch.tolist())) == 48
    assert torch.equal(BatchOrder(50, 8, seed=3)(9), order(9))
    assert not torch.equal(order(0), order(6))
    assert torch.equal(torch.rand(4, generator=step_generator(1, 2)), torch.rand(4, generator=step_generator(1, 2)))
    with pytest.raises(ValueError, match="exceeds"):
        BatchOrder(5, 8, 0)


def test_perfect_prediction_has_no_loss_but_the_bound_of_the_variance(generator: torch.Generator) -> None:
    config = ScheduleConfig(variance="learned_range")
    loss = DiffusionLoss(Schedule.make(config), LossConfig())
    x0 = small.make_images(6)
    eps = torch.randn(x0.shape, generator=generator)
    t = torch.tensor([1, 10, 100, 500, 900, 999])
    x_t = loss.noisy(x0, eps, t)
    smallest = torch.cat([eps, -torch.ones_like(eps)], dim=1)
    terms = loss(smallest, x0, x_t, eps, t)
    assert float(terms["mse"]) == 0
    assert float(terms["vlb"]) == pytest.approx(0, abs=1e-4)  # posterior variance and mean: no divergence
    largest = torch.cat([eps, torch.ones_like(eps)], dim=1)
    assert float(loss(largest, x0, x_t, eps, t)["vlb"]) > float(terms["vlb"])


def test_vlb_is_that_of_the_variance_that_sampling_uses() -> None:
    """Where the schedule holds the variance in its bounds, outputs beyond them count as the bound: no gradient."""
    free, held = (
        ScheduleConfig(variance="learned_range", prediction="x0", clamp_variance=clamp) for clamp in (False, True)
    )
    x0 = small.make_images(4)
    eps = torch.randn(x0.shape)
    t = torch.tensor([0, 0, 1, 500])
    wild, bound = torch.full_like(x0, 8.0).requires_grad_(), torch.ones_like(x0)
    for config, driven in ((free, True), (held, False)):
        loss = DiffusionLoss(Schedule.make(config), LossConfig())
        x_t = loss.noisy(x0, eps, t)
        far = 0.5 * x0
        found = loss(torch.cat([far, wild], dim=1), x0, x_t, eps, t)
        (gradient,) = torch.autograd.grad(found["loss"], wild)
        assert bool(gradient[0].abs().max() > 0) is driven
        same = float(found["vlb"]) == float(loss(torch.cat([far, bound], dim=1), x0, x_t, eps, t)["vlb"])
        assert same is not driven


def test_bound_leaves_the_mean_alone(generator: torch.Generator) -> None:
    """L_vlb trains the variance only: its gradient with respect to eps is zero."""
    loss = DiffusionLoss(Schedule.make(ScheduleConfig(variance="learned_range")), LossConfig(vlb_weight=1.0))
    plain = DiffusionLoss(Schedule.make(ScheduleConfig(variance="learned_range")), LossConfig(vlb_weight=0.0))
    x0, t = small.make_images(3), torch.tensor([0, 5, 700])
    eps = torch.randn(x0.shape, generator=generator)
    gradients = []
    for each in (loss, plain):
        output = torch.zeros(3, 6, 8, 8, requires_grad=True)
        each(output, x0, each.noisy(x0, eps, t), eps, t)["loss"].backward()
        assert output.grad is not None
        gradients.append(output.grad)
    torch.testing.assert_close(gradients[0][:, :3], gradients[1][:, :3])
    assert float(gradients[0][:, 3:].abs().max()) > 0
    assert float(gradients[1][:, 3:].abs().max()) == 0


def test_likelihood_of_the_first_step_sums_to_one() -> None:
    from rcdm_fast.training.losses import _discrete_log_likelihood

    levels = from_uint8(torch.arange(256, dtype=torch.uint8)).view(256, 1, 1, 1)
    mean, spread = torch.full_like(levels, 0.3), torch.full_like(levels, math.log(0.05))
    assert float(_discrete_log_likelihood(levels, mean, spread).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_min_snr_caps_the_weight() -> None:
    schedule = Schedule.make(ScheduleConfig())
    loss = DiffusionLoss(schedule, LossConfig("min_snr", gamma=5.0))
    output, x0 = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    eps = torch.ones(1, 3, 8, 8)
    for step in (0, 500, 999):
        snr = schedule.alpha_bar[step] / (1 - schedule.alpha_bar[step])
        terms = loss(output, x0, eps, eps, torch.tensor([step]))
        assert float(terms["loss"]) == pytest.approx(min(snr, 5.0) / snr, rel=1e-4)
        assert float(terms["mse"]) == 1


def test_clamped_snr_for_a_network_that_predicts_x0() -> None:
    schedule = Schedule.make(ScheduleConfig(prediction="x0"))
    loss = DiffusionLoss(schedule, LossConfig("clamped_snr", gamma=5.0))
    output, x0 = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    for step in (0, 250, 500, 999):
        snr = schedule.alpha_bar[step] / (1 - schedule.alpha_bar[step])
        terms = loss(output, x0, x0, torch.zeros_like(x0), torch.tensor([step]))
        assert float(terms["loss"]) == pytest.approx(min(max(snr, 1.0), 5.0), rel=1e-4)


@pytest.mark.parametrize("weighting", ["min_snr", "clamped_snr"])
def test_weights_by_snr_do_not_depend_on_what_is_predicted(weighting: Weighting, generator: torch.Generator) -> None:
    """The same error of the image costs the same, whether the network says eps, x0 or v."""
    losses = []
    x0, eps = small.make_images(3), torch.randn(3, 3, 8, 8, generator=generator)
    t = torch.tensor([3, 300, 900])
    for prediction in ("eps", "x0", "v"):
        schedule = Schedule.make(ScheduleConfig(prediction=prediction, variance="learned_range"))
        loss = DiffusionLoss(schedule, LossConfig(weighting, vlb_weight=1.0))
        alpha_bar = torch.from_numpy(schedule.alpha_bar)[t][:, None, None, None].float()
        x_t = loss.noisy(x0, eps, t)
        wrong = x0 + 0.01
        wrong_eps = (x_t - alpha_bar.sqrt() * wrong) / (1 - alpha_bar).sqrt()
        said = {"eps": wrong_eps, "x0": wrong, "v": alpha_bar.sqrt() * wrong_eps - (1 - alpha_bar).sqrt() * wrong}
        terms = loss(torch.cat([said[prediction], torch.zeros_like(x0)], dim=1), x0, x_t, eps, t)
        losses.append(terms["each"])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-2, atol=1e-6)


def test_probes_on_clouds(generator: torch.Generator) -> None:
    centers = torch.eye(3) * 4
    labels = torch.arange(300) % 3
    clouds = centers[labels] + torch.randn(300, 3, generator=generator)
    noise = torch.randn(300, 3, generator=generator)
    half = slice(0, 150), slice(150, 300)
    for probe in (probes.knn_accuracy, probes.linear_probe_accuracy):
        assert probe(clouds[half[0]], labels[half[0]], clouds[half[1]], labels[half[1]]) > 0.9
        assert probe(noise[half[0]], labels[half[0]], noise[half[1]], labels[half[1]]) < 0.5


def test_a_near_neighbor_outvotes_two_that_are_far() -> None:
    """Weights are exp(cos / 0.1): e^10 at 0 degrees, e^5 at 60."""
    bank = torch.tensor([[1.0, 0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 0]])
    for temperature, seen in ((0.1, 0), (1.0, 1)):
        assert probes.knn_accuracy(bank, labels, query, torch.tensor([seen]), temperature=temperature) == 1
    assert probes.knn_accuracy(bank, labels, query, torch.tensor([0])) == 1


def test_learning_rate_rises_and_falls() -> None:
    lr_schedule = [learning_rate(step, 100, 0.1, 1.0) for step in range(100)]
    assert lr_schedule[0] == pytest.approx(0.1)
    assert max(lr_schedule) == 1.0
    assert lr_schedule[-1] < 0.01


def pretrain_config(**changes: object) -> PretrainConfig:
    base = PretrainConfig(
        name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4), images=96, batch_size=16,
        compile=False, bf16=False, save_every=2,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_pretraining_writes_an_encoder_with_its_numbers(data: ImageSet, tmp_path: Path) -> None:
    path, accuracy = pretrain(pretrain_config(), data, tmp_path / "run", test=data)
    assert {"backbone_knn", "projector_linear", "untrained_backbone_linear"} <= set(accuracy)
    encoder = rcdm_fast.encoders.build(f"file:{path}")
    assert encoder.encode(data.floats(slice(0, 3))).shape == (3, 8)
    assert encoder.config.image_size == 8
    projector = rcdm_fast.encoders.build(f"file:{path}?layer=projector")
    assert projector.encode(data.floats(slice(0, 3))).shape == (3, 4)
    info = json.loads(storage.read_metadata(path)["rcdm_fast.info"])
    assert info["accuracy"] == accuracy


def test_supervised_pretraining_learns_the_classes(data: ImageSet, tmp_path: Path) -> None:
    config = pretrain_config(method="supervised", projector=(2,), images=1600, learning_rate=3e-3)
    _, accuracy = pretrain(config, data, tmp_path / "run", test=data)
    assert accuracy["projector_linear"] > 0.9
    with pytest.raises(ConfigError, match="2 classes"):
        pretrain(pretrain_config(method="supervised", projector=(3,)), data, tmp_path / "other")
    with pytest.raises(RunError, match="sub-folders"):
        pretrain(config, dataclasses.replace(data, labels=None), tmp_path / "other")


@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_pretraining_resumes_exactly(data: ImageSet, tmp_path: Path, method: str) -> None:
    config = pretrain_config(method=method, projector=(8, 4) if method == "simclr" else (2,))

    class Stop(Exception):
        pass

    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise Stop

    whole, _ = pretrain(config, data, tmp_path / "whole")
    with pytest.raises(Stop):
        pretrain(config, data, tmp_path / "cut", progress=stop)
    resumed, _ = pretrain(config, data, tmp_path / "cut")
    expected, actual = storage.read_tensors(whole), storage.read_tensors(resumed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = pretrain_config()
    path = tmp_path_factory.mktemp("encoder") / "tiny-encoder.safetensors"
    native.save(path, config.network(), config.encoder(), {})
    return path


def train_config(encoder_file: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        name="tiny", unet=dataclasses.replace(small.UNET, representation_dim=0), schedule=small.SCHEDULE,
        encoder=EncoderConfig(f"file:{encoder_file}", image_size=8), images=96, batch_size=16, compile=False,
        precision="fp32", save_every=2, sheet_every=6, weights="fp32",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_training_writes_a_model_that_samples(data: ImageSet, encoder_file: Path, tmp_path: Path) -> None:
    path = train(train_config(encoder_file, weights="fp16"), data, tmp_path)
    model = rcdm_fast.load(path)
    assert model.config.name == "tiny"
    assert model.config.info["images_seen"] == 96
    h = model.encode(data.floats(slice(0, 2)))
    assert model.sample(h, per=2, steps=3).isfinite().all()
    assert (tmp_path / "samples-000000006.png").exists()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert {"loss", "mse", "vlb", "gradient_norm", "images_per_s"} <= set(rows[-1])
    assert len(list(tmp_path.glob("state-*.pt"))) == 2


@pytest.mark.long
def test_training_lowers_the_loss(data: ImageSet, encoder_file: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    config = train_config(encoder_file, images=1600, learning_rate=2e-3, sheet_every=0, save_every=1000)
    train(config, data, tmp_path, progress=lambda done, total, loss: losses.append(loss))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])


def test_training_resumes_exactly(data: ImageSet, encoder_file: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, loss: float) -> None:
        if done == 5:
            raise Stop

    config = train_config(encoder_file, sheet_every=0)
    whole = train(config, data, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, data, tmp_path / "cut", progress=stop)
    resumed = train(config, data, tmp_path / "cut")
    expected, actual = storage.read_tensors(whole), storage.read_tensors(resumed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_changed_configuration_is_refused_with_its_differences(
    data: ImageSet, encoder_file: Path, tmp_path: Path
) -> None:
    train(train_config(encoder_file, images=32, sheet_every=0), data, tmp_path)
    with pytest.raises(RunError, match=r"learning_rate: 0.001 -> 0.5"):
        train(train_config(encoder_file, images=32, sheet_every=0, learning_rate=0.5), data, tmp_path)


def test_training_starts_from_a_model(data: ImageSet, encoder_file: Path, tmp_path: Path) -> None:
    first = train(train_config(encoder_file, sheet_every=0), data, tmp_path / "first")
    second = train(
        train_config(
            encoder_file,
            sheet_every=0,
            images=16,
            learning_rate=0.0,
            ema=0.0,
            ema_decays=(0.5, 0.9999),
            init=str(first),
        ),
        data,
        tmp_path / "second",
    )
    before = storage.read_tensors(first)
    slow = [second.with_name(f"{second.stem}-ema{decay}.safetensors") for decay in ("0.5", "0.9999")]
    for path in (second, *slow):  # nothing was learned, so all averages are where it began
        after = storage.read_tensors(path)
        for name in before:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)
    other = train_config(encoder_file, sheet_every=0, init=str(first))
    with pytest.raises(ConfigError, match="its network is"):
        train(dataclasses.replace(other, unet=dataclasses.replace(other.unet, num_heads=2)), data, tmp_path / "third")


def test_wrong_data_and_encoders(data: ImageSet, encoder_file: Path, tmp_path: Path) -> None:
    config = train_config(encoder_file)
    with pytest.raises(ConfigError, match="needs an encoder"):
        train(dataclasses.replace(config, encoder=None), data, tmp_path / "a")
    with pytest.raises(ConfigError, match="expects 9"):
        train(dataclasses.replace(config, unet=dataclasses.replace(config.unet, representation_dim=9)), data, tmp_path)
    bigger = dataclasses.replace(config, unet=dataclasses.replace(config.unet, image_size=16))
    with pytest.raises(RunError, match="images are 8 px"):
        train(bigger, data, tmp_path / "b")


def test_folding_undoes_standardization() -> None:
    weights = {"ssl_emb.weight": torch.randn(4, 3), "ssl_emb.bias": torch.randn(4)}
    standard = Standardization(torch.randn(3), torch.rand(3) + 0.5)
    h = torch.randn(7, 3)
    folded = standard.fold(weights)
    inside = (h - standard.mean) / standard.std @ weights["ssl_emb.weight"].T + weights["ssl_emb.bias"]
    torch.testing.assert_close(h @ folded["ssl_emb.weight"].T + folded["ssl_emb.bias"], inside)
    back = standard.unfold(folded)
    for name, value in weights.items():
        torch.testing.assert_close(back[name], value)


def test_shipped_configurations_are_valid(checkout: Path) -> None:
    files = sorted((checkout / "training" / "configs").glob("*.json"))
    assert len(files) >= 5
    for file in files:
        text = file.read_text()
        if file.stem.endswith("-encoder"):
            assert f"{from_json(PretrainConfig, text, file.name).name}-encoder" == file.stem
        elif file.stem.endswith("-reader"):
            assert from_json(ReaderConfig, text, file.name).name == file.stem
        else:
            assert from_json(TrainConfig, text, file.name).name == file.stem


@pytest.mark.parametrize(("seen", "steps"), [(16, 1), (31, 1), (32, 2), (100, 6)])
def test_a_rest_that_makes_no_batch_is_left_out(seen: int, steps: int) -> None:
    runs: list[InBatches | DistillConfig] = [
        TrainConfig("a", small.UNET, images=seen, batch_size=16),
        PretrainConfig("a", images=seen, batch_size=16),
        ReaderConfig(images=seen, batch_size=16),
        DistillConfig("a", "model", trajectories=seen, batch_size=16),
    ]
    assert [run.steps for run in runs] == [steps] * 4
