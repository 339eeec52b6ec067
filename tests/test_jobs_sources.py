"""Items of every kind of source: by place, with ids, and with errors that say what is wrong."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast import images, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.images import ImageError
from rcdm_fast.jobs import ledger, sources
from tests import jobs_cases, small

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

H = np.random.default_rng(0).standard_normal((5, small.DIM)).astype(np.float32)


def levels(count: int = 3) -> np.ndarray:
    return images.to_uint8(small.pictures(count)).permute(0, 2, 3, 1).contiguous().numpy()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def same_pictures(source: sources.Source, expected: np.ndarray) -> None:
    assert source.kind == "picture"
    assert len(source) == len(expected)
    for place in reversed(range(len(source))):
        picture = source.read(place)
        assert isinstance(picture, Image.Image)
        assert np.array_equal(np.asarray(picture), expected[place])


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_folder(tmp_path: Path) -> None:
    for number, each in enumerate(levels()):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / f"{number}.png").write_bytes(png(each))
    source = sources.find(tmp_path)
    same_pictures(source, levels())
    assert [source.id(place) for place in range(3)] == ["sub/0.png", "sub/1.png", "sub/2.png"]
    before = sources.fingerprint(source)
    (tmp_path / "sub" / "1.png").write_bytes(png(np.zeros((40, 40, 3), np.uint8)))
    assert sources.fingerprint(sources.find(tmp_path)) != before


def test_one_picture_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(levels()[0]))
    same_pictures(sources.find(tmp_path / "a.png"), levels(1))


@pytest.mark.parametrize("first", [False, True])
def test_arrays_of_pictures(tmp_path: Path, first: bool) -> None:
    np.save(tmp_path / "a.npy", levels().transpose(0, 3, 1, 2) if first else levels())
    same_pictures(sources.find(tmp_path / "a.npy"), levels())


def test_tensors_and_lists_of_pictures() -> None:
    same_pictures(sources.find(small.pictures(3)), levels())
    same_pictures(sources.find([Image.fromarray(each) for each in levels()]), levels())


def test_representations(tmp_path: Path) -> None:
    np.save(tmp_path / "h.npy", H)
    np.savez(tmp_path / "h.npz", h=H, ids=np.array([f"n{number}" for number in range(5)]))
    ids = json.dumps([f"n{number}" for number in range(5)])
    storage.save_tensors(tmp_path / "h.safetensors", {"representations": torch.from_numpy(H)}, {"paths": ids})
    rows = pyarrow.table({"id": [f"n{number}" for number in range(5)], "representation": H.tolist()})
    parquet.write_table(rows, tmp_path / "h.parquet", row_group_size=2)
    with pyarrow.OSFile(str(tmp_path / "h.arrow"), "wb") as file, pyarrow.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    for name in ("h.npy", "h.npz", "h.safetensors", "h.parquet", "h.arrow"):
        source = sources.find(tmp_path / name)
        assert (source.kind, len(source)) == ("representation", 5), name
        for place in (4, 0, 3):
            value = source.read(place)
            assert isinstance(value, torch.Tensor)
            assert np.array_equal(value.numpy(), H[place]), name
        assert source.id(2) == ("2" if name == "h.npy" else "n2")


def test_labels_and_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([3, 1, 4]))
    labels = sources.find(tmp_path / "l.npy")
    assert labels.kind == "label"
    assert [int(np.asarray(labels.read(place))) for place in range(3)] == [3, 1, 4]
    assert (sources.find("12").kind, len(sources.find(12))) == ("nothing", 12)


def test_shards(tmp_path: Path) -> None:
    pixels = levels(4)
    about = [("json", b"{}"), ("cls", b"1")]
    members = [(f"a/{number}.{name}", content) for number in (0, 1) for name, content in (*about, ("png", b""))]
    members = [(name, png(pixels[int(name[2])]) if name.endswith("png") else content) for name, content in members]
    write_shard(tmp_path / "s-0.tar", members)
    write_shard(tmp_path / "s-1.tar", [(f"b{number}.seg.png", b"x") for number in (2,)] + [("b2.png", png(pixels[2]))])
    source = sources.find(str(tmp_path / "s-{0..1}.tar"))
    same_pictures(source, pixels[:3])
    assert [source.id(place) for place in range(3)] == ["a/0", "a/1", "b2"]
    for hidden in (".s-2.tar", "._a.png", ".c.parquet"):
        (tmp_path / hidden).write_bytes(b"not finished")
    same_pictures(sources.find(tmp_path), pixels[:3])


def test_columns_of_pictures(tmp_path: Path) -> None:
    files = [{"bytes": png(each), "path": None} for each in levels()]
    for number, part in enumerate((files[:2], files[2:])):
        parquet.write_table(pyarrow.table({"image": part}), tmp_path / f"{number}.parquet")
    same_pictures(sources.find(tmp_path), levels())


def test_ids_that_come_twice_are_refused(tmp_path: Path) -> None:
    content = png(levels()[0])
    write_shard(tmp_path / "a.tar", [("x.png", content), ("y.png", content), ("x.png", content)])
    with pytest.raises(ConfigError, match="1 of 3 items have an id that another one has: x"):
        sources.find(tmp_path)
    np.savez(tmp_path / "h.npz", h=H, ids=np.array(["a", "b", "a", "b", "a"]))
    with pytest.raises(ConfigError, match="3 of 5 items have an id that another one has: a, b"):
        sources.find(tmp_path / "h.npz")
    path = tmp_path / "one.png"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="another one has"):
        sources.find([path, path])


def test_damaged_and_missing_sources(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("x.png", png(levels()[0]))])
    (tmp_path / "torn.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1500])
    for given, error, text in (
        (tmp_path / "torn.tar", ImageError, "the end of the archive is missing"),
        (tmp_path / "none.tar", ImageError, "missing"),
        (tmp_path / "none.npy", storage.StorageError, "no such file"),
        (tmp_path / "none", ImageError, "no such folder"),
        ("pipe:cat a.tar", ImageError, "lie on this machine"),
    ):
        with pytest.raises(error, match=text):
            sources.find(given)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(storage.StorageError, match="cannot be read"):
        sources.find(tmp_path / "bad.parquet")
    np.save(tmp_path / "odd.npy", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ConfigError, match=r"expected representations float \[N,D\]"):
        sources.find(tmp_path / "odd.npy")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="no column of representations"):
        sources.find(tmp_path / "other.parquet")
    np.save(tmp_path / "empty.npy", np.zeros((0, 6), np.float32))
    with pytest.raises(ImageError, match="there is nothing in it"):
        sources.find(tmp_path / "empty.npy")


def test_bad_items_are_errors_of_their_own(tmp_path: Path) -> None:
    rows = H.copy()
    rows[3, 2] = np.inf
    np.save(tmp_path / "h.npy", rows)
    source = sources.find(tmp_path / "h.npy")
    source.read(2)
    with pytest.raises(ImageError, match="item 3: the representation is not finite"):
        source.read(3)
    write_shard(tmp_path / "a.tar", [("x.png", b"no picture"), ("y.png", png(levels()[0]))])
    shard = sources.find(tmp_path / "a.tar")
    shard.read(1)
    with pytest.raises(ImageError, match="cannot be read as a picture"):
        shard.read(0)


def test_rows_that_do_not_fit_are_quarantined(tmp_path: Path) -> None:
    """Of another width, empty, missing, or with gaps: each is named, and the others are drawn."""
    rows: list[list[float | None] | None] = [*H.tolist()]
    rows[1], rows[2], rows[3] = rows[1][:4], None, [None, *H[3].tolist()[1:]]  # type: ignore[index]
    kind = pyarrow.list_(pyarrow.float32())
    table = pyarrow.table({"representation": pyarrow.array(rows, kind)})
    parquet.write_table(table, tmp_path / "h.parquet")
    summary = jobs_cases.run(small.model(), tmp_path / "job", given=tmp_path / "h.parquet", per=1)
    assert (summary.pictures, summary.quarantined, summary.complete) == (2, 3, True)
    bad = {row["item"]: row["reason"] for row in ledger.read_lines(tmp_path / "job" / "quarantine.jsonl")}
    assert "has 4 numbers, the model needs 6" in bad[1]
    assert all("is empty, has gaps, or is not finite" in bad[item] for item in (2, 3))
    assert [row["item"] for row in jobs_cases.manifest(tmp_path / "job")] == [0, 4]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_changed_numbers_are_another_job(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"h.{form}"

    def write(h: np.ndarray) -> None:
        table = pyarrow.table({"representation": h.tolist()})
        if form == "parquet":
            parquet.write_table(table, path)
            return
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write(H)
    jobs_cases.run(small.model(), tmp_path / "job", given=path, per=1)
    write(H)  # the same numbers: nothing to do
    assert jobs_cases.run(small.model(), tmp_path / "job", given=path, per=1).complete
    changed = H.copy()
    changed[4, 0] += 1
    write(changed)
    with pytest.raises(ConfigError, match=r"items\.sha256 was"):
        jobs_cases.run(small.model(), tmp_path / "job", given=path, per=1)
