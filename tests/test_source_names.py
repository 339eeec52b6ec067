"""Names: what is found is a file and nothing else; what a person writes may be a pattern, or wrong."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import ImageError
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.storage import StorageError
from tests import small

pytest.importorskip("pyarrow")


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(file, "png")
    return file.getvalue()


def shard(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(png(number))
            tar.addfile(member, io.BytesIO(png(number)))
    return path


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any process that is started is an error."""

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    monkeypatch.setattr(os, "system", started)
    monkeypatch.setattr(os, "posix_spawn", started)


ODD_NAMES = [
    "a::pipe:touch PWNED; cat a.tar #.tar",
    "pipe:touch PWNED #.tar",
    "wds:pipe:touch PWNED.tar",
    "{0..3}.tar",
    "{a,b}-$(touch PWNED)`touch PWNED`.tar",
    "* ?[a].tar",
    "~root.tar",
    "hf:name?split=train.tar",
    "-x --help.tar",
    "new\nline.tar",
    os.fsdecode(b"caf\xe9.tar"),
]


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_found_name_is_a_file_and_nothing_else(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shard(Path("data") / name, "x.png", "y.png")
    assert len(open_data("data", 16)) == 2
    assert len(random_access.find("data")) == 2
    os.rename(Path("data") / name, name)  # as a shell's * would hand it over
    assert len(open_data(name, 16)) == 2
    assert len(random_access.find(name)) == 2
    assert not Path("PWNED").exists()


@pytest.mark.usefixtures("no_process")
def test_a_command_without_wds_is_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shard(Path("a.tar"), "x.png")
    for name in ("pipe:cat a.tar", "a.tar::pipe:cat a.tar", "http://127.0.0.1:9/{0..3}.tar"):
        with pytest.raises(ImageError):
            open_data(name, 16)
        with pytest.raises(ImageError):
            random_access.find(name)


def test_what_a_person_writes_is_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.chdir(tmp_path)
    for name in ("a-000.tar", "a-001.tar", "b.tar"):
        shard(Path(name), f"{name[:5]}.png")
    for pattern, count in (
        ("a-{000..001}.tar", 2),
        ("wds:a-{000..001}.tar::b.tar", 3),
        ("{a-000,b}.tar", 2),
        ("wds:pipe:cat a-000.tar", 1),
        ("wds:pipe:gzip -c b.tar::a-001.tar", 2),
    ):
        assert len(open_data(pattern, 16)) == count, pattern
    with pytest.raises(ImageError, match="pipe:false"):
        open_data("wds:pipe:false", 16)
    with pytest.raises(ImageError, match="means 1000000000 shards"):
        open_data("a-{0..999999999}.tar", 16)
    with pytest.raises(ImageError, match=r"1 of 3 shards are missing: a-002\.tar"):
        random_access.find("a-{000..002}.tar")


@pytest.mark.parametrize(
    "name",
    [
        "~nosuchuser/a",
        "x" * 3000,
        "x" * 3000 + ".npy",
        "x" * 3000 + ".tar",
        "a\0b",
        "a\0b.npz",
        "",
        "~nosuchuser.parquet",
        "y" * 300 + "{0..2}.tar",
        "hf:" + "z" * 3000,
        "wds:" + "z" * 3000,
        "hf:a\0b",
        "wds:a\0.tar",
        "none.tgz",
        "\ud800.png",
    ],
)
def test_names_that_name_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ImageError, StorageError)) as found:
        open_data(name, 16)
    assert len(str(found.value)) < 1500
    with pytest.raises((ImageError, StorageError, ConfigError)) as again:
        random_access.find(name)
    assert len(str(again.value)) < 1500


def write_bytes_names(folder: Path) -> None:
    """Four images in a class folder and a damaged one, all with names that are no UTF-8."""
    inside = os.path.join(os.fsencode(folder), b"klass\xe9")
    os.makedirs(inside)
    for number in range(4):
        with open(os.path.join(inside, b"caf\xe9%d.png" % number), "wb") as file:
            file.write(png(number))
    with open(os.path.join(inside, b"bad\xff.png"), "wb") as file:
        file.write(b"damaged")


