"""Reading factors off pixels: scores with known values, what a reader's output means, training that resumes exactly."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rcdm_fast import sealed, storage
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.world import World
from rcdm_fast.encoders import ImageEncoder, build, factor_reader, native
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.encoders.oracle_code import Code
from rcdm_fast.errors import RunError
from rcdm_fast.images import from_uint8
from rcdm_fast.metrics.factors import score
from rcdm_fast.training import reader as training
from rcdm_fast.training.reader import ReaderConfig
from rcdm_fast.training.state import Paused

SMALL = ReaderConfig(size=16, images=16 * 6, batch_size=16, held_out=20, save_every=2, weight_decay=0.125)


def test_scores_of_known_values() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, generator=generator, dtype=torch.float64)
    noise = torch.randn(20_000, generator=generator, dtype=torch.float64)
    assert score("scalar", true, 3 * true - 1) == pytest.approx(1)
    assert score("scalar", true, -true) == 0
    assert score("scalar", true, 0.6 * true + 0.8 * noise) == pytest.approx(0.6, abs=0.02)
    assert score("scalar", true, torch.ones_like(true)) == 0
    turns = torch.rand(20_000, generator=generator, dtype=torch.float64) * 360
    assert score("circle", turns, (turns + 30) % 360) == pytest.approx(1)
    normal = math.degrees(1) * noise  # a deviation of one radian: the length is exp(-1/2)
    assert score("circle", turns, turns + normal) == pytest.approx(math.exp(-0.5), abs=0.02)
    assert score("circle", turns, turns.flip(0)) < 0.03
    shapes = torch.arange(4).repeat(50).double()
    half = torch.where(torch.arange(200) < 100, shapes, (shapes + 1) % 4)
    assert score("choice", shapes, half, 4) == pytest.approx((0.5 - 0.25) / 0.75)
    assert score("choice", shapes, (shapes + 1) % 4, 4) == 0


@pytest.mark.parametrize(
    ("true", "read", "message"),
    [
        (torch.zeros(3), torch.zeros(4), "two rows"),
        (torch.zeros(1), torch.zeros(1), "at least two"),
        (torch.zeros(2), torch.tensor([0.0, math.nan]), "finite"),
        (torch.zeros(2), torch.zeros(2), "a choice is one of at least two"),
    ],
)
def test_rows_without_a_score(true: torch.Tensor, read: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score("choice", true, read)


@pytest.mark.parametrize("name", ["shapes", "textured"])
def test_what_is_read_is_the_inverse_of_the_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(name, count=50, size=16)  # type: ignore[arg-type]
    factors = world.factors(range(50))
    reader = FactorReader(name, 16)
    monkeypatch.setattr(reader, "raw", lambda seen: 50 * Code(name, world.names)(factors))
    seen = from_uint8(world.pixels(range(50)))
    for place, factor in enumerate(world.about):
        read = reader.read(seen)[:, place]
        if factor.kind == "scalar":  # fifty times as far from the middle
            middle = (factor.low + factor.high) / 2
            assert torch.allclose(read, middle + 50 * (factors[:, place] - middle), atol=1e-4)
        else:
            assert torch.allclose(read, factors[:, place], atol=1e-3)
    assert reader.scores(factors, reader.read(seen)) == pytest.approx(dict.fromkeys(world.names, 1.0))
    exact = Code(name, world.names)(factors)
    columns = reader(seen).split(list(Code(name, world.names).widths), dim=1)
    assert torch.allclose(columns[0], exact[:, :4], atol=1e-4)  # sure of the shape


def test_a_reader_is_an_encoder_and_sees_one_size() -> None:
    reader = FactorReader("shapes", 16).eval()
    seen = from_uint8(World(count=5, size=16).pixels(range(5)))
    assert ImageEncoder(reader, EncoderConfig("module", image_size=16)).encode(seen).shape == (5, 14)
    with pytest.raises(ConfigError, match="this reader sees 16 px"):
        reader.read(torch.zeros(1, 3, 32, 32))
    for size, message in ((4, "must be in 8..512"), (12, "multiple of 8")):
        with pytest.raises(ConfigError, match=message):
            FactorReader("shapes", size)


def test_training_learns_and_states_how_well(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, images=32 * 30, batch_size=32, held_out=300, save_every=1000)
    file, measured = training.train(config, tmp_path)
    reader, info = factor_reader.load(file)
    assert info["scores"] == measured
    assert min(measured[name] for name in ("hue", "ground_hue", "light", "x", "y")) > 0.7
    world = World(count=300, size=16, seed=1)
    again = reader.scores(world.factors(range(300)), reader.read(from_uint8(world.pixels(range(300)))))
    assert again == pytest.approx(measured, abs=1e-3)


def test_the_world_and_the_seed_are_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, the weights to begin with, and the next seed's images to be judged on."""
    asked: list[tuple[Any, ...]] = []

    def world(*given: Any) -> World:
        asked.append(given)
        return World(*given)

    monkeypatch.setattr(training, "World", world)
    begun = []
    for seed in (7, 8):
        config = ReaderConfig(
            "mine", "textured", size=8, images=8, batch_size=8, held_out=3, seed=seed, learning_rate=0.0
        )
        file, _ = training.train(config, tmp_path / str(seed))
        assert asked == [("textured", 8, 8, seed), ("textured", 3, 8, seed + 1)]
        asked.clear()
        begun.append(storage.read_tensors(file)["layers.0.weight"])
    assert factor_reader.load(file)[0].world == "textured"
    assert not torch.equal(begun[0], begun[1])


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = training.train(SMALL, tmp_path / "whole")

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, tmp_path / "parts", stop)
    seen: list[int] = []
    parts, _ = training.train(SMALL, tmp_path / "parts", lambda step, steps, loss: seen.append(step))
    assert seen == [3, 4, 5, 6]
    (group,) = sealed.load(tmp_path / "whole" / "state-000000006.pt")["optimizer"]["param_groups"]
    assert (group["weight_decay"], len(group["params"])) == (SMALL.weight_decay, len(storage.read_tensors(whole)))
    a, b = storage.read_tensors(whole), storage.read_tensors(parts)
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(RunError, match="learning_rate"):
        training.train(dataclasses.replace(SMALL, learning_rate=0.1), tmp_path / "parts")


