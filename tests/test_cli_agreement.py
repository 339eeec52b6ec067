"""Commands agree with each other: the same options under the same names, the model in its place, help that fits."""

from __future__ import annotations

import ast
import errno
import io
import json
import re
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import rcdm_fast
from rcdm_fast import devices
from rcdm_fast.cli import common, main
from rcdm_fast.images import save_image, to_pil
from rcdm_fast.training.bundled import STAGES
from rcdm_fast.version import __version__
from tests import small
from tests.command_calls import COMMANDS
from tests.test_terminal import Broken

MODEL_FIRST = {"adapt", "analyze", "bench", "compare", "distill", "evaluate", "export", "report", "tune"}
INPUTS_FIRST = {"sample", "encode", "interpolate", "sequence", "generate", "app"}
# A name of one's own, several, or none.
OTHERS = {"train", "pretrain", "train-reader", "calibrate", "encoders", "models", "info"}
# Options that are the same wherever they are, and where their help may say more.
SAME = ("--per", "--steps", "--solver", "--eta", "--guidance", "--guide", "--seed", "--batch-size", "--device",
        "--json", "--engine", "--precision", "--encoder", "--flags", "--sha256", "--against",
        "--against-encoder")  # fmt: skip
LISTS = {("bench", "--steps"), ("bench", "--solver"), ("bench", "--engine"), ("bench", "--precision"),
         ("export", "--batch-size"), ("export", "--precision"), ("adapt", "--encoder"), ("app", "--encoder"),
         ("tune", "--solver")}  # fmt: skip
DEFAULT = " Default: the experiment's."


