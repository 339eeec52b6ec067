"""Every option of every command arrives where it says, and changes nothing else; the rest is the library's default.

A command is run with its work left out (`command_calls`), once without an option and once for each option of
`command_options`. The options are those that the parser knows: one without a row is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import rcdm_fast
from rcdm_fast import evaluation
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.errors import RcdmError
from rcdm_fast.images import to_pil
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.training.state import Paused
from tests import command_calls, jobs_cases, small
from tests.command_calls import COMMANDS, Calls, Seen
from tests.command_options import USAGES
from tests.command_rows import GONE, LAST, Row, Usage

UNET = {"image_size": 8, "num_channels": 32, "channel_mult": [1], "attention_resolutions": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are run, with what they are given."""
    place = tmp_path_factory.mktemp("commands")
    given = place / "given"
    given.mkdir()
    for name, image in zip("abc", small.make_images(3, size=16), strict=True):
        to_pil(image).save(given / f"{name}.png")
    train = {"name": "x", "unet": UNET, "encoder": {"source": "timm:resnet18", "image_size": 8}}
    for name, values in (("train", train), ("pretrain", {"name": "x"}), ("reader", {"name": "x"})):
        (given / f"{name}.json").write_text(json.dumps(values))
        (given / f"{name}2.json").write_text(json.dumps({**values, "batch_size": 32}))
    return place


@pytest.fixture
def calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["rcdm", "..."])
    return command_calls.watched(monkeypatch)


def changed(before: Seen, after: Seen) -> Seen:
    """What differs, a value of another type, too."""
    keys = (key for key in {**before, **after} if not same(before.get(key, GONE), after.get(key, GONE)))
    return {key: after.get(key, GONE) for key in keys}


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def arguments(command: str, row: Row) -> list[str]:
    words = command.split()
    if isinstance(row.option, int):
        return [*words[: 1 + row.option], str(row.text), *words[2 + row.option :]]
    return [*words, row.option, *([] if row.text is None else [row.text])]


@pytest.mark.parametrize("usage", USAGES, ids=lambda usage: usage.command)
def test_an_option_changes_what_it_names_and_nothing_else(usage: Usage, calls: Calls, folder: Path) -> None:
    before = command_calls.run(calls, usage.command.split(), folder)
    assert before["exit code"] == 0
    for row in usage.rows:
        found = changed(before, command_calls.run(calls, arguments(usage.command, row), folder))
        assert found == row.changes, row.option
        assert all(same(found[key], value) for key, value in row.changes.items()), (row.option, found)


def number(row: Row) -> float | None:
    """What a row gives its option, if that is a number."""
    try:
        return float(str(row.text)) if isinstance(row.option, str) else None
    except ValueError:
        return None


@pytest.mark.parametrize("usage", USAGES, ids=lambda usage: usage.command)
def test_a_zero_arrives_or_is_refused(usage: Usage, calls: Calls, folder: Path) -> None:
    """It is not taken for an option that was not given, but where the help says so."""
    for row in usage.rows:
        given = number(row)
        named = [key for key, value in row.changes.items() if type(value) in (int, float) and value == given]
        if given is None or not named or given == 0 or row.option in ("--sources", "--gallery"):
            continue
        found, refused = {}, ""
        try:
            found = command_calls.run(calls, arguments(usage.command, row._replace(text="0")), folder)
        except RcdmError as error:  # `main` makes a line of it
            refused = str(error)
        if refused:
            word = str(row.option).removeprefix("--").partition("-")[0]
            assert word in refused or "pixels wide" in refused, (row.option, refused)
            continue
        if found["exit code"]:
            assert usage.command.startswith("app"), row.option  # whose numbers have ranges
            continue
        assert {key: found.get(key, GONE) for key in named} == dict.fromkeys(named, 0), row.option


@pytest.mark.parametrize("usage", USAGES, ids=lambda usage: usage.command)
def test_what_is_not_given_is_the_librarys_default(usage: Usage, calls: Calls, folder: Path) -> None:
    found = command_calls.run(calls, usage.command.split(), folder)
    wanted = {key: value for key, value in calls.defaults.items() if key in found} | usage.other
    different = {key: found.get(key, GONE) for key, value in wanted.items() if not same(found.get(key, GONE), value)}
    assert different == {}


def test_an_address_that_others_can_reach_is_told(
    calls: Calls, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for host, told in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("192.168.3.4", True)):
        command_calls.run(calls, ["app", "--model", "m", "--host", host], folder)
        text = capsys.readouterr().out
        assert f"http://{host}:7860" in text
        assert ("anybody who reaches this address" in text) is told


