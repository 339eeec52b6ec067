"""The cache of representations: computed once, in blocks, by several processes, across interruptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rcdm_fast import storage
from rcdm_fast.config import ConfigError, EncoderConfig
from rcdm_fast.data.image_set import ImageSet
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.errors import RunError
from rcdm_fast.training import representations
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.representation_file import RepresentationFile
from rcdm_fast.training.state import Paused
from rcdm_fast.training.train import train
from rcdm_fast.training.views import Views
from tests import small, training_process

DATA = training_process.data()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representations, "BLOCK", 10)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the blocks that were computed."""
    found: list[int] = []
    before = representations.compute

    def counted(*arguments: object, **options: object) -> torch.Tensor:
        result = before(*arguments, **options)  # type: ignore[arg-type]
        found.append(len(result))
        return result

    monkeypatch.setattr(representations, "compute", counted)
    return found


def test_computed_once_and_mapped(tmp_path: Path, calls: list[int]) -> None:
    encoder = small.encoder()
    first = representations.cached(encoder, DATA, tmp_path, views=Views(True))
    assert first.shape == (2, len(DATA), small.DIM)
    assert calls == [10, 10, 10, 10, 8] * 2
    images = DATA.floats(slice(None))
    torch.testing.assert_close(first, torch.stack([encoder.encode(images), encoder.encode(images.flip(3))]))
    assert torch.equal(representations.cached(encoder, DATA, tmp_path, views=Views(True)), first)
    assert len(calls) == 10
    (file,) = tmp_path.glob("representations-*.npy")
    assert np.array_equal(np.load(file), first.numpy())
    assert not list(tmp_path.glob("*.blocks"))
    representations.cached(encoder, DATA.subset(torch.arange(10)), tmp_path, views=Views(True))
    representations.cached(encoder, DATA, tmp_path, views=Views(False))
    assert len(list(tmp_path.glob("representations-*.npy"))) == 3


def test_moved_images_keep_their_numbers_in_every_block(tmp_path: Path) -> None:
    encoder, views = small.encoder(), Views(False, augmented=2)
    found = representations.cached(encoder, DATA, tmp_path, views=views)
    for view in range(3):
        torch.testing.assert_close(found[view], representations.compute(encoder, DATA, views, view))
    assert not torch.allclose(found[1], found[2], atol=0.01)


def test_goes_on_after_an_interruption(tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small.encoder()
    whole = representations.cached(encoder, DATA, tmp_path / "whole", views=Views(True))
    calls.clear()
    before = RepresentationFile.write

    def stop_in_fourth(self: RepresentationFile, view: int, start: int, rows: torch.Tensor) -> None:
        if len(calls) == 4:
            raise KeyboardInterrupt
        before(self, view, start, rows)

    monkeypatch.setattr(RepresentationFile, "write", stop_in_fourth)
    with pytest.raises(KeyboardInterrupt):
        representations.cached(encoder, DATA, tmp_path / "torn", views=Views(True))
    monkeypatch.setattr(RepresentationFile, "write", before)
    calls.clear()
    assert torch.equal(representations.cached(encoder, DATA, tmp_path / "torn", views=Views(True)), whole)
    assert calls == [10, 8, 10, 10, 10, 10, 8]


def test_each_process_computes_its_share(tmp_path: Path, calls: list[int]) -> None:
    """Two processes one after the other: the second finds the first one's blocks, and only it can finish."""

    class Two(Processes):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank, self.size = rank, 2

        def wait(self) -> None:
            return

    encoder = small.encoder()
    want = representations.cached(encoder, DATA, tmp_path / "one", views=Views(False))
    calls.clear()
    with pytest.raises(storage.StorageError, match="2 blocks are missing"):
        representations.cached(encoder, DATA, tmp_path / "two", views=Views(False), dist=Two(0))
    assert calls == [10, 10, 8]
    representations.cached(encoder, DATA, tmp_path / "two", views=Views(False), dist=Two(1))
    assert calls == [10, 10, 8, 10, 10]
    assert torch.equal(representations.cached(encoder, DATA, tmp_path / "two", views=Views(False), dist=Two(0)), want)
    assert len(calls) == 5


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))
    (file,) = tmp_path.glob("representations-*.npy")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(storage.StorageError, match="delete it"):
        representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))