def test_names_that_are_no_utf8_are_escaped(tmp_path: Path) -> None:
    write_bytes_names(tmp_path / "data")
    for store in (None, tmp_path / "store", tmp_path / "store"):
        found = open_data(tmp_path / "data", 16, store=store)
        assert found.classes == ("klass\\xe9",)
        assert found.paths[0].name == "caf\\xe90.png"
        assert len(found.skipped) == 1
        assert "bad\\xff.png" in found.skipped[0]
        "\n".join([*found.skipped, *map(str, found.paths)]).encode("utf-8")


@pytest.mark.parametrize("form", ["parquet", "webdataset", "npz", "folder"])
@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_a_job_of_names_that_are_no_utf8(tmp_path: Path, form: Any, kind: str) -> None:
    write_bytes_names(tmp_path / "data")
    given = tmp_path / "data"
    if kind == "shard":
        given = shard(tmp_path / "a.tar", *[f"caf\udce9{number}.png" for number in range(4)])
    summary = local.run(small.model(), given, tmp_path / "job", JobConfig(per=1, steps=1, format=form))
    assert (summary.images, summary.quarantined) == (4, 1 if kind == "folder" else 0)
    assert "caf\\\\xe9" in (tmp_path / "job" / "manifest.jsonl").read_text()


def test_reading_data_imports_and_starts_nothing(tmp_path: Path) -> None:
    """In a process of its own, whose every started process, connection and unpickled object is noticed."""
    data = tmp_path / "data"
    shard(data / ODD_NAMES[0], "x.png")
    (data / "z.png").write_bytes(png())
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 16, 16, 3), np.uint8))
    code = """
import sys
seen = []
watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
watched += ("pickle.find_class",)
from rcdm_fast.data.sources import open_data
from rcdm_fast.data import random_access
sys.addaudithook(lambda event, args: seen.append((event, args)) if event in watched else None)
for name in sys.argv[1:]:
    assert len(open_data(name, 16)) == len(random_access.find(name)) == 2
assert not seen, seen
assert "webdataset" not in sys.modules and "datasets" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(data), str(tmp_path / "a.npz")], check=True, timeout=300)


def test_shards_beside_an_image_are_taken(tmp_path: Path) -> None:
    (tmp_path / "preview.jpg").write_bytes(png())
    shard(tmp_path / "deep" / "er" / "a.tar", "x.png", "y.png")
    assert len(open_data(tmp_path, 16)) == 3
    found = random_access.find(tmp_path)
    assert [found.id(place) for place in range(3)] == ["preview.jpg", "x", "y"]
    assert [np.asarray(found.read(place)).shape for place in range(3)] == [(16, 16, 3)] * 3


def test_a_folder_of_photographs_and_shards(tmp_path: Path) -> None:
    """Photographs first, then shard after shard: every place is that of its own source, in all that is asked of it."""
    for number in (0, 1, 2):
        (tmp_path / f"p{number}.png").write_bytes(png(100 + number))
    shard(tmp_path / "a.tar", "a0.png", "a1.png")
    shard(tmp_path / "b.tar", "b0.png", "b1.png", "b2.png")
    source = random_access.find(tmp_path)
    names = ["p0.png", "p1.png", "p2.png", "a0", "a1", "b0", "b1", "b2"]
    wanted = dict(zip(names, (100, 101, 102, 0, 1, 0, 1, 2), strict=True))
    for place, (name, level) in reversed(list(enumerate(wanted.items()))):
        image = source.read(place)
        assert isinstance(image, Image.Image)
        assert (source.id(place), image.getpixel((0, 0))) == (name, (level, 0, 0))
        assert source.content(place) == str(len(png(level))).encode()
    assert len(source) == 8
