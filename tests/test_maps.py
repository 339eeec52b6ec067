"""Representations that are maps: the network, its engines, and networks of vectors as they were before."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcdm_fast import config as configs
from rcdm_fast import engines, maps
from rcdm_fast.config import ConfigError, ModelConfig, UNetConfig
from rcdm_fast.diffusion import conditioning
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.engines import native
from rcdm_fast.engines.backends import TorchBackend
from rcdm_fast.engines.program import Program
from rcdm_fast.exporters.graph import weights_hash
from rcdm_fast.models import checkpoint
from rcdm_fast.models.condition_map import MapFilm, resized, weights
from rcdm_fast.models.flags import flags_from_configs
from rcdm_fast.models.unet import UNet
from rcdm_fast.training import fused_unet
from tests import small
from tests.tolerances import ENGINE_FP32_L2

CPU = torch.device("cpu")
SCHEDULE = Schedule.make(small.SCHEDULE, 4)
NETWORKS: dict[str, dict[str, Any]] = {
    "smaller than all blocks": {"condition_map": (5, 3, 3)},
    "between the blocks, oblong": {"condition_map": (4, 6, 5), "conv_resample": False},
    "larger than all blocks": {
        "condition_map": (3, 20, 20), "resblock_updown": True, "image_size": 16, "channel_mult": (1, 2),
        "attention_resolutions": (8,),
    },
}  # fmt: skip


def network(condition_map: tuple[int, int, int] = (5, 3, 3), **changes: Any) -> UNet:
    """A small network of maps; deterministic weights in every layer, those that begin as zeros, too."""
    channels, height, width = condition_map
    made = small.network(condition_map=condition_map, representation_dim=channels * height * width, **changes)
    return made.eval().requires_grad_(False)


def batch_of(unet: UNet, count: int) -> Batch:
    """Rows in another order than the images, one of them shared."""
    plan = conditioning.make_plan(unet, SCHEDULE, torch.randn(4, unet.config.representation_dim), None)
    return plan.batch(torch.arange(count) * 2 % 4)


def images_of(unet: UNet, count: int) -> Tensor:
    return torch.randn(count, 3, unet.config.image_size, unet.config.image_size)


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_an_engine_is_warmed_up_for_maps() -> None:
    unet = network()
    engine = native.NativeEngine(unet, CPU, "fp32")
    engine.warmup((1, 3))
    assert engine.bound(batch_of(unet, 3)).predict(images_of(unet, 3), 0).isfinite().all()


@pytest.mark.parametrize(("of", "to"), [(3, 8), (8, 8), (5, 16), (8, 3), (20, 4), (1, 4)])
def test_resizing_is_bilinear_and_over_all_that_a_pixel_covers(of: int, to: int) -> None:
    film = torch.randn(2, 6, of, of)
    want = F.interpolate(film, (to, to), mode="bilinear", antialias=to < of)
    torch.testing.assert_close(resized(film, to), want, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(weights(of, to, torch.float32, CPU).sum(dim=1), torch.ones(to))


def test_tokens_and_rows_are_the_map_that_they_are_of() -> None:
    h = torch.randn(2, 5, 3, 4)
    tokens = h.flatten(2).transpose(1, 2)
    for given in (h, tokens, h.flatten(1)):
        assert torch.equal(maps.as_rows(given, (5, 3, 4)), h.flatten(1))
    assert torch.equal(maps.of_tokens(torch.arange(8.0).view(1, 4, 2))[0, 1], torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    with pytest.raises(ValueError, match="12 tokens make no square grid"):
        maps.of_tokens(tokens)


def test_a_network_of_vectors_is_what_it_was() -> None:
    """Its parameters, its description in files, and its hash, to which fitted solvers and exports are bound."""
    config = small.UNET
    assert "condition_map" not in repr(config)
    assert "condition_map" not in configs.to_json(ModelConfig(config, small.SCHEDULE))
    assert not any(name.startswith("map_film") for name in UNet(config).state_dict())
    assert weights_hash(small.network(), small.SCHEDULE).startswith(HASH_OF_BEFORE)
    described = dataclasses.asdict(config)
    del described["condition_map"]
    assert configs.from_dict(UNetConfig, described) == config


HASH_OF_BEFORE = "806a780a7ebebf23"


def test_shapes_tell_networks_apart() -> None:
    first, second = (network(shape) for shape in ((4, 3, 2), (4, 2, 3)))
    assert weights_hash(first, small.SCHEDULE) != weights_hash(second, small.SCHEDULE)
    assert first.config.parameters == sum(value.numel() for value in first.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"condition_map": (5, 9)}, "channels, height, width"),
        ({"condition_map": (5, 3, 2)}, "has 30 numbers, representation_dim is 45"),
        ({"condition_map": (5, 0, 9)}, "condition_map"),
        ({"condition_map": (1, 1, 200), "representation_dim": 200}, "more than 128 positions"),
        ({"condition_map": (5, 3, 3), "use_scale_shift_norm": False}, "use_scale_shift_norm"),
    ],
)
def test_maps_that_no_network_has(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(small.UNET, **{"representation_dim": 45, **changes})


def test_equal_positions_are_a_vector_and_others_are_not() -> None:
    """With the second layer at zero the network is that of the mean, bit for bit: so it begins with a vector's."""
    unet, vectors = network(), small.network(representation_dim=5).eval().requires_grad_(False)
    x, t, h = images_of(unet, 2), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 3, 3)
    want = unet(x, t, h.flatten(1))
    assert not torch.allclose(unet(x, t, h.flip(2).flatten(1)), want, atol=1e-3)  # the same mean, elsewhere
    fresh = UNet(unet.config)
    fresh.load_state_dict({**fresh.state_dict(), **vectors.state_dict()})
    assert torch.equal(fresh.eval()(x, t, h.flatten(1)), vectors(x, t, h.mean(dim=(2, 3))))


