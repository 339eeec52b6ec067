"""Images from folders, arrays, shards and datasets; the store; damaged and vanished sources."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcdm_fast import storage
from rcdm_fast.data import image_set, sources
from rcdm_fast.data.block_file import PixelStore
from rcdm_fast.data.image_set import ImageSet, evenly, fingerprint, fits, number_labels
from rcdm_fast.data.readers.image_files import Item
from rcdm_fast.data.sources import open_data
from rcdm_fast.images import ImageError, to_uint8
from tests import small

COUNT = 20


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [N,8,8,3]."""
    return to_uint8(small.make_images(COUNT)).permute(0, 2, 3, 1).numpy()


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


def write_shards(folder: Path, pixels: np.ndarray) -> str:
    """Two shards with labels in .cls; the pattern that means both."""
    folder.mkdir(exist_ok=True)
    for shard in range(2):
        members = []
        for number in range(shard * 10, shard * 10 + 10):
            label = str(number % 11) + "\n" * (number % 2)  # as a program or a shell writes it
            members += [(f"{number:03d}.png", png(pixels[number])), (f"{number:03d}.cls", label.encode())]
        write_shard(folder / f"part-{shard:02d}.tar", members)
    return str(folder / "part-{00..01}.tar")


def same(found: ImageSet, pixels: np.ndarray) -> bool:
    return np.array_equal(found.pixels.permute(0, 2, 3, 1).numpy(), pixels)


def test_arrays(tmp_path: Path, pixels: np.ndarray) -> None:
    labels = np.arange(COUNT) % 11
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", images=pixels.transpose(0, 3, 1, 2), labels=labels)
    one, two = open_data(tmp_path / "a.npy", 8), open_data(tmp_path / "b.npz", 8)
    assert same(one, pixels)
    assert same(two, pixels)
    assert one.labels is None
    assert two.classes == tuple(str(number) for number in range(11))  # as numbers: 10 after 9
    assert two.labels is not None
    assert two.labels.tolist() == labels.tolist()
    assert open_data(tmp_path / "a.npy", 16).pixels.shape == (COUNT, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("x.npz", {"pixels": np.zeros((2, 8, 8, 3), np.uint8)}, "no array called images or x or arr_0"),
        ("x.npz", {"x": np.zeros((2, 8, 8, 3), np.float32)}, "expected uint8"),
        ("x.npz", {"x": np.zeros((2, 8, 8, 4), np.uint8)}, "expected uint8"),
        ("x.npz", {"x": np.zeros((2, 8, 8, 3), np.uint8), "y": np.zeros(3)}, "2 images but labels of shape"),
    ],
)
def test_wrong_arrays(tmp_path: Path, name: str, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / name, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=message):
        open_data(tmp_path / name, 8)