@pytest.mark.parametrize("asked", ["", "--features model", "--inception i.pth", "--reference-npz r.npz"])
def test_distributions_of_too_few_images_are_left_out_unless_they_were_asked_for(
    asked: str, calls: Calls, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(*_: Any) -> None:
        raise ConfigError("too few images")

    monkeypatch.setattr(evaluation, "check_distribution", few)
    words = ["evaluate", "m", "--data", "D", *asked.split()]
    if asked:
        with pytest.raises(ConfigError, match="too few"):
            command_calls.run(calls, words, folder)
        return
    found = command_calls.run(calls, words, folder)
    assert "left out: too few images" in capsys.readouterr().out
    assert not [name for name in found if name.startswith("distribution")]


def test_every_option_of_every_command_has_a_row() -> None:
    rows = [(usage.command.split()[0], row) for usage in USAGES for row in usage.rows]
    total = 0
    for name, command in COMMANDS.commands.items():
        given = {row.option: row for each, row in rows if each == name}
        places = [each for each in command.params if each.param_type_name == "argument"]
        for each in command.params:
            names = {*each.opts, *each.secondary_opts} if each not in places else {places.index(each), LAST}
            found = names & given.keys()
            assert found, f"{name}: no row for {each.name}"
            total += 1
            if each not in places:
                assert (given[found.pop()].text is None) == each.is_flag, each.name
        known = {text for each in command.params for text in (*each.opts, *each.secondary_opts)}
        assert {option for option in given if isinstance(option, str)} <= known
    assert total > 180


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ("", JobConfig()),
        (
            "--per 3 --steps 7 --eta 0.5 --seed 9 --format folder --encoding webp --quality 80 --shard-images 6",
            JobConfig(per=3, steps=7, eta=0.5, seed=9, format="folder", encoding="webp", quality=80, shard_images=6),
        ),
        (
            "--per 2 --steps 10,5 --solver ancestral --format npz",
            JobConfig(per=2, steps="10,5", solver="ancestral", format="npz"),
        ),
    ],
)
def test_a_job_of_the_command_is_the_librarys(options: str, config: JobConfig, tmp_path: Path) -> None:
    """What one has drawn is complete for the other: the settings, their types and the model are the same."""
    file, h = jobs_cases.write_inputs(tmp_path, 1)
    job = tmp_path / "job"
    words = [*options.split(), "--model", str(file), "--engine", "eager", "--precision", "fp32", "--device", "cpu"]
    assert main(["generate", str(h), "--out", str(job), *words]) == 0
    drawn = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
    model = rcdm_fast.load(file, device="cpu", engine="eager", precision="fp32")
    assert local.run(model, h, job, config).complete
    assert {path: path.read_bytes() for path in job.rglob("*") if path.is_file()} == drawn
    identity = json.loads((job / "job.json").read_text())
    settled = (
        config.solver if config.solver != "auto" else "ddim" if config.eta else "deis"
    )  # what auto is for this model
    assert identity["settings"] == json.loads(json.dumps({**vars(config), "solver": settled}))


@pytest.mark.parametrize(
    ("words", "function"),
    [
        ("train mine --data D --config given/train.json", "train.train"),
        ("pretrain mine --data D --config given/pretrain.json", "pretrain.pretrain"),
        ("train-reader mine --config given/reader.json", "reader.train"),
        ("adapt m --encoder timm:resnet18 --data D --out runs/new", "adapt.adapt"),
        ("distill m --data D --out runs/few", "distill.distill"),
    ],
)
def test_a_run_that_is_told_to_stop_is_no_error(
    words: str, function: str, calls: Calls, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def paused(*_: object, **__: object) -> None:
        raise Paused("2 minutes are over at step 1 of 6")

    monkeypatch.setattr(f"rcdm_fast.training.{function}", paused)
    found = command_calls.run(calls, [*words.split(), "--minutes", "2"], folder)
    said = capsys.readouterr()
    assert found["exit code"] == 0
    assert "2 minutes are over at step 1 of 6; the same command goes on from there" in said.out + said.err
    assert "finished" not in said.out + said.err


@pytest.mark.parametrize("words", ["train mine --data D --config given/train.json",
                                   "pretrain mine --data D --config given/pretrain.json",
                                   "train-reader mine --config given/reader.json"])  # fmt: skip
def test_a_run_is_called_as_it_is_asked_for(
    words: str, calls: Calls, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--set", "name=other"]) == 2
    assert "--set name: the run is called as it is asked for, mine" in capsys.readouterr().err
    assert not [name for name in calls.seen if name.partition(".")[0] in ("train", "pretrain", "reader")]


@pytest.mark.parametrize(("words", "change", "option"), [
    ("train mine --data D --config given/train.json --images 96", "images=32", "--images"),
    ("train mine --data D --config given/train.json --encoder timm:resnet18", "encoder.layer=layer1", "--encoder"),
    ("pretrain mine --data D --config given/pretrain.json --no-compile", "compile=true", "--compile"),
    ("train-reader mine --config given/reader.json --images 96", "images=32", "--images"),
    ("adapt m --encoder timm:resnet18 --data D --out runs/new", "model=other", "MODEL"),
    ("adapt m --encoder timm:resnet18 --data D --out runs/new", "encoder.layer=layer1", "--encoder"),
    ("adapt m --encoder timm:resnet18 --data D --out runs/new --seed 1", "seed=2", "--seed"),
    ("distill m --data D --out runs/few", "nfe=3", "--nfe"),
])  # fmt: skip
def test_what_an_option_says_is_not_said_by_set_too(
    words: str, change: str, option: str, calls: Calls, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of both was taken, and the other one left without a word."""
    assert main([*words.split(), "--set", change]) == 2
    assert f"--set {change.partition('=')[0]}: say that with {option}" in capsys.readouterr().err
