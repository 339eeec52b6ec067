"""Augmented views: images and their maps belong together, and a finished decoder has no trace of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, EncoderConfig, ModelConfig
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.models import checkpoint
from rcdm_fast.training import batches, distributed, representations, views, warm_start
from rcdm_fast.training.batches import Batches, Standardization
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.run import Run
from rcdm_fast.training.train import train
from rcdm_fast.training.views import CODE_DIM, PLAIN, Views
from tests import small

PIXELS = ((small.make_images(24) + 1) * 127.5).round().to(torch.uint8)
DATA = ImageSet(PIXELS, None, (), (), fingerprint(PIXELS, None))
VIEWS = Views(True, 6)


def config(encoder_file: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        name="tiny", unet=dataclasses.replace(small.UNET, representation_dim=0), schedule=small.SCHEDULE,
        encoder=EncoderConfig(f"file:{encoder_file}", image_size=8), images=64, batch_size=16, compile=False,
        precision="fp32", save_every=2, sheet_every=0, weights="fp32", augmented_views=6,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    path = tmp_path_factory.mktemp("encoder") / "tiny-encoder.safetensors"
    native.save(path, tiny.network(), tiny.encoder(), {})
    return path


def test_images_that_are_not_moved_are_the_images() -> None:
    x, index = DATA.floats(slice(None)), torch.arange(len(DATA))
    for view, want in ((0, x), (1, x.flip(3))):
        seen, code = VIEWS.see(x, torch.full_like(index, view), index)
        assert torch.equal(seen, want)
        assert code.shape == (len(DATA), CODE_DIM)
        assert not code.any()
    seen, code = Views(True).see(x, torch.ones_like(index), index)
    assert torch.equal(seen, x.flip(3))
    assert code.shape == (len(DATA), 0)


def test_a_moved_image_is_where_its_map_says() -> None:
    """Of a spot of light, with the map read from what the network is told."""
    size = 64
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).double()
    place = torch.tensor([37.0, 25.0])
    spot = torch.exp(-((grid - place[:, None, None]) ** 2).sum(0) / 40).float().expand(20, 3, size, size)
    index = torch.arange(20)
    seen, code = Views(False, 3).see(2 * spot - 1, torch.full_like(index, 2), index)
    scales = torch.tensor([0.2, 0.14, 0.14, 0.2, 0.2, 0.2])
    assert torch.equal(code[:, 0], torch.ones(20))
    maps = (code[:, 1:] * scales + torch.tensor([1.0, 0, 0, 0, 1, 0])).view(20, 2, 3)
    assert maps.std(0).min() > 0.02
    where = (place.flip(0) * 2 + 1) / size - 1  # x, y in halves of the side
    for image, one in zip(seen, maps, strict=True):
        expected = torch.linalg.solve(one[:, :2].double(), (where - one[:, 2]).double())
        if expected.abs().max() > 0.8:  # at the border the spot meets its reflection
            continue
        down, right = divmod(int(image[0].argmax()), size)
        got = [(right * 2 + 1) / size - 1, (down * 2 + 1) / size - 1]
        assert got == pytest.approx(expected.tolist(), abs=0.05)


def test_views_of_an_image_differ_and_stay() -> None:
    x = DATA.floats(slice(0, 1)).expand(8, 3, 8, 8)
    index, view = torch.full((8,), 3), torch.arange(8)
    seen, code = VIEWS.see(x, view, index)
    assert len({one.numpy().tobytes() for one in seen}) == 8
    again, _ = VIEWS.see(x, view, index)
    assert torch.equal(seen, again)
    other, _ = VIEWS.see(x, view, index + 1)
    assert all(not torch.equal(a, b) for a, b in zip(seen[2:], other[2:], strict=True))
    assert seen.abs().max() <= 1
    mirrored = torch.where((view % 2 == 1)[:, None, None, None], x.flip(3), x)
    assert torch.equal(seen[:2], mirrored[:2])
    assert code[2:].abs().max() < 5


def test_shares_of_a_batch(generator: torch.Generator) -> None:
    view = VIEWS.draw(20000, generator)
    counts = view.bincount(minlength=8) / len(view)
    assert float(counts[:2].sum()) == pytest.approx(PLAIN, abs=0.02)
    assert counts[0] == pytest.approx(PLAIN / 2, abs=0.02)
    assert counts[2:].tolist() == pytest.approx([(1 - PLAIN) / 6] * 6, abs=0.02)
    assert set(Views(False).draw(50, generator).tolist()) == {0}
    assert set(Views(True).draw(50, generator).tolist()) == {0, 1}
    assert set(Views(False, 2).draw(200, generator).tolist()) == {0, 1, 2}


def test_a_batch_pairs_each_view_with_its_own_representation(tmp_path: Path, encoder_file: Path) -> None:
    encoder = small.encoder()
    bank = representations.cached(encoder, DATA, tmp_path, VIEWS)
    assert bank.shape == (8, len(DATA), small.DIM)
    assert representations.cached(encoder, DATA, tmp_path, Views(True)).shape == (2, len(DATA), small.DIM)
    batches = Batches(config(encoder_file), DATA, bank, distributed.Processes())
    batch = batches.draw(0)
    assert batch.h.shape == (16, small.DIM + CODE_DIM)
    moved = batch.h[:, small.DIM] == 1
    assert 4 < moved.sum() < 16
    want = (encoder.encode(batch.x0) - bank[:2].flatten(0, 1).mean(0)) / bank[:2].flatten(0, 1).std(0)
    torch.testing.assert_close(batch.h[:, : small.DIM], want, atol=1e-4, rtol=1e-4)
    assert torch.equal(batch.h[~moved, small.DIM :], torch.zeros(int((~moved).sum()), CODE_DIM))


def test_weights_that_are_written_are_those_of_images_that_are_not_moved() -> None:
    torch.manual_seed(0)
    inside = {"ssl_emb.weight": torch.randn(4, 3 + CODE_DIM), "ssl_emb.bias": torch.randn(4)}
    standard = Standardization(torch.randn(3), torch.rand(3) + 0.5, CODE_DIM)
    folded = standard.fold(inside)
    assert folded["ssl_emb.weight"].shape == (4, 3)
    h = torch.randn(5, 3)
    given = torch.cat([standard(h), torch.zeros(5, CODE_DIM)], dim=1)
    want = given @ inside["ssl_emb.weight"].T + inside["ssl_emb.bias"]
    torch.testing.assert_close(h @ folded["ssl_emb.weight"].T + folded["ssl_emb.bias"], want)
    back = standard.unfold(folded)
    torch.testing.assert_close(back["ssl_emb.weight"][:, :3], inside["ssl_emb.weight"][:, :3])
    assert not back["ssl_emb.weight"][:, 3:].any()


def test_a_run_with_views_writes_a_decoder_as_without(encoder_file: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise Stop

    whole = train(config(encoder_file), DATA, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config(encoder_file), DATA, tmp_path / "cut", progress=stop)
    resumed = train(config(encoder_file), DATA, tmp_path / "cut")
    expected, actual = storage.read_tensors(whole), storage.read_tensors(resumed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    without = storage.read_tensors(train(config(encoder_file, augmented_views=0), DATA, tmp_path / "without"))
    assert {name: t.shape for name, t in without.items()} == {name: t.shape for name, t in expected.items()}
    assert any(not torch.equal(without[name], expected[name]) for name in expected)
    model = rcdm_fast.load(whole)
    assert model.sample(model.encode(DATA.floats(slice(0, 2))), steps=2).isfinite().all()
    third = train(config(encoder_file, init=str(whole), learning_rate=0.0, ema=0.0), DATA, tmp_path / "third")
    for name, value in storage.read_tensors(third).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_what_the_network_is_told_reaches_it_and_learns(encoder_file: Path, tmp_path: Path) -> None:
    bank = torch.randn(8, len(DATA), small.DIM, generator=torch.Generator().manual_seed(0))
    run = Run(config(encoder_file, ema=0.0), small.UNET, DATA, bank, distributed.Processes())
    before = run.network.state_dict()["ssl_emb.weight"].clone()
    assert before.shape[1] == small.DIM + CODE_DIM
    for _ in range(3):
        run.advance()
    moved = run.network.state_dict()["ssl_emb.weight"] - before
    assert moved[:, small.DIM :].abs().mean() > 0.1 * moved[:, : small.DIM].abs().mean() > 0
    checkpoint_shape = run.weights()[0][1]["ssl_emb.weight"].shape
    assert checkpoint_shape == (before.shape[0], small.DIM)


def test_octaves_of_the_zoom_stay_in_bounds() -> None:
    maps = views._maps(torch.device("cpu")).view(-1, 2, 3)
    area = torch.log2(torch.linalg.det(maps[:, :, :2])) / 2
    assert float(area.abs().max()) == pytest.approx(2.5 * 0.25, abs=1e-4)
    assert float(maps[:, :, 2].abs().max()) == pytest.approx(2.5 * 0.2, abs=1e-4)
    turn = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert 18 < float(turn.abs().max()) < 32  # 20 degrees, and what stretching makes of them
    assert float(area.std()) == pytest.approx(0.25, rel=0.05)


def test_a_run_of_an_earlier_version_goes_on_without_views(encoder_file: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise InterruptedError

    plain = config(encoder_file, augmented_views=0)
    with pytest.raises(InterruptedError):
        train(plain, DATA, tmp_path, progress=stop)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.pop("augmented_views") == 0
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"augmented_views: 0 -> 6.*the values that it was begun with"):
        train(config(encoder_file), DATA, tmp_path)
    assert not list(tmp_path.glob("*augmented*"))  # nothing was computed in vain
    assert train(plain, DATA, tmp_path).exists()


def test_so_many_views_that_no_disk_holds_them() -> None:
    with pytest.raises(ConfigError, match=r"augmented_views must be in 0\.\.255"):
        config(Path("encoder"), augmented_views=10**9)


def test_the_same_draws_once_more_are_warned_about(
    encoder_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(config(encoder_file, images=16), DATA, tmp_path / "first")
    assert "the same batches again" not in caplog.text
    train(config(encoder_file, images=16, init=str(first)), DATA, tmp_path / "again")
    assert "trained on the same images with seed 0 too: this run draws the same batches again" in caplog.text
    caplog.clear()
    train(config(encoder_file, images=16, init=str(first), seed=1), DATA, tmp_path / "other")
    assert "the same batches again" not in caplog.text


def test_images_and_representations_find_their_places_apart(
    encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fits(device: torch.device, *tensors: torch.Tensor) -> bool:
        asked.append(len(tensors))
        return False

    monkeypatch.setattr(batches, "fits", fits)
    bank = torch.randn(8, len(DATA), small.DIM)
    drawn = Batches(config(encoder_file), DATA, bank, distributed.Processes()).draw(0)
    assert sorted(asked) == [1, 2]  # the images alone, and both
    assert drawn.h.shape == (16, small.DIM + CODE_DIM)


def test_a_disk_that_has_no_room_for_representations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def no_room(path: Path, size_bytes: int = 4096) -> None:
        asked.append(size_bytes)
        raise storage.StorageError(f"{path}: no room")

    monkeypatch.setattr(storage, "check_writable", no_room)
    with pytest.raises(storage.StorageError, match="no room"):
        representations.cached(small.encoder(), DATA, tmp_path, VIEWS)
    assert asked == [4 * 8 * len(DATA) * small.DIM]


@pytest.mark.parametrize("same", [True, False])
def test_the_same_seed_on_other_images_draws_other_batches(
    same: bool, encoder_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank = torch.randn(2, len(DATA), small.DIM)
    run = Run(config(encoder_file, augmented_views=0), small.UNET, DATA, bank, distributed.Processes())
    info = {"run": {"seed": 0}, "data": DATA.fingerprint if same else "other images"}
    model = ModelConfig(small.UNET, small.SCHEDULE, None, "before", info)
    file = checkpoint.save_model(tmp_path / "before.safetensors", model, small.network().state_dict())
    warm_start.start_from(run, str(file))
    assert ("the same batches again" in caplog.text) is same
