"""The stages behind the bundled models: real commands, in an order that works, run once each."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rcdm_fast
from rcdm_fast.training import bundled
from rcdm_fast.training.bundled import STAGES, command, made
from tests import command_calls
from tests.test_cli_options import calls, folder  # noqa: F401  (fixtures)


def test_every_bundled_model_has_a_stage_and_each_reads_what_was_made_before() -> None:
    shipped = {path.stem for path in (Path(rcdm_fast.__file__).parent / "bundled").glob("*.safetensors")}
    assert shipped == {stage.name for stage in STAGES if not stage.name.endswith(("-first", "-second"))}
    seen: set[str] = set()
    for stage in STAGES:
        assert set(re.findall(r"\{(.*?)\}", stage.words)) - {"data", "test", "out"} <= seen
        assert not any("{" in word for word in command(stage, "D", "T", Path("o"), "cpu"))
        seen.add(stage.name)
    head = next(stage for stage in STAGES if stage.name == "cifar10-simclr-head")
    assert command(head, "my data", "T", Path("out/b"), "cuda") == [
        "adapt", "out/b/cifar10-simclr-trunk/cifar10-simclr-trunk.safetensors", "--encoder",
        "file:out/b/cifar10-simclr-encoder/cifar10-simclr-encoder.safetensors?layer=projector", "--data", "my data",
        "--set", "steps=800", "--out", "out/b/cifar10-simclr-head", "--device", "cuda",
    ]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_a_command(stage: bundled.Stage, calls: command_calls.Calls, folder: Path) -> None:  # noqa: F811
    found = command_calls.run(calls, command(stage, "D", "T", Path("o"), "cpu"), folder)
    assert found["exit code"] == 0
    run = {"pretrain": "pretrain", "train": "train", "adapt": "adapt"}[stage.words.split()[0]]
    assert any(key.startswith(f"{run}.") for key in found)
    name = found[f"{run}.config.name"]
    assert stage.file == (f"{name}-encoder.safetensors" if run == "pretrain" else f"{name}.safetensors")


def test_what_is_missing_is_made_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    fails = {"cifar10-simclr-wide-encoder"}

    def run(words: list[str], **_: Any) -> SimpleNamespace:
        stage = next(each for each in STAGES if str(tmp_path / each.name) in words)
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
