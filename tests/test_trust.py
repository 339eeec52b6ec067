"""torch.hub encoders: trusted for a run and its resumption, and for nothing else."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rcdm_fast
from rcdm_fast import encoders, locks, storage
from rcdm_fast.cli import main
from rcdm_fast.config import EncoderConfig, ModelConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import EncoderError
from rcdm_fast.images import to_pil, to_uint8
from rcdm_fast.models import checkpoint
from rcdm_fast.training import trust
from rcdm_fast.training.adapt import AdaptConfig, adapt
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.train import train
from tests import small

HUB = '''
dependencies = ["torch"]
import torch

def flat(pretrained=False):
    """Six numbers of an 8-pixel image."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6))
'''


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hubconf.py").write_text(HUB, encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"torchhub:{tmp_path}/hub:flat"


@pytest.fixture
def data() -> ImageSet:
    pixels = to_uint8(small.make_images(48))
    return ImageSet(pixels, None, (), tuple(Path(f"{number}.png") for number in range(48)), "made-up")


def config(source: str) -> TrainConfig:
    return TrainConfig(
        name="tiny", unet=dataclasses.replace(small.UNET, representation_dim=0), schedule=small.SCHEDULE,
        encoder=EncoderConfig(source, image_size=8), images=96, batch_size=16, compile=False, precision="fp32",
        save_every=2, sheet_every=0, weights="fp32",
    )  # fmt: skip


class Stop(Exception):
    pass


def stop(done: int, *_: object) -> None:
    if done == 3:
        raise Stop


def test_a_run_remembers_and_a_model_file_does_not(source: str, data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="trust=1"):
        train(config(source), data, tmp_path / "run")
    with pytest.raises(Stop):
        train(config(source), data, tmp_path / "run", progress=stop, trusted=[source])
    path = train(config(source), data, tmp_path / "run")  # resumed
    metadata = storage.read_metadata(path)
    assert "trust" not in "".join(metadata.values()).replace(str(tmp_path), "")
    model = rcdm_fast.load(path)
    with pytest.raises(EncoderError, match="trust=1"):
        model.encode(small.make_images(2))
    assert not any("trust" in file.name for file in (tmp_path / "run").iterdir())
    with pytest.raises(EncoderError, match="trust=1"):
        train(config(source), data, tmp_path / "another")
    trusted = rcdm_fast.load(path, encoder=f"{source}?trust_repo=1&image_size=8&mean=0.5&std=0.5")
    assert trusted.encode(small.make_images(2)).shape == (2, 6)


def test_commands_pass_trust_on(source: str, data: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(40):
        to_pil(data.floats(slice(number, number + 1))[0]).save(tmp_path / "data" / f"{number}.png")
    network = small.network()
    old = EncoderConfig(f"{source}", image_size=8, dim=6)
    model = tmp_path / "small.safetensors"
    checkpoint.save_model(model, ModelConfig(network.config, small.SCHEDULE, old, "small"), network.state_dict())
    spec = f"{source}?trust=1&image_size=8&mean=0.5&std=0.5"
    command = ["adapt", str(model), "--data", str(tmp_path / "data"), "--set", "steps=1", "--set", "batch_size=4"]
    assert main([*command, "--encoder", "bundled:cifar10-simclr", "--out", str(tmp_path / "a")]) != 0  # the old one
    assert (
        main([*command, "--encoder", "bundled:cifar10-simclr", "--old-encoder", spec, "--out", str(tmp_path / "b")])
        == 0
    )
    assert main([*command, "--encoder", spec, "--old-encoder", spec, "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "c.safetensors").exists()


def test_trust_in_one_encoder_is_not_trust_in_another(source: str, data: ImageSet, tmp_path: Path) -> None:
    network = small.network()
    model = tmp_path / "small.safetensors"
    old = EncoderConfig(source, image_size=8, dim=6)
    checkpoint.save_model(model, ModelConfig(network.config, small.SCHEDULE, old, "small"), network.state_dict())
    new = EncoderConfig(f"{source}?pretrained=0", image_size=8)
    settings = AdaptConfig("new", str(model), new, steps=1)
    with pytest.raises(EncoderError, match=r"trust=1"):
        adapt(settings, data, tmp_path / "run", trusted=[new.source])


def test_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert trust.remembered(run, []) == frozenset()
    assert trust.remembered(run, ["a"], write=False) == {"a"}
    assert trust.remembered(run, []) == frozenset()
    assert trust.remembered(run, ["a"]) == {"a"}
    assert trust.remembered(run, ["b"]) == {"a", "b"}
    monkeypatch.chdir(tmp_path)
    assert trust.remembered(Path("run"), []) == {"a", "b"}
    assert trust.remembered(other, []) == frozenset()
    for damaged in ("", "[" * 100_000, "[1]", '{"x": 3}'):
        (tmp_path / "cache" / trust.FILE).write_text(damaged, encoding="utf-8")
        assert trust.remembered(run, []) == frozenset()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("RCDM_FAST_CACHE", str(tmp_path / "file"))
    assert trust.remembered(run, ["a"]) == {"a"}  # nowhere to remember it


def test_runs_that_begin_together_do_not_forget_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, together = storage.write_json, threading.Barrier(3, timeout=30)

    def slow(*given: Any) -> None:
        time.sleep(0.2)  # for long enough that all have read what was there
        before(*given)

    def begin(number: int) -> None:
        together.wait()
        trust.remembered(tmp_path / f"run{number}", ["a"])

    monkeypatch.setattr(storage, "write_json", slow)
    threads = [threading.Thread(target=begin, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [trust.remembered(tmp_path / f"run{number}", []) for number in range(3)] == [{"a"}] * 3


def test_trust_is_remembered_beside_a_lock_that_nobody_gives_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_WAIT_S", 0.0)
    (tmp_path / "cache").mkdir(exist_ok=True)
    with locks.locked(tmp_path / "cache" / f"{trust.FILE}.lock"):
        trust.remembered(tmp_path / "run", ["a"])
    assert trust.remembered(tmp_path / "run", []) == {"a"}


FOREIGN = """
import pathlib
pathlib.Path({mark!r}).touch()
"""


@pytest.mark.parametrize("kind", ["torchhub", "transformers", "weights"])
def test_a_foreign_model_file_runs_no_code(kind: str, tmp_path: Path) -> None:
    mark, place = tmp_path / "ran", tmp_path / "foreign"
    place.mkdir()
    code = FOREIGN.format(mark=str(mark))
    (place / "hubconf.py").write_text(code, encoding="utf-8")
    (place / "m.py").write_text(code, encoding="utf-8")
    (place / "config.json").write_text('{"model_type": "zzz", "auto_map": {"AutoConfig": "m.C"}}', encoding="utf-8")
    torch.save({"weight": Runs(str(mark))}, place / "weights.pt")
    named = {
        "torchhub": f"torchhub:{place}:net",
        "transformers": f"transformers:{place}",
        "weights": f"timm:test_resnet?weights={place}/weights.pt",
    }[kind]
    network = small.network()
    model = ModelConfig(network.config, small.SCHEDULE, EncoderConfig(named, image_size=8, dim=6), "foreign")
    path = checkpoint.save_model(tmp_path / "foreign.safetensors", model, network.state_dict())
    loaded = rcdm_fast.load(path)
    with pytest.raises(EncoderError):
        loaded.encode(small.make_images(1))
    assert not mark.exists()


class Runs:
    """Pickles to code that leaves a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (FOREIGN.format(mark=self.mark),)


def test_a_spec_says_whether_it_trusts() -> None:
    assert encoders.trusts("torchhub:a/b:c?trust_repo=1")
    assert not encoders.trusts("torchhub:a/b:c")
    assert not encoders.trusts("timm:resnet18")
