"""Maps from an encoder to samples: pooling, training, files of maps, jobs, and what refuses them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rcdm_fast
from rcdm_fast import ConfigError, EncoderConfig, callbacks, encoders
from rcdm_fast.encoders import EncoderError, ImageEncoder
from rcdm_fast.errors import RunError
from rcdm_fast.exporters import encoder as encoder_export
from rcdm_fast.exporters.onnx import ExportError
from rcdm_fast.images import to_uint8
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.training import representations
from tests import small
from tests.test_maps import network

CONVENTION = EncoderConfig("module", image_size=8, pooling="map", layout="nchw")
SHAPE = (5, 4, 4)


class Patches(nn.Module):
    """Five numbers for each 2x2 patch, as a map or, with `tokens`, behind so many other tokens."""

    def __init__(self, tokens: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(5, 3, 2, 2, generator=generator))
        self.tokens = tokens
        if tokens is not None:
            self.num_prefix_tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        found = torch.nn.functional.conv2d(x, self.weight, stride=2)
        if self.tokens is None:
            return found
        return torch.cat([torch.full((len(x), self.tokens, 5), 9.0), found.flatten(2).transpose(1, 2)], dim=1)


def encoder(module: nn.Module | None = None, **changes: Any) -> ImageEncoder:
    return ImageEncoder(module or Patches(), dataclasses.replace(CONVENTION, **changes))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_network(network(SHAPE), small.SCHEDULE, encoder())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of images, and a small configuration."""
    path = tmp_path_factory.mktemp("maps")
    np.savez(path / "set.npz", images=to_uint8(small.make_images(32)).permute(0, 2, 3, 1).numpy())
    config = {
        "name": "tiny", "images": 48, "batch_size": 16, "compile": False, "precision": "fp32", "sheet_every": 0,
        "learning_rate": 0.01,
        "unet": {"image_size": 8, "num_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
                 "attention_resolutions": [4], "learn_sigma": True},
        "schedule": {"variance": "learned_range"},
    }  # fmt: skip
    (path / "tiny.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return rcdm_fast.train(folder / "tiny.json", folder / "set.npz", folder / "run", encoder=encoder())


def test_positions_stay_where_they_are() -> None:
    images = small.make_images(3)
    made = encoder()
    assert made.map_shape == SHAPE
    assert made.dim == 80
    with torch.no_grad():
        want = Patches()(images)
    assert torch.equal(made.encode(images), want.flatten(1))
    last = encoder(Last(), layout="auto")
    torch.testing.assert_close(last.encode(images), want.flatten(1))
    for prefix in (0, 1, 3):
        tokens = encoder(Patches(prefix), layout="nhwc")
        assert tokens.map_shape == SHAPE
        torch.testing.assert_close(tokens.encode(images), want.flatten(1))
    convention = EncoderConfig("module", image_size=8)
    function = encoders.build(Patches(), config=convention, pooling=lambda output: 2 * output)
    assert (function.config.pooling, function.map_shape) == ("function", SHAPE)  # type: ignore[attr-defined]


class Last(Patches):
    """With its channels at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 2, 3, 1)


def test_what_is_no_map_is_refused() -> None:
    unknown = Patches(1)
    del unknown.num_prefix_tokens
    with pytest.raises(EncoderError, match=r"17 tokens make no square grid .*does not say how many tokens"):
        encoder(unknown, layout="nhwc")
    with pytest.raises(EncoderError, match=r"needs tokens \[N,T,D\] or positions"):
        encoder(small.MeanColor())
    with pytest.raises(EncoderError, match="one position"):
        encoder(nn.AdaptiveAvgPool2d(1))
    with pytest.raises(EncoderError, match="pooling=map for a decoder of maps"):
        ImageEncoder(Patches(), EncoderConfig("module", image_size=8))


def test_a_specification_names_a_map() -> None:
    built = encoders.build("bundled:cifar10-simclr-wide?layer=backbone.5&pooling=map")
    assert len(built.map_shape) == 3  # type: ignore[attr-defined]


def test_samples_of_maps_tokens_and_images(model: Model) -> None:
    h = model.encode(small.make_images(2))
    assert h.shape == (2, *SHAPE)
    want = model.sample(h, per=1, steps=2)
    for same in (h.flatten(2).transpose(1, 2), h.flatten(1), h.numpy()):
        assert torch.equal(model.sample(same, per=1, steps=2), want)
    assert "representations [5,4,4]" in repr(model)
    with pytest.raises(
        ConfigError, match=r"h must be maps \[R,5,4,4\], or their tokens \[R,16,5\]: got \[2, 5, 2, 8\]"
    ):
        model.sample(h.reshape(2, 5, 2, 8), per=1, steps=2)
    with pytest.raises(ConfigError, match=r"needs h \[R,5,4,4\]"):
        model.sample(per=1, steps=2)
    way = model.interpolate(h[0], h[1:], frames=3, steps=2)
    again = model.interpolate(small.make_images(2)[:1], h[1], frames=3, steps=2)
    torch.testing.assert_close(way, again, atol=1e-4, rtol=0)
    inverted = model.invert(small.make_images(2), h, steps=2)
    assert torch.equal(inverted, model.invert(small.make_images(2), steps=2))


def test_vectors_and_maps_are_not_taken_for_each_other(trained: Path, model: Model) -> None:
    with pytest.raises(ConfigError, match=r"gives \[N,80\], the model expects \[N,5,4,4\]"):
        rcdm_fast.load(trained, encoder=encoder(pooling="flatten"))
    flat = small.model(representation_dim=80)
    h = torch.randn(2, 5, 4, 4)
    with pytest.raises(ConfigError, match=r"h must be \[R,80\]"):
        flat.sample(h, per=1, steps=2)


def test_a_decoder_of_maps_is_trained(trained: Path) -> None:
    config, tensors = checkpoint.load_model(trained)
    assert config.unet.condition_map == SHAPE
    assert config.encoder is not None
    assert config.encoder.pooling == "map"
    assert float(tensors["map_film.film.weight"].abs().max()) > 1e-3  # it has begun to learn
    loaded = rcdm_fast.load(trained, encoder=encoder())
    assert loaded.sample(loaded.encode(small.make_images(2)), per=1, steps=2).shape == (2, 1, 3, 8, 8)


def test_standardizing_a_channel_is_folded_into_both_layers() -> None:
    from rcdm_fast.training.batches import Standardization

    h = torch.randn(6, *SHAPE) * torch.rand(5)[:, None, None] * 3 + 2
    mean, std = representations.standardization(h.flatten(1)[None], SHAPE)
    torch.testing.assert_close(mean, h.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(std, h.transpose(0, 1).flatten(1).std(dim=1))
    standard = Standardization(mean, std, positions=16)
    unet, folded = network(SHAPE), network(SHAPE)
    folded.load_state_dict(standard.fold(unet.state_dict()))
    x, t = torch.randn(6, 3, 8, 8), torch.full((6,), 300.0)
    torch.testing.assert_close(folded(x, t, h.flatten(1)), unet(x, t, standard(h.flatten(1))), atol=2e-4, rtol=1e-4)
    back = standard.unfold(standard.fold(unet.state_dict()))
    assert all(torch.allclose(back[name], value, atol=1e-4) for name, value in unet.state_dict().items())


def test_channels_of_many_maps_have_the_deviations_of_all() -> None:
    """Of more maps than are read at once, the last of which are few and others than the rest."""
    h = torch.randn(2, 300, *SHAPE, generator=torch.Generator().manual_seed(0)) * torch.rand(5)[:, None, None] + 2
    h[1, 250:] += 3
    mean, std = representations.standardization(h.flatten(2), SHAPE)
    channels = h.permute(2, 0, 1, 3, 4).flatten(1)
    torch.testing.assert_close(mean, channels.mean(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, channels.std(dim=1), atol=1e-5, rtol=1e-5)


def test_maps_from_elsewhere_are_trained_on(folder: Path, trained: Path, tmp_path: Path) -> None:
    """From [N,C,h,w] and from tokens the same run; begun with a decoder of vectors."""
    h = encoder().encode(small.make_images(32)).unflatten(1, SHAPE)
    np.save(tmp_path / "h.npy", h.numpy())
    np.save(tmp_path / "tokens.npy", h.flatten(2).transpose(1, 2).numpy())
    data, means = folder / "set.npz", h.mean(dim=(2, 3))
    vectors = rcdm_fast.train(folder / "tiny.json", data, tmp_path / "v", representations=means, images=16)

    def run(given: Any) -> Path:
        return rcdm_fast.train(
            folder / "tiny.json", data, tmp_path / "a", representations=given, init=str(vectors), images=16
        )

    first = run(tmp_path / "h.npy")
    assert run(tmp_path / "tokens.npy") == first
    config, tensors = checkpoint.load_model(first)
    assert config.unet.condition_map == SHAPE
    _, before = checkpoint.load_model(vectors)
    assert float((tensors["out.2.weight"] - before["out.2.weight"]).abs().max()) < 0.05  # one step from where it was
    with pytest.raises(RunError, match="representations"):
        run(h + 1)
    with pytest.raises(ConfigError, match="augmented_views"):
        rcdm_fast.train(folder / "tiny.json", data, tmp_path / "b", encoder=encoder(), augmented_views=2)


def test_what_does_not_work_with_maps_says_so(folder: Path, trained: Path, model: Model, tmp_path: Path) -> None:
    data = folder / "set.npz"
    with pytest.raises(ConfigError, match="decoder of maps, which cannot be adapted"):
        rcdm_fast.adapt(trained, encoder(), data, tmp_path / "a")
    with pytest.raises(ConfigError, match="decoder of maps, which cannot be adapted"):
        callbacks.SheetOf(trained, data, small.make_images(1))
    with pytest.raises(ConfigError, match="for each position"):
        rcdm_fast.export(model, "diffusers", tmp_path / "d", encoder=False)
    with pytest.raises(ExportError, match="gives maps"):
        encoder_export.export_encoder(tmp_path / "e.onnx", encoder())


def test_jobs_of_maps(model: Model, tmp_path: Path) -> None:
    """From images and from maps the same; a file of other shapes is refused, though it has as many numbers."""
    h = model.encode(small.make_images(3))
    np.save(tmp_path / "h.npy", h.numpy())
    want = model.sample(h, per=2, steps=2)
    found = list(rcdm_fast.generate(model, tmp_path / "h.npy", per=2, steps=2))
    assert torch.equal(torch.cat([each.images for each in found]), to_uint8(want.flatten(0, 1)).cpu())
    np.save(tmp_path / "other.npy", h.reshape(3, 5, 2, 8).numpy())
    with pytest.raises(ConfigError, match=r"are \[N,5,2,8\], the model needs \[N,5,4,4\]"):
        list(rcdm_fast.generate(model, tmp_path / "other.npy", per=2, steps=2))
    np.save(tmp_path / "class.npy", torch.randn(3, 17, 5).numpy())
    with pytest.raises(ConfigError, match="tokens"):
        list(rcdm_fast.generate(model, tmp_path / "class.npy", per=2, steps=2))
