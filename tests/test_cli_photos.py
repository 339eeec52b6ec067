"""`rcdm encode` and `rcdm sample` of many items: one that cannot be read, files of representations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcdm_fast import ConfigError, storage
from rcdm_fast.cli import main
from rcdm_fast.cli import photos as reading
from rcdm_fast.data import random_access

DRAWN = ("--per", "2", "--steps", "2")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs; the second place of four is taken by a damaged one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (0, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"damaged")
    return folder


def test_encode_leaves_out_what_cannot_be_read(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [photos / f"{number}.png" for number in (0, 2, 3)]
    assert run("encode", *good, "--out", tmp_path / "good.npy") == 0
    assert not (tmp_path / "good.paths.json").exists()
    expected = np.load(tmp_path / "good.npy")
    capsys.readouterr()
    assert run("encode", photos, "--out", tmp_path / "h.npy") == 3
    assert "1.png: cannot be read" in capsys.readouterr().err
    assert np.array_equal(np.load(tmp_path / "h.npy"), expected)
    names = [str(path) for path in good]
    assert json.loads((tmp_path / "h.paths.json").read_text()) == names
    assert run("encode", *good[:2], "--out", tmp_path / "h.npy") == 0  # whose ids are read from the list beside it
    assert json.loads((tmp_path / "h.paths.json").read_text()) == names[:2]
    assert run("encode", photos, "--out", tmp_path / "h.npz") == 3
    with np.load(tmp_path / "h.npz") as file:
        assert np.array_equal(file["representations"], expected)
        assert list(file["paths"]) == names
    assert run("encode", photos, "--out", tmp_path / "h.safetensors") == 3
    assert json.loads(storage.read_metadata(tmp_path / "h.safetensors")["paths"]) == names
    for file in ("h.npz", "h.safetensors"):
        source = random_access.find(tmp_path / file)
        assert [source.id(place) for place in range(len(source))] == names


def test_nothing_is_written_where_nothing_can_be_read(photos: Path, tmp_path: Path) -> None:
    for command in ("encode", "sample"):
        out = tmp_path / ("h.npy" if command == "encode" else "sheet.png")
        assert run(command, photos / "1.png", "--out", out) == 2
        assert not out.exists()


def test_sample_leaves_out_what_cannot_be_read(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "numbers.json"
    command = ("sample", photos, *DRAWN, "--out", tmp_path / "sheet.png", "--json", numbers)
    assert run(*command, "--images", tmp_path / "damaged") == 3
    assert "1.png: cannot be read" in capsys.readouterr().err
    found = {path.name: np.asarray(Image.open(path)).astype(int) for path in (tmp_path / "damaged").iterdir()}
    assert sorted(found) == [f"{place:05d}-{place}-{sample:03d}.png" for place in (0, 2, 3) for sample in (0, 1)]
    assert json.loads(numbers.read_text())["left_out"] == 1
    Image.new("RGB", (32, 32)).save(photos / "1.png")
    assert run(*command, "--images", tmp_path / "whole") == 0
    for name, pixels in found.items():  # the noise of the others does not depend on the damaged one
        assert np.abs(pixels - np.asarray(Image.open(tmp_path / "whole" / name))).max() <= 1


def test_representations_are_sampled_like_their_photographs(photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").unlink()
    endings = ("npy", "npz", "safetensors")
    for ending in endings:
        assert run("encode", photos, "--out", tmp_path / f"h.{ending}") == 0
    for given in (photos, *(tmp_path / f"h.{ending}" for ending in endings)):
        sheet, folder = tmp_path / f"from {given.name}.png", tmp_path / f"from {given.name}"
        assert run("sample", given, *DRAWN, "--out", sheet, "--images", folder) == 0
        assert Image.open(sheet).height > 3 * 96
    first = sorted((tmp_path / "from photos").iterdir())
    for ending in endings:
        second = sorted((tmp_path / f"from h.{ending}").iterdir())
        assert len(first) == len(second) == 6
        for a, b in zip(first, second, strict=True):
            assert np.abs(np.asarray(Image.open(a)).astype(int) - np.asarray(Image.open(b))).max() <= 1


def test_arrays_that_are_no_representations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, array, message in (
        ("labels", np.arange(3), "these are labels"),
        ("narrow", np.zeros((2, 5), dtype=np.float32), "representations have 5 dimensions"),
        ("complex", np.zeros((2, 192), dtype=np.complex64), "complex64"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        assert run("sample", tmp_path / f"{name}.npy", *DRAWN, "--out", tmp_path / "sheet.png") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_an_end_is_a_row_by_its_id_and_else_by_its_number(tmp_path: Path) -> None:
    """An id that is a number is the id's row; there is none behind the last one."""
    h = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(tmp_path / "ids.npz", h=h, ids=np.array(["b", "0", "a"]))
    np.save(tmp_path / "plain.npy", h)
    np.save(tmp_path / "one.npy", h[1:2])
    for wanted, name, place in (
        ("ids.npz:a", "ids.npz:a", 2),
        ("ids.npz:0", "ids.npz:0", 1),
        ("ids.npz:2", "ids.npz:a", 2),
        ("plain.npy:0", "plain.npy:0", 0),
        ("plain.npy:2", "plain.npy:2", 2),
        ("one.npy", "one.npy:0", 1),
    ):
        found, row = reading.end(tmp_path / wanted)
        assert (found, np.asarray(row).tolist()) == (name, h[place].tolist())
    for wanted, message in (
        ("plain.npy:3", "has no representation 3; there are 3"),
        ("plain.npy", r"has 3 representations: say which, as in .*plain\.npy:0 or .*plain\.npy:2"),
        ("ids.npz:c", "has no representation c"),
    ):
        with pytest.raises(ConfigError, match=message):
            reading.end(tmp_path / wanted)
