"""Arrays of files, row by row: all orders and types, and headers, archives and files that lie."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcdm_fast.data.readers import arrays

VALUES = np.random.default_rng(0).standard_normal((5, 7, 3))


def rows(path: Path, name: str = "") -> arrays.Rows:
    return arrays.read(path, ValueError)[name]


def npy(shape: object, kind: str = "'|u1'", content: bytes = b"", order: str = "False") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8", ">i8", "|u1", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_what_was_saved(tmp_path: Path, kind: str, order: str) -> None:
    given = np.asarray(VALUES * 50 + 100).astype(kind, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", given)
    np.savez(tmp_path / "b.npz", h=given, other=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "c.npz", h=given)
    for name, key in (("a.npy", ""), ("b.npz", "h"), ("c.npz", "h")):
        found = rows(tmp_path / name, key)
        assert (found.shape, found.dtype) == (given.shape, given.dtype.newbyteorder("="))
        assert np.array_equal(found[3], given[3])
        assert np.array_equal(np.stack(list(found)), given)


def test_columns_of_structured_arrays(tmp_path: Path) -> None:
    table = np.zeros(4, dtype=[("h", "<f4", (3,)), ("id", "U5"), ("label", ">i8")])
    table["h"], table["id"], table["label"] = np.arange(12).reshape(4, 3), ["a", "b", "c", "d"], [3, 1, 2, 0]
    np.save(tmp_path / "a.npy", table)
    np.savez(tmp_path / "b.npz", table)
    for name in ("a.npy", "b.npz"):
        held = arrays.read(tmp_path / name, ValueError)
        assert set(held) == {"h", "id", "label"}
        assert np.array_equal(np.stack(list(held["h"])), table["h"])
        assert [int(each) for each in held["label"]] == [3, 1, 2, 0]


LIES: list[tuple[bytes, str]] = [
    (npy("(1000, 10000, 10000, 3)", content=b"x" * 99), "its header claims"),
    (npy("(1000000000000000000,)", content=b"x" * 99), "its header claims"),
    (npy("(-1, 3)"), "no shape"),
    (npy("(True, 3)"), "no shape"),
    (npy("(2.5, 3)"), "no shape"),
    (npy("(1000000000000, 0, 3)"), "its rows are empty"),
    (npy("(3,)", "'|S0'"), "its rows are empty"),
    (npy("(1000000000000,)", "'<U0'"), "its rows are empty"),
    (npy("(1,)", "'|O'", b"cos\nsystem\n"), "Python objects"),
    (npy("((("), "cannot be read"),
    (npy("(" * 5000), "cannot be read"),
    (npy("-" * 9000 + "1"), "cannot be read"),
    (npy("(1,)", "'<q99'"), "cannot be read"),
    (npy("()", content=b"x"), "no rows"),
    (b"\x93NUMPY\2\0\xff\xff\xff\x7f", "a header of"),
    (b"\x93NUMPY\1\0", "cannot be read"),
    (b"", "cannot be read"),
]


@pytest.mark.parametrize(("content", "message"), LIES)
def test_headers_that_lie(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / "a.npy")
    for way in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "b.npz", "w", way) as archive:
            archive.writestr("h.npy", content)
        with pytest.raises(ValueError, match=message):
            rows(tmp_path / "b.npz", "h")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[:200],
        lambda whole: b"PK\3\4x",
        lambda whole: whole.replace(b"ABCD", b"ABXD"),  # its checksum is another
        lambda whole: whole.replace(b"NUMPY", b"NUMPX"),
    ],
)
def test_damaged_archives(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = io.BytesIO()
    np.savez(file, h=np.frombuffer(b"ABCD" * 100, np.uint8).reshape(100, 4))
    (tmp_path / "a.npz").write_bytes(spoil(file.getvalue()))
    with pytest.raises(ValueError, match="cannot be read"):
        rows(tmp_path / "a.npz", "h")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_FREE_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", h=np.zeros((1 << 20, 8), np.uint8))
    monkeypatch.setattr(arrays, "_fill", None)
    with pytest.raises(ValueError, match=r"claims 8\.39e\+06 bytes in"):
        rows(tmp_path / "a.npz", "h")


def test_other_ways_of_packing_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("h.npy", npy("(3,)", content=b"abc"))
    with pytest.raises(ValueError, match="compressed as numpy does not"):
        rows(tmp_path / "a.npz", "h")


def test_a_file_that_shrinks_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1000, 1000), np.float32))
    found = rows(tmp_path / "a.npy")
    found[999]
    os.truncate(tmp_path / "a.npy", 2_000_000)
    found[100]
    with pytest.raises(ValueError, match="row 999 cannot be read"):
        found[999]
