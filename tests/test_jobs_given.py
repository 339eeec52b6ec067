"""What programs give a job: what is in memory tells jobs apart, and what is no source says so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.item_sources import HubImages
from rcdm_fast.data.readers.hugging_face import Rows
from rcdm_fast.images import save_image
from tests import jobs_cases, small


def plain(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def png(level: int) -> bytes:
    file = io.BytesIO()
    plain(level).save(file, format="png")
    return file.getvalue()


def palette(level: int) -> Image.Image:
    """All pixels are color 0."""
    image = Image.new("P", (8, 8))
    image.putpalette([level] * 3)
    return image


FORMS: dict[str, Callable[[int], Any]] = {
    "image": plain,
    "palette": palette,
    "array": lambda level: np.full((8, 8, 3), level, np.uint8),
    "tensor": lambda level: torch.full((3, 8, 8), level / 255),
    "half": lambda level: torch.full((3, 8, 8), level / 255, dtype=torch.bfloat16),
    "bytes": png,
    "file": lambda level: io.BytesIO(png(level)),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_images_in_memory_are_another_job(form: str) -> None:
    make = FORMS[form]
    hashes = [random_access.fingerprint(random_access.find([make(1), make(level)])) for level in (200, 200, 201)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_job_does_not_go_on_with_other_arrays(tmp_path: Path) -> None:
    model = small.quick_model()
    images = [np.full((8, 8, 3), level, np.uint8) for level in (10, 20)]
    jobs_cases.run(model, tmp_path, given=images, steps=1)
    assert jobs_cases.run(model, tmp_path, given=images, steps=1).complete
    with pytest.raises(ConfigError, match=r"items\.sha256 was"):
        jobs_cases.run(model, tmp_path, given=images[::-1], steps=1)


def test_hashing_leaves_an_open_file_where_it_stands() -> None:
    file: Any = io.BytesIO(png(7))
    file.seek(5)
    random_access.fingerprint(random_access.find([file]))
    assert file.tell() == 5


@pytest.mark.parametrize("given", [plain(9), png(9), bytearray(png(9)), io.BytesIO(png(9))])
def test_one_image_in_memory_is_a_source(given: Any) -> None:
    source = random_access.find(given)
    assert len(source) == 1
    read: Any = source.read(0)
    assert read.getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize(
    "given", [-1, True, np.int64(-2), None, 3.5, {"image": plain(1)}, 10**18, 10**30, SimpleNamespace(column_names=[])]
)
def test_what_is_no_source_says_so(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"items|no source"):
        random_access.find(given)


def test_a_dataset_with_columns_is_none() -> None:
    class Dataset(list[Any]):
        column_names = ("image", "label")

    with pytest.raises(ConfigError, match=r"give one of them, as in dataset\['image'\]"):
        random_access.find(Dataset([{"image": plain(1)}]))


def test_a_number_of_numpy_is_a_number() -> None:
    assert len(random_access.find(np.int64(3))) == 3  # type: ignore[arg-type]


def test_images_that_a_table_names_are_told_apart(tmp_path: Path) -> None:
    """A table whose rows are in another order is as large as before; so is one whose images are others."""
    pytest.importorskip("pyarrow")
    for level in (1, 2):
        save_image(plain(level), tmp_path / f"{level}.png")
    table = tmp_path / "list.csv"

    def hashed(*names: str) -> str:
        table.write_text("\n".join(("file_name", *names)) + "\n")
        return random_access.fingerprint(random_access.find(table))

    before = hashed("1.png", "2.png")
    assert hashed("1.png", "2.png") == before
    assert hashed("2.png", "1.png") != before
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    save_image(Image.fromarray(noise), tmp_path / "2.png")
    assert hashed("1.png", "2.png") != before
    (tmp_path / "2.png").unlink()
    assert hashed("1.png", "2.png") != before


def test_files_of_a_dataset_of_the_hub_are_told_apart(tmp_path: Path) -> None:
    class Table(list[Any]):
        pass

    file = tmp_path / "a.png"
    source = HubImages("hf:name", Rows("name", Table([{"image": {"path": str(file)}}]), "image", None, None))
    missing = random_access.fingerprint(source)
    save_image(plain(1), file)
    assert random_access.fingerprint(source) != missing
    assert source.content(0) == str(file.stat().st_size).encode()
