"""What CSV files leave open, read as their authors meant it: names that are numbers, numbers without a point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcdm_fast.data import random_access
from rcdm_fast.data.readers import tables
from rcdm_fast.data.readers.hugging_face import Rows

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

H = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


def text(rows: np.ndarray, mark: str = ",") -> str:
    return "".join(mark.join(f"{each:.9g}" for each in row) + "\n" for row in rows)


def read(file: Path) -> np.ndarray:
    source = random_access.find(file)
    return np.stack([np.asarray(source.read(place)) for place in range(len(source))])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_the_names_that_pandas_gives_are_no_row(tmp_path: Path, suffix: str, mark: str, end: str) -> None:
    file = tmp_path / f"h.{suffix}"
    names = mark.join(str(place) for place in range(5))
    file.write_bytes(f"{names}\n{text(H, mark)}".replace("\n", end).encode())
    assert np.array_equal(read(file), H)


def test_a_first_row_of_numbers_is_a_row(tmp_path: Path) -> None:
    file = tmp_path / "h.csv"
    for first in ([0, 1, 2, 3, 5], [1, 0, 0, 0, 0]):
        rows = np.array([first, *H], np.float32)
        file.write_text(text(rows))
        assert np.array_equal(read(file), rows)


@pytest.mark.parametrize("names", [None, "h0,h1,h2,h3,h4\n", "0,1,2,3,4\n"])
def test_a_column_of_whole_numbers_among_floats_is_one_of_theirs(tmp_path: Path, names: str | None) -> None:
    """A feature that is 0 or 1 in every row is written without a point by %g."""
    rows = H.copy()
    rows[:, 2] = (0, 1, 1, 0)
    file = tmp_path / "h.csv"
    file.write_text((names or "") + text(rows))
    assert np.array_equal(read(file), rows)


def test_a_column_that_is_none_of_theirs_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What pandas writes with its index, and a column called otherwise than the numbers."""
    file = tmp_path / "h.csv"
    rows = "".join(f"{place},{','.join(map(str, row))},{7}\n" for place, row in enumerate(H.tolist()))
    file.write_text(f",h0,h1,h2,h3,h4,epoch\n{rows}")
    assert np.array_equal(read(file), H)
    assert "2 columns are no numbers of representations: , epoch" in caplog.text


def test_a_label_of_minus_one_is_none(tmp_path: Path) -> None:
    """As the test splits of published datasets have it: neither the last class, nor a class called -1."""
    table = pa.table({"image": [b"x"] * 4, "label": [0, 1, -1, 2]})
    described = '{"info": {"features": {"label": {"names": ["cat", "dog"]}}}}'
    parquet.write_table(table.replace_schema_metadata({"huggingface": described}), tmp_path / "a.parquet")
    assert tables.open_files([tmp_path / "a.parquet"], ("image",)).labels() == ["cat", "dog", None, None]
    rows: list[Any] = [{"image": {"bytes": b"x"}, "label": label} for label in (0, 1, -1, 2)]
    found = Rows("name", rows, "image", "label", ["cat", "dog"])
    assert [found.item(place).label for place in range(4)] == ["cat", "dog", None, None]
