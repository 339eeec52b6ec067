"""Finished jobs open with the packages that people use, by the snippets of docs/generate.md and the example."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rcdm_fast
from rcdm_fast import images
from rcdm_fast.jobs import formats
from rcdm_fast.jobs.settings import FORMATS, JobConfig
from tests import jobs_cases, small
from tests.jobs_cases import manifest

pytest.importorskip("webdataset")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small job in every form, and photographs."""
    folder = tmp_path_factory.mktemp("jobs")
    model = small.model()
    for form in FORMATS:
        jobs_cases.run(model, folder / f"job-{form}", format=form)
    for number, each in enumerate(small.pictures(3, size=40)):
        images.save(images.to_pil(each), folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def levels(jobs: Path) -> np.ndarray:
    """uint8 [N,8,8,3] of all pictures."""
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
    last = manifest(jobs / "job-webdataset")[5]  # two items of three pictures in a shard
    assert names["about"] == {key: last[key] for key in ("item", "id", "sample", "seed")}
    assert np.array_equal(np.asarray(names["picture"]), levels[5])


def test_npz(run_snippet: Any, levels: np.ndarray) -> None:
    assert np.array_equal(run_snippet("np.load")["pictures"], levels)
    assert levels.shape == (27, 8, 8, 3)
    assert levels.dtype == np.uint8


def test_parquet(run_snippet: Any, levels: np.ndarray) -> None:
    names = run_snippet("read_table")
    assert np.array_equal(np.asarray(names["picture"]), levels[0])
    assert names["ids"] == [str(item) for item in range(9) for _ in range(3)]


def test_parquet_as_a_hugging_face_dataset(jobs: Path, levels: np.ndarray, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(str(file) for file in (jobs / "job-parquet" / "shards").iterdir())
    found = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path))
    assert np.array_equal(np.asarray(found[4]["image"]), levels[4])
    assert (found[4]["item"], found[4]["sample"]) == (1, 1)


def test_folder(run_snippet: Any, levels: np.ndarray, jobs: Path) -> None:
    assert np.array_equal(np.asarray(run_snippet("job-folder")["picture"]), levels[0])
    assert len(list((jobs / "job-folder" / "shards").rglob("*.png"))) == 27


def test_the_same_pictures_in_every_form(jobs: Path) -> None:
    pictures = [[row["sha256"] for row in manifest(jobs / f"job-{form}")] for form in ("webdataset", "folder")]
    assert pictures[0] == pictures[1] == [row["sha256"] for row in manifest(jobs / "job-parquet")]


def test_generate_in_python(run_snippet: Any) -> None:
    batch = run_snippet("rcdm_fast.generate")["batch"]
    assert batch.pictures.shape == (12, 3, 32, 32)
    assert batch.ids == tuple(f"{number}.png" for number in range(3) for _ in range(4))


def test_the_data_loader_example(
    checkout: Path, jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small.model()
    monkeypatch.setattr(rcdm_fast, "load", lambda name: model)
    monkeypatch.setattr(sys, "argv", ["generate_dataset.py", str(jobs / "photos")])
    runpy.run_path(str(checkout / "examples" / "generate_dataset.py"), run_name="__main__")
    assert capsys.readouterr().out == "[12, 3, 8, 8] torch.uint8, of items [0, 1, 2]\n"


@pytest.mark.parametrize(
    ("encoding", "quality", "exact"), [("png", 95, True), ("webp", 100, True), ("jpeg", 95, False)]
)
def test_encodings(tmp_path: Path, encoding: Any, quality: int, exact: bool) -> None:
    form = formats.find(JobConfig(encoding=encoding, quality=quality))
    picture = images.to_uint8(small.pictures(1, size=32))[0].permute(1, 2, 0).contiguous().numpy()
    (tmp_path / "picture").write_bytes(form.encode(picture))
    with Image.open(tmp_path / "picture") as file:
        assert file.format == encoding.upper()
        difference = np.abs(np.asarray(file).astype(int) - picture).max()
    assert (difference == 0) if exact else (0 < difference < 12)


def test_shards_do_not_depend_on_time_or_user(jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model()
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
    assert json.loads((jobs / "job-npz" / "summary.json").read_text())["pictures"] == 27