def test_the_loss_is_the_mean_over_factors() -> None:
    world = World(count=5, size=16)
    factors, seen = world.factors(range(5)), from_uint8(world.pixels(range(5)))
    reader = FactorReader("shapes", 16).eval()
    code = Code("shapes", tuple(factor.name for factor in reader.about))(factors)
    raw, start, terms = reader.raw(seen), 0, []
    for place, factor in enumerate(reader.about):
        width = {"choice": int(factor.high), "scalar": 1, "circle": 2}[factor.kind]
        own = raw[:, start : start + width]
        if factor.kind == "choice":
            right = own.log_softmax(dim=1)[torch.arange(5), factors[:, place].long()]
            terms.append(float(-right.mean()))
        else:
            terms.append(float((own - code[:, start : start + width]).square().mean()))
        start += width
    assert float(reader.loss(seen, factors)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_many_images_are_read_like_few() -> None:
    reader, seen = FactorReader("shapes", 8).eval(), torch.rand(300, 3, 8, 8) * 2 - 1
    whole = reader.read(seen)
    torch.testing.assert_close(whole[[0, 255, 256, 299]], reader.read(seen[[0, 255, 256, 299]]), atol=1e-3, rtol=1e-4)
    assert len(whole) == 300


def test_a_file_is_an_encoder_plain_and_as_an_oracle_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = factor_reader.rounded(FactorReader("shapes", 16)).eval()
    file = tmp_path / "mine-encoder.safetensors"
    factor_reader.save(file, reader, {"scores": {"x": 0.5}})
    assert storage.read_tensors(file)["layers.0.weight"].dtype == torch.float16
    assert factor_reader.load(file)[1] == {"scores": {"x": 0.5}}
    seen = from_uint8(World(count=5, size=16).pixels(range(5)))
    exact = reader(seen).detach()
    monkeypatch.setattr(native, "BUNDLED", tmp_path)
    for spec in (f"file:{file}", "bundled:mine", "reader:mine", f"reader:{file}?factors=all"):
        encoder = build(spec)
        assert (encoder.dim, encoder.config.image_size) == (14, 16)
        assert torch.allclose(encoder.encode(seen), exact, atol=1e-6)
        assert build(encoder.config).config == encoder.config
    assert torch.allclose(build("reader:mine?factors=x,hue").encode(seen), exact[:, [4, 9, 10]], atol=1e-6)
    masked = build("reader:mine?factors=hue,x&masked=1").encode(seen)
    code = Code("shapes", ("x", "hue"), masked=True)(World(count=5, size=16).factors(range(5)))
    assert torch.equal(masked[:, 14:], code[:, 14:])
    assert torch.equal(masked[:, :14] != 0, code[:, :14] != 0)
    assert torch.allclose(masked[:, [4, 9, 10]], exact[:, [4, 9, 10]], atol=1e-6)
    for spec, message in (
        ("reader:none", "no bundled encoder"),
        ("reader:mine?factors=z", "a factor of factors"),
        ("reader:mine?factors=none", "keeps at least one factor"),
        ("reader:mine?r=1", "unknown option"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(spec)


def test_files_that_are_no_reader(tmp_path: Path) -> None:
    storage.save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(ConfigError, match="no reader of factors"):
        factor_reader.load(tmp_path / "a.safetensors")
    about = '{"world": "shapes", "size": 16, "info": {}}'
    storage.save_tensors(tmp_path / "b.safetensors", {"a": torch.zeros(1)}, {factor_reader.METADATA_KEY: about})
    with pytest.raises(ConfigError, match="describes no reader of factors"):
        factor_reader.load(tmp_path / "b.safetensors")
    with pytest.raises(storage.StorageError):
        factor_reader.load(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="at least one batch"):
        ReaderConfig(images=8)


def test_it_stops_after_minutes_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Paused, match="0 minutes are over at step 1 of 6"):
        training.train(SMALL, tmp_path, minutes=0)
    seen: list[int] = []
    training.train(SMALL, tmp_path, lambda step, steps, loss: seen.append(step), minutes=60)
    assert seen == [2, 3, 4, 5, 6]