def test_no_such_source(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK not really")
    for name in ("none.npy", "none.npz", "torn.npz", "nothing"):
        with pytest.raises(ImageError):
            open_data(tmp_path / name, 8)


def test_shards(tmp_path: Path, pixels: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("webdataset")
    pattern = write_shards(tmp_path / "shards", pixels)
    found = open_data(pattern, 8)
    assert same(found, pixels)
    assert found.labels is not None
    assert found.labels.tolist() == [number % 11 for number in range(COUNT)]
    for hidden in (".part-02.tar", "._part-01.png"):
        (tmp_path / "shards" / hidden).write_bytes(b"not finished")
    assert open_data(tmp_path / "shards", 8).fingerprint == found.fingerprint
    assert open_data(f"wds:{pattern}", 8).fingerprint == found.fingerprint
    described = json.dumps({"label": "cat"}).encode()
    write_shard(tmp_path / "mixed.tar", [("a.jpg", b"no image"), ("b.png", png(pixels[0])), ("b.json", described)])
    mixed = open_data(tmp_path / "mixed.tar", 8)
    assert len(mixed) == 1
    assert mixed.classes == ("cat",)
    assert len(mixed.skipped) == 1
    assert "mixed.tar/a" in mixed.skipped[0]
    assert "1 of 2 items skipped" in caplog.text


def test_a_vanished_or_torn_shard_is_an_error_that_names_it(tmp_path: Path, pixels: np.ndarray) -> None:
    pytest.importorskip("webdataset")
    pattern = write_shards(tmp_path / "shards", pixels)
    second = tmp_path / "shards" / "part-01.tar"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(ImageError, match=r"part-01\.tar: damaged"):
        open_data(pattern, 8)
    second.unlink()
    with pytest.raises(ImageError, match=r"1 of 2 shards are missing: .*part-01\.tar"):
        open_data(pattern, 8)


def test_hugging_face_datasets(tmp_path: Path, pixels: np.ndarray) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["day", "night"])})
    rows = {"img": [Image.fromarray(array) for array in pixels], "label": [number % 2 for number in range(COUNT)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    found = open_data(tmp_path / "one", 8)
    assert same(found, pixels)
    assert found.classes == ("day", "night")
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "splits"))
    assert open_data(f"hf:{tmp_path / 'splits'}?split=test&image=img&label=label", 8).fingerprint == found.fingerprint
    for spec, message in (
        ("?split=none", "cannot be opened"),
        ("?split=test&image=other", "no column 'other'"),
        ("?split=test&color=red", "unknown options color"),
    ):
        with pytest.raises(ImageError, match=message):
            open_data(f"hf:{tmp_path / 'splits'}{spec}", 8)


def test_a_store_is_mapped_and_read_once(tmp_path: Path, pixels: np.ndarray) -> None:
    source = tmp_path / "a.npz"
    np.savez(source, x=pixels, y=np.arange(COUNT) % 3)
    plain = open_data(source, 8)
    kept = open_data(source, 8, store=tmp_path / "store")
    source.unlink()
    again = open_data(source, 8, store=tmp_path / "store")
    for found in (kept, again):
        assert torch.equal(found.pixels, plain.pixels)
        assert found.labels is not None
        assert plain.labels is not None
        assert torch.equal(found.labels, plain.labels)
        assert (found.fingerprint, found.paths, found.classes) == (plain.fingerprint, plain.paths, plain.classes)
    with pytest.raises(storage.StorageError, match="holds images of"):
        open_data(source, 16, store=tmp_path / "store")
    (tmp_path / "store" / "pixels.u8").write_bytes(b"short")
    with pytest.raises(storage.StorageError, match="delete the store"):
        open_data(source, 8, store=tmp_path / "store")


