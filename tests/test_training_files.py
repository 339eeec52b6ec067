"""What a run keeps on disk, when it is damaged, when two want it, and when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcdm_fast import storage
from rcdm_fast.data import sources
from rcdm_fast.data.block_file import Block, PixelStore
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.data.sources import open_data
from rcdm_fast.encoders import native
from rcdm_fast.errors import RunError
from rcdm_fast.storage import StorageError
from rcdm_fast.training import representations, state
from rcdm_fast.training.adapt import AdaptConfig, adapt
from rcdm_fast.training.pretrain import PretrainConfig, pretrain
from rcdm_fast.training.state import RunFolder
from rcdm_fast.training.train import train
from rcdm_fast.training.views import Views
from tests import small, training_process

DATA = training_process.data()
TINY = PretrainConfig(name="tiny", image_size=8, stem=8, widths=(8, 8), blocks=(1, 1), projector=(8, 4))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "tiny-encoder.safetensors"
    native.save(path, TINY.network(), TINY.encoder(), {})
    return path


def flip(file: Path, place: int | None = None) -> None:
    """Change one bit, in the middle if no byte is named."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    file.write_bytes(content)


def test_a_flipped_bit_in_the_newest_state(
    encoder_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is taken, and the weights at the end are those of a run without damage."""
    config = training_process.config(str(encoder_file))
    path = train(config, DATA, tmp_path)
    whole = storage.read_tensors(path)
    path.unlink()
    newest = max(tmp_path.glob("state-*.pt"))
    flip(newest)
    got = storage.read_tensors(train(config, DATA, tmp_path))
    assert all(torch.equal(got[name], whole[name]) for name in whole)
    assert f"{newest}: damaged" in caplog.text
    assert newest.with_name(f"{newest.name}.damaged").exists()


def test_a_damaged_state_does_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({"a": 1})
    for step in (100, 200):
        folder.save(step, {"step": step, "w": torch.zeros(100)})
    flip(tmp_path / "state-000000200.pt")
    again = RunFolder(tmp_path)
    found = again.open({"a": 1})
    assert found is not None
    assert found["step"] == 100
    again.save(150, {"step": 150, "w": torch.zeros(100)})
    assert [path.name for path in again.states()] == ["state-000000100.pt", "state-000000150.pt"]
    flip(tmp_path / "state-000000150.pt")
    found = RunFolder(tmp_path).open({"a": 1})
    assert found is not None
    assert found["step"] == 100


@pytest.mark.parametrize("content", [[1], {"w": torch.zeros(1)}, {"step": "3"}, {"step": True}])
def test_a_state_of_something_else(tmp_path: Path, content: Any) -> None:
    RunFolder(tmp_path).open({"a": 1})
    torch.save(content, tmp_path / "state-000000003.pt")
    with pytest.raises(RunError, match=r"no state can be read: .*not the state of a run"):
        RunFolder(tmp_path).open({"a": 1})


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b"3", b"\xff", b"{", b""])
def test_a_configuration_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json: not the configuration of a run"):
        RunFolder(tmp_path).open({"a": 1})


def test_a_damaged_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({"a": 1})
    folder.save(2, {"step": 2})
    deep = "[" * 100_000
    lines = ['{"step": 1}', "[1]", '{"step": "x"}', '{"step": null}', deep, "3", '{"step": 2}', '{"step": 9}', '{"cut']
    (tmp_path / "log.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    folder.open({"a": 1})
    folder.log({"step": 3})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_a_line_that_was_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / "environment.jsonl").write_text('{"step": 0, "comm')
    RunFolder(tmp_path).describe_start(3, torch.device("cpu"))
    lines = (tmp_path / "environment.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["step"] == 3


@contextlib.contextmanager
def under_way(folder: Path) -> Iterator[None]:
    with RunFolder(folder).locked():
        yield


def test_two_runs_in_one_folder(encoder_file: Path, tmp_path: Path) -> None:
    config = training_process.config(str(encoder_file))
    change = AdaptConfig("a", "cifar10-simclr-trunk", encoder=TINY.encoder(), steps=0)
    images = ImageSet(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), None, (), (), "gray")
    with under_way(tmp_path):
        for call in (
            lambda: train(config, DATA, tmp_path),
            lambda: pretrain(TINY, DATA, tmp_path),
            lambda: adapt(change, images, tmp_path),
        ):
            with pytest.raises(RunError, match=r"another process is at work here \(a run of training\)"):
                call()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
    assert train(config, DATA, tmp_path).exists()


def test_a_process_that_does_not_write_asks_for_no_lock(tmp_path: Path) -> None:
    with under_way(tmp_path), RunFolder(tmp_path).locked(write=False):
        pass


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_an_error_at_once(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(representations, "cached", None)
    with pytest.raises(storage.StorageError):
        train(training_process.config(str(encoder_file), name=name), DATA, tmp_path)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "open_in_place", full)
    with pytest.raises(storage.StorageError, match=rf"{tmp_path}/log\.jsonl: cannot be written \(No space left"):
        folder.log({"step": 1})
    with pytest.raises(storage.StorageError, match=r"environment\.jsonl: cannot be written \(No space left"):
        folder.describe_start(1, torch.device("cpu"))
    monkeypatch.undo()
    monkeypatch.setattr(state, "_sinks", full)
    with pytest.raises(storage.StorageError, match=rf"{tmp_path}: cannot be written \(No space left"):
        folder.log({"step": 1})


def test_a_flipped_bit_in_representations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the block that it is in is computed again."""
    monkeypatch.setattr(representations, "BLOCK", 10)
    images = (small.make_images(48) * 127.5 + 127.5).to(torch.uint8)
    data = ImageSet(images, None, (), (), fingerprint(images, None))
    whole = representations.cached(small.encoder(), data, tmp_path, views=Views(True)).clone()
    (file,) = tmp_path.glob("representations-*.npy")
    calls: list[int] = []
    compute = representations.compute

    def counted(encoder: Any, data: ImageSet, *seen: Any) -> torch.Tensor:
        calls.append(len(data))
        return compute(encoder, data, *seen)

    monkeypatch.setattr(representations, "compute", counted)
    flip(file, file.stat().st_size - 1)
    assert torch.equal(representations.cached(small.encoder(), data, tmp_path, views=Views(True)), whole)
    assert calls == [8]
    assert torch.equal(representations.cached(small.encoder(), data, tmp_path, views=Views(True)), whole)
    assert calls == [8]
    about = file.with_suffix(".json")
    for content in (b"{", b"[]", b"[" * 100_000, b'{"sha256": 3}'):
        about.write_bytes(content)
        assert torch.equal(representations.cached(small.encoder(), data, tmp_path, views=Views(True)), whole)
        assert set(json.loads(about.read_text())) == {"encoder", "identity", "data", "shape", "sha256"}


def test_a_flipped_bit_in_representations_that_are_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representations, "BLOCK", 10)
    images = (small.make_images(30) * 127.5 + 127.5).to(torch.uint8)
    data = ImageSet(images, None, (), (), "images")
    whole = representations.cached(small.encoder(), data, tmp_path / "whole", views=Views(False))
    compute = representations.compute

    def stop_at_third(encoder: Any, part: ImageSet, *seen: Any) -> torch.Tensor:
        if torch.equal(part.pixels, images[20:30]):
            raise KeyboardInterrupt
        return compute(encoder, part, *seen)

    monkeypatch.setattr(representations, "compute", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        representations.cached(small.encoder(), data, tmp_path, views=Views(False))
    monkeypatch.setattr(representations, "compute", compute)
    (file,) = tmp_path.glob("representations-*.npy")
    flip(file, 200)
    assert torch.equal(representations.cached(small.encoder(), data, tmp_path, views=Views(False)), whole)


def test_representations_of_an_earlier_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = representations.cached(small.encoder(), DATA, tmp_path, views=Views(False)).clone()
    (about,) = tmp_path.glob("representations-*.json")
    before = {key: value for key, value in json.loads(about.read_text()).items() if key != "sha256"}
    about.write_text(json.dumps(before))
    with caplog.at_level(logging.INFO):
        assert torch.equal(representations.cached(small.encoder(), DATA, tmp_path, views=Views(False)), whole)
    assert "has no checksums" in caplog.text


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ImageSet]:
    """A store in blocks of six, beside its source, and what is in it."""
    monkeypatch.setattr(sources, "BLOCK", 6)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(20) % 3)
    return tmp_path / "store", open_data(tmp_path / "a.npz", 8, store=tmp_path / "store")