def options() -> dict[str, dict[str, Any]]:
    """Of every option the commands that have it."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, command in COMMANDS.commands.items():
        for each in command.params:
            if each.param_type_name == "option":
                for opt in each.opts:
                    found[opt][name] = each
    return found


@pytest.mark.parametrize("option", SAME)
def test_an_option_is_the_same_in_every_command(option: str) -> None:
    having = {name: each for name, each in options()[option].items() if (name, option) not in LISTS}
    assert len(having) > 1 or option in ("--eta",)
    assert len({each.help.removesuffix(DEFAULT) for each in having.values()}) == 1
    assert len({each.multiple for each in having.values()}) == 1
    assert len({tuple(each.opts) for each in having.values()}) == 1


def test_the_model_has_its_place() -> None:
    assert MODEL_FIRST | INPUTS_FIRST | OTHERS == set(COMMANDS.commands)
    having = options()["--model"]
    for name in MODEL_FIRST:
        first = COMMANDS.commands[name].params[0]
        assert (first.param_type_name, first.name) == ("argument", "model"), name
        assert name not in having
    assert set(having) == INPUTS_FIRST | {"info"}
    assert all("-m" in each.opts for each in having.values())
    assert (
        {having[name].default for name in INPUTS_FIRST - {"app"}} == {common.DEFAULT_MODEL} == {"cifar10-simclr-wide"}
    )
    assert f"Default: {common.DEFAULT_MODEL} " in having["app"].help


def test_where_results_go_and_where_images_come_from() -> None:
    found = options()
    assert all("-o" in each.opts for each in found["--out"].values())
    assert set(found["--out"]) == set(COMMANDS.commands) - {"app", "bench", "calibrate", "evaluate", "models", "info"}
    assert all(each.help.endswith(f": {common._IMAGES}.") for each in found["--data"].values())
    assert set(found["--data"]) == (MODEL_FIRST | {"app", "train", "pretrain", "encoders"})
    assert not {"--calibrate", "--test", "--samples", "--batch"} & set(found)


def test_messages_name_options_that_there_are(checkout: Path) -> None:
    """In every text of the library: one that tells of an option which is gone sends its reader astray."""
    known = {
        opt for each in options() for opt in (each, *(o for p in options()[each].values() for o in p.secondary_opts))
    }
    known |= {"--verbose", "--debug", "--version", "--help"}
    others = {"--nproc-per-node", "--no-build-isolation"}  # of torchrun and pip
    others |= {"--error-unmatch", "--porcelain", "--untracked-files"}  # of git
    found: set[tuple[str, str]] = set()
    for file in (*(checkout / "rcdm_fast").rglob("*.py"), *(checkout / "training").rglob("*.py")):
        if file.name == "bundled.py" or file.is_symlink() or "_build_info" in file.name:  # has options of its own
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", node.value)
                found |= {(file.name, each) for each in named if each not in known | others}
    assert not found


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options()["--device"]
    assert set(found) == set(COMMANDS.commands) - {"models"}
    assert {each.default for each in found.values()} == {None}
    for there, wanted in ((True, "cuda"), (False, "cpu")):  # as train, pretrain and adapt take it
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert devices.best(None) == wanted
        assert devices.best("cpu") == "cpu"
        assert devices.best(torch.device("cuda", 1)) == "cuda:1"


def test_help_fits_its_column(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for name in COMMANDS.commands:
        (line,) = [each for each in lines if each.startswith(f"  {name} ")]
        assert line.endswith("."), line
        assert not line.endswith("..."), line


def test_what_rcdm_says_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rcdm_fast {__version__}\n"
    assert main([]) == 0
    shown = re.findall(r"^  (rcdm .*?)  ", capsys.readouterr().out, re.MULTILINE)
    assert [line.split()[1] for line in shown] == ["sample", "app", "generate"]
    for line in shown:
        _check(line)


def _check(line: str) -> None:
    """A command as a document writes it: all its options are there."""
    words = shlex.split(line.replace("\\", ""), comments=True)
    known = {text for each in COMMANDS.commands[words[1]].params for text in (*each.opts, *each.secondary_opts)}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known | {"--help", "--verbose", "--debug"}, line


def test_commands_in_documents_have_the_options_that_they_name(checkout: Path) -> None:
    files = [*checkout.glob("*.md"), *checkout.glob("docs/*.md"), *checkout.glob("rcdm_fast/bundled/*.md")]
    names = "|".join(COMMANDS.commands)
    seen = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        for line in (*re.findall(rf"^ {{4,}}(rcdm (?:{names}) .*)$", text, re.M), *re.findall(r"`(rcdm [^`]*)`", text)):
            words = " ".join(line.split())
            if words.split()[1:2] and words.split()[1] in COMMANDS.commands:
                _check(words)
                seen += 1
    for name, command in COMMANDS.commands.items():
        examples = re.findall(r"Example: (rcdm .*)", command.help)
        assert examples, name
        for line in examples:
            _check(line)
    for stage in STAGES:
        _check(f"rcdm {stage.words}")
    assert seen > 30


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(rcdm_fast, "load", lambda *_, **__: small.quick_model())
    path = tmp_path / "K\u00e4fer.png"
    save_image(to_pil(small.make_images(1, size=16)[0]), path)
    return str(path)


def test_sample_says_one_line(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", photo, "--model", "m", "--per", "3", "--steps", "2", "--out", str(tmp_path / "sheet.png")]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    path = re.escape(str(tmp_path / "sheet.png"))
    assert re.fullmatch(rf"{path}: 3 samples of 1 photo, ddim, NFE 2, by m, eager fp32 on cpu, in [\d.e-]+ s", said[0])
    for verbose in (["--verbose", *words], [*words, "--verbose"]):  # anywhere
        assert main(verbose) == 0
        told = capsys.readouterr().out
        assert "not native: " in told or "not compiled: " in told
        assert small.quick_model().describe().splitlines()[0] in told
    assert main(words) == 0  # for that run alone
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_info_says_why_engines_do_not_run(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", "m", "--json", str(tmp_path / "info.json")]) == 0
    described = small.quick_model().describe()
    assert "not " in described
    assert described in capsys.readouterr().out
    assert json.loads((tmp_path / "info.json").read_text())["model"] == described.splitlines()


@pytest.mark.parametrize("stream", ["ascii", "latin-1", "gone"])
def test_what_cannot_be_shown_fails_nothing(
    stream: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal without the characters, and a reader that has gone: the sheet is written, and all is well."""
    sheet = tmp_path / "B\u00e4r\u2713.png"
    commands = [
        ["--help"], [], ["--version"], ["evaluate", "--help"],
        ["sample", photo, "--per", "1", "--steps", "1", "--out", str(sheet), "--verbose"],
    ]  # fmt: skip
    for words in commands:
        raw = io.BytesIO()
        out: Any = Broken(errno.EPIPE) if stream == "gone" else io.TextIOWrapper(raw, encoding=stream)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            assert main(words) == 0, words
        if stream != "gone":
            out.flush()
            assert raw.getvalue(), words
    assert sheet.exists()
