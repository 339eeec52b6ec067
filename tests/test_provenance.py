"""Numbers say what made them: weights, encoder, data, command, revision."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import nn

from rcdm_fast import benchmarking, provenance
from rcdm_fast.cli import main
from rcdm_fast.config import EncoderConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders.base import ImageEncoder
from rcdm_fast.exporters.graph import hash_of, weights_hash
from rcdm_fast.images import to_pil
from rcdm_fast.models import checkpoint
from rcdm_fast.version import __version__
from tests import small


def encoder(weight: float = 1.0, size: int = 8) -> ImageEncoder:
    linear = nn.Linear(3, 4, bias=False)
    nn.init.constant_(linear.weight, weight)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    return ImageEncoder(network, EncoderConfig("module", image_size=size, dim=4))


def test_a_model_is_named_by_its_weights_and_by_what_evaluates_it() -> None:
    model = small.model()
    found = provenance.of_model(model)
    assert found["weights"] == weights_hash(model.unet, model.config.schedule)
    assert (found["engine"], found["precision"]) == (model.engine.name, model.engine.precision)
    assert model.encoder is not None
    assert found["encoder"] == {"source": "module", "hash": provenance.encoder_hash(model.encoder)}
    model._encoder = None
    assert "encoder" not in provenance.of_model(model)


def test_an_encoder_is_its_weights_and_its_convention() -> None:
    hashes = {provenance.encoder_hash(each) for each in (encoder(), encoder(2.0), encoder(1.0, 32))}
    assert len(hashes) == 3
    assert provenance.encoder_hash(encoder()) in hashes


def test_what_made_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
    pixels = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    images = ImageSet(pixels, None, (), (), "abc")
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/bin/rcdm", "evaluate", "a model", "--data", "/home/me/x/", "--per", "4"]
    )
    found = provenance.made_by([model], {"data": images, "photos": None})
    assert found["command"] == "rcdm evaluate 'a model' --data x --per 4"
    monkeypatch.setattr(
        sys, "argv", ["rcdm", "compare", "--engines", "a:fp8=/home/me/x.s,b:fp8=/y.s", "--out=/home/o/"]
    )
    assert provenance.command() == "rcdm compare --engines a:fp8=x.s,b:fp8=y.s --out=o"
    assert found["data"] == {"data": {"fingerprint": "abc", "images": 5}}
    assert found["rcdm_fast"] == __version__
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert [each["weights"] for each in found["models"]] == [weights_hash(model.unet, model.config.schedule)]


def test_every_model_is_named_and_the_first_ones_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [small.quick_model(), small.quick_model()]
    models[0].device, models[1].device = torch.device("cuda", 3), torch.device("cuda", 5)
    models[1].config = dataclasses.replace(models[1].config, name="second")
    asked: list[torch.device] = []

    def facts(device: torch.device) -> dict[str, object]:
        asked.append(device)
        return {"device": str(device)}

    monkeypatch.setattr(benchmarking, "facts", facts)
    monkeypatch.setattr(provenance, "git_revision", lambda: None)
    assert [each["name"] for each in provenance.made_by(models)["models"]] == [models[0].config.name, "second"]
    assert provenance.made_by(models[1:])["device"] == "cuda:5"
    assert provenance.made_by(models, device=torch.device("cpu"))["device"] == "cpu"
    assert provenance.made_by()["models"] == []
    assert asked == [torch.device("cuda", 3), torch.device("cuda", 5), torch.device("cpu"), torch.device("cpu")]


def test_dates_are_those_of_greenwich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "git_revision", lambda: None)
    monkeypatch.setattr(benchmarking, "facts", lambda device: {})
    monkeypatch.setenv("TZ", "Nowhere-9")
    time.tzset()
    try:
        before = datetime.now(UTC).replace(microsecond=0)
        found = datetime.strptime(provenance.made_by()["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert before <= found <= datetime.now(UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("name", ["/somewhere/bin/rcdm", "/somewhere/rcdm_fast/__main__.py", "rcdm"])
def test_a_command_is_rcdm_wherever_it_lies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "analyze", "/a/m.safetensors", "b/c", "--out", "/d/e/"])
    assert provenance.command() == "rcdm analyze m.safetensors b/c --out e"


def test_the_revision_says_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    file = tmp_path / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.git_revision() is None  # no checkout
    git("init", "-q")
    file.write_text("a")
    assert provenance.git_revision() is None  # an environment inside somebody else's checkout
    git("add", ".")
    git("commit", "-q", "-m", "a")
    revision = git("rev-parse", "HEAD").strip()
    (tmp_path / "notes.txt").touch()  # of no revision
    assert provenance.git_revision() == revision
    file.write_text("b")
    assert provenance.git_revision() == revision + "+"


COMMANDS = {
    "evaluate": "evaluate {model} --data photos --per 2 --steps 1 --features none --json n.json",
    "analyze": "analyze {model} photos --photos photos --steps 1 --per 2 --out .",
    "compare": "compare {model} --engines eager:fp32 --steps 1 --rounds 1 --json n.json",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_of_commands_carry_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, image in enumerate(small.make_images(4, 32)):
        to_pil(image).save(f"photos/{number}.png")
    assert main(COMMANDS[name].format(model="cifar10-simclr-trunk").split()) == 0
    found = json.loads(Path("photos.json" if name == "analyze" else "n.json").read_text())
    config, weights = checkpoint.load_model("cifar10-simclr-trunk")
    assert [each["weights"] for each in found["made_by"]["models"]] == [hash_of(config.unet, weights, config.schedule)]
    sets = [each["images"] for each in found["made_by"]["data"].values()]
    assert sets == ([] if name == "compare" else [4])
    if name == "evaluate":
        assert found["settings"]["steps"] == 1
        assert found["settings"]["per"] == 2