def equal(found: ImageSet, wanted: ImageSet) -> bool:
    assert found.labels is not None
    assert wanted.labels is not None
    same = torch.equal(found.pixels, wanted.pixels) and torch.equal(found.labels, wanted.labels)
    return same and (found.fingerprint, found.paths) == (wanted.fingerprint, wanted.paths)


@pytest.mark.parametrize(("name", "place"), [("pixels.u8", 7 * 192), ("pixels.u8", -1), ("items.jsonl", -4)])
def test_a_flipped_bit_in_stored_images(
    stored: tuple[Path, ImageSet], monkeypatch: pytest.MonkeyPatch, name: str, place: int
) -> None:
    """What is behind it is read again, and nothing before."""
    store, wanted = stored
    wanted = ImageSet(wanted.pixels.clone(), wanted.labels, wanted.classes, wanted.paths, wanted.fingerprint, ())
    flip(store / name, place)
    read: list[int] = []
    append = PixelStore.append

    def counted(self: PixelStore, block: Block) -> None:
        read.append(len(block.pixels))
        append(self, block)

    monkeypatch.setattr(PixelStore, "append", counted)
    assert equal(open_data(store.parent / "a.npz", 8, store=store), wanted)
    assert read == ([6, 6, 2] if place > 0 else [2])
    assert equal(open_data(store.parent / "a.npz", 8, store=store), wanted)
    assert len(read) == (3 if place > 0 else 1)


