"""A source that is come back to: after an interruption, as another split, with a job's shards among its items."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access, sources
from rcdm_fast.data.block_file import Block, PixelStore
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import ImageError, save_image, to_pil
from tests import jobs_cases, small

COUNT = 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number, image in enumerate(small.make_images(COUNT, 8)):
        save_image(to_pil(image), place / f"{number:02d}.png")
    return place


def interrupt(source: Path, store: Path, monkeypatch: pytest.MonkeyPatch, kept: int = 1) -> None:
    """Read it in blocks of four until so many are kept."""
    whole, blocks = PixelStore.append, 0

    def append(self: PixelStore, block: Block) -> None:
        nonlocal blocks
        blocks += 1
        if blocks > kept:
            raise KeyboardInterrupt
        whole(self, block)

    with monkeypatch.context() as patched:
        patched.setattr(sources, "BLOCK", 4)
        patched.setattr(PixelStore, "append", append)
        with pytest.raises(KeyboardInterrupt):
            open_data(source, 8, store=store)


def add(folder: Path) -> None:
    (folder / "00a.png").write_bytes((folder / "00.png").read_bytes())


def remove(folder: Path) -> None:
    (folder / "01.png").unlink()


def empty(folder: Path) -> None:
    for number in range(3, COUNT):
        (folder / f"{number:02d}.png").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add, r"item 1 was \S*01\.png, is \S*00a\.png"),
        (remove, r"item 1 was \S*01\.png, is \S*02\.png"),
        (empty, r"4 items were read, there are 3"),
    ],
)
def test_a_store_does_not_go_on_with_a_source_that_has_changed(
    change: Callable[[Path], None], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting on from where it was would leave images out, or have some twice."""
    interrupt(folder, tmp_path / "store", monkeypatch)
    change(folder)
    with pytest.raises(
        storage.StorageError, match=rf"has changed since reading was interrupted \({said}\); delete the"
    ):
        open_data(folder, 8, store=tmp_path / "store")


def test_a_store_goes_on_with_images_that_were_added_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with one of before that cannot be read: of what was skipped no name is kept."""
    (folder / "02.png").write_bytes(b"no image")
    interrupt(folder, tmp_path / "store", monkeypatch, kept=2)
    (folder / "99.png").write_bytes((folder / "00.png").read_bytes())
    found = open_data(folder, 8, store=tmp_path / "store")
    assert torch.equal(found.pixels, open_data(folder, 8).pixels)
    assert len(found) == COUNT


def saved(folder: Path, split: str | None) -> Path:
    """A folder as save_to_disk writes it, without what is read behind the split."""
    folder.mkdir()
    state = {"_data_files": [{"filename": "a.arrow"}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    ("split", "asked", "refused"),
    [
        ("train", "?split=test", True),
        (None, "?split=test", True),
        ("test", "?split=train", True),
        ("test", "?split=test", False),
        ("test", "", False),
        ("train[:10%]", "?split=train", False),
        (None, "?split=train", False),
    ],
)
def test_a_saved_split_is_not_taken_for_another(split: str | None, asked: str, refused: bool, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    where = saved(tmp_path / "one", split)
    said = "it holds one split, '" if refused else r"no such file"
    with pytest.raises(ImageError, match=said):
        open_data(f"hf:{where}{asked}", 8)


@pytest.mark.parametrize("option", ["name=fine", "revision=main"])
@pytest.mark.parametrize("kind", ["saved", "plain"])
def test_a_folder_has_no_configurations_or_revisions(option: str, kind: str, tmp_path: Path) -> None:
    """They were left out, and all configurations below a folder were read as one."""
    where = saved(tmp_path / "one", None) if kind == "saved" else tmp_path
    with pytest.raises(ImageError, match=f"a folder has no {option.partition('=')[0]}; give the folder that is meant"):
        open_data(f"hf:{where}?{option}", 8)


@pytest.mark.parametrize("form", ["webdataset", "folder"])
@pytest.mark.parametrize("inside", [".", "job", "deep/job"])
def test_a_job_among_its_items_is_refused_at_its_beginning(
    form: str, inside: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards would be items when it goes on, and it would be another job then."""
    monkeypatch.chdir(folder)
    for given, place in ((folder, folder / inside), (Path("."), Path(inside))):
        with pytest.raises(ConfigError, match="would be read as images the next time"):
            jobs_cases.run(small.quick_model(), place, given=given, format=form)
    assert sorted(path.suffix for path in folder.rglob("*")) == [".png"] * COUNT


def test_a_job_on_tables_does_not_lie_among_them(tmp_path: Path) -> None:
    """Neither as tables, nor as shards, which would be taken in their place."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = np.zeros((2, small.DIM), np.float32)
    parquet.write_table(arrow.table({"h": rows.tolist()}), tmp_path / "h.parquet")
    for form in ("parquet", "webdataset"):
        with pytest.raises(ConfigError, match="would be read as images the next time"):
            jobs_cases.run(small.quick_model(), tmp_path / "job", given=tmp_path, format=form, steps=1)


def test_a_job_beside_shards_is_refused_too(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for each in sorted(folder.iterdir()):
            tar.add(each, each.name)
    with pytest.raises(ConfigError, match="would be read as images the next time"):
        jobs_cases.run(small.quick_model(), tmp_path / "shards" / "job", given=tmp_path / "shards", steps=1)


def test_a_split_is_a_word_of_the_names_of_its_files(tmp_path: Path) -> None:
    """The word test is in latest, and train in constrained: images of another split were taken for this one's."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ("latest/train-0", "constrained/test_0", "data/validation-00000", "pretrain")
    for place, name in enumerate(names):
        file = tmp_path / f"{name}.parquet"
        file.parent.mkdir(exist_ok=True)
        levels = small.make_images(place + 1, 8).add(1).mul(127).byte().permute(0, 2, 3, 1).tolist()
        kind = arrow.list_(arrow.list_(arrow.list_(arrow.uint8())))
        parquet.write_table(arrow.table({"image": arrow.array(levels, kind)}), file)
    for split, count in (("train", 1), ("test", 2), ("val", 3), ("validation", 3)):
        assert len(open_data(f"hf:{tmp_path}?split={split}", 8)) == count


def test_files_of_tables_are_asked_for_their_sizes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for every row: a million rows in three hundred files would be asked 300 million times."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name in "ab":
        parquet.write_table(arrow.table({"image": [b"x"] * 50}), tmp_path / f"{name}.parquet")
    source = random_access.find(tmp_path)
    asked: list[Path] = []
    stat = Path.stat

    def counted(self: Path, **options: Any) -> Any:
        asked.append(self)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", counted)
    hashed = random_access.fingerprint(source)
    assert len(asked) == 2
    assert hashed == random_access.fingerprint(random_access.find(tmp_path))
