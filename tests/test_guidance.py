"""Classifier-free guidance on the representation: what is drawn, what is refused, and how a model learns it."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.diffusion import registry
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.encoders import native
from rcdm_fast.model import Model
from rcdm_fast.training import distributed
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.run import Run
from rcdm_fast.training.train import train
from tests import small, training_process


def guidable() -> Model:
    model = small.model()
    return Model(
        dataclasses.replace(model.config, representation_dropout=0.1),
        model.unet,
        model.engine,
        None,
        torch.device("cpu"),
    )


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
def test_guidance_pushes_away_from_the_null_representation(solver: str) -> None:
    model = guidable()
    h, strength = torch.randn(3, small.DIM), 2.5
    got = model.sample(h, per=2, steps=4, solver=solver, guidance=strength, batch_size=4)
    rows = h.repeat_interleave(2, dim=0)
    schedule = Schedule.make(model.config.schedule, 4)

    @torch.inference_mode()
    def predict(x: Tensor, k: int) -> Tensor:
        t = torch.full((len(x),), schedule.network_timesteps[k])
        conditional, null = (model.unet(x, t, given) for given in (rows, torch.zeros_like(rows)))
        return torch.cat([(1 - strength) * null[:, :3] + strength * conditional[:, :3], conditional[:, 3:]], dim=1)

    keys = [(item, sample) for item in range(3) for sample in range(2)]
    noise = [rcdm_fast.diffusion.noise.keyed_noise(0, keys, step, (3, 8, 8), torch.device("cpu")) for step in range(5)]
    want = registry.find(solver).run(predict, noise[0], schedule, SolverOptions(), lambda i: noise[i + 1])
    torch.testing.assert_close(got.flatten(0, 1), want, atol=2e-4, rtol=1e-3)
    assert float((got - model.sample(h, per=2, steps=4, solver=solver)).abs().max()) > 0.01


def test_no_guidance_and_no_representation() -> None:
    model = guidable()
    h = torch.randn(2, small.DIM)
    assert torch.equal(model.sample(h, per=1, steps=3, guidance=1.0), small.model().sample(h, per=1, steps=3))
    null = model.sample(torch.zeros_like(h), per=1, steps=3)
    torch.testing.assert_close(model.sample(h, per=1, steps=3, guidance=0.0), null, atol=1e-5, rtol=1e-5)


def test_guidance_is_refused_where_it_means_nothing() -> None:
    h = torch.randn(2, small.DIM)
    with pytest.raises(ConfigError, match="trained with representation dropout; this one was not"):
        small.model().sample(h, guidance=2.0)
    for wrong, demand in ((-1.0, "at least 0, got -1"), (float("nan"), "a finite number, got nan")):
        with pytest.raises(ConfigError, match=f"guidance must be {demand}"):
            guidable().sample(h, guidance=wrong)


def test_dropped_representations_are_zeros_for_the_encoder(tmp_path: Path) -> None:
    encoder = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    file = tmp_path / "encoder.safetensors"
    native.save(file, encoder.network(), encoder.encoder(), {})
    config = training_process.config(str(file), representation_dropout=0.3)
    data = training_process.data()
    bank = torch.randn(2, len(data), small.DIM) + 5
    run = Run(config, small.UNET, data, bank, distributed.Processes())
    dropped = 0
    for _ in range(40):
        h = run.batches.draw(run.step).h * run.batches.standard.std + run.batches.standard.mean
        run.step += 1
        dropped += int((h.abs().max(dim=1).values < 1e-4).sum())
    assert 0.25 < dropped / (40 * 16) < 0.35
    model = rcdm_fast.load(train(config, data, tmp_path / "run"))
    assert model.config.representation_dropout == 0.3
    assert model.sample(model.encode(data.floats(slice(0, 2))), per=1, steps=2, guidance=3.0).isfinite().all()
    with pytest.raises(ConfigError, match="representation_dropout must be"):
        training_process.config(str(file), representation_dropout=1.0)


def weaker(seed: int = 1, **changes: object) -> Model:
    """A model of the same kind with other weights, not trained for guidance."""
    model = small.model(**changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.unet.parameters():
            each.mul_(1 + 0.2 * torch.randn(each.shape, generator=generator))
    return model


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "heun"])
def test_a_guide_answers_instead_of_the_null_representation(solver: str) -> None:
    model, guide = small.model(), weaker()
    h, strength = torch.randn(3, small.DIM), 1.8
    got = model.sample(h, per=2, steps=5, solver=solver, guidance=strength, guide=guide, batch_size=4)
    rows = h.repeat_interleave(2, dim=0)
    schedule = registry.schedule(model.config.schedule, solver, 5, 0.0)

    @torch.inference_mode()
    def predict(x: Tensor, k: int) -> Tensor:
        t = torch.full((len(x),), schedule.network_timesteps[k])
        ours, theirs = (each.unet(x, t, rows) for each in (model, guide))
        return torch.cat([(1 - strength) * theirs[:, :3] + strength * ours[:, :3], ours[:, 3:]], dim=1)

    keys = [(item, sample) for item in range(3) for sample in range(2)]
    noise = [rcdm_fast.diffusion.noise.keyed_noise(0, keys, step, (3, 8, 8), torch.device("cpu")) for step in range(6)]
    want = registry.find(solver).run(predict, noise[0], schedule, SolverOptions(), lambda i: noise[i + 1])
    torch.testing.assert_close(got.flatten(0, 1), want, atol=2e-4, rtol=1e-3)
    assert float((got - model.sample(h, per=2, steps=5, solver=solver)).abs().max()) > 0.01
    nothing = model.sample(h, per=2, steps=5, solver=solver, guidance=1.8, guide=weaker(seed=2))
    assert not torch.equal(got, nothing)


def test_a_guide_of_labels() -> None:
    changes = {"representation_dim": 0, "num_classes": 4}
    model, guide = small.model(**changes), weaker(**changes)
    got = model.sample(label=[1, 2], per=1, steps=2, guidance=2.0, guide=guide)
    assert not torch.equal(got, model.sample(label=[1, 2], per=1, steps=2))


def test_guides_that_are_refused() -> None:
    model, h = small.model(), torch.randn(2, small.DIM)

    def refused(match: str, guide: Model, guidance: float = 2.0) -> None:
        with pytest.raises(ConfigError, match=match):
            model.sample(h, steps=2, guidance=guidance, guide=guide)

    refused("a model cannot guide itself", model)
    refused("does nothing at guidance 1", weaker(), 1.0)
    refused("guidance must be", weaker(), -1.0)
    refused("width of representations 0 instead of 6", weaker(representation_dim=0))
    refused("image size 16 instead of 8", weaker(image_size=16))
    other = small.model()
    for changes, match in (
        ({"prediction": "v"}, "prediction v instead of eps"),
        ({"noise_schedule": "cosine"}, "noise schedule cosine instead of linear"),
        ({"diffusion_steps": 500}, "diffusion steps 500 instead of 1000"),
    ):
        other.config = dataclasses.replace(
            small.model().config,
            schedule=dataclasses.replace(small.SCHEDULE, **changes),
        )
        refused(match, other)
    with pytest.raises(ConfigError, match=r"a guide is a model.*got 'weaker.safetensors'"):
        model.sample(h, steps=2, guidance=2.0, guide="weaker.safetensors")  # type: ignore[arg-type]
    ours, theirs = small.model(), weaker()
    for each, source in ((ours, "bundled:cifar10-simclr"), (theirs, "bundled:cifar10-supervised")):
        each.config = dataclasses.replace(each.config, encoder=EncoderConfig(source, layer="backbone"))
    with pytest.raises(ConfigError, match=r"encoder bundled:cifar10-supervised \(backbone\) instead of bundled"):
        ours.sample(h, steps=2, guidance=2.0, guide=theirs)
    theirs.config = dataclasses.replace(theirs.config, encoder=EncoderConfig("file:x.safetensors"))
    assert ours.sample(h, steps=2, guidance=2.0, guide=theirs).isfinite().all()
    request = model.request(h, steps=2, guidance=2.0, guide=weaker())
    with pytest.raises(ConfigError, match="the same guide"):
        next(model.batches(request))
    with pytest.raises(ConfigError, match="the same guide"):
        next(model.batches(model.request(h, steps=2), guide=weaker()))


def test_what_is_not_finite_in_a_guide_is_named() -> None:
    guide = weaker()
    with torch.no_grad():
        next(iter(guide.unet.out[2].parameters())).fill_(float("nan"))
    with pytest.raises(SamplingError, match="of the guide"):
        small.model().sample(torch.randn(1, small.DIM), steps=2, guidance=2.0, guide=guide)


@pytest.mark.long
def test_two_models_that_guide_each_other_in_two_threads() -> None:
    first, second, h = small.model(), weaker(), torch.randn(2, small.DIM)
    want = [
        first.sample(h, per=2, steps=3, guidance=2.0, guide=second),
        second.sample(h, per=2, steps=3, guidance=2.0, guide=first),
    ]
    found: list[list[Tensor]] = [[], []]

    def draw(place: int) -> None:
        one, other = (first, second) if place == 0 else (second, first)
        for _ in range(6):
            found[place].append(one.sample(h, per=2, steps=3, guidance=2.0, guide=other, batch_size=1))

    threads = [threading.Thread(target=draw, args=(place,), daemon=True) for place in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)
    assert not any(each.is_alive() for each in threads)
    for place in range(2):
        assert len(found[place]) == 6
        for got in found[place]:
            torch.testing.assert_close(got, want[place], atol=1e-5, rtol=1e-4)


def test_a_guide_is_asked_at_its_own_timesteps() -> None:
    """A guide that counts its 500 timesteps to 1000 draws what it would by itself."""
    model, guide = small.model(), weaker()
    for each, rescale in ((model, False), (guide, True)):
        schedule = dataclasses.replace(small.SCHEDULE, diffusion_steps=500, rescale_timesteps=rescale)
        each.config = dataclasses.replace(each.config, schedule=schedule)
    h = torch.randn(2, small.DIM)
    alone = guide.sample(h, steps=3)
    got = model.sample(h, steps=3, guidance=0.0, guide=guide)  # the guide alone
    torch.testing.assert_close(got[:, :, :, 0, 0], alone[:, :, :, 0, 0], atol=1e-4, rtol=1e-3)