@pytest.mark.parametrize("write", [np.savez, lambda file, rows: np.save(file, np.asfortranarray(rows))])
def test_an_array_of_another_form_is_an_error(tmp_path: Path, write: Callable[..., None]) -> None:
    """Under the right name: several arrays, or one whose rows do not lie one after another."""
    want = representations.cached(small.encoder(), DATA, tmp_path, views=Views(True)).numpy().copy()
    (name,) = tmp_path.glob("representations-*.npy")
    with open(name, "wb") as file:
        write(file, want)
    with pytest.raises(storage.StorageError, match=rf"{name.name}: cannot be read; delete it"):
        representations.cached(small.encoder(), DATA, tmp_path, views=Views(True))


def test_a_folder_in_place_of_what_is_known_is_an_error(tmp_path: Path) -> None:
    representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))
    (about,) = tmp_path.glob("representations-*.json")
    about.unlink()
    about.mkdir()
    with pytest.raises(storage.StorageError, match="it is a folder"):
        representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(storage.StorageError, match="No space left"):
            representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))
    found = representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))
    assert torch.equal(found, representations.cached(small.encoder(), DATA, tmp_path / "other", views=Views(False)))


def test_the_set_of_images_decides(tmp_path: Path) -> None:
    other = ImageSet(DATA.pixels.flip(0), None, (), (), "other images")
    a, b = (representations.cached(small.encoder(), data, tmp_path, views=Views(False)) for data in (DATA, other))
    torch.testing.assert_close(a, b.flip(1))
    assert not torch.equal(a, b)


def test_what_an_encoder_answers_decides_where_its_configuration_does_not(tmp_path: Path) -> None:
    encoders = []
    for bias in (0.0, 1.0):
        last = torch.nn.Linear(small.DIM, 3)
        torch.nn.init.constant_(last.bias, bias)
        torch.nn.init.constant_(last.weight, 0.5)
        network = torch.nn.Sequential(small.MeanColor(), last)
        encoders.append(ImageEncoder(network, EncoderConfig("module", image_size=8)))
    a, b = (representations.cached(each, DATA, tmp_path, views=Views(False)) for each in encoders)
    torch.testing.assert_close(b, a + 1)
    assert representations.key(encoders[0], DATA) != representations.key(encoders[1], DATA)
    keys = [representations.identity(each, DATA, given=True)["answers"] for each in encoders]
    assert len(set(keys)) == 2


class Scaled(small.MeanColor):
    """Somebody's encoder on a machine that rounds otherwise, or another one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


def scaled(scale: float, size: int = 8) -> ImageEncoder:
    return ImageEncoder(Scaled(scale), EncoderConfig("module", image_size=size))


def test_a_machine_that_rounds_otherwise_takes_what_is_there(tmp_path: Path, calls: list[int]) -> None:
    here, there = scaled(1.0), scaled(1 + 1e-6)
    bank = representations.cached(here, DATA, tmp_path, Views(False))
    assert representations.key(here, DATA) != representations.key(there, DATA)
    of_run = representations.identity(here, DATA, given=True, folder=tmp_path)
    assert of_run == {"answers": representations.key(here, DATA)}
    assert representations.identity(there, DATA, given=True, folder=tmp_path) == of_run
    calls.clear()
    assert torch.equal(representations.cached(there, DATA, tmp_path, Views(False)), bank)
    assert set(calls) == {32}, "a few images to compare, and no block"
    other = dataclasses.replace(DATA, fingerprint="another")
    for encoder, data in ((scaled(1.001), DATA), (scaled(1 + 1e-6, 4), DATA), (there, other)):
        assert representations.known(encoder, data, tmp_path) == representations.key(encoder, data)
    assert representations.known(there, DATA, tmp_path, "-flips") == representations.key(there, DATA)
    (about,) = tmp_path.glob("*.json")
    for content in ("", "[]", '{"encoder": 3}'):
        about.write_text(content)
        assert representations.known(there, DATA, tmp_path) == representations.key(there, DATA)


def test_a_run_with_an_encoder_of_ones_own_goes_on_on_another_machine(tmp_path: Path) -> None:
    config = dataclasses.replace(training_process.config("none"), encoder=None, images=32)
    with pytest.raises(Paused):
        train(config, DATA, tmp_path, minutes=0, encoder=scaled(1.0))
    with pytest.raises(RunError, match="answers"):
        train(config, DATA, tmp_path, encoder=scaled(1.001))
    assert train(config, DATA, tmp_path, encoder=scaled(1 + 1e-6)).exists()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_least_deviation_is_a_share_of_the_largest(scale: float) -> None:
    bank = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-5, 0.0]) * scale
    mean, std = representations.standardization(bank)
    largest = float(bank[..., 0].std())
    assert std.tolist() == pytest.approx([largest, 1e-3 * largest, 1e-3 * largest], rel=0.01)
    assert mean.tolist() == pytest.approx([float(bank[..., 0].mean()), 0, 0], rel=0.01, abs=1e-3 * largest)


@pytest.mark.parametrize("bank", [torch.full((1, 7, 3), 0.1), torch.randn(1, 1, 3), torch.zeros(2, 5, 3)])
def test_representations_that_are_all_the_same_stay_numbers(
    bank: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a collapsed encoder, or of a single image: nothing is divided by zero, nor is rounding made large."""
    mean, std = representations.standardization(bank)
    assert std.tolist() == [1, 1, 1]
    assert mean.tolist() == pytest.approx(bank[0, 0].tolist(), rel=1e-6)
    assert [record.getMessage() for record in caplog.records] == [
        "all images have the same representation: is there only one image, or has the encoder collapsed?"
    ]
    of_channels = representations.standardization(torch.cat([torch.ones(1, 2, 4), torch.zeros(1, 2, 4)], 2), (2, 2, 2))
    assert [each.tolist() for each in of_channels] == [[1, 0], [1, 1]]