def test_a_store_goes_on_where_it_was_stopped(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = tmp_path / "images", tmp_path / "store"
    folder.mkdir()
    for number, array in enumerate(pixels):
        (folder / f"{number:02d}.png").write_bytes(png(array) if number != 3 else b"no image")
    monkeypatch.setattr(sources, "BLOCK", 6)
    whole = open_data(folder, 8)
    blocks = 0
    before = PixelStore.append

    def stop_in_third(self: PixelStore, *block: object) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 3:
            self._add("pixels.u8", b"half a block")  # written, but not yet told of in progress.json
            raise KeyboardInterrupt
        before(self, *block)  # type: ignore[arg-type]

    monkeypatch.setattr(PixelStore, "append", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        open_data(folder, 8, store=store)
    state = json.loads((store / "progress.json").read_text())
    assert (state["read"], state["kept"], state["complete"]) == (12, 11, False)
    read: list[str] = []
    decoded = sources._decoded
    monkeypatch.setattr(PixelStore, "append", before)

    def noted(item: Item, size: int) -> tuple[np.ndarray, bool] | str:
        read.append(item.path.name)
        return decoded(item, size)

    monkeypatch.setattr(sources, "_decoded", noted)
    found = open_data(folder, 8, store=store)
    assert sorted(read) == [f"{number:02d}.png" for number in range(12, COUNT)]
    assert torch.equal(found.pixels, whole.pixels)
    assert (found.fingerprint, found.paths, found.skipped) == (whole.fingerprint, whole.paths, whole.skipped)
    assert len(found.skipped) == 1


@pytest.mark.parametrize("change", [{"fingerprint": None}, {"complete": "yes"}, {"complete": None}])
def test_a_store_whose_progress_is_none(pixels: np.ndarray, tmp_path: Path, change: dict[str, object]) -> None:
    file, store = tmp_path / "a.npy", tmp_path / "store"
    np.save(file, pixels)
    open_data(file, 8, store=store)
    state = json.loads((store / "progress.json").read_text())
    (store / "progress.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(storage.StorageError, match=r"progress\.json: cannot be read; delete the store"):
        open_data(file, 8, store=store)


def test_labels_need_a_name_for_every_image() -> None:
    assert number_labels(["b", None, "a"]) == (None, ())
    labels, classes = number_labels(["10", "9", "10"])
    assert labels is not None
    assert (labels.tolist(), classes) == ([1, 0, 1], ("9", "10"))


def test_how_many_images_have_no_label_is_told(caplog: pytest.LogCaptureFixture) -> None:
    number_labels([None, "a", None, None])
    assert "3 of 4 images have no label, so no label is used" in caplog.text
    caplog.clear()
    number_labels([None, None])
    number_labels([])
    assert not caplog.text


@pytest.mark.parametrize(
    ("count", "available", "places"),
    [(1, 7, [0]), (2, 7, [0, 6]), (4, 11, [0, 3, 7, 10]), (5, 5, [0, 1, 2, 3, 4]), (3, 101, [0, 50, 100])],
)
def test_places_are_spread_from_the_first_to_the_last(count: int, available: int, places: list[int]) -> None:
    assert evenly(count, available).tolist() == places


@pytest.mark.parametrize(("count", "available"), [(49_999, 50_000), (1_200_000, 1_281_167), (1000, 20_000_000)])
def test_of_many_images_no_place_is_taken_twice_and_none_lies_behind_the_last(count: int, available: int) -> None:
    places = evenly(count, available)
    assert int(places[0]) == 0
    assert int(places[-1]) == available - 1
    assert int(places.diff().min()) >= 1


def test_a_quarter_of_what_is_free_holds_all_that_is_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rows = torch.zeros(100, dtype=torch.uint8), torch.zeros(25, dtype=torch.float32)
    asked: list[torch.device] = []
    free = 800

    def info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return free, 100_000

    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    device = torch.device("cuda", 1)
    assert fits(device, images, rows)  # 100 and 4 times 25 bytes
    assert fits(device, images)
    free = 799
    assert not fits(device, images, rows)
    assert set(asked) == {device}
    assert not fits(torch.device("cpu"), images)


def test_a_fingerprint_is_of_all_pixels_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = to_uint8(small.make_images(7)), torch.arange(7)
    whole = fingerprint(images, labels)
    monkeypatch.setattr(image_set, "_HASHED", 2)
    assert fingerprint(images, labels) == whole
    marks = {whole, fingerprint(images, None), fingerprint(images, labels.flip(0))}
    for place in range(7):
        other = images.clone()
        other[place, 2, 7, 7] ^= 1
        marks.add(fingerprint(other, labels))
    assert len(marks) == 10


def test_a_subset_has_the_fingerprint_of_its_own_images(pixels: np.ndarray) -> None:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels, paths = torch.arange(COUNT) % 3, tuple(Path(f"{number}.png") for number in range(COUNT))
    data = ImageSet(images, labels, ("a", "b", "c"), paths, fingerprint(images, labels))
    index = torch.tensor([7, 3, 19])
    some = data.subset(index)
    assert some.fingerprint == fingerprint(images[index], labels[index])
    assert some.labels is not None
    assert (some.labels.tolist(), some.classes) == ([1, 0, 1], data.classes)
    assert [str(path) for path in some.paths] == ["7.png", "3.png", "19.png"]
    assert data.subset(torch.arange(COUNT)).fingerprint == data.fingerprint


def test_images_in_memory_are_a_set_in_blocks(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> None:
    monkeypatch.setattr(sources, "BLOCK", 8)
    found = sources.of_array(pixels, 8)
    assert same(found, pixels)
    assert found.fingerprint == fingerprint(found.pixels, None)
    assert [path.name for path in found.paths] == [str(number) for number in range(COUNT)]
