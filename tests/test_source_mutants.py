"""Damaged files of every form that data come in: each is read or refused, no process ends, no other error is seen."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import damage

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

FEW, MANY = 120, 3000
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(file, "png")
    return file.getvalue()


def numbers() -> Any:
    h = pa.array([[float(each) for each in row.ravel()[:6]] for row in PIXELS], pa.list_(pa.float32()))
    return pa.table({"id": [f"n{number}" for number in range(12)], "h": h})


def make_images() -> Any:
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["day", "night"]}}
    files = [{"bytes": png(number), "path": f"{number}.png"} for number in range(12)]
    table = pa.table({"img": files, "label": [number % 2 for number in range(12)]})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def arrow(path: Path, table: Any, opened: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


def tar(path: Path, form: int) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for number in range(6):
            for name, content in (
                (f"{'x' * 120}{number}.png", png(number)),
                (f"{'x' * 120}{number}.json", b'{"label": 1}'),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def tgz(path: Path) -> None:
    tar(path, tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(path.read_bytes()))


WRITERS: dict[str, Callable[[Path], object]] = {
    "h.arrow": lambda path: arrow(path, numbers(), pa.ipc.new_file),
    "stream.arrow": lambda path: arrow(path, numbers(), pa.ipc.new_stream),
    "img.arrow": lambda path: arrow(path, make_images(), pa.ipc.new_stream),
    "h.feather": lambda path: feather.write_feather(numbers(), path),
    "img.feather": lambda path: feather.write_feather(make_images(), path, compression="zstd"),
    "h.parquet": lambda path: parquet.write_table(numbers(), path, row_group_size=5),
    "img.parquet": lambda path: parquet.write_table(make_images(), path, compression="zstd"),
    "a.npy": lambda path: np.save(path, PIXELS),
    "a.npz": lambda path: np.savez(path, images=PIXELS, labels=np.arange(12)),
    "packed.npz": lambda path: np.savez_compressed(
        path, h=PIXELS.reshape(12, -1).astype(np.float32), ids=np.arange(12)
    ),
    "pax.tar": lambda path: tar(path, tarfile.PAX_FORMAT),
    "gnu.tar": lambda path: tar(path, tarfile.GNU_FORMAT),
    "a.tgz": tgz,
    "h.csv": lambda path: np.savetxt(path, PIXELS.reshape(12, -1)[:, :6], delimiter=","),
}


def check(found: Counter[str], expected: int) -> None:
    assert set(found) == {"read"}, dict(found)
    assert found["read"] == expected + 1  # and the memory that all of them took


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        each if place % 4 == 0 else pytest.param(each, marks=pytest.mark.long(short=False))
        for place, each in enumerate(WRITERS)
    ],
)
def test_mutants(tmp_path: Path, name: str, short: bool) -> None:
    WRITERS[name](tmp_path / name)
    count = FEW if short else MANY
    check(damage.count(tmp_path / name, count), count)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param("data-00000-of-00001.arrow", marks=pytest.mark.long(short=False)), "state.json"]
)
def test_mutants_of_a_saved_dataset(tmp_path: Path, name: str, short: bool) -> None:
    saved(tmp_path)
    count = FEW if short else MANY
    check(damage.count(tmp_path / name, count, tmp_path), count)


def saved(folder: Path) -> None:
    """A folder as the datasets library's save_to_disk writes it."""
    arrow(folder / "data-00000-of-00001.arrow", make_images(), pa.ipc.new_stream)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.long
def test_some_mutants_of_arrow(tmp_path: Path) -> None:
    """The form whose damage used to end the process: about one in thirty."""
    WRITERS["h.arrow"](tmp_path / "h.arrow")
    check(damage.count(tmp_path / "h.arrow", 150), 150)
