"""The fuzzer notices what it is there to notice, makes the same inputs every time, and finds nothing in a short run."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.fuzz import inputs, kinds_data, kinds_images, structures
from tests.fuzz.kind import Kind
from tests.fuzz.process import Limits, Process
from tests.fuzz.run import Campaign, main

NOTICED = {
    "fine": "read",
    "bare": "bare",
    "unnamed": "message",
    "lines": "message",
    "refusing": "refused",
    "hanging": "time",
    "greedy": "memory",
    "dying": "crash",
    "leaving": "crash",
    "starting": "deed",
    "shell": "deed",
    "writing": "deed",
    "through_link": "deed",
    "removing": "deed",
    "calling": "deed",
    "running": "deed",
    "unpickling": "deed",
    "asking": "deed",
    "in_thread": "deed",
}


@pytest.mark.long
def test_what_must_not_happen_is_noticed(tmp_path: Path) -> None:
    from tests.fuzz import faulty

    assert faulty.KINDS.keys() == NOTICED.keys()
    limits = Limits(seconds=5, bytes=300_000_000)
    with Process("tests.fuzz.faulty", tmp_path / "seeds", tmp_path / "box", limits) as process:
        found = {name: process.read(name, 1) for name in NOTICED}
    assert {name: each["verdict"] for name, each in found.items()} == NOTICED
    assert "SIGSEGV" in found["dying"]["text"]
    assert "exit status 3" in found["leaving"]["text"]
    assert "subprocess.Popen" in found["starting"]["text"]
    assert "hanging" in found["hanging"]["signature"]  # where it was
    assert "posix.getpid" in found["unpickling"]["text"]
    assert not list(tmp_path.rglob("started"))
    assert not list(tmp_path.rglob("beside"))


def test_findings_are_counted_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kinds", "tests.fuzz.faulty", "--out", str(tmp_path), "--minutes", "1", "--workers", "2"]
    assert main([*options, "--inputs", "40", "--kind", "fine"]) == 0
    assert main([*options, "--inputs", "6", "--kind", "fine", "--kind", "bare", "--kind", "starting"]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())["kinds"]
    assert {name: row["inputs"] for name, row in summary.items()} == {"fine": 6, "bare": 6, "starting": 6}
    assert summary["fine"]["findings"] == {}
    assert summary["bare"]["findings"] == {"bare: KeyError at faulty.py _bare": list(range(6))}
    assert "18 inputs, at least 6 of each of 3 kinds" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["0", "1", "2"]
    report = (tmp_path / "bare" / "2" / "report.txt").read_text()
    assert "--kind bare --number 2" in report
    assert "KeyError" in report
    before = {path.name: path.read_bytes() for path in (tmp_path / "bare" / "2" / "input").iterdir()}
    assert main([*options, "--kind", "bare", "--number", "2"]) == 1
    again = {path.name: path.read_bytes() for path in (tmp_path / "bare" / "2" / "input").iterdir()}
    assert before == again
    assert not list(tmp_path.glob(".run-*"))


def test_a_kind_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    campaign = Campaign("tests.fuzz.faulty", ["leaving"], tmp_path, Limits())
    campaign.run(range(30), minutes=2)
    assert campaign.tallies["leaving"].inputs == 10


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no kind called nothing; known: fine, bare"):
        Campaign("tests.fuzz.faulty", ["nothing"], tmp_path, Limits())


@pytest.mark.parametrize(
    "kind", [kinds_images.KINDS[0], kinds_data.KINDS[1], kinds_data.KINDS[5], kinds_data.KINDS[-2]]
)
def test_an_input_depends_on_its_kind_and_number_alone(tmp_path: Path, kind: Kind) -> None:
    seeds, again = kind.load_seeds(tmp_path / "a"), kind.load_seeds(tmp_path / "b")
    assert seeds == again == kind.load_seeds(tmp_path / "a")
    made = [kind.make(seeds, number) for number in range(60)]
    assert made[: len(seeds)] == seeds
    assert made[::-1] == [kind.make(again, number) for number in range(59, -1, -1)]
    assert len({repr(each.entries) for each in made}) > 40


def test_an_input_with_links_is_written_and_read_back(tmp_path: Path) -> None:
    entries: dict[str, inputs.Entry] = {
        "a/b.png": b"x",
        "link": inputs.Link("a/b.png"),
        "empty": None,
        "\udcff.png": b"y",
    }
    made = inputs.Input("tree", entries)
    assert made.write(tmp_path) == tmp_path / "tree"
    assert inputs.read(tmp_path / "tree") == made


def changed(content: bytes, count: int = 200) -> list[bytes]:
    """What changes by format make of a content."""
    found = [structures.by_format(content, Random(number)) for number in range(count)]
    different = [each for each in found if each is not None and each != content]
    assert len(different) > 0.6 * count
    return different


def test_changes_of_a_zip_leave_its_checksums_true(tmp_path: Path) -> None:
    made = io.BytesIO()
    np.savez(made, images=kinds_data.pixels(), labels=np.arange(5))
    huge = 0
    for content in changed(made.getvalue()):
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if sum(item.file_size for item in file.infolist()) < 1e9:
                assert file.testzip() is None
            else:
                huge += 1
    assert 0 < huge < 20


def test_changes_of_heads_leave_lengths_and_checksums_true() -> None:
    array = io.BytesIO()
    np.save(array, kinds_data.pixels())
    for content in changed(array.getvalue()):
        assert content[10 : 10 + int.from_bytes(content[8:10], "little")].endswith(b"\n")
        assert content.endswith(array.getvalue()[-500:])
    for content in changed(kinds_data.shard(kinds_data.members())):
        head = bytearray(content[:512])
        stored = int(head[148:156].strip(b" \0"), 8)
        head[148:156] = b" " * 8
        assert stored == sum(head)


@pytest.mark.long
def test_a_short_run_finds_nothing(tmp_path: Path, short: bool) -> None:
    campaign = Campaign("tests.fuzz.kinds", (), tmp_path, Limits(seconds=60))
    count = 2 if short else 150
    campaign.run(range(count), minutes=30, workers=2)
    table, _ = campaign.report()
    found = {name: dict(tally.findings) for name, tally in campaign.tallies.items() if tally.findings}
    assert not found, table
    assert min(tally.inputs for tally in campaign.tallies.values()) == count, table
