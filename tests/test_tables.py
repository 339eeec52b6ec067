"""Columns of Parquet, Arrow, Feather and CSV: every form that other tools write, which is meant, what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.readers import table_files
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import ImageError
from rcdm_fast.storage import StorageError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

H = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def write(path: Path, table: Any, rows: int = 2) -> Path:
    """A table in the form that the name's end says, in parts of two rows."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=rows, compression="zstd")
    elif path.suffix == ".csv":
        pytest.importorskip("pyarrow.csv").write_csv(table, path)
    else:
        opened = pa.ipc.new_stream if path.stem.endswith("stream") else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


def lists(kind: Any) -> Any:
    return pa.array([[each.item() for each in row] for row in H], kind)


FILES = ["a.parquet", "a.arrow", "a-stream.arrow", "a.feather"]
REPRESENTATIONS: dict[str, Callable[[], Any]] = {
    "list": lambda: lists(pa.list_(pa.float32())),
    "large_list": lambda: lists(pa.large_list(pa.float32())),
    "fixed_size_list": lambda: lists(pa.list_(pa.float32(), 6)),
    "list of doubles": lambda: lists(pa.list_(pa.float64())),
    "list of halves": lambda: pa.array([row.astype(np.float16) for row in H], pa.list_(pa.float16())),
    "Array2D": lambda: pa.array([[row.tolist()] for row in H], pa.list_(pa.list_(pa.float32()))),
    "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(H.reshape(5, 2, 3)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", REPRESENTATIONS)
@pytest.mark.parametrize("column", ["representation", "clip_features"])
def test_representations(tmp_path: Path, name: str, form: str, column: str) -> None:
    table = pa.table({"url": list("abcde"), column: REPRESENTATIONS[form](), "label": [0, 1, 0, 1, 0]})
    source = random_access.find(write(tmp_path / name, table))
    assert (source.kind, len(source), source.width()) == ("representation", 5, 6)
    for place in (4, 0, 3, 1, 2):
        found = source.read(place)
        assert isinstance(found, torch.Tensor)
        expected = H[place].astype(np.float16) if form == "list of halves" else H[place]
        assert np.array_equal(found.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.arrow"])
@pytest.mark.parametrize("names", [[f"f{number}" for number in range(6)], [f"{number}" for number in range(6)]])
def test_a_column_for_every_number(tmp_path: Path, name: str, names: list[str]) -> None:
    columns = {each: H[:, number].astype(np.float64) for number, each in enumerate(names)}
    table = pa.table({"id": ["p", "q", "r", "s", "t"], **columns, "label": [1, 2, 3, 4, 5]})
    source = random_access.find(write(tmp_path / name, table))
    assert (source.kind, source.id(3), source.width()) == ("representation", "s", 6)
    assert np.allclose(np.asarray(source.read(3)), H[3], atol=0)


def test_csv_without_a_head(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.csv", H, delimiter=",", fmt="%.9g")
    np.savetxt(tmp_path / "a.tsv", H, delimiter="\t", fmt="%.9g")
    for name in ("a.csv", "a.tsv"):
        source = random_access.find(tmp_path / name)
        assert len(source) == 5
        assert np.array_equal(np.asarray(source.read(4)), H[4])


def make_images(form: str) -> Any:
    if form == "struct":
        return pa.array([{"bytes": png(each), "path": None} for each in PIXELS])
    if form in ("binary", "large_binary", "binary_view"):
        return pa.array([png(each) for each in PIXELS], getattr(pa, form)())
    if form == "dictionary":
        return pa.array([png(each) for each in PIXELS]).dictionary_encode()
    if form == "Array3D":
        return pa.array([each.tolist() for each in PIXELS], pa.list_(pa.list_(pa.list_(pa.uint8()))))
    if form == "Array3D, colors first":
        kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
        return pa.array([each.transpose(2, 0, 1).tolist() for each in PIXELS], kind)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "form",
    ["struct", "binary", "large_binary", "binary_view", "dictionary", "Array3D", "Array3D, colors first", "tensor"],
)
@pytest.mark.parametrize("column", ["image", "photograph"])
def test_images(tmp_path: Path, name: str, form: str, column: str) -> None:
    classes = pa.array(["day", "night", "day", "day", "night"]).dictionary_encode()
    path = write(tmp_path / name, pa.table({column: make_images(form), "label": classes}))
    source = random_access.find(path, ("image", "representation"))
    assert (source.kind, len(source)) == ("image", 5)
    for place in (4, 0, 3, 1, 2):
        assert np.array_equal(np.asarray(source.read(place)), PIXELS[place])
    found = open_data(path, 8)
    assert np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), PIXELS)
    assert found.classes == ("day", "night")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_paths_of_images_are_beside_the_table(tmp_path: Path, name: str) -> None:
    for number, each in enumerate(PIXELS):
        (tmp_path / f"{number}.png").write_bytes(png(each))
    names = [f"{number}.png" for number in range(5)]
    names[3] = "https://example.com/3.png"
    path = write(tmp_path / name, pa.table({"file_name": names, "label": ["a"] * 5}))
    found = open_data(path, 8)
    assert (len(found), found.classes, len(found.skipped)) == (4, ("a",), 1)
    source = random_access.find(path)
    assert np.array_equal(np.asarray(source.read(4)), PIXELS[4])
    with pytest.raises(ImageError):
        source.read(3)


