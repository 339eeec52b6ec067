"""Arrays of types that are neither images nor numbers, as items and as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rcdm_fast import storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import ImageError, to_uint8
from tests import small


def levels(count: int = 3) -> np.ndarray:
    return to_uint8(small.make_images(count)).permute(0, 2, 3, 1).contiguous().numpy()


STRANGE = ["|V3", "<M8[ns]", "<m8[s]", "|S1", "<U7", "<c8", [("a", "<f4", (0,)), ("b", "<f4")], [("a", [("b", "<f4")])]]


@pytest.mark.parametrize("kind", STRANGE, ids=str)
def test_arrays_of_strange_types(tmp_path: Path, kind: np.typing.DTypeLike) -> None:
    array = np.zeros(3, kind)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", x=array)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ConfigError, match=r"expected representations|no array called"):
            random_access.find(tmp_path / name)
        with pytest.raises(ImageError, match=r"expected uint8|no array called"):
            open_data(tmp_path / name, 8)


def test_columns_that_hold_rows(tmp_path: Path) -> None:
    array = np.zeros(2, [("h", "<f4", (2,))])
    array["h"] = [[1, 2], [3, 4]]
    np.save(tmp_path / "x.npy", array)
    source = random_access.find(tmp_path / "x.npy")
    assert isinstance(found := source.read(1), torch.Tensor)
    assert found.tolist() == [3, 4]


def test_values_that_are_no_ids_and_no_labels(tmp_path: Path) -> None:
    broken = np.full(3, 0xFFFFFFFF, "<u4").view("<U1")
    np.savez(tmp_path / "x.npz", images=levels(), ids=broken, labels=broken)
    with pytest.raises(storage.StorageError, match=r"row 0 cannot be read .*no characters"):
        random_access.find(tmp_path / "x.npz")
    with pytest.raises(ImageError, match=r"row 0 cannot be read .*no characters"):
        open_data(tmp_path / "x.npz", 8)
    np.save(tmp_path / "y.npy", np.array([5, 1 << 63], np.uint64))
    source = random_access.find(tmp_path / "y.npy")
    assert isinstance(label := source.read(0), torch.Tensor)
    assert int(label) == 5
    with pytest.raises(ImageError, match="item 1: no usable label"):
        source.read(1)
