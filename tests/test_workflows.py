"""Whole jobs in one call: what commands do, from names and files, with encoders that only the caller has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rcdm_fast
from rcdm_fast import ConfigError, EncoderConfig, workflows
from rcdm_fast.analysis import registry
from rcdm_fast.analysis.registry import Experiment, Job
from rcdm_fast.analysis.result import Analysis
from rcdm_fast.errors import RunError
from rcdm_fast.images import ImageError, to_uint8
from rcdm_fast.models import checkpoint
from rcdm_fast.training.config import TrainConfig
from tests import small

CONVENTION = EncoderConfig("module", image_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of images, a model with an encoder that any process can build, and a small configuration."""
    path = tmp_path_factory.mktemp("jobs")
    np.savez(path / "set.npz", images=to_uint8(small.make_images(48)).permute(0, 2, 3, 1).numpy())
    config = {
        "name": "tiny", "images": 64, "batch_size": 16, "compile": False, "precision": "fp32", "sheet_every": 0,
        "unet": {"image_size": 8, "num_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
                 "attention_resolutions": [4], "learn_sigma": True},
        "schedule": {"variance": "learned_range"},
    }  # fmt: skip
    (path / "tiny.json").write_text(json.dumps(config))
    return path


class Mean(nn.Module):
    """Mean and spread of each color, times a weight of its own."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)


def test_a_decoder_for_a_module_of_ones_own(folder: Path, tmp_path: Path) -> None:
    """Trained, resumed with the same module only, loaded with it; the module stays as it was."""
    network = Mean().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps: list[int] = []
    path = rcdm_fast.train(
        folder / "tiny.json", folder / "set.npz", tmp_path, encoder=network, convention=CONVENTION,
        progress=lambda done, total, loss: steps.append(done), images=96,
    )  # fmt: skip
    assert steps == [1, 2, 3, 4, 5, 6]
    assert network.training
    assert network.factor.requires_grad
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    config, _ = checkpoint.load_model(path)
    assert config.unet.representation_dim == 6
    assert config.encoder is not None
    assert config.encoder.source == "module"
    model = rcdm_fast.load(path, encoder=rcdm_fast.encoders.build(network, config=CONVENTION))
    assert model.sample(model.encode(small.make_images(2)), per=2, steps=2).shape == (2, 2, 3, 8, 8)
    again = rcdm_fast.train(
        folder / "tiny.json", folder / "set.npz", tmp_path, encoder=Mean(), convention=CONVENTION, images=96
    )
    assert again == path
    with pytest.raises(RunError, match="answers"):  # another module, which has the same name
        rcdm_fast.train(
            folder / "tiny.json", folder / "set.npz", tmp_path, encoder=Mean(2.0), convention=CONVENTION, images=96
        )


def test_a_configuration_and_changes(folder: Path, tmp_path: Path) -> None:
    made = rcdm_fast.train(folder / "tiny.json", folder / "set.npz", tmp_path / "a", encoder=small.encoder(), seed=3)
    assert checkpoint.load_model(made)[0].info["run"]["seed"] == 3
    with pytest.raises(ConfigError, match="unknown key learning_rat"):
        rcdm_fast.train(folder / "tiny.json", folder / "set.npz", tmp_path / "b", learning_rat=1e-3)
    with pytest.raises(ConfigError, match=r"shipped: .*cifar10-simclr-trunk"):
        rcdm_fast.train("cifar10-simclr-stump", folder / "set.npz", tmp_path / "b")
    with pytest.raises(ConfigError, match="are about a module or function"):
        rcdm_fast.train(folder / "tiny.json", folder / "set.npz", tmp_path / "b", convention=CONVENTION)
    assert not (tmp_path / "b").exists()
    config = TrainConfig("other", unet=small.UNET, images=16, batch_size=16)
    with pytest.raises(ConfigError, match="needs an encoder"):
        rcdm_fast.train(config, folder / "set.npz", tmp_path / "c")


def test_another_encoder_evaluated_and_analyzed(folder: Path, tmp_path: Path) -> None:
    network = small.network()
    base = tmp_path / "base.safetensors"
    spec = "bundled:cifar10-simclr"
    config = small.model(representation_dim=192).config
    named = rcdm_fast.encoders.build(spec).config
    unet = small.network(representation_dim=192)
    checkpoint.save_model(base, rcdm_fast.ModelConfig(unet.config, config.schedule, named, "base"), unet.state_dict())
    del network
    path = rcdm_fast.adapt(base, Mean(), folder / "set.npz", tmp_path / "mine", convention=CONVENTION, steps=0)
    assert path == tmp_path / "mine" / "mine.safetensors"
    model = rcdm_fast.load(path, encoder=rcdm_fast.encoders.build(Mean(), config=CONVENTION))
    assert model.config.info["adapted_from"] == "base"
    assert model.config.info["steps"] == 0
    found = rcdm_fast.evaluate(model, folder / "set.npz", sources=20, per=1, steps=2, resamples=100)
    assert (found.sources, found.samples, found.gallery) == (20, 1, 48)
    result = rcdm_fast.analyze(model, "faithfulness", folder / "set.npz", sources=20, per=1, steps=2, resamples=100)
    assert result.name == "faithfulness"
    assert "mean rank" in result.as_text().lower()
    for missing, options in (("needs a set of", {}), ("another with --against", {"data": folder / "set.npz"})):
        with pytest.raises(ConfigError, match=missing):
            rcdm_fast.analyze(model, "layers" if options else "invariance", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="invariance"):
        rcdm_fast.analyze(model, "invarianse", folder / "set.npz")


def pixels(count: int, size: int = 8) -> Any:
    """Images as an array that a caller has."""
    return to_uint8(small.make_images(count, size)).permute(0, 2, 3, 1).numpy()


def told(*_: Any) -> None:
    """Progress."""


def test_what_is_given_reaches_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    run = lambda job: jobs.append(job) or Analysis("x", "t", "m", {})  # type: ignore[func-returns-value]  # noqa: E731
    takes = Experiment("x", run, needs_photos=True, takes_training=True, compares=True)
    monkeypatch.setitem(registry.EXPERIMENTS, "x", takes)
    model, other = small.quick_model(), small.quick_model()
    sets = {"data": pixels(2), "photos": pixels(3), "training": pixels(4)}
    rcdm_fast.analyze(model, "x", **sets, against=[other], progress=told, steps=3, per=2)
    (job,) = jobs
    assert (job.model, job.against, job.progress, job.settings) == (model, (other,), told, {"steps": 3, "per": 2})
    assert job.data is not None
    assert job.photos is not None
    assert job.training is not None
    assert [len(job.data), len(job.photos), len(job.training)] == [2, 3, 4]
    monkeypatch.setitem(registry.EXPERIMENTS, "x", Experiment("x", run))
    with pytest.raises(ConfigError, match="takes no training images"):
        rcdm_fast.analyze(model, "x", pixels(2), training=pixels(2))
    with pytest.raises(ConfigError, match="takes no --against"):
        rcdm_fast.analyze(model, "x", pixels(2), against=[other])


def test_what_is_given_reaches_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(workflows, "measure", lambda *given: seen.append(given))
    model = small.quick_model()
    rcdm_fast.evaluate(model, pixels(5), progress=told, sources=3, steps=7, seed=2)
    ((found, images, config, progress),) = seen
    assert (found, len(images), progress) == (model, 5, told)
    assert (config.sources, config.steps, config.seed) == (3, 7, 2)


def test_what_is_given_reaches_the_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Representations, minutes, and whose code is trusted: the configuration's own encoder, too."""
    seen: list[Any] = []
    monkeypatch.setattr("rcdm_fast.training.train.train", lambda *given: seen.append(given))
    named = {**json.loads((folder / "tiny.json").read_text()), "encoder": {"source": "python:a.py:A", "image_size": 8}}
    (tmp_path / "named.json").write_text(json.dumps(named))
    usual: dict[str, Any] = {"device": "cpu", "minutes": 2.5, "progress": told, "seed": 3}
    h = np.arange(10, dtype=np.float32).reshape(5, 2)
    rcdm_fast.train(folder / "tiny.json", pixels(5), tmp_path / "a", representations=h, **usual)
    rcdm_fast.train(tmp_path / "named.json", pixels(5), tmp_path / "b", trust_repo=True, **usual)
    rcdm_fast.train(tmp_path / "named.json", pixels(5), tmp_path / "b", **usual)
    for settings, images, _, device, progress, minutes, _, built, _ in seen:
        assert (settings.seed, len(images), str(device), progress, minutes, built) == (3, 5, "cpu", told, 2.5, None)
    assert [each[2] for each in seen] == [tmp_path / "a", tmp_path / "b", tmp_path / "b"]
    assert [each[6] for each in seen] == [[], ["python:a.py:A"], []]
    assert np.array_equal(np.asarray(seen[0][8]), h)
    assert [each[8] for each in seen[1:]] == [None, None]
    with pytest.raises(ConfigError, match="give one of them"):
        rcdm_fast.train(
            folder / "tiny.json", pixels(5), tmp_path / "a", encoder=small.encoder(), representations=h, **usual
        )