def test_labels_are_items_where_they_are_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"image": make_images("struct"), "label": [3, 1, 4, None, 5]}))
    source = random_access.find(path, ("label",))
    assert source.kind == "label"
    assert [int(np.asarray(source.read(place))) for place in (0, 2, 4)] == [3, 4, 5]
    with pytest.raises(ImageError, match="item 3: no label"):
        source.read(3)


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        ({"name": ["cat", "dog", "cat", "dog", "cat"]}, ["0", "1", "2"]),
        ({"id": [1, 0, 1, 0, 1], "key": ["p", "q", "r", "s", "t"]}, ["p", "q", "r"]),
        ({"id": ["p", "q", None, "s", "t"]}, ["0", "1", "2"]),
        ({"id": [0.5, 1.5, 2.5, 3.5, 4.5]}, ["0", "1", "2"]),
        ({"id": [7, 8, 9, 10, 11]}, ["7", "8", "9"]),
    ],
)
def test_a_column_of_classes_holds_no_ids(tmp_path: Path, column: dict[str, list[Any]], ids: list[str]) -> None:
    table = pa.table({"h": lists(pa.list_(pa.float32())), **column})
    source = random_access.find(write(tmp_path / "a.parquet", table))
    assert [source.id(place) for place in range(3)] == ids


def test_class_labels_of_the_datasets_library(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "name": {"_type": "ClassLabel", "names": ["day", "night"]}}
    about = {"huggingface": json.dumps({"info": {"features": {**features, "label": features["name"]}}})}
    table = pa.table({"img": make_images("struct"), "name": [0, 1, 2, 3, 4], "label": [0, 1, 0, 1, 0]})
    path = write(tmp_path / "a.parquet", table.replace_schema_metadata(about))
    assert open_data(path, 8).classes == ("day", "night")
    assert random_access.find(path).id(4) == "4"
    for damaged in ("[" * 100_000, '{"info": 3}', "{", '{"info": {"features": {"label": 7}}}'):
        write(path, table.replace_schema_metadata({"huggingface": damaged}))
        try:
            random_access.find(path)
        except StorageError as error:
            assert "cannot be read" in str(error)  # noqa: PT017  (others are believed without their names)


def test_several_columns_that_could_be_meant(tmp_path: Path) -> None:
    table = pa.table({"clip": lists(pa.list_(pa.float32())), "dino": lists(pa.list_(pa.float32()))})
    with pytest.raises(ConfigError, match="which of the columns clip, dino is meant"):
        random_access.find(write(tmp_path / "a.parquet", table))


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_content_that_claims_too_much(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "_FREE_BYTES", 1 << 16)
    zeros = pa.array([bytes(1 << 22)], pa.binary())
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(pa.table({"image": zeros}), path, compression="zstd", use_dictionary=False)
    else:
        feather.write_feather(pa.table({"image": zeros}), path, compression="zstd")
    assert path.stat().st_size < 1 << 15
    with pytest.raises(StorageError, match="claims"):
        random_access.find(path).read(0)
    monkeypatch.setattr(table_files, "_ROWS", 3)
    monkeypatch.setattr(table_files, "_ROWS_PER_BYTE", 0)
    with pytest.raises(StorageError, match="claims 5 rows"):
        random_access.find(write(path, pa.table({"h": lists(pa.list_(pa.float32()))}), 5))


@pytest.mark.parametrize("name", FILES)
def test_torn_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pa.table({"h": lists(pa.list_(pa.float32()))}))
    whole = path.read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError, match="cannot be read"):
            random_access.find(path)


def test_a_stream_that_ends_between_two_parts_is_torn(tmp_path: Path) -> None:
    table = pa.table({"h": lists(pa.list_(pa.float32()))})
    ends = []
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for batch in table.to_batches(2):
            writer.write_batch(batch)
            ends.append(file.tell())
    whole = (tmp_path / "a.arrow").read_bytes()
    assert len(random_access.find(tmp_path / "a.arrow")) == 5
    for end in ends:
        (tmp_path / "a.arrow").write_bytes(whole[:end])
        with pytest.raises(StorageError, match="its closing mark is missing"):
            random_access.find(tmp_path / "a.arrow")
