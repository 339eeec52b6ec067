"""What lies below a folder: linked folders once, circles, what cannot be seen, and what is left out is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcdm_fast import ConfigError, folders
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import find_images


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path, "PNG")
    return path


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in folders.tree(root).files]


def test_linked_class_folders_are_classes(tmp_path: Path) -> None:
    image(tmp_path / "store" / "dogs" / "1.png")
    image(tmp_path / "data" / "cat" / "2.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "store" / "dogs")
    (tmp_path / "data" / "cat" / "3.png").symlink_to(tmp_path / "store" / "dogs" / "1.png")
    found = open_data(tmp_path / "data", 16)
    assert (len(found), found.classes) == (3, ("cat", "dog"))
    assert names(tmp_path / "data") == ["cat/2.png", "cat/3.png", "dog/1.png"]


def test_links_in_circles_end_and_nothing_counts_twice(tmp_path: Path) -> None:
    root = tmp_path / "above" / "data"
    image(root / "a" / "1.png")
    image(root / "b" / "2.png")
    (root / "a" / "back").symlink_to(root)
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "a" / "all").symlink_to("/")
    (root / "a" / "b").symlink_to(root / "b")
    (root / "b" / "a").symlink_to(root / "a")
    (root / "loop").symlink_to(root / "loop")
    outside = tmp_path / "outside"
    image(outside / "deep" / "3.png")
    (root / "c").symlink_to(outside / "deep")
    (root / "d").symlink_to(outside)  # holds what is listed already under c
    assert names(root) == ["a/1.png", "b/2.png", "c/3.png"]
    assert len(folders.tree(root).unseen) == 7


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "1.png")
    image(tmp_path / ".hidden" / "2.png")
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [path.name for path in find_images(tmp_path)] == ["1.png"]
    assert "4 files left out, by their extensions: 2 .heic, 1 .txt, 1 without extension" in caplog.text
    assert "gone.png" in caplog.text
    assert "pipe.png" in caplog.text


def test_of_many_links_that_lead_nowhere_some_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "1.png")
    for number in range(11):
        (tmp_path / f"gone{number:02}.png").symlink_to(tmp_path / "nowhere.png")
    find_images(tmp_path)
    assert [f"gone{number:02}.png" in caplog.text for number in range(11)] == [True] * 8 + [False] * 3
    assert "left out: 3 more links and folders that cannot be looked at" in caplog.text


def test_a_folder_that_cannot_be_listed_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "shut" / "2.png")
    listed = os.scandir

    def scandir(folder: Path) -> object:
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    looked = Path.is_dir

    def is_dir(path: Path, *options: object) -> bool:
        if path.name == "secret":  # a link into a place that may not be looked at
            raise PermissionError(13, "Permission denied")
        return looked(path)

    (tmp_path / "secret").symlink_to("/proc/1/cwd")
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert len(find_images(tmp_path)) == 1
    assert "shut (Permission denied)" in caplog.text
    assert "secret (Permission denied)" in caplog.text


@pytest.mark.parametrize("extension", [".jfif", ".jpe", ".avif", ".pbm", ".pnm", ".apng", ".JPEG"])
def test_extensions_of_the_formats_that_are_read(tmp_path: Path, extension: str) -> None:
    form = {".avif": "AVIF", ".apng": "PNG", ".pbm": "PPM", ".pnm": "PPM"}.get(extension, "JPEG")
    Image.new("1" if extension == ".pbm" else "RGB", (16, 16)).save(tmp_path / f"a{extension}", form)
    assert len(open_data(tmp_path, 16)) == 1


def test_what_is_written_lies_outside_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    (data / "cats").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    for out in (data, data / "cats" / "run", tmp_path / "link" / "run", tmp_path / "other" / ".." / "data" / "run"):
        with pytest.raises(
            ConfigError, match="would be read as images the next time: name a folder outside with --out"
        ):
            folders.check_outside(out, data)
        with pytest.raises(ConfigError, match="lies in"):
            folders.check_outside(out, str(tmp_path / "link"))
    for out in (tmp_path, tmp_path / "data2", tmp_path / "run", data / ".runs" / "a", data / "cats" / ".a"):
        folders.check_outside(out, data)
    monkeypatch.chdir(data)
    with pytest.raises(ConfigError, match=r"^run lies in \., "):
        folders.check_outside("run", ".")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="lies in ~/data"):
        folders.check_outside(data / "run", "~/data")
    for other in (None, 5, "world:shapes", "hf:data?split=train", "", np.zeros(3), str(tmp_path / "missing"), "\0"):
        folders.check_outside(data / "run", other)