def test_what_is_given_reaches_the_adapting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name by the folder, representations in place of an encoder; images as large as the model's."""
    seen: list[Any] = []
    monkeypatch.setattr(workflows, "adapted", lambda *given: seen.append(given))
    model = small.quick_model()
    checkpoint.save_model(tmp_path / "m.safetensors", model.config, model.unet.state_dict())
    h = np.arange(10, dtype=np.float32).reshape(5, 2)
    given: dict[str, Any] = {"device": "cpu", "progress": told, "steps": 0, "minutes": 7}
    for encoder, more in ((None, {"representations": h}), (small.encoder(), {"name": "mine"})):
        rcdm_fast.adapt(tmp_path / "m.safetensors", encoder, pixels(5, 8), tmp_path / "new", **given, **more)
    for settings, images, out, device, progress, trusted, _, _, minutes in seen:
        assert (settings.model, settings.steps, minutes) == (str(tmp_path / "m.safetensors"), 0, 7)
        assert (len(images), images.pixels.shape[-1], out, str(device)) == (5, 8, tmp_path / "new", "cpu")
        assert (progress, trusted) == (told, [])
    assert [each[0].name for each in seen] == ["new", "mine"]
    assert seen[0][6] is None
    assert seen[1][6].config.source == "module"
    assert np.array_equal(np.asarray(seen[0][7]), h)
    assert seen[1][7] is None


