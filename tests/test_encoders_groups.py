"""Images through an encoder in groups: how many at once, each read once, the same whatever the others are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast import decoding
from rcdm_fast.cli import photos
from rcdm_fast.encoders import EncoderError, groups
from rcdm_fast.images import load_image, save_image, to_pil
from rcdm_fast.model import Model
from tests import small

COUNT = 70  # two groups and a part of one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("many")
    for number, image in enumerate(small.make_images(COUNT, size=12)):
        save_image(to_pil(image), place / f"{number:02d}.png")
    return place


@pytest.fixture
def model() -> Model:
    return small.model()


def watched(monkeypatch: pytest.MonkeyPatch, model: Model) -> list[int]:
    """How many images the encoder is given at once."""
    encoder: Any = model.encoder
    real, sizes = encoder.encode, list[int]()

    def encode(views: Tensor) -> Tensor:
        sizes.append(len(views))
        found: Tensor = real(views)
        return found

    monkeypatch.setattr(encoder, "encode", encode)
    return sizes


def test_files_are_encoded_in_groups_and_read_once(monkeypatch: pytest.MonkeyPatch, model: Model, folder: Path) -> None:
    sizes, opened = watched(monkeypatch, model), Counter[str]()

    def counted(path: Any, *rest: Any) -> Any:
        opened[Path(path).name] += 1
        return open(path, *rest)

    monkeypatch.setattr(decoding, "open", counted, raising=False)
    found = model.encode(folder)
    assert sizes == [32, 32, 6]
    assert opened == Counter(f"{number:02d}.png" for number in range(COUNT))
    rows = photos.read(model, photos.expand([folder]))
    assert sizes[3:] == [32, 32, 6]
    assert torch.equal(rows.h, found.cpu())
    opened.clear()
    model.invert(sorted(folder.iterdir())[:3], steps=1)
    assert list(opened.values()) == [1, 1, 1]
    assert sizes[6:] == [3]


def test_a_representation_does_not_depend_on_the_others(
    monkeypatch: pytest.MonkeyPatch, model: Model, folder: Path
) -> None:
    together, files = model.encode(folder), sorted(folder.iterdir())
    sizes = watched(monkeypatch, model)
    for number in (0, 31, 32, 69):
        assert torch.equal(model.encode(files[number])[0], together[number])
    assert sizes == [2] * 4  # never one row alone
    assert torch.equal(model.encode(files[5:40]), together[5:40])
    assert torch.equal(model.encode(files[::-1]), together.flip(0))


def test_an_image_that_the_encoder_fails_on(monkeypatch: pytest.MonkeyPatch, model: Model, folder: Path) -> None:
    """The others go on as if it were not there, in `encode` and in the command; without a say in it, it is an error."""
    files, encoder, wanted = sorted(folder.iterdir())[:5], model.encoder, model.encode(folder)[:5]
    assert encoder is not None
    real, wrong = encoder.encode, encoder.view(load_image(files[3]))[0]

    def encode(views: Tensor) -> Tensor:
        if any(torch.equal(view, wrong) for view in views):
            raise EncoderError("not a number")
        return real(views)

    monkeypatch.setattr(encoder, "encode", encode)
    with pytest.raises(EncoderError, match="not a number"):
        model.encode(files)
    told: list[tuple[int, str]] = []
    assert torch.equal(model.encode(files, on_bad=lambda *each: told.append(each)), wanted[[0, 1, 2, 4]])
    assert told == [(3, "not a number")]
    rows = photos.read(model, files)
    assert [row.place for row in rows.rows] == [0, 1, 2, 4]
    assert rows.left_out == ["not a number"]
    assert torch.equal(rows.h, wanted[[0, 1, 2, 4]])
    with pytest.raises(EncoderError, match="not a number"):
        model.encode(files[3], on_bad=lambda *_: None)


def test_groups_are_halved_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, model: Model, folder: Path) -> None:
    wanted, encoder = model.encode(folder), model.encoder
    assert encoder is not None
    real, most = encoder.encode, 3

    def encode(views: Tensor) -> Tensor:
        if len(views) > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(views)

    monkeypatch.setattr(encoder, "encode", encode)
    assert torch.equal(model.encode(folder), wanted)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        model.encode(folder)


def test_each_is_told_of_under_its_own_name_where_memory_is_short() -> None:
    encoder = small.encoder()
    views = small.make_images(7)

    class Poor:
        dim = encoder.dim

        def encode(self, given: Tensor) -> Tensor:
            if len(given) > 4:
                raise torch.OutOfMemoryError("out of memory")
            for number in (2, 5):
                if any(torch.equal(view, views[number]) for view in given):
                    raise EncoderError(f"number {number}")
            return encoder.encode(given)

    bad: dict[Any, str] = {}
    found = groups.encode(Poor(), views, list("abcdefg"), bad)  # type: ignore[arg-type]
    assert bad == {"c": "number 2", "f": "number 5"}
    good = [0, 1, 3, 4, 6]
    torch.testing.assert_close(found[good], encoder.encode(views)[good])
    assert not found[[2, 5]].any()


def test_where_all_fail_the_first_says_why(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    told: list[tuple[int, str]] = []

    def encode(views: Tensor) -> Tensor:
        raise EncoderError("several" if len(views) > 1 else f"mean {float(views.mean()):.3f}")

    images = small.make_images(3)
    assert model.encoder is not None
    monkeypatch.setattr(model.encoder, "encode", encode)
    with pytest.raises(EncoderError, match=f"^mean {float(images[0].mean()):.3f}$"):
        groups.of_images(model.encoder, enumerate(images[:, None]), lambda *each: told.append(each))
    assert told == [(place, f"mean {float(image.mean()):.3f}") for place, image in enumerate(images)]


def test_no_image_no_representation(model: Model) -> None:
    assert model.encoder is not None
    assert groups.of_images(model.encoder, []).shape == (0, small.DIM)
