"""What can be known about an output before the work, and what becomes of it if it cannot be written after all."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast import outputs, storage
from rcdm_fast.cli import main
from rcdm_fast.images import MAX_PIXELS, ImageError, image_sheet, save_image, to_pil
from rcdm_fast.model import Model
from rcdm_fast.storage import StorageError
from tests import small

LONG = "n" * 3000


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / f"{'p' * 247}.png"
    to_pil(small.make_images(1, size=48)[0]).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [("a.jpg", 65501, 8), ("a.jpeg", 8, 65501), ("a.webp", 16384, 8), ("a.webp", 8, 16384), ("a.gif", 65536, 8)],
)
def test_a_format_that_has_no_such_images(tmp_path: Path, name: str, width: int, height: int) -> None:
    with pytest.raises(ImageError, match=f"the image has {width}x{height} pixels"):
        outputs.check_image(tmp_path / name, width, height)
    outputs.check_image(tmp_path / name, min(width, 16383), min(height, 16383))
    outputs.check_image(tmp_path / "a.png", width, height)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "side"), [("a.jpg", 65500), ("a.webp", 16383), ("a.gif", 65535), ("a.png", 70000)])
def test_limits_are_the_true_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: int) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert outputs.largest_side(name) >= side
    save_image(Image.new("RGB", (side, 1)), tmp_path / name)
    if name != "a.png":
        with pytest.raises(StorageError, match=r"it is in .*a\.png instead"):
            outputs.write_image(Image.new("RGB", (side + 1, 1)), tmp_path / name)


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.psd", "a.txt"])
def test_extensions_of_no_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="the extension names no image format"):
        outputs.check_image(tmp_path / name)


def test_rows_of_a_sheet(tmp_path: Path) -> None:
    assert outputs.rows_of_sheet(tmp_path / "a.png", 10, 200, cell=96) == 200
    assert outputs.rows_of_sheet(tmp_path / "a.webp", 10, 200, cell=96) == 165
    with pytest.raises(ImageError, match="at most 16383 a side"):
        outputs.rows_of_sheet(tmp_path / "a.webp", 200, 200, cell=96)
    rows = outputs.rows_of_sheet(tmp_path / "a.png", 1000, 200, cell=96)
    assert 1 <= rows < 200
    assert 1000 * 98 * rows * 98 < MAX_PIXELS
    with pytest.raises(ImageError, match="too much for a sheet"):
        outputs.rows_of_sheet(tmp_path / "a.png", 10**6, 200, cell=96)


def test_a_sheet_is_no_larger_than_was_counted_with(tmp_path: Path) -> None:
    rows = outputs.rows_of_sheet(tmp_path / "a.webp", 3, 500, cell=96)
    cell = Image.new("RGB", (96, 96))
    titles = ["photo", "seen", "samples (a rather long name of a model that takes several lines)"]
    sheet = image_sheet([[cell] * 3] * rows, cell=96, column_titles=titles, group_gaps=[2])
    save_image(sheet, tmp_path / "a.webp")
    assert sheet.height <= 16383


@pytest.mark.parametrize("stem", ["short", "s" * 300, "\u00e4" * 200, os.fsdecode(b"\xe9") * 300, ""])
def test_names_that_fit(tmp_path: Path, stem: str) -> None:
    name = outputs.file_name(stem, "-003.png", "00001-")
    assert name.startswith("00001-" + stem[:20])
    assert name.endswith("-003.png")
    storage.write_text(tmp_path / name, "x")


@pytest.mark.parametrize("stem", ["s" * 300, "\u00e4" * 200])
@pytest.mark.parametrize("before", ["", "00001-", "b" * 100])
def test_names_leave_room_for_what_stands_before_them(stem: str, before: str) -> None:
    name = outputs.file_name(stem, "-003.png", before)
    assert 240 < len(os.fsencode(name)) <= 245
    assert name.startswith(before + stem[:20])
    assert name.endswith(stem[:20] + "-003.png")


def test_what_can_be_written_nowhere_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the error is that of the place that was asked for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    tried: list[Path] = []

    def write(file: Path) -> None:
        tried.append(file)
        if len(tried) == 2:
            file.write_text("half of it")
        raise OSError(f"no room for number {len(tried)}")

    with pytest.raises(OSError, match=r"^no room for number 1$"):
        outputs.keep(tmp_path / "a.json", write)
    assert len(tried) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_after_all_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be written .*; it is in .*a\.png instead") as raised:
        outputs.write_image(Image.new("RGB", (9, 9), "red"), tmp_path / "file" / "a.webp")
    kept = re.search(r"it is in (.*) instead", str(raised.value))
    assert kept is not None
    assert Image.open(kept[1]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(StorageError, match=r"it is in .*a\.png instead"):
        outputs.write_image(Image.new("RGB", (16400, 1)), tmp_path / "a.webp")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "{photo}", "--out", "{long}.png"),
        ("sample", "{photo}", "--out", "{tmp}/a.png", "--json", "{long}"),
        ("sample", "{photo}", "--out", "{tmp}/a.png", "--images", "{tmp}/file/a"),
        ("sample", "{photo}", "--out", "~nosuchuser/a.png"),
        ("sample", "{photo}", "--out", "{tmp}"),
        ("sample", "{photo}", "--out", "{tmp}/a.webp", "--per", "200"),
        ("encode", "{photo}", "--out", "{tmp}/file/h.npy"),
        ("encode", "{photo}", "--out", "{long}.npy"),
        ("interpolate", "{photo}", "{photo}", "--out", "{tmp}/a.xyz"),
        ("interpolate", "{photo}", "{photo}", "--out", "{tmp}/file/a.png"),
        ("interpolate", "{photo}", "{photo}", "--out", "{tmp}/a.webp", "--frames", "300"),
        ("generate", "{photo}", "--out", "{tmp}/job", "--json", "{tmp}/file/a.json"),
        ("generate", "{photo}", "--out", "{long}"),
        ("evaluate", "cifar10-simclr-trunk", "--data", "{tmp}", "--json", "{long}"),
        ("evaluate", "cifar10-simclr-trunk", "--data", "{tmp}", "--npz", "{tmp}/file/a.npz"),
        ("analyze", "cifar10-simclr-trunk", "photos", "--photos", "{photo}", "--out", "{tmp}/file"),
        ("report", "cifar10-simclr-trunk", "--photos", "{tmp}", "--out", "{tmp}/file/a.html"),
        ("compare", "cifar10-simclr-trunk", "--out", "{tmp}/file/a.png"),
        ("compare", "cifar10-simclr-trunk", "--out", "{tmp}/a.xyz"),
        ("compare", "cifar10-simclr-trunk", "--json", "{long}"),
        ("bench", "cifar10-simclr-trunk", "--json", "{tmp}/file/a.json"),
        ("export", "cifar10-simclr-trunk", "--to", "hub", "--out", "{tmp}/file"),
        ("export", "cifar10-simclr-trunk", "--to", "hub", "--out", "{long}"),
        ("pretrain", "starter", "--data", "{tmp}", "--json", "{long}"),
    ],
)
def test_outputs_are_checked_before_the_work(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr("rcdm_fast.models.checkpoint.load_model", None)
    monkeypatch.setattr("rcdm_fast.data.sources.open_data", None)
    (tmp_path / "file").touch()
    if arguments[0] == "generate" and "{long}" in arguments:
        monkeypatch.undo()
        monkeypatch.setattr(Model, "batches", None)
    places = {"photo": photo, "tmp": tmp_path, "long": tmp_path / LONG}
    before = sorted(tmp_path.iterdir())
    assert main([each.format(**places) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert re.search("cannot be written|not a usable name|extension|a side|too much", said), said
    assert sorted(tmp_path.iterdir()) == before


def test_long_names_of_photos_do_not_end_a_run(photo: Path, tmp_path: Path) -> None:
    command = ["sample", str(photo), "--per", "1", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "a.png")]
    assert main([*command, "--images", str(tmp_path / "each")]) == 0
    (each,) = (tmp_path / "each").iterdir()
    assert each.name.startswith("00000-ppp")
    assert each.name.endswith("-000.png")


def test_a_disk_that_fills_up_while_it_draws(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sheet and the numbers are in the temporary folder, and the error says so."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    batches = Model.batches

    def then_full(self: Model, *arguments: Any, **options: Any) -> Any:
        yield from batches(self, *arguments, **options)
        before = storage.move

        def full(finished: Path, target: Path) -> None:
            if target.parent == tmp_path / "out":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            before(finished, target)

        monkeypatch.setattr(storage, "move", full)

    monkeypatch.setattr(Model, "batches", then_full)
    command = ["sample", str(photo), "--per", "1", "--steps", "1", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out" / "a.webp")]) == 2
    kept = re.search(r"No space left on device\); it is in (.*) instead", capsys.readouterr().err)
    assert kept is not None
    assert Image.open(kept[1]).width > 3 * 96


def test_numbers_with_names_that_are_no_utf8(tmp_path: Path) -> None:
    from rcdm_fast.cli import common

    common.write_json(
        tmp_path / "a.json", {"path": os.fsdecode(b"caf\xe9"), "array": np.float32(1), "t": torch.ones(1)}
    )
    assert json.loads((tmp_path / "a.json").read_text())["path"] == "caf\udce9"
