"""The stages behind the bundled models: real commands, in an order that works, run once each."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.cli import tune
from rcdm_fast.config import EncoderConfig, FittedSolver
from rcdm_fast.data.world import World
from rcdm_fast.diffusion import fitted
from rcdm_fast.encoders import factor_reader, native
from rcdm_fast.encoders.factor_reader import FactorReader
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.images import from_uint8
from rcdm_fast.models import checkpoint
from rcdm_fast.training import bundled
from rcdm_fast.training.bundled import STAGES, command, made
from tests import checkpoint_cases, command_calls, small
from tests.test_cli_options import calls, folder  # noqa: F401  (fixtures)


def test_every_bundled_model_has_a_stage_and_each_reads_what_was_made_before() -> None:
    shipped = {path.stem for path in (Path(rcdm_fast.__file__).parent / "bundled").glob("*.safetensors")}
    assert shipped == {stage.name for stage in STAGES if stage.ships}
    seen: set[str] = set()
    for stage in STAGES:
        assert set(re.findall(r"\{(.*?)\}", stage.words)) - {"data", "test", "out"} <= seen
        assert not any("{" in word for word in command(stage, "D", "T", Path("o"), "cpu"))
        seen.add(stage.name)
    head = next(stage for stage in STAGES if stage.name == "cifar10-simclr-head-trained")
    assert command(head, "my data", "T", Path("out/b"), "cuda") == [
        "adapt", "out/b/cifar10-simclr-trunk-trained/cifar10-simclr-trunk.safetensors", "--encoder",
        "file:out/b/cifar10-simclr-encoder/cifar10-simclr-encoder.safetensors?layer=projector", "--data", "my data",
        "--set", "steps=800", "--name", "cifar10-simclr-head", "--out", "out/b/cifar10-simclr-head-trained",
        "--device", "cuda",
    ]  # fmt: skip
    tuned = next(stage for stage in STAGES if stage.name == "cifar10-simclr-head")
    assert command(tuned, "D", "T", Path("o"), "cpu") == [
        "tune", "o/cifar10-simclr-head-halved/model.safetensors", "--data", "D", "--nfe", "4,5,6,8,10",
        "--minutes", "3",
        "--init", "o/cifar10-simclr-trunk/cifar10-simclr-trunk.safetensors",
        "--out", "o/cifar10-simclr-head/cifar10-simclr-head.safetensors", "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_a_command(
    stage: bundled.Stage,
    calls: command_calls.Calls,  # noqa: F811
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "_conditions", lambda *_: (None, None))  # there are six images
    found = command_calls.run(calls, command(stage, "D", "T", Path("o"), "cpu"), folder)
    assert found["exit code"] == 0
    words = stage.words.split()
    run = {"train-reader": "reader", "tune": "learn"}.get(words[0], words[0])
    assert any(key.startswith(f"{run}.") for key in found)
    if run in ("export", "learn"):
        said = {key: str(value) for key, value in found.items()}
        halved = {"export.to": "hub", "export.out": f"o/{stage.name}", "export.precision": "fp16"}
        learned = {"tuned.path": f"o/{stage.name}/{stage.file}", "learn.config.nfe": "(4, 5, 6, 8, 10)"}
        assert (halved if run == "export" else learned).items() <= said.items(), said
        return
    name = found[f"{run}.config.name"]
    assert stage.file == (f"{name}-encoder.safetensors" if run == "pretrain" else f"{name}.safetensors")


def test_what_is_missing_is_made_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    fails = {"cifar10-simclr-wide-encoder"}

    def run(words: list[str], **_: Any) -> SimpleNamespace:
        stage = next(each for each in STAGES if {str(tmp_path / each.name), str(made(each, tmp_path))} & {words[-3]})
        ran.append(stage.name)
        if stage.name in fails:
            return SimpleNamespace(returncode=3)
        made(stage, tmp_path).parent.mkdir()
        made(stage, tmp_path).touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    assert bundled.main(["--out", str(tmp_path), "--list"]) == 0
    assert ran == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("missing ")] == [stage.name for stage in STAGES]
    assert bundled.main(["--out", str(tmp_path)]) == 3
    names = [stage.name for stage in STAGES]
    stopped = names.index("cifar10-simclr-wide-encoder")
    assert ran == names[: stopped + 1]
    assert "goes on from there" in capsys.readouterr().out
    fails.clear()
    assert bundled.main(["--out", str(tmp_path)]) == 0
    assert ran == names[: stopped + 1] + names[stopped:]
    assert bundled.main(["--out", str(tmp_path)]) == 0
    assert len(ran) == len(names) + 1


def test_options_reach_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the command, in what it runs, in what it says that it runs, and in what it ships."""
    ran: list[list[str]] = []

    def run(words: list[str], **_: Any) -> SimpleNamespace:
        ran.append(words[3:])
        return SimpleNamespace(returncode=0)

    shipped: list[tuple[Path, Path]] = []

    def ship(*paths: Any) -> list[Any]:
        shipped.append(paths)
        return []

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(bundled, "ship", ship)
    given = ["--data", "my data", "--test", "T", "--out", str(tmp_path / "o"), "--device", "cuda"]
    assert bundled.main([*given, "--ship", str(tmp_path / "s")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[1:] for line in lines if line.startswith("         rcdm ")] == ran
    for words in ran:
        assert words[-2:] == ["--device", "cuda"]
        sources = {words[place + 1] for place, word in enumerate(words) if word == "--data"}
        assert sources <= {"my data", "world:shapes?count=50000"}
    out = str(tmp_path / "o" / "cifar10-simclr-encoder")
    assert ran[0] == [
        "pretrain", "cifar10-simclr-encoder", "--data", "my data", "--test-data", "T", "--out", out, "--device", "cuda",
    ]  # fmt: skip
    assert shipped == [(tmp_path / "o", tmp_path / "s")]
    assert bundled.main([*given, "--list"]) == 0
    assert len(shipped) == 1


def test_what_is_made_is_written_as_it_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits, without a path of the machine that made it, and what models share once."""
    out, into = tmp_path / "out", tmp_path / "into"
    trunk, head, first = (
        next(stage for stage in STAGES if stage.name == f"cifar10-simclr-{name}")
        for name in ("trunk", "head", "trunk-first")
    )
    without = [dataclasses.replace(stage, encoder="") for stage in STAGES]  # the encoder here is none
    monkeypatch.setattr(bundled, "STAGES", without)
    encoder = made(next(stage for stage in STAGES if stage.name == "cifar10-simclr-encoder"), out)
    encoder.parent.mkdir(parents=True)
    encoder.write_bytes(b"as it is")
    weights = checkpoint_cases.make_weights()
    named = EncoderConfig(f"file:{encoder}", image_size=32, dim=5)
    info = {"run": {"init": str(made(first, out)), "encoder": {"source": f"file:{encoder}"}}}
    model = dataclasses.replace(checkpoint_cases.CONFIG, encoder=named, info=info, name=trunk.name)
    for stage in (trunk, head, first):
        own = weights | ({"ssl_emb.weight": weights["ssl_emb.weight"] + 1} if stage is head else {})
        checkpoint.save_model(made(stage, out), dataclasses.replace(model, name=stage.name), own)
    files = bundled.ship(out, into)
    assert {path.stem for path in files} == {"cifar10-simclr-encoder", trunk.name, head.name}
    assert (into / "cifar10-simclr-encoder.safetensors").read_bytes() == b"as it is"
    held = storage.read_tensors(into / f"{head.name}.safetensors")
    assert held.keys() == {"ssl_emb.weight"}
    assert held["ssl_emb.weight"].dtype == torch.float16
    found, tensors = checkpoint.load_model(into / f"{head.name}.safetensors")
    want = weights | {"ssl_emb.weight": weights["ssl_emb.weight"] + 1}
    assert checkpoint_cases.equal(tensors, {name: value.half().float() for name, value in want.items()})
    assert found.encoder is not None
    assert found.encoder.source == "bundled:cifar10-simclr"
    assert found.info["run"] == {"init": first.name, "encoder": {"source": "bundled:cifar10-simclr"}}
    assert str(tmp_path) not in storage.read_metadata(into / f"{trunk.name}.safetensors")["rcdm_fast.model"]
    (into / f"{trunk.name}.safetensors").unlink()
    made(trunk, out).unlink()
    with pytest.raises(rcdm_fast.RcdmError, match=f"{trunk.name}.safetensors: no such file"):
        bundled.ship(out, into)


def test_solvers_ship_with_the_weights_that_they_belong_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in 16 bits, and with no other model that shares them."""
    out, into = tmp_path / "out", tmp_path / "into"
    trunk, head = (next(s for s in STAGES if s.name == f"cifar10-simclr-{name}") for name in ("trunk", "head"))
    monkeypatch.setattr(bundled, "STAGES", tuple(dataclasses.replace(each, encoder="") for each in (trunk, head)))
    model = small.model()
    numbers = tuple(fitted.initial(model.config.schedule, (100, 400, 999)).tolist())
    weights = model.unet.state_dict()
    halved = {name: value.half().float() for name, value in weights.items()}
    held = hash_of(model.config.unet, halved, model.config.schedule)
    for bound, stage in ((model.weights, trunk), (held, trunk), ("", head)):
        own = (FittedSolver(3, numbers, bound),) if bound else ()
        checkpoint.save_model(made(stage, out), dataclasses.replace(model.config, fitted=own), weights)
        if bound == model.weights:
            with pytest.raises(rcdm_fast.RcdmError, match=r"its solvers for \[3\] evaluations belong to other weights"):
                bundled.ship(out, into)
    whole, based = (rcdm_fast.load(file, engine="eager", encoder=model.encoder) for file in bundled.ship(out, into))
    assert "fitted" in str(whole.request(torch.zeros(1, small.DIM), steps=3).chosen.label)
    assert based.request(torch.zeros(1, small.DIM), steps=3).chosen.label == "deis"
    assert whole.weights == based.weights == held


def test_a_decoder_of_oracles_ships_with_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was trained on what is known of a world's images; samples are no such images, and can be read all the same."""
    out, into = tmp_path / "out", tmp_path / "into"
    reads, stage = (next(s for s in STAGES if s.name == name) for name in ("shapes-reader-encoder", "shapes-oracle"))
    made(reads, out).parent.mkdir(parents=True)
    factor_reader.save(made(reads, out), FactorReader("shapes", 32), {})
    monkeypatch.setattr(native, "BUNDLED", into)
    model = small.model(representation_dim=22)
    oracle = EncoderConfig("oracle:shapes?factors=all&masked=1", image_size=32, dim=22)
    config = dataclasses.replace(model.config, encoder=oracle, name=stage.name)
    checkpoint.save_model(made(stage, out), config, model.unet.state_dict())
    _, file = bundled.ship(out, into)
    shipped = rcdm_fast.load(file, engine="eager")
    assert shipped.config.encoder == EncoderConfig("reader:shapes-reader?masked=1", image_size=32, dim=22)
    samples = shipped.sample(torch.zeros(1, 22), per=2, steps=2)[0]
    assert shipped.encode(samples).shape == (2, 22)
    known = rcdm_fast.load(file, engine="eager", encoder="oracle:shapes?factors=x,hue&masked=1")
    assert known.encode(from_uint8(World().pixels([3]))).shape == (1, 22)


def test_all_that_ships_stays_small() -> None:
    shipped = list((Path(rcdm_fast.__file__).parent / "bundled").iterdir())
    assert sum(path.stat().st_size for path in shipped) < 60e6
    assert {path.stem for path in shipped if path.suffix == ".md"} == {
        path.stem for path in shipped if path.suffix == ".safetensors"
    }
