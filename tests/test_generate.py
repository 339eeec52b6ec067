"""Images as a stream: the same as those of `sample`, from several threads, for asyncio, with bad items among them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast.config import ConfigError
from rcdm_fast.images import ImageError, save_image, to_pil, to_uint8
from rcdm_fast.jobs import feed
from rcdm_fast.model import Model
from tests import small
from tests.jobs_cases import representations


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


def collected(model: Model, h: Tensor, **settings: int) -> Tensor:
    """uint8 [R,per,3,H,W], put together by item and sample; of representations or images."""
    out = torch.zeros(len(h), settings.get("per", 8), 3, 8, 8, dtype=torch.uint8)
    for batch in rcdm_fast.generate(model, h, **settings):  # type: ignore[arg-type]
        out[batch.item, batch.sample] = batch.images
    return out


def test_the_images_of_sample(model: Model) -> None:
    h = representations(7)
    expected = to_uint8(model.sample(h, per=3, steps=3, seed=5))
    assert torch.equal(collected(model, h, per=3, steps=3, seed=5), expected)
    assert torch.equal(collected(model, h, per=3, steps=3, seed=5, batch_size=2), expected)


def test_batches_are_full_and_in_order(model: Model) -> None:
    batches = list(rcdm_fast.generate(model, representations(7), per=3, steps=1, batch_size=4))
    assert [len(batch.images) for batch in batches] == [4, 4, 4, 4, 4, 1]
    places = [pair for batch in batches for pair in zip(batch.item.tolist(), batch.sample.tolist(), strict=True)]
    assert places == [(item, sample) for item in range(7) for sample in range(3)]


def in_threads(model: Model, given: list[Tensor], **settings: int) -> list[Tensor]:
    """`collected` of each, all at the same time."""
    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(lambda each: collected(model, each, **settings), given))


def test_several_threads_share_a_model(model: Model) -> None:
    given = [representations(6, seed=number) for number in range(3)]
    expected = [to_uint8(model.sample(h, per=2, steps=3)) for h in given]
    found = in_threads(model, given, per=2, steps=3, batch_size=2)
    assert all(map(torch.equal, found, expected))


def test_several_threads_share_an_encoder(model: Model) -> None:
    """Each thread's images follow the representations of its own photographs."""
    given = [small.make_images(6, seed=number) for number in range(3)]
    expected = [collected(model, each, per=2, steps=3, batch_size=12) for each in given]
    found = in_threads(model, given, per=2, steps=3, batch_size=12)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(expected[0], expected[1])


def test_asyncio_goes_on_meanwhile(model: Model) -> None:
    ticks = 0

    async def clock() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def main() -> list[int]:
        ticking = asyncio.create_task(clock())
        sizes = [len(batch.images) async for batch in rcdm_fast.agenerate(model, representations(6), per=2, steps=5)]
        ticking.cancel()
        return sizes

    assert asyncio.run(main()) == [12]
    assert ticks > 5


def test_cancelled_while_a_batch_is_drawn(model: Model) -> None:
    """The caller's timeout arrives, and the generator is closed after the batch under way."""

    async def main() -> None:
        batches = rcdm_fast.agenerate(model, representations(64), per=8, steps=60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(batches), 0.2)

    asyncio.run(main())
    assert not any(thread.name == "rcdm-reader" for thread in threading.enumerate())


def test_leaving_early_stops_the_reader(model: Model) -> None:
    batches = rcdm_fast.generate(model, representations(5000), per=2, steps=1)
    next(batches)
    assert any(thread.name == "rcdm-reader" for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "rcdm-reader" for thread in threading.enumerate())


def test_bad_items(model: Model, tmp_path: Path) -> None:
    for number, each in enumerate(small.make_images(3, size=16)):
        save_image(to_pil(each), tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1\.png: cannot be read"):
        list(rcdm_fast.generate(model, tmp_path, per=2, steps=1))
    told: list[tuple[int, str]] = []
    batches = list(
        rcdm_fast.generate(model, tmp_path, per=2, steps=1, on_bad=lambda item, why: told.append((item, why)))
    )
    assert [item for item, _ in told] == [1]
    assert [item for batch in batches for item in batch.item.tolist()] == [0, 0, 2, 2]


def test_wrong_settings_are_errors_at_once(model: Model, tmp_path: Path) -> None:
    for settings, text in (
        ({"solver": "none"}, "no solver called 'none'"),
        ({"per": 0}, "per must be"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(ConfigError, match=text):
            rcdm_fast.generate(model, representations(), **settings)
    with pytest.raises(ConfigError, match="needs images or representations"):
        rcdm_fast.generate(model, 3)
    with pytest.raises(ImageError, match="no such folder"):
        rcdm_fast.generate(model, tmp_path / "none")


def test_an_error_while_reading_reaches_the_caller(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the network is gone")

    monkeypatch.setattr(feed, "_read", fail)
    with pytest.raises(RuntimeError, match="the network is gone"):
        list(rcdm_fast.generate(model, representations(), per=1, steps=1))


def test_pairs_choose_images(model: Model) -> None:
    h = representations(3)
    everything = model.sample(h, per=4, steps=3)
    request = model.request(h, pairs=[(2, 1), (0, 3), (2, 0)], steps=3)
    (found,) = [images for _, images in model.batches(request)]
    assert torch.equal(found, torch.stack([everything[2, 1], everything[0, 3], everything[2, 0]]))
    for pairs, text in (([(3, 0)], r"pair \(3, 0\): there are rows 0..2"), ([(0, -1)], "samples count from 0")):
        with pytest.raises(ConfigError, match=text):
            model.request(h, pairs=pairs)
    with pytest.raises(ConfigError, match="pairs have keyed noise"):
        model.request(h, per=1, noise=torch.zeros(3, 1, 3, 8, 8), pairs=[(0, 0)])
