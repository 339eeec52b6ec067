"""What is no regular file (a named pipe, a device) is said to be none, whatever format its name promises."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from PIL import Image

from rcdm_fast import doors, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data import sources as training_sources
from rcdm_fast.data.readers import archives, arrays, hugging_face
from rcdm_fast.encoders import EncoderError, build
from rcdm_fast.errors import RunError
from rcdm_fast.exporters import onnx, openvino, plan_file
from rcdm_fast.exporters.onnx import GraphError
from rcdm_fast.images import ImageError, open_image
from rcdm_fast.jobs import rows
from rcdm_fast.models import diffusers_folder
from rcdm_fast.models.flags import read_flags
from rcdm_fast.storage import StorageError
from rcdm_fast.training import state

NAMES = ("x.npy", "x.npz", "x.safetensors", "x.parquet", "x.arrow", "x.feather", "x.csv", "x.tsv", "x.tar", "x.tgz")


@pytest.fixture(autouse=True)
def at_most_seconds() -> Iterator[None]:
    """An opened pipe waits for ever."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def zeros(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("make", [pipe, zeros])
@pytest.mark.parametrize("name", NAMES)
def test_named_in_a_job(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    if name.endswith((".parquet", ".arrow", ".feather", ".csv", ".tsv")):
        pytest.importorskip("pyarrow")
    with pytest.raises((ImageError, StorageError), match="no regular file"):
        random_access.find(make(tmp_path / name))


@pytest.mark.parametrize("make", [pipe, zeros])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "x.safetensors"])
def test_named_for_training(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    if name.endswith((".parquet", ".arrow", ".feather", ".csv", ".tsv")):
        pytest.importorskip("pyarrow")
    with pytest.raises(ImageError, match="no regular file"):
        training_sources.open_data(make(tmp_path / name), 8)


@pytest.mark.parametrize("make", [pipe, zeros])
def test_readers(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "x.png")
    readers: list[tuple[Callable[[], Any], type[Exception]]] = [
        (lambda: open_image(path), ImageError),
        (lambda: storage.read_tensors(path), StorageError),
        (lambda: storage.read_metadata(path), StorageError),
        (lambda: storage.read_json(path), StorageError),
        (lambda: arrays.read(path, KeyError), KeyError),
        (lambda: archives.Archive(path, "x", KeyError), KeyError),
        (lambda: archives.pread(path, 0, 3, KeyError), KeyError),
        (lambda: read_flags(path), ConfigError),
        (lambda: rows.count_lines(path), StorageError),
        (lambda: plan_file.read(path), GraphError),
    ]
    if importlib.util.find_spec("onnx"):
        readers.append((lambda: onnx.read_info(path), GraphError))
    if importlib.util.find_spec("openvino"):
        readers.append((lambda: openvino.read_model(path), GraphError))
    for read, kind in readers:
        with pytest.raises(kind, match="no regular file"):
            read()


def test_among_files_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "good.png")
    for name in ("part-0.tar", "x.npy", "x.parquet", "x.arrow", "x.csv", "state.json", "dataset_dict.json", "x.png"):
        pipe(tmp_path / name)
    found = training_sources.open_data(tmp_path, 8)
    assert [path.name for path in found.paths] == ["good.png"]
    assert found.pixels[0, :, 0, 0].tolist() == [1, 2, 3]
    assert [random_access.find(tmp_path).id(place) for place in range(len(random_access.find(tmp_path)))] == [
        "good.png"
    ]


@pytest.mark.parametrize("bad", ["state.json", "data-0.arrow"])
def test_in_what_save_to_disk_wrote(tmp_path: Path, bad: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train").mkdir()
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    pipe(tmp_path / "train" / bad)
    if bad != "state.json":
        (tmp_path / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": bad}]}))
    with pytest.raises(ImageError, match="no regular file"):
        list(hugging_face.find(str(tmp_path)).items())


def test_in_stores_runs_and_jobs(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    pipe(tmp_path / "store" / "progress.json")
    with pytest.raises(StorageError, match="no regular file"):
        training_sources.open_data(tmp_path, 8, store=tmp_path / "store")
    pipe(tmp_path / "job.json")
    with pytest.raises(ConfigError, match="no regular file"):
        rows.read_identity(tmp_path)
    pipe(tmp_path / "config.json")
    with pytest.raises(RunError, match="no regular file"):
        state.RunFolder(tmp_path).open({})


@pytest.mark.parametrize("make", [pipe, zeros])
def test_in_folders_that_another_library_reads(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Which opens what it likes; the message names what is in the way."""
    (tmp_path / "inside").mkdir()
    make(tmp_path / "inside" / "config.json")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(OSError, match=r"config\.json: no regular file"):
        doors.regular_folder(tmp_path)
    pytest.importorskip("transformers")
    with pytest.raises(EncoderError, match=r"config\.json: no regular file"):
        build(f"transformers:{tmp_path}")
    pytest.importorskip("diffusers")
    with pytest.raises(ConfigError, match=r"config\.json: no regular file"):
        diffusers_folder.read(tmp_path)
    (tmp_path / "inside" / "config.json").unlink()
    doors.regular_folder(tmp_path)


def test_links_to_files_are_files(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "good.png")
    (tmp_path / "link.png").symlink_to("good.png")
    assert open_image(tmp_path / "link.png").getpixel((0, 0)) == (1, 2, 3)
