"""Hidden layers between a representation and the network: what they add, and networks without, as they were before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast import callbacks
from rcdm_fast import config as configs
from rcdm_fast.config import ConfigError, ModelConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.exporters.graph import NetworkGraph, example_inputs, truth
from rcdm_fast.models import checkpoint
from rcdm_fast.models.diffusers_unet import reasons_unavailable
from rcdm_fast.models.flags import flags_from_configs
from rcdm_fast.models.unet import UNet
from rcdm_fast.training import warm_start
from rcdm_fast.training.batches import Standardization
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.run import Run
from tests import small

HIDDEN = 16


def network(**changes: Any) -> UNet:
    """A small network with hidden layers, and weights in all of them."""
    return small.network(representation_hidden=HIDDEN, **changes).eval().requires_grad_(False)


def asked(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, h = (torch.randn(count, *shape, generator=generator) for shape in ((3, 8, 8), (small.DIM,)))
    return x, torch.full((count,), 300.0), h


def test_they_are_added_to_the_linear_one() -> None:
    unet = network()
    x, t, h = asked(3)
    deep = unet.ssl_deep
    by_hand: Tensor = deep[4](nn.functional.silu(deep[2](nn.functional.silu(deep[0](h)))))
    torch.testing.assert_close(unet.condition(h), unet.ssl_emb(h) + by_hand)
    assert float(by_hand.norm()) > 0.01 * float(unet.ssl_emb(h).norm())
    assert not torch.allclose(unet(x, t, h), small.network().eval()(x, t, h), atol=1e-3)


def test_they_begin_as_nothing() -> None:
    without = small.network().eval()
    fresh = UNet(dataclasses.replace(small.UNET, representation_hidden=HIDDEN)).eval()
    fresh.load_state_dict({**fresh.state_dict(), **without.state_dict()})
    assert torch.equal(fresh(*asked(3)), without(*asked(3)))


def test_parameters_are_counted_and_hashes_differ() -> None:
    unet = network()
    assert unet.config.parameters == sum(value.numel() for value in unet.state_dict().values())
    without = dataclasses.replace(small.UNET, representation_dim=0)
    unconditional = UNet(dataclasses.replace(without, representation_hidden=HIDDEN))
    assert unconditional.config.parameters == without.parameters
    assert not any(name.startswith("ssl") for name in unconditional.state_dict())


def test_a_network_without_is_described_as_before() -> None:
    assert "hidden" not in repr(small.UNET)
    assert "hidden" not in configs.to_json(ModelConfig(small.UNET, small.SCHEDULE))
    own = ModelConfig(network().config, small.SCHEDULE)
    assert configs.from_json(ModelConfig, configs.to_json(own)) == own


def test_plans_and_graphs_hold_them() -> None:
    unet = network()
    _, _, h = asked(3)
    schedule = Schedule.make(small.SCHEDULE, 4)
    batch = conditioning.make_plan(unet, schedule, h, None).batch(torch.arange(3))
    want = unet.film(unet.embed(torch.full((3,), schedule.network_timesteps[2]), h))
    torch.testing.assert_close(batch.film(2), want, atol=1e-5, rtol=1e-5)
    given = example_inputs(unet.config, small.SCHEDULE, 2)
    graph = NetworkGraph(unet, small.SCHEDULE)
    torch.testing.assert_close(graph(*given), truth(unet, small.SCHEDULE)(*given), atol=1e-5, rtol=1e-4)


def test_standardizing_is_folded_into_them() -> None:
    unet, folded = network(), network()
    x, t, h = asked(6)
    standard = Standardization(h.mean(dim=0) + 1, h.std(dim=0) * 3)
    folded.load_state_dict(standard.fold(unet.state_dict()))
    torch.testing.assert_close(folded(x, t, h), unet(x, t, standard(h)), atol=2e-4, rtol=1e-4)
    back = standard.unfold(standard.fold(unet.state_dict()))
    assert all(torch.allclose(back[name], value, atol=1e-4) for name, value in unet.state_dict().items())


def test_a_run_goes_on_from_a_network_without(tmp_path: Path) -> None:
    """And from one with: another width is another network."""
    data, h = small.make_images(32), torch.randn(32, small.DIM)
    config = TrainConfig(
        "tiny", small.UNET, small.SCHEDULE, images=48, batch_size=16, random_flip=False, precision="fp32", sheet_every=0
    )
    deep = dataclasses.replace(small.UNET, representation_hidden=HIDDEN)
    first = rcdm_fast.train(config, data, tmp_path / "a", representations=h)
    second = rcdm_fast.train(config, data, tmp_path / "b", representations=h, init=str(first), unet=deep, seed=1)
    before, after = checkpoint.load_model(first)[1], checkpoint.load_model(second)[1]
    assert float((after["out.2.weight"] - before["out.2.weight"]).abs().max()) < 0.05  # three steps from there
    assert float(after["ssl_deep.4.weight"].abs().max()) > 0
    with pytest.raises(ConfigError, match="its network is"):
        rcdm_fast.train(config, data, tmp_path / "c", representations=h, init=str(second))


def test_a_run_begins_with_all_that_a_network_with_them_has(tmp_path: Path) -> None:
    """Not only with the layers that a network without has, too."""
    data, deep = small.make_images(32), dataclasses.replace(small.UNET, representation_hidden=HIDDEN)
    weights = {name: torch.full_like(value, 0.125) for name, value in UNet(deep).state_dict().items()}
    file = checkpoint.save_model(tmp_path / "before.safetensors", ModelConfig(deep, small.SCHEDULE), weights)
    config = TrainConfig("tiny", deep, small.SCHEDULE, images=16, batch_size=16, precision="fp32", random_flip=False)
    pixels = ImageSet(((data + 1) * 127.5).round().to(torch.uint8), None, (), (), "made-up")
    run = Run(config, deep, pixels, torch.randn(1, 32, small.DIM), Processes())
    warm_start.start_from(run, str(file))
    changed = {name for name, value in run.network.state_dict().items() if bool((value != 0.125).any())}
    standardized = {f"{layer}.{part}" for layer in ("ssl_deep.0", "ssl_emb") for part in ("weight", "bias")}
    assert changed == standardized  # those that see h, which a run gives in units of its own


def test_what_cannot_hold_them_says_so() -> None:
    model = small.model(representation_hidden=HIDDEN)
    unet = dataclasses.replace(model.config.unet, learn_sigma=False)
    with pytest.raises(ConfigError, match="representation_hidden"):
        flags_from_configs(unet, dataclasses.replace(small.SCHEDULE, variance="fixed_large"))
    assert "representation_hidden" in " ".join(reasons_unavailable(unet))


def test_they_are_not_adapted_as_if_they_were_not_there(tmp_path: Path) -> None:
    """Neither by a run nor by a sheet: both put a linear map in place of the linear layer alone."""
    decoder = checkpoint.save_model(
        tmp_path / "small.safetensors", ModelConfig(network().config, small.SCHEDULE), network().state_dict()
    )
    with pytest.raises(ConfigError, match="hidden layers from h"):
        rcdm_fast.adapt(decoder, small.encoder(), small.make_images(16), tmp_path / "a")
    with pytest.raises(ConfigError, match="hidden layers from h"):
        callbacks.SheetOf(decoder, small.make_images(16), small.make_images(1))