def test_stored_images_of_an_earlier_version(stored: tuple[Path, ImageSet], caplog: pytest.LogCaptureFixture) -> None:
    store, wanted = stored
    progress = store / "progress.json"
    before = {key: value for key, value in json.loads(progress.read_text()).items() if key != "blocks"}
    progress.write_text(json.dumps(before))
    with caplog.at_level(logging.INFO):
        assert equal(open_data(store.parent / "a.npz", 8, store=store), wanted)
    assert "has no checksums" in caplog.text
    flip(store / "pixels.u8")
    with pytest.raises(storage.StorageError, match=r"pixels\.u8: damaged; delete the store"):
        open_data(store.parent / "a.npz", 8, store=store)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b"[]", b"{}", b"\xff", b'{"made_from": 3}',
        b'{"made_from": {}, "read": "x", "kept": 0, "items_bytes": 0, "complete": false}',
        b'{"made_from": {}, "read": 0, "kept": -1, "items_bytes": 0, "complete": false}',
        b'{"made_from": {}, "read": 0, "kept": 0, "items_bytes": 0, "complete": false, "blocks": [3]}',
    ],
)  # fmt: skip
def test_progress_that_is_none(stored: tuple[Path, ImageSet], content: bytes) -> None:
    store, _ = stored
    (store / "progress.json").write_bytes(content)
    with pytest.raises(storage.StorageError, match="delete the store"):
        open_data(store.parent / "a.npz", 8, store=store)


def test_a_store_on_a_mount_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8, 8, 3), np.uint8))
    assert len(open_data(tmp_path / "a.npz", 8, store=tmp_path / "store")) == 3
    assert not (tmp_path / "store" / ".lock.held").exists()


@pytest.mark.parametrize("name", ["log.jsonl", "environment.jsonl"])
def test_lines_do_not_go_through_links(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").write_text("precious\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "there")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(StorageError, match="it is a link to another place"):
        folder.log({"step": 1}) if name == "log.jsonl" else folder.describe_start(0, torch.device("cpu"))
    assert (tmp_path / "there").read_text() == "precious\n"


@pytest.mark.parametrize("name", ["pixels.u8", "items.jsonl"])
def test_stored_images_do_not_go_through_links(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(tmp_path / "there")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8, 3), np.uint8), y=np.arange(2))
    with pytest.raises(StorageError, match="it is a link to another place"):
        open_data(tmp_path / "a.npz", 8, store=tmp_path / "store")
    assert (tmp_path / "there").read_text() == "precious"


@pytest.mark.parametrize("name", ["log.jsonl", ".state-x.pt"])
def test_a_folder_where_a_file_of_a_run_should_be(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(StorageError, match=rf"{name}: cannot be (read|changed) \("):
        RunFolder(tmp_path).open({"a": 1})


def test_a_configuration_that_differs_much_is_told_in_short(tmp_path: Path) -> None:
    many = {f"k{number:02d}": 1 for number in range(1000)}
    RunFolder(tmp_path).open({"a": "x" * 100_000, "b" * 100_000: 1, **many})
    with pytest.raises(RunError, match=r"another configuration \(a: 'xxx.*x' -> 1; .* and 982 more\)") as caught:
        RunFolder(tmp_path).open({"a": 1})
    assert len(str(caught.value)) < 3000
