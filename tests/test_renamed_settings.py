"""Files of before, whose settings had other names, are read as what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rcdm_fast.cli.training import _configuration
from rcdm_fast.config import from_dict, migrated
from rcdm_fast.encoders import native
from rcdm_fast.models import checkpoint
from rcdm_fast.plain_data import RENAMED
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.pretrain import PretrainConfig
from rcdm_fast.training.state import Paused
from rcdm_fast.training.train import train
from tests import jobs_cases, small, training_process

BEFORE = {now: before for before, now in RENAMED.items()}


def before(data: Any) -> Any:
    """The same data under the names of before."""
    if isinstance(data, dict):
        return {BEFORE.get(key, key): before(value) for key, value in data.items()}
    return [before(value) for value in data] if isinstance(data, list) else data


def rewrite(path: Path) -> dict[str, Any]:
    """A JSON file with the names of before; what it holds now."""
    data: dict[str, Any] = before(json.loads(path.read_text()))
    path.write_text(json.dumps(data))
    return data


def test_names_at_any_depth_and_that_of_today_wins() -> None:
    stored = {"images": 4, "augment": {"grey": 0.2, "hue": 0.1}, "list": [{"rates": "constant"}], "pictures": 3}
    assert migrated(stored) == {
        "augment": {"gray": 0.2, "hue": 0.1},
        "list": [{"lr_schedule": "constant"}],
        "images": 4,
    }
    assert migrated(7) == 7


@pytest.mark.parametrize("kind", [TrainConfig, PretrainConfig])
def test_configuration_files(kind: type[TrainConfig | PretrainConfig], tmp_path: Path) -> None:
    name = "cifar10-simclr-wide" if kind is TrainConfig else "cifar10-simclr-encoder"
    now = from_dict(kind, _configuration(name, None))
    (tmp_path / "mine.json").write_text(json.dumps(before(_configuration(name, None))))
    assert from_dict(kind, _configuration(name, str(tmp_path / "mine.json"))) == now
    assert "pictures" in (tmp_path / "mine.json").read_text()


def test_a_run_goes_on(tmp_path: Path) -> None:
    made = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))
    native.save(tmp_path / "encoder.safetensors", made.network(), made.encoder(), {})
    config = training_process.config(str(tmp_path / "encoder.safetensors"), ema_decays=(0.9,))
    whole = train(config, training_process.data(), tmp_path / "whole")
    with pytest.raises(Paused):
        train(config, training_process.data(), tmp_path / "parts", minutes=1e-9)
    stored = rewrite(tmp_path / "parts" / "config.json")
    assert {"pictures", "rates", "flips", "more_emas", "checkpoint_blocks"} <= stored.keys()
    found = train(config, training_process.data(), tmp_path / "parts")
    one, other = (checkpoint.load_model(file)[1] for file in (whole, found))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_job_goes_on(tmp_path: Path) -> None:
    model, images = small.model(), small.make_images(9)
    jobs_cases.run(model, tmp_path / "whole", given=images)
    jobs_cases.run(model, tmp_path / "parts", given=images)
    stored = rewrite(tmp_path / "parts" / "job.json")
    stored["items"]["kind"] = "picture"
    (tmp_path / "parts" / "job.json").write_text(json.dumps(stored))
    assert stored["settings"]["shard_pictures"] == 8
    missing = tmp_path / "parts" / "manifest" / "000001.jsonl"
    missing.unlink()
    jobs_cases.run(model, tmp_path / "parts", given=images)
    assert missing.read_bytes() == (tmp_path / "whole" / "manifest" / "000001.jsonl").read_bytes()
