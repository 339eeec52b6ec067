"""Jobs whose files were damaged, edited or emptied, on mounts that refuse things, under names that are no UTF-8."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rcdm_fast import doors
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.readers import array_rows
from rcdm_fast.data.readers.table_files import pyarrow
from rcdm_fast.jobs import draw, formats, ledger, local, rows, shard_tables
from rcdm_fast.jobs.settings import FORMATS, JobConfig
from rcdm_fast.jobs.verify import verify
from rcdm_fast.model import Model
from rcdm_fast.models import checkpoint
from rcdm_fast.storage import StorageError
from tests import jobs_cases, small
from tests.jobs_cases import ITEMS, manifest, representations, run


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


@pytest.fixture(scope="module")
def unbroken(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small job in a form, drawn without a stop."""
    folder = tmp_path_factory.mktemp("unbroken")

    def make(form: str) -> Path:
        if not (folder / form).exists():
            run(model, folder / form, format=form)
        return folder / form

    return make


@pytest.fixture
def job(unbroken: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(unbroken("webdataset"), tmp_path / "job")
    return tmp_path / "job"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the units that are committed."""
    found: list[int] = []
    commit = ledger.Ledger.commit

    def counted(self: ledger.Ledger, unit: Any, *more: Any) -> None:
        found.append(unit.number)
        commit(self, unit, *more)

    monkeypatch.setattr(ledger.Ledger, "commit", counted)
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_in_a_shard_is_drawn_again(
    model: Model, unbroken: Callable[[str], Path], tmp_path: Path, drawn: list[int], form: str
) -> None:
    shutil.copytree(unbroken(form), tmp_path / "job")
    drawn.clear()
    whole = contents(tmp_path / "job")
    row = next(row for row in manifest(tmp_path / "job") if "000002" in row["shard"])
    shard = tmp_path / "job" / row["shard"]
    file = next(shard.iterdir()) if shard.is_dir() else shard
    payload = next(formats.find(JobConfig(format=form)).read(shard, [row]))  # type: ignore[arg-type]
    content = bytearray(file.read_bytes())
    place = content.find(payload)
    content[max(0, place) + len(payload) // 2] ^= 1
    file.write_bytes(content)
    assert run(model, tmp_path / "job", format=form).complete
    assert drawn == [2]
    assert contents(tmp_path / "job") == whole
    assert verify(tmp_path / "job").complete


def short(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def empty(lines: list[bytes]) -> list[bytes]:
    return []


def twice(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[0]]


def changed(**values: Any) -> Callable[[list[bytes]], list[bytes]]:
    """The first row with other values; None takes one away."""

    def change(lines: list[bytes]) -> list[bytes]:
        row = {**json.loads(lines[0]), **values}
        kept = {name: value for name, value in row.items() if value is not None}
        return [json.dumps(kept).encode() + b"\n", *lines[1:]]

    return change


def replaced(line: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line + b"\n", *lines[1:]]


WRONG: tuple[Any, ...] = (None, -1, 10**30, "x", "../../etc/passwd", [], {}, True, 1.5)
EDITS = [
    short, empty, twice,
    *(replaced(line) for line in (b"[" * 100_000, b"3", b"null", b"[1]", b"\xff", b"{", b"{}")),
    *(changed(**{name: value}) for name in ("item", "sample", "offset", "bytes", "sha256", "key", "shard")
      for value in WRONG),
    changed(item=1 << 62), changed(offset=1 << 62), changed(bytes=1 << 62), changed(sha256="0" * 64),
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_told_of_and_drawn_again(
    model: Model, job: Path, drawn: list[int], edit: Callable[[list[bytes]], list[bytes]]
) -> None:
    whole = contents(job)
    part = job / "manifest" / "000001.jsonl"
    part.write_bytes(b"".join(edit(part.read_bytes().splitlines(keepends=True))))
    found = verify(job)
    assert not found.sound
    assert all(len(line) < 1000 for line in found.examples)
    assert main(["generate", "--verify", "--out", str(job)]) == 1
    assert run(model, job).complete
    assert drawn == [1]
    assert contents(job) == whole


@pytest.mark.parametrize("name", ["id", "seed", "model", "solver", "nfe", "engine"])
def test_a_row_that_tells_of_another_image_is_drawn_again(model: Model, job: Path, drawn: list[int], name: str) -> None:
    part = job / "manifest" / "000003.jsonl"
    part.write_bytes(b"".join(changed(**{name: "x"})(part.read_bytes().splitlines(keepends=True))))
    assert run(model, job).complete
    assert drawn == [3]


def test_a_quarantine_that_was_emptied(model: Model, tmp_path: Path, drawn: list[int]) -> None:
    h = representations()
    h[2] = float("nan")
    run(model, tmp_path, given=h)
    whole = contents(tmp_path)
    (file,) = (tmp_path / "quarantine").iterdir()
    for content in (b"", b"3\n", b"[" * 100_000, b"{}\n", b'{"item": "x", "content": "y"}\n', b"\xff"):
        file.write_bytes(content)
        drawn.clear()
        assert not verify(tmp_path).sound
        assert run(model, tmp_path, given=h).quarantined == 1
        assert drawn == [1]
        assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b"[]", b"{", b"\xff", b'{"version": 1}', b'{"version": 1, "items": 3, "settings": {}}',
        b'{"version": 1, "items": {"count": "x", "sha256": "00"}, "settings": {}}',
        b'{"version": 1, "items": {"count": -4, "sha256": "00"}, "settings": {}}',
        b'{"version": 1, "items": {"count": 3, "sha256": "zz"}, "settings": {}}',
    ],
)  # fmt: skip
def test_a_job_that_is_none(model: Model, job: Path, content: bytes) -> None:
    (job / "job.json").write_bytes(content)
    for call in (lambda: verify(job), lambda: run(model, job)):
        with pytest.raises(ConfigError, match=r"job\.json"):
            call()


def test_more_items_than_memory_has_room_for(job: Path) -> None:
    told = json.loads((job / "job.json").read_text())
    told["items"]["count"] = 1 << 50
    (job / "job.json").write_text(json.dumps(told))
    assert verify(job).missing_shards > 1 << 40


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"cpu": "x"}', b'{"cpu": -3}', b"\xff", b""])
def test_a_bucket_that_is_none(model: Model, job: Path, content: bytes) -> None:
    (job / "bucket.json").write_bytes(content)
    shutil.rmtree(job / "manifest")
    assert run(model, job).complete


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, refused)


@pytest.mark.parametrize(
    ("call", "code"),
    [("os.chmod", errno.EPERM), ("os.fsync", errno.EINVAL), ("fcntl.flock", errno.ENOLCK), ("os.replace", errno.EXDEV)],
)
@pytest.mark.parametrize("form", ["webdataset", "folder"])
def test_a_mount_that_refuses(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, form: str
) -> None:
    refuse(monkeypatch, call, code)
    assert run(model, tmp_path, format=form).complete
    assert verify(tmp_path).complete

    def report(now: local.Progress) -> None:
        with pytest.raises(ConfigError, match="another run of this job is under way"):
            run(model, tmp_path / "other", format=form)

    assert run(model, tmp_path / "other", format=form, report=report).complete


@pytest.mark.parametrize("folder", ["file/job", "n" * 3000, "~nosuchuser/job", "a\0b"])
def test_a_folder_that_cannot_be_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model.engine, "evaluate", None)
    with pytest.raises((StorageError, ConfigError)):
        local.run(model, representations(), folder, jobs_cases.CONFIG)


def test_a_job_that_can_only_be_read(model: Model, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job / "manifest" / "000001.jsonl").write_bytes(b"")
    refuse(monkeypatch, "os.unlink", errno.EROFS)
    with pytest.raises(StorageError, match=r"job: cannot be written \(Read-only"):
        run(model, job)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.png"), "a\0b", "n" * 3000])
def test_ids_that_no_text_can_hold(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    """However the source calls an item: what was drawn is written."""
    monkeypatch.setattr(array_rows.Rows, "id", lambda self, place: f"{place}-{name}")
    assert run(model, tmp_path, format=form).complete
    assert [row["id"] for row in manifest(tmp_path)][:1] == [f"0-{name}"]
    if form == "parquet":
        _, parquet = pyarrow()
        table = parquet.read_table(tmp_path / "shards" / "000000.parquet")
        assert table["id"].to_pylist()[0] == doors.escaped(f"0-{name}")


def test_columns_that_hold_no_more_bytes(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of more than 2 GiB goes into several groups of rows, and reads as one."""
    monkeypatch.setattr(shard_tables, "GROUP_BYTES", 300)
    assert run(model, tmp_path, format="parquet").complete
    _, parquet = pyarrow()
    assert parquet.ParquetFile(tmp_path / "shards" / "000000.parquet").num_row_groups > 1
    assert verify(tmp_path).complete


def test_an_item_that_has_vanished(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is quarantined like any other bad item, and the rest of its shard is kept."""
    h = representations()
    h[4] = float("nan")
    before = random_access.hash_of
    monkeypatch.setattr(draw.Artist, "draw", forget_content(monkeypatch, draw.Artist.draw))
    summary = run(model, tmp_path, given=h)
    assert (summary.images, summary.quarantined) == ((ITEMS - 1) * jobs_cases.CONFIG.per, 1)
    monkeypatch.setattr(random_access, "hash_of", before)
    assert verify(tmp_path).complete


def forget_content(monkeypatch: pytest.MonkeyPatch, before: Any) -> Any:
    """`Artist.draw`, after which the content of items is gone."""

    def drawn(self: Any, ready: Any) -> Iterator[Any]:
        def gone(source: Any, place: int) -> int:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        monkeypatch.setattr(random_access, "hash_of", gone)
        yield from before(self, ready)

    return drawn


def test_a_digest_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, h = jobs_cases.write_inputs(tmp_path)
    from rcdm_fast import storage

    digest = storage.sha256(model)
    command = ["generate", str(h), "--model", str(model), "--per", "1", "--steps", "1", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "a"), "--sha256", "0" * 64]) == 2
    assert f"its sha256 is {digest}, expected 0" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "a"), "--sha256", "abc"]) == 2
    assert "64 hexadecimal digits" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main([*command, "--out", str(tmp_path / "a"), "--sha256", digest.upper()]) == 0
    with pytest.raises(checkpoint.CheckpointError, match="expected 1"):
        checkpoint.load_model("cifar10-simclr-trunk", sha256="1" * 64)
    assert np.load(h).shape == (ITEMS, small.DIM)
    assert torch.isfinite(torch.from_numpy(np.load(h))).all()


def test_what_no_disk_or_format_can_hold_is_an_error_before_drawing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.engine, "evaluate", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9000))
    with pytest.raises(StorageError, match=r"needs 0\.0 MB, but only 0\.0 MB are free"):
        run(model, tmp_path, format="npz")
    for encoding, side in (("jpeg", 65501), ("webp", 16384)):
        with pytest.raises(ConfigError, match=f"images of {side} pixels are too large for {encoding}"):
            formats.check_size(JobConfig(encoding=encoding), side)  # type: ignore[arg-type]
        formats.check_size(JobConfig(encoding=encoding), side - 1)  # type: ignore[arg-type]
        formats.check_size(JobConfig(encoding=encoding, format="npz"), side)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["webdataset", "folder"])
def test_links_in_a_job_are_replaced(model: Model, unbroken: Callable[[str], Path], tmp_path: Path, form: str) -> None:
    folder = tmp_path / "job"
    shutil.copytree(unbroken(form), folder)
    shard = min((folder / "shards").iterdir())
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("precious")
    for file in (shard, folder / "manifest.jsonl", folder / "summary.json"):
        file.unlink(missing_ok=True)
        file.symlink_to(tmp_path / "there" if form == "folder" and file == shard else tmp_path / "there" / "a")
    assert run(model, folder, format=form).complete
    assert contents(folder) == contents(unbroken(form))
    assert not any(each.is_symlink() for each in folder.rglob("*"))
    assert contents(tmp_path / "there") == {"a": b"precious"}


@pytest.mark.parametrize("name", ["shards", "manifest", "quarantine"])
def test_a_folder_of_a_job_that_is_a_link(model: Model, job: Path, tmp_path: Path, name: str) -> None:
    shutil.rmtree(job / name, ignore_errors=True)
    (tmp_path / "there").mkdir()
    (job / name).symlink_to(tmp_path / "there")
    with pytest.raises(StorageError, match=rf"{name}: cannot be written \(it is a link to another place\)"):
        run(model, job)
    assert list((tmp_path / "there").iterdir()) == []


def test_a_manifest_that_vanishes_is_drawn_again(
    model: Model, unbroken: Callable[[str], Path], job: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    """Between the look at what is there and the count of its lines."""
    part, count = job / "manifest" / "000001.jsonl", rows.count_lines
    vanish = [part]

    def counted(path: Path) -> int:
        if path == part and vanish:
            vanish.pop().unlink()
        return count(path)

    monkeypatch.setattr(ledger, "count_lines", counted)
    assert run(model, job).complete
    assert drawn == [1]
    assert contents(job) == contents(unbroken("webdataset"))


def test_a_job_that_differs_much_is_told_in_short(model: Model, job: Path) -> None:
    told = json.loads((job / "job.json").read_text())
    told["model"]["name"] = "x" * 100_000
    (job / "job.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r'holds another job: model\.name was "xxx.*\.\.\..*x", is ') as caught:
        run(model, job)
    assert len(str(caught.value)) < 1000