def test_a_position_acts_where_it_is() -> None:
    unet = network((5, 8, 8), attention_resolutions=())
    h = torch.zeros(1, 5, 8, 8)
    film = unet.map_film(h.flatten(1))
    h[0, :, 0, 0] = 5
    changed = (resized(unet.map_film(h.flatten(1)), 4) - resized(film, 4)).abs().sum(dim=1)[0]
    assert changed[0, 0] > 0.1
    assert float(changed[1:].max()) < 1e-5
    assert float(changed[:, 1:].max()) < 1e-5


def test_gradients() -> None:
    made = MapFilm((2, 3, 2), 3, 4).double()
    torch.nn.init.normal_(made.film.weight)
    h = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    for size in (2, 5):
        assert torch.autograd.gradcheck(lambda given, size=size: resized(made(given), size), (h,))


@pytest.mark.parametrize("name", NETWORKS)
def test_engines_compute_the_network(name: str) -> None:
    unet = network(**NETWORKS[name])
    batch, x = batch_of(unet, 5), images_of(unet, 5)
    config = ModelConfig(unet.config, small.SCHEDULE)
    t = torch.full((5,), float(SCHEDULE.network_timesteps[2]))
    assert batch.given is not None
    with torch.inference_mode():
        truth = unet(x, t, batch.given)
    for kind in ("eager", "native"):
        engine = engines.make(kind, unet, config, CPU, "fp32")
        assert error(engine.bound(batch).predict(x, 2), truth) <= ENGINE_FP32_L2, kind
        assert engine.first_nonfinite(batch, x, 2) is None
    if not native.reasons_unavailable(CPU, "bf16"):
        found = {
            kind: engines.make(kind, unet, config, CPU, "bf16").bound(batch).predict(x, 2)
            for kind in ("eager", "native")
        }
        assert error(found["native"], truth) <= 1.05 * error(found["eager"], truth)


def test_the_torch_backend_runs_the_same_program() -> None:
    unet = network(**NETWORKS["larger than all blocks"])
    batch, x = batch_of(unet, 3), images_of(unet, 3)
    program = Program(unet, TorchBackend(torch.float32, CPU), torch.float32, CPU)
    with torch.inference_mode():
        assert error(program.denoise(x, *batch.film_rows(1)), unet.denoise(x, batch.film(1))) <= ENGINE_FP32_L2


@pytest.mark.parametrize("kind", ["eager", "native"])
def test_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    unet = network(**NETWORKS["larger than all blocks"])
    engine = engines.make(kind, unet, ModelConfig(unet.config, small.SCHEDULE), CPU, "fp32")
    batch, x = batch_of(unet, 9), images_of(unet, 9)
    bound = engine.bound(batch)
    whole = bound.predict(x, 3)
    for start, count in ((0, 1), (2, 5), (5, 4)):
        part = slice(start, start + count)
        assert torch.equal(engine.bind(batch.plan, batch.rows[part]).predict(x[part], 3), whole[part])
    assert torch.equal(bound.predict(x, 3), whole)


def test_a_map_is_projected_once_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = network()
    engine = engines.make("native", unet, ModelConfig(unet.config, small.SCHEDULE), CPU, "fp32")
    asked: list[int] = []
    real = MapFilm.forward

    def counted(made: MapFilm, h: Tensor) -> Tensor:
        asked.append(len(h))
        return real(made, h)

    monkeypatch.setattr(MapFilm, "forward", counted)
    bound, x = engine.bound(batch_of(unet, 6)), images_of(unet, 6)
    for k in range(4):
        bound.predict(x, k)
    assert len(asked) == 2  # of the six images' two representations, for four steps


def test_published_flags_cannot_describe_them() -> None:
    unet = network()
    with pytest.raises(ConfigError, match="published flags cannot describe a network of maps"):
        flags_from_configs(unet.config, small.SCHEDULE)


def test_files(tmp_path: Path) -> None:
    unet = network()
    path = tmp_path / "maps.safetensors"
    checkpoint.save_model(path, ModelConfig(unet.config, small.SCHEDULE), unet.state_dict())
    config, tensors = checkpoint.load_model(path)
    assert config.unet == unet.config
    assert all(torch.equal(tensors[name], value) for name, value in unet.state_dict().items())


def test_fused_training_has_the_gradients_of_the_plain_network() -> None:
    plain = network(resblock_updown=True).train().requires_grad_(True).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fused_unet.attach(fused)
    x, h, t = images_of(plain, 3), torch.randn(3, 45), torch.tensor([3.0, 500.0, 999.0])
    weight = torch.randn(3, 6, 8, 8)
    found = []
    for each in (plain, fused):
        (each(x, t, h) * weight).sum().backward()
        found.append({name: value.grad for name, value in each.named_parameters()})
    for name, want in found[0].items():
        got = found[1][name]
        assert want is not None
        assert got is not None
        assert float((got - want).norm()) < 2e-5 * max(5.0, float(want.norm())), name
