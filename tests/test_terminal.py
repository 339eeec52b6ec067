"""A command's work is done whatever becomes of what it says: odd encodings, readers that go, closed streams."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rcdm_fast import cli
from rcdm_fast.cli import common, main, terminal

SAID = "K\u00e4fer \u2713 \udce9"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "K\\xe4fer \\u2713 \\udce9"),
        ("latin-1", "K\u00e4fer \\u2713 \\udce9"),
        ("utf-8", "K\u00e4fer \u2713 \\udce9"),
    ],
)  # fmt: skip
def test_characters_that_an_encoding_lacks(encoding: str, shown: str) -> None:
    raw = io.BytesIO()
    stream = terminal.Stream(io.TextIOWrapper(raw, encoding=encoding))
    print(SAID, file=stream, flush=True)
    assert raw.getvalue() == f"{shown}\n".encode(encoding)
    assert stream.fault is None


class Broken(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code, self.asked = code, 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(("code", "lost"), [(errno.EPIPE, False), (errno.EIO, False), (errno.ENOSPC, True)])
def test_a_stream_that_broke_is_not_asked_again(code: int, lost: bool) -> None:
    broken = Broken(code)
    stream = terminal.Stream(broken)
    for _ in range(3):
        print("x", file=stream, flush=True)
    assert broken.asked == 1
    assert (stream.lost is not None) == lost


@pytest.mark.parametrize(("code", "exit_code"), [(errno.EPIPE, 0), (errno.EIO, 0), (errno.ENOSPC, 1)])
def test_a_command_goes_on_to_its_end(monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int) -> None:
    done: list[int] = []

    def work(*_: Any, **__: Any) -> None:
        for number in range(3):
            common.report(SAID)
            done.append(number)

    monkeypatch.setattr(cli, "_parser", lambda: work)
    monkeypatch.setattr(sys, "stdout", Broken(code))
    assert main([]) == exit_code
    assert done == [0, 1, 2]


def test_a_failure_is_told_by_its_own_code_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> None:
        common.report(SAID)
        raise SystemExit(3)

    monkeypatch.setattr(cli, "_parser", lambda: work)
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    assert main([]) == 3


def test_streams_that_were_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> None:
        common.report(SAID)
        assert not common.interactive()

    monkeypatch.setattr(cli, "_parser", lambda: work)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main([]) == 0
    assert sys.stdout is None


def test_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert main(["models"]) == 0
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr().out
    assert "cifar10-simclr-head" in said
    assert "backbone.4, map of 96 x 8 x 8" in said


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("PYTHONIOENCODING=ascii {python} {program}", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {python} {program}", 0),
        ("{{ {python} {program}; echo $? > {tmp}/code; }} | true; exit $(cat {tmp}/code)", 0),
        ("{python} {program} >&-", 0),
        ("{python} {program} >&- 2>&-", 0),
        ("{python} {program} > /dev/full", 1),
    ],
)
def test_in_a_shell(tmp_path: Path, checkout: Path, command: str, code: int) -> None:
    """A made-up command that says odd things and then writes a file."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys, time
sys.path.insert(0, {str(checkout)!r})
from pathlib import Path
from rcdm_fast import cli
from rcdm_fast.cli import common
def work(*_, **__):
    time.sleep(0.3)
    for _ in range(5000):
        common.report({SAID!r})
    Path({str(tmp_path / "done")!r}).touch()
cli._parser = lambda: work
sys.exit(cli.main([]))
""")
    text = command.format(python=sys.executable, program=program, tmp=tmp_path)
    run = subprocess.run(["bash", "-c", text], capture_output=True, cwd=tmp_path)
    assert run.returncode == code, run.stderr
    assert (tmp_path / "done").exists()
    assert b"Traceback" not in run.stderr
    assert b"Exception ignored" not in run.stderr


def test_progress_of_what_has_no_name_is_a_fraction(capsys: pytest.CaptureFixture[str]) -> None:
    for fraction, said in ((True, ["25 % done", "100 % done"]), (False, ["50 of 200", "200 of 200"])):
        with common.ProgressBar(200, fraction=fraction) as progress:
            for done in (1, 50, 51, 200):
                progress(done, 200, 0.0)
        assert capsys.readouterr().out.splitlines() == said
