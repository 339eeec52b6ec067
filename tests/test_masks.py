"""Parts hidden at random in training: what is drawn, what a batch holds, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast import config as configs
from rcdm_fast import exporting
from rcdm_fast.cli import tune
from rcdm_fast.config import ConfigError, EncoderConfig, ScheduleConfig
from rcdm_fast.data.image_set import ImageSet, step_generator
from rcdm_fast.data.sources import open_data
from rcdm_fast.data.world import World
from rcdm_fast.encoders import build
from rcdm_fast.encoders.oracle_code import Code
from rcdm_fast.errors import RunError
from rcdm_fast.images import from_uint8
from rcdm_fast.model import load
from rcdm_fast.training import distributed, masks, trajectories
from rcdm_fast.training.batches import Batches
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.distill import DistillConfig, distill
from rcdm_fast.training.train import train
from rcdm_fast.training.trajectories import predict_with
from tests import small

PARTS = (4, 1, 1, 1, 2, 2, 2, 1)
SOURCE = "oracle:shapes?count=40&size=8&factors={}&masked=1"


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return open_data("world:shapes?count=40&size=8", 8)


def config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "name": "masked",
        "unet": dataclasses.replace(small.UNET, representation_dim=0),
        "schedule": ScheduleConfig(diffusion_steps=1000, variance="learned_range"),
        "encoder": EncoderConfig(SOURCE.format("all"), image_size=8),
        "images": 16 * 3,
        "batch_size": 16,
        "random_flip": False,
        "masked_parts": PARTS,
        "standardize": False,
        "seed": 3,
        "compile": False,
        "precision": "fp32",
        "save_every": 1,
        "sheet_every": 0,
        "weights": "fp32",
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_parts_are_hidden_whole_by_themselves_and_half_of_the_time() -> None:
    drawn = masks.drawn(PARTS, 20_000, step_generator(0, 0, masks.STREAM))
    shown = drawn[:, 14:]
    start = 0
    for part, width in enumerate(PARTS):
        columns = drawn[:, start : start + width]
        assert torch.equal(columns, shown[:, part : part + 1].expand(-1, width))
        start += width
    assert shown.mean(dim=0).tolist() == pytest.approx([0.5] * 8, abs=0.015)
    assert float((torch.corrcoef(shown.T) - torch.eye(8)).abs().max()) < 0.03
    patterns = (shown @ 2.0 ** torch.arange(8)).long().bincount(minlength=256)
    assert int(patterns.min()) > 0  # every subset is met


def test_some_images_are_shown_whole() -> None:
    generator = step_generator(0, 0, masks.STREAM)
    shown = masks.drawn(PARTS, 20_000, generator, whole=0.3)[:, 14:]
    assert float(shown.all(dim=1).float().mean()) == pytest.approx(0.3 + 0.7 / 256, abs=0.01)
    assert shown[~shown.all(dim=1)].mean(dim=0).tolist() == pytest.approx([0.498] * 8, abs=0.015)


def test_a_batch_holds_what_an_oracle_says_that_hides_the_same_parts(data: ImageSet) -> None:
    full = build(SOURCE.format("all"))
    bank = full.encode(data.floats(slice(0, 40)))[None]
    batches = Batches(config(), data, bank, distributed.Processes())
    names = World().names
    seen = set()
    for step in range(3):
        batch = batches.draw(step)
        for row in range(16):
            kept = tuple(name for name, bit in zip(names, batch.h[row, 14:].tolist(), strict=True) if bit == 1)
            seen.add(kept)
            oracle = build(SOURCE.format(",".join(kept) or "none"))
            assert torch.equal(oracle.encode(batch.x0[row : row + 1])[0], batch.h[row])
    assert len(seen) > 20
    again = Batches(config(), data, bank, distributed.Processes()).draw(2)
    assert torch.equal(again.h, batch.h)  # of the step alone
    other = Batches(config(seed=4), data, bank, distributed.Processes()).draw(2)
    assert not torch.equal(other.h[:, 14:], batch.h[:, 14:])


def test_one_decoder_serves_every_subset(data: ImageSet, tmp_path: Path) -> None:
    whole = train(config(), data, tmp_path / "whole")

    def stop(done: int, total: int, loss: float) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config(), data, tmp_path / "parts", progress=stop)
    parts = train(config(), data, tmp_path / "parts")
    model, again = load(whole), load(parts)
    h = torch.cat([build(SOURCE.format(names)).encode(data.floats(slice(0, 1))) for names in ("all", "x,hue", "none")])
    drawn = model.sample(h, steps=2, seed=1)
    assert torch.equal(drawn, again.sample(h, steps=2, seed=1))  # resumed exactly
    assert torch.equal(model.encode(from_uint8(data.pixels[:1])), h[:1])


def test_what_is_learned_from_a_finished_model_meets_hidden_parts(data: ImageSet) -> None:
    """A solver that was learned from whole codes leads samples of others astray."""
    encoder = build(SOURCE.format("all"))
    assert masks.parts_of(encoder) == PARTS
    for plain in (build("oracle:shapes?count=40&size=8&factors=all"), None):
        assert masks.parts_of(plain) == ()
    h = encoder.encode(data.floats(slice(0, 40)))
    hidden = masks.hidden(h, PARTS, 3)
    shown = hidden[:, 14:]
    assert 10 < int(shown.all(dim=1).sum()) < 30
    assert torch.equal(hidden[:, :14] != 0, (h[:, :14] != 0) & (shown.repeat_interleave(torch.tensor(PARTS), 1) == 1))
    assert torch.equal(hidden, masks.hidden(h, PARTS, 3))
    assert not torch.equal(hidden, masks.hidden(h, PARTS, 4))
    with pytest.raises(ConfigError, match="all shown"):
        masks.hidden(hidden, PARTS, 3)


def test_tune_and_distill_hide_parts_of_masked_codes(data: ImageSet, tmp_path: Path) -> None:
    made = load(train(config(images=16), data, tmp_path / "made"))
    h, _ = tune._conditions(made, "world:shapes?count=40&size=8", 40, None, 3)
    assert h is not None
    assert torch.equal(h.cpu(), masks.hidden(made.encode(data.floats(slice(0, 40))).cpu(), PARTS, 3))
    with pytest.raises(ConfigError, match="need representations of 9 dimensions"):
        tune._conditions(made, "world:shapes?count=40&size=8", 40, "4,3", 3)
    file = tmp_path / "made" / "masked.safetensors"
    student = DistillConfig(
        "few", str(file), trajectories=32, batch_size=16, judged=2, between=0, nfe=2, random_flip=False
    )
    seen: list[Tensor] = []

    def noted(network: Any, schedule: Any, given: Any) -> Any:
        assert given.h is not None
        seen.append(given.h[:, 14:])
        return predict_with(network, schedule, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "predict_with", noted)
        distill(student, data, tmp_path / "few")
    shown = torch.cat(seen)
    assert bool(((shown == 0) | (shown == 1)).all())
    assert 0 < float(shown.all(dim=1).float().mean()) < 1
    with pytest.raises(ConfigError, match="masked_parts"):
        distill(dataclasses.replace(student, masked_parts=(4, 3)), data, tmp_path / "others")


def test_scales_are_calibrated_with_hidden_parts(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(train(config(images=16), data, tmp_path / "made"))
    jobs: list[Any] = []
    form = SimpleNamespace(PRECISIONS=("int8",), write=lambda _, job: jobs.append(job))
    monkeypatch.setattr(exporting, "find", lambda *_: form)
    images = data.floats(slice(0, 40))
    exporting.export(made, "openvino", tmp_path / "out", precision="int8", calibrate=images)
    assert torch.equal(jobs[0].representations.cpu(), masks.hidden(made.encode(images).cpu(), PARTS, 0))


def test_a_run_of_an_earlier_version_goes_on_without_masks(data: ImageSet, tmp_path: Path) -> None:
    plain = config(masked_parts=())

    def stop(done: int, total: int, loss: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(plain, data, tmp_path, progress=stop)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.pop("masked_parts") == []
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RunError, match="masked_parts"):
        train(config(), data, tmp_path)
    assert train(plain, data, tmp_path).exists()


def test_what_cannot_be_masked(data: ImageSet) -> None:
    with pytest.raises(ConfigError, match="set it to false"):
        config(standardize=True)
    with pytest.raises(ConfigError, match="masked_parts"):
        config(masked_parts=(4, 0))
    for names, parts, message in (
        ("all", (4, 1), r"need representations of 7 dimensions \(5 and one for each part\), the encoder gives 22"),
        ("x", PARTS, "must end in ones"),
    ):
        bank = build(SOURCE.format(names)).encode(data.floats(slice(0, 40)))[None]
        with pytest.raises(ConfigError, match=message):
            Batches(config(masked_parts=parts), data, bank, distributed.Processes())


def test_the_configuration_that_ships_fits_its_world() -> None:
    folder = Path(__file__).parents[1] / "training" / "configs"
    stated = configs.from_dict(TrainConfig, json.loads((folder / "shapes-oracle.json").read_text()))
    assert stated.encoder is not None
    assert stated.masked_parts == Code("shapes", (), masked=True).widths
    assert build(stated.encoder.source).dim == sum(stated.masked_parts) + 8
    assert not stated.random_flip