def test_what_is_no_model_and_no_images_is_told(folder: Path, tmp_path: Path) -> None:
    """A name where a model is due had no attribute 'config'; a name as against= was read letter by letter."""
    for call in (
        lambda: rcdm_fast.generate("starter", folder),  # type: ignore[arg-type]
        lambda: rcdm_fast.export("starter", "onnx", tmp_path / "e"),  # type: ignore[arg-type]
    ):
        with pytest.raises(
            ConfigError, match=r"expected a model, got 'starter'; rcdm_fast.load\('starter'\) makes one"
        ):
            call()
    with pytest.raises(ConfigError, match=r"expected a model, got 5$"):
        rcdm_fast.generate(5, folder)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="against= is a list of models"):
        rcdm_fast.analyze("m", "layers", folder, against="other")
    with pytest.raises(ConfigError, match="against= is a list of models"):
        rcdm_fast.analyze("m", "layers", folder, against=small.quick_model())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a decoder is adapted from its file"):
        rcdm_fast.adapt(small.quick_model(), "bundled:cifar10-simclr", folder, tmp_path / "a")  # type: ignore[arg-type]
    for data in (None, ["a.jpg"]):
        with pytest.raises(ImageError, match="images are a folder, a file, an array or an open set, got"):
            rcdm_fast.evaluate(small.quick_model(), data)  # type: ignore[arg-type]
