"""Finished jobs open with the packages that people use, by the snippets of docs/generate.md and the example."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rcdm_fast
from rcdm_fast import storage
from rcdm_fast.images import save_image, to_pil, to_uint8
from rcdm_fast.jobs import formats, shard_tables
from rcdm_fast.jobs.settings import FORMATS, Format, JobConfig
from rcdm_fast.jobs.shard import ShardImage
from tests import jobs_cases, small
from tests.jobs_cases import manifest

pytest.importorskip("webdataset")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small job in every form, and photographs."""
    folder = tmp_path_factory.mktemp("jobs")
    model = small.quick_model()
    for form in FORMATS:
        jobs_cases.run(model, folder / f"job-{form}", format=form)
    for number, each in enumerate(small.make_images(3, size=40)):
        save_image(to_pil(each), folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def levels(jobs: Path) -> np.ndarray:
    """uint8 [N,8,8,3] of all images."""
    found: np.ndarray = np.load(jobs / "job-npz" / "samples.npz")["arr_0"]
    return found


def snippets(checkout: Path) -> dict[str, str]:
    """Python examples of the page, by a word that each has."""
    blocks = re.findall(r"```python\n(.*?)```", (checkout / "docs" / "generate.md").read_text(), re.DOTALL)
    words = ("webdataset", "np.load", "read_table", "job-folder", "rcdm_fast.generate")
    found = {word: next(block for block in blocks if word in block) for word in words}
    assert len(set(found.values())) == len(blocks) == len(words)
    return found


@pytest.fixture
def run_snippet(checkout: Path, jobs: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(word: str) -> dict[str, Any]:
        monkeypatch.chdir(jobs)
        names: dict[str, Any] = {}
        exec(snippets(checkout)[word], names)
        return names

    return run


def test_webdataset(run_snippet: Any, levels: np.ndarray, jobs: Path) -> None:
    names = run_snippet("webdataset")
    last = manifest(jobs / "job-webdataset")[5]  # two items of three images in a shard
    assert names["about"] == {key: last[key] for key in ("item", "id", "sample", "seed")}
    assert np.array_equal(np.asarray(names["image"]), levels[5])


def test_npz(run_snippet: Any, levels: np.ndarray) -> None:
    assert np.array_equal(run_snippet("np.load")["images"], levels)
    assert levels.shape == (27, 8, 8, 3)
    assert levels.dtype == np.uint8


def test_parquet(run_snippet: Any, levels: np.ndarray) -> None:
    names = run_snippet("read_table")
    assert np.array_equal(np.asarray(names["image"]), levels[0])
    assert names["ids"] == [str(item) for item in range(9) for _ in range(3)]


def test_parquet_as_a_hugging_face_dataset(jobs: Path, levels: np.ndarray, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(str(file) for file in (jobs / "job-parquet" / "shards").iterdir())
    found = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path))
    assert np.array_equal(np.asarray(found[4]["image"]), levels[4])
    assert (found[4]["item"], found[4]["sample"]) == (1, 1)


def test_folder(run_snippet: Any, levels: np.ndarray, jobs: Path) -> None:
    assert np.array_equal(np.asarray(run_snippet("job-folder")["image"]), levels[0])
    assert len(list((jobs / "job-folder" / "shards").rglob("*.png"))) == 27


def test_the_same_images_in_every_form(jobs: Path) -> None:
    images = [[row["sha256"] for row in manifest(jobs / f"job-{form}")] for form in ("webdataset", "folder")]
    assert images[0] == images[1] == [row["sha256"] for row in manifest(jobs / "job-parquet")]


def test_generate_in_python(run_snippet: Any) -> None:
    batch = run_snippet("rcdm_fast.generate")["batch"]
    assert batch.images.shape == (12, 3, 32, 32)
    assert batch.ids == tuple(f"{number}.png" for number in range(3) for _ in range(4))


def test_the_data_loader_example(
    checkout: Path, jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small.quick_model()
    monkeypatch.setattr(rcdm_fast, "load", lambda name: model)
    monkeypatch.setattr(sys, "argv", ["generate_dataset.py", str(jobs / "photos")])
    runpy.run_path(str(checkout / "examples" / "generate_dataset.py"), run_name="__main__")
    assert capsys.readouterr().out == "[12, 3, 8, 8] torch.uint8, of items [0, 1, 2]\n"


@pytest.mark.parametrize(
    ("encoding", "quality", "exact"), [("png", 95, True), ("webp", 100, True), ("jpeg", 95, False)]
)
def test_encodings(tmp_path: Path, encoding: Any, quality: int, exact: bool) -> None:
    form = formats.find(JobConfig(encoding=encoding, quality=quality))
    image = to_uint8(small.make_images(1, size=32))[0].permute(1, 2, 0).contiguous().numpy()
    (tmp_path / "image").write_bytes(form.encode(image))
    with Image.open(tmp_path / "image") as file:
        assert file.format == encoding.upper()
        difference = np.abs(np.asarray(file).astype(int) - image).max()
    assert (difference == 0) if exact else (0 < difference < 12)


@pytest.mark.parametrize(
    ("encoding", "quality", "options"),
    [
        ("jpeg", 95, {"quality": 95, "subsampling": "4:4:4"}),
        ("jpeg", 30, {"quality": 30, "subsampling": "4:4:4"}),
        ("jpeg", 100, {"quality": 100, "subsampling": "4:4:4"}),
        ("webp", 99, {"quality": 99}),
        ("webp", 100, {"lossless": True}),
        ("png", 30, {}),
    ],
)
def test_files_are_as_pillow_writes_them(encoding: Any, quality: int, options: dict[str, Any]) -> None:
    """Color at full resolution in a JPEG, WebP without loss at 100 only."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, encoding, **options)
    assert formats.find(JobConfig(encoding=encoding, quality=quality)).encode(levels) == file.getvalue()


def made(sizes: list[int], seed: int = 0) -> list[ShardImage]:
    return [
        ShardImage(f"k{number}", {"item": 3, "id": f"n{number}", "sample": number, "seed": seed}, bytes(size))
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_names_in_a_shard(tmp_path: Path, encoding: Any) -> None:
    """Whatever the form: the key, and the usual extension; a tar describes every image beside it."""
    extension = {"png": "png", "jpeg": "jpg", "webp": "webp"}[encoding]
    names = [f"k{number}.{extension}" for number in range(2)]
    starts: dict[Format, list[int]] = {"webdataset": [512, 512 + 4 * 512], "folder": [0, 1], "parquet": [0, 1]}
    for form, offsets in starts.items():
        shards = formats.find(JobConfig(format=form, encoding=encoding))
        assert shards.write(tmp_path / form, made([4, 5]), (0, 0)) == offsets
    assert sorted(each.name for each in (tmp_path / "folder").iterdir()) == names
    with tarfile.open(tmp_path / "webdataset") as tar:
        members = tar.getmembers()
        assert [each.name for each in members] == [names[0], "k0.json", names[1], "k1.json"]
        assert {(each.mode, each.mtime, each.uid, each.uname) for each in members} == {(0o644, 0, 0, "")}
        about = tar.extractfile("k1.json")
        assert about is not None
        assert json.loads(about.read()) == {"item": 3, "id": "n1", "sample": 1, "seed": 0}
    found = parquet.read_table(tmp_path / "parquet")
    assert [each["path"] for each in found["image"].to_pylist()] == names


def test_rows_of_a_table(tmp_path: Path) -> None:
    """The largest seed too; and the features that Hugging Face datasets reads are those of the columns."""
    formats.find(JobConfig(format="parquet")).write(tmp_path / "a.parquet", made([4, 5], 2**64 - 1), (0, 0))
    found = parquet.read_table(tmp_path / "a.parquet")
    assert found.column_names == ["image", "item", "id", "sample", "seed"]
    assert found.select(["item", "id", "sample", "seed"]).to_pylist() == [
        {"item": 3, "id": f"n{number}", "sample": number, "seed": 2**64 - 1} for number in range(2)
    ]
    features = json.loads(found.schema.metadata[b"huggingface"])["info"]["features"]
    kinds = {name: each.get("dtype", each["_type"]) for name, each in features.items()}
    assert kinds == {"image": "Image", "item": "int64", "id": "string", "sample": "int64", "seed": "uint64"}


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], [0]),
        ([400], [1]),
        ([100, 200], [2]),
        ([100, 200, 1], [2, 1]),
        ([100, 150, 100, 150, 100], [2, 2, 1]),
        ([301, 301], [1, 1]),
    ],
)
def test_groups_of_rows_hold_what_a_column_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], groups: list[int]
) -> None:
    monkeypatch.setattr(shard_tables, "GROUP_BYTES", 300)
    images = made(sizes)
    shards = formats.find(JobConfig(format="parquet"))
    offsets = shards.write(tmp_path / "a.parquet", images, (0, 0))
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == groups
    assert list(shards.read(tmp_path / "a.parquet", [{"offset": each} for each in offsets])) == [
        each.payload for each in images
    ]


@pytest.mark.parametrize("form", ["webdataset", "npz", "parquet"])
def test_rows_in_any_order_and_beyond_the_shard(tmp_path: Path, form: Any) -> None:
    shards = formats.find(JobConfig(format=form))
    images = [ShardImage(each.key, each.about, bytes([number]) * 12) for number, each in enumerate(made([12] * 3))]
    offsets = shards.write(tmp_path / "shard", images, (2, 2))
    rows = [{"offset": offset, "bytes": 12} for offset in (offsets[2], offsets[0], offsets[0], 1 << 40, offsets[1])]
    assert list(shards.read(tmp_path / "shard", rows)) == [bytes([2]) * 12, bytes(12), bytes(12), b"", bytes([1]) * 12]
    if form != "webdataset":
        assert list(shards.read(tmp_path / "shard", [{"offset": 3, "bytes": 12}])) == [b""]


def test_arrays_are_joined_and_read_to_their_end(tmp_path: Path) -> None:
    shards = formats.find(JobConfig(format="npz"))
    for number in range(3):
        contents = [bytes([10 * number + place]) * 36 for place in range(2)]
        images = [ShardImage("k", {}, content) for content in contents]
        shards.write(tmp_path / f"{number}.npz", images, (3, 4))
    paths = [tmp_path / f"{number}.npz" for number in (2, 0, 1)]
    formats.join_arrays(paths, tmp_path / "all.npz", 6, (3, 4))
    with np.load(tmp_path / "all.npz") as found:
        assert (found["arr_0"].shape, found["arr_0"].dtype) == ((6, 3, 4, 3), np.uint8)
        assert found["arr_0"][:, 2, 3, 1].tolist() == [20, 21, 0, 1, 10, 11]
    assert [each[0] for each in formats.joined_payloads(tmp_path / "all.npz")] == [20, 21, 0, 1, 10, 11]
    formats.join_arrays(paths, tmp_path / "long.npz", 5, (3, 4))
    with pytest.raises(storage.StorageError, match=r"long\.npz: cannot be read \(.*more than its header says"):
        list(formats.joined_payloads(tmp_path / "long.npz"))


def test_room_that_is_surely_needed() -> None:
    """Of npz the shards that are missing, and all images once more in one file."""
    assert formats.size_bytes(JobConfig(format="npz"), 16, 5, 20) == 16 * 16 * 3 * 25
    assert formats.size_bytes(JobConfig(), 16, 5, 20) == 0


def test_shards_do_not_depend_on_time_or_user(jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    previous = os.umask(0o077)
    try:
        for form in FORMATS:
            jobs_cases.run(model, tmp_path / form, format=form)
    finally:
        os.umask(previous)
    for form in FORMATS:
        shards = sorted(each for each in (tmp_path / form / "shards").rglob("*") if each.is_file())
        assert shards
        for each in shards:
            before = jobs / f"job-{form}" / "shards" / each.relative_to(tmp_path / form / "shards")
            assert each.read_bytes() == before.read_bytes()


def test_npz_is_a_plain_archive(jobs: Path) -> None:
    with zipfile.ZipFile(jobs / "job-npz" / "samples.npz") as archive:
        assert archive.testzip() is None
    assert json.loads((jobs / "job-npz" / "summary.json").read_text())["images"] == 27


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_LEVELS = np.zeros((2, 8, 8, 3), np.uint8)
_CLAIMS = _npy(_LEVELS).replace(b"(2, 8, 8, 3)", b"(2, 99999, 8, 3)").replace(b"    \n", b"\n", 1)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"arr_0": b"no array at all"},
        {"arr_0.npy": b"no array at all"},
        {"arr_0.npy": _npy(_LEVELS.astype(np.float32))},
        {"arr_0.npy": _npy(_LEVELS[0])},
        {"arr_0.npy": _CLAIMS},
        {"arr_1.npy": _npy(_LEVELS)},
    ],
    ids=["none", "bytes", "text", "floats", "one", "claims", "another"],
)
def test_a_file_that_is_no_array_of_images(members: dict[str, bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "000000.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(storage.StorageError, match=r"000000\.npz"):
        list(formats.Arrays().read(tmp_path / "000000.npz", [{"offset": 0}]))
    with pytest.raises(storage.StorageError, match=r"000000\.npz"):
        formats.join_arrays([tmp_path / "000000.npz"], tmp_path / "samples.npz", 2, (8, 8))
    if "arr_0.npy" not in members or members["arr_0.npy"][:1] != b"\x93":
        with pytest.raises(storage.StorageError, match=r"000000\.npz"):
            list(formats.joined_payloads(tmp_path / "000000.npz"))


def test_joined_images_that_claim_more_than_there_is(tmp_path: Path) -> None:
    for shape in (b"(9**9, 8, 8, 3)", b"(2, 0, 8, 3)   ", b"(999999, 8,8,3)"):
        header = _npy(_LEVELS).replace(b"(2, 8, 8, 3), }", shape[:15].rstrip() + b", }")
        with zipfile.ZipFile(tmp_path / "samples.npz", "w") as archive:
            archive.writestr("arr_0.npy", header)
        with pytest.raises(storage.StorageError, match=r"samples\.npz"):
            list(formats.joined_payloads(tmp_path / "samples.npz"))
