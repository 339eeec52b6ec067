"""Items of every kind of source: by place, with ids, and with errors that say what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import ImageError, to_uint8
from rcdm_fast.jobs import ledger
from tests import jobs_cases, small

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

H = np.random.default_rng(0).standard_normal((5, small.DIM)).astype(np.float32)


def levels(count: int = 3) -> np.ndarray:
    return to_uint8(small.make_images(count)).permute(0, 2, 3, 1).contiguous().numpy()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def same_images(source: random_access.Source, expected: np.ndarray) -> None:
    assert source.kind == "image"
    assert len(source) == len(expected)
    for place in reversed(range(len(source))):
        image = source.read(place)
        assert isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(image), expected[place])


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
    source = random_access.find(tmp_path)
    same_images(source, levels())
    assert [source.id(place) for place in range(3)] == ["sub/0.png", "sub/1.png", "sub/2.png"]
    before = random_access.fingerprint(source)
    (tmp_path / "sub" / "1.png").write_bytes(png(np.zeros((40, 40, 3), np.uint8)))
    assert random_access.fingerprint(random_access.find(tmp_path)) != before


def test_one_image_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(levels()[0]))
    same_images(random_access.find(tmp_path / "a.png"), levels(1))


@pytest.mark.parametrize("first", [False, True])
def test_arrays_of_images(tmp_path: Path, first: bool) -> None:
    np.save(tmp_path / "a.npy", levels().transpose(0, 3, 1, 2) if first else levels())
    same_images(random_access.find(tmp_path / "a.npy"), levels())


def test_tensors_and_lists_of_images() -> None:
    same_images(random_access.find(small.make_images(3)), levels())
    same_images(random_access.find([Image.fromarray(each) for each in levels()]), levels())


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
        source = random_access.find(tmp_path / name)
        assert (source.kind, len(source)) == ("representation", 5), name
        for place in (4, 0, 3):
            value = source.read(place)
            assert isinstance(value, torch.Tensor)
            assert np.array_equal(value.numpy(), H[place]), name
        assert source.id(2) == ("2" if name == "h.npy" else "n2")


def test_labels_and_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([3, 1, 4]))
    labels = random_access.find(tmp_path / "l.npy")
    assert labels.kind == "label"
    assert [int(np.asarray(labels.read(place))) for place in range(3)] == [3, 1, 4]
    assert (random_access.find("12").kind, len(random_access.find(12))) == ("nothing", 12)


def test_shards(tmp_path: Path) -> None:
    pixels = levels(4)
    about = [("json", b"{}"), ("cls", b"1")]
    members = [(f"a/{number}.{name}", content) for number in (0, 1) for name, content in (*about, ("png", b""))]
    members = [(name, png(pixels[int(name[2])]) if name.endswith("png") else content) for name, content in members]
    write_shard(tmp_path / "s-0.tar", members)
    write_shard(tmp_path / "s-1.tar", [(f"b{number}.seg.png", b"x") for number in (2,)] + [("b2.png", png(pixels[2]))])
    source = random_access.find(str(tmp_path / "s-{0..1}.tar"))
    same_images(source, pixels[:3])
    assert [source.id(place) for place in range(3)] == ["a/0", "a/1", "b2"]
    for hidden in (".s-2.tar", "._a.png", ".c.parquet"):
        (tmp_path / hidden).write_bytes(b"not finished")
    same_images(random_access.find(tmp_path), pixels[:3])


def test_columns_of_images(tmp_path: Path) -> None:
    files = [{"bytes": png(each), "path": None} for each in levels()]
    for number, part in enumerate((files[:2], files[2:])):
        parquet.write_table(pyarrow.table({"image": part}), tmp_path / f"{number}.parquet")
    same_images(random_access.find(tmp_path), levels())


def test_hugging_face_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved folder, one with splits, and a name that the library knows: the same rows, at any place."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["day", "night"])})
    rows = {"img": [Image.fromarray(array) for array in levels()], "label": [0, 1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    other = table.select(range(1))
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": other, "test": table}).save_to_disk(str(tmp_path / "splits"))
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, configuration: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, configuration, split, revision))
        return table if split == "test" else other

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    split = "?split=test&image=img"
    for name in (tmp_path / "one", f"hf:{tmp_path / 'one'}", f"hf:{tmp_path / 'splits'}{split}", f"hf:a/b{split}"):
        same_images(random_access.find(name, ("image", "representation")), levels())
    assert asked == [("a/b", None, "test", None)]
    assert len(random_access.find(tmp_path / "splits")) == 1  # the training split, as in training
    fetched = random_access.find(f"hf:a/b{split}")
    assert [fetched.id(place) for place in range(3)] == ["0", "1", "2"]
    assert len({random_access.hash_of(fetched, place) for place in range(3)}) == 3
    for wrong, message in (
        ("?split=none", "no split"),
        ("?split=test&image=x", "no column 'x'"),
        ("?color=x", "unknown"),
    ):
        with pytest.raises(ImageError, match=message):
            random_access.find(f"hf:{tmp_path / 'splits'}{wrong}")
    with pytest.raises(ImageError, match="no column 'x'"):
        random_access.find("hf:a/b?image=x")


def test_ids_that_come_twice_are_refused(tmp_path: Path) -> None:
    content = png(levels()[0])
    write_shard(tmp_path / "a.tar", [("x.png", content), ("y.png", content), ("x.png", content)])
    with pytest.raises(ConfigError, match="1 of 3 items have an id that another one has: x"):
        random_access.find(tmp_path)
    np.savez(tmp_path / "h.npz", h=H, ids=np.array(["a", "b", "a", "b", "a"]))
    with pytest.raises(ConfigError, match="3 of 5 items have an id that another one has: a, b"):
        random_access.find(tmp_path / "h.npz")
    path = tmp_path / "one.png"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="another one has"):
        random_access.find([path, path])


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
            random_access.find(given)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(storage.StorageError, match="cannot be read"):
        random_access.find(tmp_path / "bad.parquet")
    np.save(tmp_path / "odd.npy", np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ConfigError, match=r"expected representations float \[N,D\]"):
        random_access.find(tmp_path / "odd.npy")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="no column of representations"):
        random_access.find(tmp_path / "other.parquet")
    np.save(tmp_path / "empty.npy", np.zeros((0, 6), np.float32))
    with pytest.raises(ImageError, match="there is nothing in it"):
        random_access.find(tmp_path / "empty.npy")


def test_bad_items_are_errors_of_their_own(tmp_path: Path) -> None:
    rows = H.copy()
    rows[3, 2] = np.inf
    np.save(tmp_path / "h.npy", rows)
    source = random_access.find(tmp_path / "h.npy")
    source.read(2)
    with pytest.raises(ImageError, match="item 3: the representation is not finite"):
        source.read(3)
    write_shard(tmp_path / "a.tar", [("x.png", b"no image"), ("y.png", png(levels()[0]))])
    shard = random_access.find(tmp_path / "a.tar")
    shard.read(1)
    with pytest.raises(ImageError, match="cannot be read as an image"):
        shard.read(0)


def test_rows_that_do_not_fit_are_quarantined(tmp_path: Path) -> None:
    """Of another width, empty, missing, or with gaps: each is named, and the others are drawn."""
    rows: list[list[float | None] | None] = [*H.tolist()]
    rows[1], rows[2], rows[3] = rows[1][:4], None, [None, *H[3].tolist()[1:]]  # type: ignore[index]
    kind = pyarrow.list_(pyarrow.float32())
    table = pyarrow.table({"representation": pyarrow.array(rows, kind)})
    parquet.write_table(table, tmp_path / "h.parquet")
    summary = jobs_cases.run(small.quick_model(), tmp_path / "job", given=tmp_path / "h.parquet", per=1)
    assert (summary.images, summary.quarantined, summary.complete) == (2, 3, True)
    bad = {row["item"]: row["reason"] for row in ledger.read_lines(tmp_path / "job" / "quarantine.jsonl")}
    assert "has 4 dimensions, the model needs 6" in bad[1]
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
    jobs_cases.run(small.quick_model(), tmp_path / "job", given=path, per=1)
    write(H)  # the same numbers: nothing to do
    assert jobs_cases.run(small.quick_model(), tmp_path / "job", given=path, per=1).complete
    changed = H.copy()
    changed[4, 0] += 1
    write(changed)
    with pytest.raises(ConfigError, match=r"items\.sha256 was"):
        jobs_cases.run(small.quick_model(), tmp_path / "job", given=path, per=1)


@pytest.mark.parametrize("key", ["images", "x", "arr_0", "photographs"])
def test_labelled_images_are_images_or_labels_as_wanted(tmp_path: Path, key: str) -> None:
    arrays = {"labels": np.array([[5], [6], [7]]), key: levels()}
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    same_images(random_access.find(tmp_path / "set.npz", ("image", "representation")), levels())
    if key != "photographs":
        same_images(random_access.find(tmp_path / "set.npz"), levels())
    labels = random_access.find(tmp_path / "set.npz", ("label",))
    assert [int(np.asarray(labels.read(place))) for place in range(3)] == [5, 6, 7]


def test_a_model_takes_of_a_file_what_it_needs(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=levels(), labels=np.array([1, 0, 1]), embeddings=H[:3])
    for model, drawn in ((small.quick_model(), 3), (small.model(representation_dim=0, num_classes=2), 3)):
        summary = jobs_cases.run(
            model, tmp_path / f"job-{model.config.unet.num_classes}", given=tmp_path / "set.npz", per=1
        )
        assert (summary.images, summary.quarantined) == (drawn, 0)


@pytest.mark.parametrize(
    "rows",
    [
        H.astype(np.float64),
        H.astype(">f4"),
        np.asfortranarray(H),
        H.reshape(5, 1, 6),
        H.reshape(5, 6, 1, 1),
        H.astype(np.longdouble),
    ],
)
def test_forms_of_representations(tmp_path: Path, rows: np.ndarray) -> None:
    np.save(tmp_path / "h.npy", rows)
    np.savez_compressed(tmp_path / "h.npz", clip=rows, note=np.array(["a", "b"]))
    for given in (tmp_path / "h.npy", tmp_path / "h.npz", rows):
        source = random_access.find(given)
        assert (source.kind, len(source), source.width()) == ("representation", 5, 6)
        assert np.array_equal(np.asarray(source.read(3)), H[3])


def test_structured_arrays(tmp_path: Path) -> None:
    table = np.zeros(5, dtype=[("id", "U3"), ("embedding", "<f4", (6,)), ("label", "<i8")])
    table["id"], table["embedding"], table["label"] = list("pqrst"), H, np.arange(5)
    np.save(tmp_path / "a.npy", table)
    source = random_access.find(tmp_path / "a.npy")
    assert (source.kind, source.id(1)) == ("representation", "q")
    assert np.array_equal(np.asarray(source.read(4)), H[4])


def test_gray_images(tmp_path: Path) -> None:
    gray = levels()[..., 0]
    for form in (gray, gray[..., None], gray[:, None]):
        np.save(tmp_path / "a.npy", form)
        same_images(random_access.find(tmp_path / "a.npy"), np.repeat(gray[..., None], 3, axis=3))


def test_names_of_classes_are_no_ids(tmp_path: Path) -> None:
    for names in (["cat", "dog"], ["cat", "dog", "cat", "cat", "dog"]):
        np.savez(tmp_path / "h.npz", h=H, names=np.array(names))
        assert random_access.find(tmp_path / "h.npz").id(3) == "3"
    np.savez(tmp_path / "h.npz", h=H, names=np.array(list("pqrst")))
    assert random_access.find(tmp_path / "h.npz").id(3) == "s"


def test_ids_of_safetensors_that_are_none(tmp_path: Path) -> None:
    for told in ("[" * 100_000, "{", "3", '{"a": 1}', "[[1], 2]"):
        storage.save_tensors(tmp_path / "h.safetensors", {"h": torch.from_numpy(H)}, {"ids": told})
        with pytest.raises(storage.StorageError, match="its ids cannot be read"):
            random_access.find(tmp_path / "h.safetensors")


def test_the_same_keys_in_two_shards(tmp_path: Path) -> None:
    pixels = levels(4)
    for name, first in (("train/a.tar", 0), ("val/a.tar", 2)):
        (tmp_path / name).parent.mkdir()
        write_shard(tmp_path / name, [(f"{number}.png", png(pixels[first + number])) for number in range(2)])
    source = random_access.find(tmp_path)
    same_images(source, pixels)
    assert [source.id(place) for place in range(4)] == ["train/a/0", "train/a/1", "val/a/0", "val/a/1"]
    joined = (tmp_path / "train" / "a.tar").read_bytes() + (tmp_path / "val" / "a.tar").read_bytes()
    (tmp_path / "joined.tar").write_bytes(joined)
    source = random_access.find(tmp_path / "joined.tar")
    same_images(source, pixels)
    assert [source.id(place) for place in range(4)] == ["joined/0", "joined/1", "joined/2/0", "joined/2/1"]


def test_members_with_dots_and_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = levels(5)
    names = ["a.jpg", "b.v2.jfif", "b.v3.avif", "c.JPEG", "d.png"]
    members = [(name, png(each)) for name, each in zip(names, pixels, strict=True)]
    write_shard(tmp_path / "a.tar", [*members, ("d.seg.png", b"x"), ("e.heic", b"x"), ("._f.jpg", b"x")])
    source = random_access.find(tmp_path / "a.tar")
    same_images(source, pixels)
    assert [source.id(place) for place in range(5)] == ["a", "b.v2", "b.v3", "c", "d"]
    assert "2 members left out: 1 .seg.png, 1 .heic" in caplog.text
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        first = tarfile.TarInfo("x/a.png")
        first.size = len(png(pixels[0]))
        tar.addfile(first, io.BytesIO(png(pixels[0])))
        for name, kind, link in (("b.png", tarfile.LNKTYPE, "x/a.png"), ("x/c.png", tarfile.SYMTYPE, "a.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member)
    same_images(random_access.find(tmp_path / "links.tar"), pixels[[0, 0, 0]])


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.gz", "a.tar", "a.dat", "a.zip"])
def test_a_packed_archive_is_no_image(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / "whole", [("x.png", png(levels()[0]))])
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "whole").read_bytes()))
    with pytest.raises(ImageError, match="packed with gzip; a job reads uncompressed"):
        random_access.find(tmp_path / name)
    assert len(open_data(tmp_path / name, 8)) == 1
    same_images(random_access.find(tmp_path / "whole"), levels(1))


def test_names_in_shards_that_are_no_utf8(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("caf\udce9.png", png(levels()[0]))])
    source = random_access.find(tmp_path / "a.tar")
    assert source.id(0) == "caf\\xe9"
    assert len(random_access.fingerprint(source)) == 64
    write_shard(tmp_path / "a.tar", [("caf\udce9.png", png(levels()[0])), ("caf\\xe9.png", png(levels()[1]))])
    with pytest.raises(ConfigError, match="id that another one has"):
        random_access.find(tmp_path / "a.tar")


def test_hashes_of_halves_of_characters() -> None:
    class Odd(random_access.Nothing):
        def id(self, place: int) -> str:
            return "\ud800\udce9\udfff"[place]

    hashes = [random_access.hash_of(Odd(3), place) for place in range(3)]
    assert len({*hashes, random_access.hash_of(random_access.Nothing(1), 0)}) == 4