def test_an_encoder_is_asked_by_this_process_alone_where_others_were_started_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapting in one process of somebody else's training neither waits for the others nor leaves its work to them."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    encoder = small.encoder()
    bank = representations.cached(encoder, DATA, tmp_path, Views(False))
    assert torch.equal(bank[0], representations.compute(encoder, DATA))


def test_images_keep_their_numbers_in_every_batch_of_the_encoder() -> None:
    views = Views(False, augmented=2)
    index = torch.arange(100, 148)
    moved, _ = views.see(DATA.floats(slice(None)), torch.full_like(index, 2), index)
    found = representations.compute(small.encoder(), DATA, views, 2, first=100, batch=20)
    torch.testing.assert_close(found, small.encoder().encode(moved))


def test_maps_of_another_version_are_computed_again(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, views = DATA.subset(torch.arange(9)), Views(False, augmented=1)
    for version, computed in ((1, 2), (1, 2), (2, 4)):
        monkeypatch.setattr(representations, "VERSION", version)
        representations.cached(small.encoder(), few, tmp_path, views=views)
        assert len(calls) == computed


def test_the_same_numbers_in_other_rows_are_other_representations() -> None:
    h = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert representations.digest(h) == representations.digest(h.clone())
    others = (h.view(4, 6), h.view(6, 1, 2, 2), h.view(6, 4, 1, 1), h + 1)
    assert len({representations.digest(each) for each in (h, *others)}) == 5
    assert representations.identity(None, DATA, given=False, h=h) == {"representations": representations.digest(h)}


def test_blocks_of_an_earlier_version_are_there(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose marks were empty files, without a checksum."""
    write = RepresentationFile.write

    def stop_in_third(self: RepresentationFile, view: int, start: int, rows: torch.Tensor) -> None:
        if start == 20:
            raise KeyboardInterrupt
        write(self, view, start, rows)

    monkeypatch.setattr(RepresentationFile, "write", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))
    monkeypatch.setattr(RepresentationFile, "write", write)
    marks = list(tmp_path.glob("*.blocks/*"))
    assert len(marks) == 2
    for mark in marks:
        mark.write_text("")
    calls.clear()
    found = representations.cached(small.encoder(), DATA, tmp_path, views=Views(False))
    assert calls == [10, 10, 8]
    torch.testing.assert_close(found[0], small.encoder().encode(DATA.floats(slice(None))))


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (torch.zeros(47, 6), r"float32 \[48,D\] for 48 images, got \[47, 6\]"),
        (torch.zeros(48, 6, dtype=torch.float64), "are float32"),
        (torch.zeros(48, 6, 4), r"got \[48, 6, 4\]"),
        (torch.zeros(48), r"got \[48\]"),
        (torch.zeros(48, 0), r"got \[48, 0\]"),
        (torch.zeros(48, 6).index_fill(0, torch.tensor(47), torch.inf), "NaN or infinity"),
    ],
)
def test_representations_from_elsewhere_that_do_not_fit(h: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        representations.check_given(h, DATA)
    for fits in (torch.zeros(48, 6), torch.zeros(48, 6, 2, 2)):
        representations.check_given(fits, DATA)


def test_progress_is_that_of_a_process_and_goes_through_what_is_there(tmp_path: Path, calls: list[int]) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, whole: int) -> None:
        told.append((done, whole))
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        representations.cached(small.encoder(), DATA, tmp_path, Views(False), progress=tell)
    representations.cached(small.encoder(), DATA, tmp_path, Views(False), progress=tell)
    assert told == [(1, 5), (2, 5), (1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert calls == [10, 10, 10, 10, 8]
