"""What a job reads and encodes before it draws: bad items, memory that runs out, files that may not be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rcdm_fast
from rcdm_fast.data import random_access
from rcdm_fast.encoders import EncoderError
from rcdm_fast.images import from_uint8, to_pil, to_uint8
from rcdm_fast.jobs import feed, local
from rcdm_fast.jobs.layout import Layout
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from tests import small


def test_encoding_with_bad_images_in_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items 40..79 of 80 in groups of 32 and 8; every item is told of by its place, whichever half it was in."""
    model = small.quick_model()
    assert model.encoder is not None
    images = from_uint8(to_uint8(small.make_images(80)))
    whole, sizes = model.encoder.encode, []
    wanted = whole(images[40:])
    (tmp_path / "torn.png").write_bytes(b"no image")
    given: list[Any] = [to_pil(each) for each in images]
    given[77] = tmp_path / "torn.png"
    fail = {tuple(images[item].flatten()[:3].tolist()) for item in (44, 69, 75)}

    def encode(views: Tensor) -> Tensor:
        sizes.append(len(views))
        if len(views) > 10:
            raise RuntimeError("CUDA error: out of memory")
        if fail & {tuple(each.flatten()[:3].tolist()) for each in views}:
            raise EncoderError("not finite")
        return whole(views)

    monkeypatch.setattr(model.encoder, "encode", encode)
    layout = Layout(80, 1, 40)
    (found,) = feed.ready_units(model, random_access.find(given), [layout.unit(1)], 2)
    assert sizes == [32, 16, 8, *[1] * 8, 8, 16, 8, 8, *[1] * 8, 8, *[1] * 8]
    assert sorted(found.bad) == [44, 69, 75, 77]
    assert found.bad[44] == found.bad[69] == found.bad[75] == "not finite"
    assert "torn.png: cannot be read" in found.bad[77]
    assert found.h is not None
    good = [row for row in range(40) if row + 40 not in found.bad]
    assert torch.allclose(found.h[good], wanted[good], rtol=0, atol=1e-6)
    assert found.h[[4, 29, 35]].abs().max() == 0
    monkeypatch.setattr(model.encoder, "encode", whole)
    (plain,) = feed.ready_units(model, random_access.find(given), [layout.unit(1)], 2)
    assert plain.h is not None
    zero = whole(torch.zeros(1, 3, 8, 8))  # what stands in for an unreadable image is nobody else's
    assert torch.allclose(plain.h[[37]], zero, rtol=0, atol=1e-6)


@pytest.mark.parametrize("error", [PermissionError(13, "not yours"), OSError(5, "Input/output error")], ids=str)
def test_what_the_system_does_not_let_one_read_is_left_out(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, pixels in enumerate(to_uint8(small.make_images(5)).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    source = random_access.find(str(tmp_path))
    read = type(source).read

    def refused(own: Any, place: int) -> Any:
        if place == 3:
            raise error
        return read(own, place)

    monkeypatch.setattr(type(source), "read", refused)
    (found,) = feed.ready_units(small.quick_model(), source, [Layout(5, 1, 5).unit(0)], 2)
    assert found.bad == {3: str(error)}
    assert found.h is not None
    assert len(found.h) == 5


def test_more_labels_than_a_group_has(tmp_path: Path) -> None:
    labels = np.arange(70) % 4
    labels[[33, 66]] = 4, -1
    labelled = small.model(representation_dim=0, num_classes=4)
    layout = Layout(70, 1, 40)
    found = list(feed.ready_units(labelled, random_access.find(labels), [layout.unit(0), layout.unit(1)], 2))
    assert [sorted(each.bad.items()) for each in found] == [
        [(33, "label 4 is not in 0..3")],
        [(66, "label -1 is not in 0..3")],
    ]
    given = torch.cat([each.label for each in found if each.label is not None])
    good = [item for item in range(70) if item not in (33, 66)]
    assert given[good].tolist() == labels[good].tolist()
    assert [len(each.label) for each in found if each.label is not None] == [40, 30]


def test_the_time_of_encoding_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.quick_model()
    assert model.encoder is not None
    now, whole = [100.0], model.encoder.encode

    def encode(views: Tensor) -> Tensor:
        now[0] += 4
        return whole(views)

    monkeypatch.setattr(feed, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(model.encoder, "encode", encode)
    images = random_access.find([to_pil(each) for each in small.make_images(40)])  # two groups
    (found,) = feed.ready_units(model, images, [Layout(40, 1, 40).unit(0)], 2)
    assert found.busy_s == 8
    (found,) = feed.ready_units(model, random_access.find(torch.zeros(3, small.DIM)), [Layout(3, 1, 3).unit(0)], 2)
    assert found.busy_s == 0


def test_as_many_threads_read_and_encode_as_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = small.quick_model(), torch.zeros(2, small.DIM)
    asked: list[tuple[str, int]] = []
    for module in (feed, local):

        def made(count: int, name: str = module.__name__, pool: Any = ThreadPoolExecutor) -> Any:
            asked.append((name.rpartition(".")[2], count))
            return pool(count)

        monkeypatch.setattr(module, "ThreadPoolExecutor", made)
    list(rcdm_fast.generate(model, h, per=1, steps=1, threads=3))
    assert asked == [("feed", 3)]
    asked.clear()
    local.run(model, h, tmp_path, JobConfig(per=1, steps=1), RunOptions(threads=5))
    assert sorted(asked) == [("feed", 5), ("local", 1), ("local", 5), ("local", 5)]  # writing; checking and encoding


def test_a_group_of_labels_none_of_which_the_model_has() -> None:
    """Labels that are sorted, of a data set with more classes than the model."""
    labelled = small.model(representation_dim=0, num_classes=2)
    labels = np.arange(100) // 40  # the third group of 32 has 2 alone
    (found,) = feed.ready_units(labelled, random_access.find(labels), [Layout(100, 1, 100).unit(0)], 2)
    assert sorted(found.bad) == list(range(80, 100))
    assert found.label is not None
    assert found.label[:80].tolist() == labels[:80].tolist()
    assert len(found.label) == 100
