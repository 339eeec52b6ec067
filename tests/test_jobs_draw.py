"""Drawing where something goes wrong in the middle: bad items, memory that runs out, both, on several devices."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rcdm_fast
from rcdm_fast import memory
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.diffusion import noise
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.encoders import ImageEncoder
from rcdm_fast.exporters.graph import weights_hash
from rcdm_fast.images import to_uint8
from rcdm_fast.jobs import draw, local
from rcdm_fast.jobs.draw import Artist
from rcdm_fast.jobs.feed import Ready
from rcdm_fast.jobs.layout import Layout
from rcdm_fast.jobs.ledger import Summary, read_lines
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.jobs.verify import verify
from rcdm_fast.model import Model
from tests import small
from tests.fake_cuda import fake_cuda
from tests.jobs_cases import manifest, representations, run


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


def limited(monkeypatch: pytest.MonkeyPatch, model: Model, most: Callable[[int], int]) -> list[int]:
    """Memory suffices for `most(calls so far)` images; returns the sizes that are asked for."""
    sizes: list[int] = []
    evaluate = model.engine.evaluate

    def within(batch: Batch, x: Tensor, k: int) -> Tensor:
        sizes.append(len(x))
        if len(x) > most(len(sizes)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(batch, x, k)

    monkeypatch.setattr(model.engine, "evaluate", within)
    return sizes


def poisoned(monkeypatch: pytest.MonkeyPatch, model: Model, *pairs: tuple[int, int]) -> None:
    """Samples of these (item, sample) are not finite, at one step; others of the same item are."""
    x_t = noise.keyed_noise(0, pairs, 0, (3, 8, 8), "cpu")
    evaluate = model.engine.evaluate

    def poison(batch: Batch, x: Tensor, k: int) -> Tensor:
        found = evaluate(batch, x, k).clone()
        for bad in x_t:
            found[(x == bad).flatten(1).all(dim=1)] = torch.nan
        return found

    monkeypatch.setattr(model.engine, "evaluate", poison)


def levels(folder: Path) -> np.ndarray:
    """uint8 [N,8,8,3] of a finished job."""
    with np.load(folder / "samples.npz") as found:
        return np.asarray(found["arr_0"])


def of_sample(model: Model, h: Tensor, **settings: Any) -> np.ndarray:
    """uint8 [items,per,8,8,3] as `sample` draws them."""
    return to_uint8(model.sample(h, **settings)).permute(0, 1, 3, 4, 2).numpy()


def test_memory_fails_and_items_are_bad_in_one_run(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """45 items in one shard: one cannot be read, one cannot be drawn, and memory runs out after three batches."""
    h = representations(45)
    expected = of_sample(model, h, per=2, steps=1)
    h[12, 0], h[40] = float("nan"), 1e38
    sizes = limited(monkeypatch, model, lambda calls: 8 if calls <= 3 else 5)
    settings: dict[str, Any] = {"given": h, "per": 2, "steps": 1, "shard_images": 100, "batch_size": 8}
    assert run(model, tmp_path, format="npz", **settings) == Summary(86, 90, 2, 1, 1)
    assert sizes[:9] == [8] * 4 + [4] * 5  # three batches, and one too large
    assert json.loads((tmp_path / "bucket.json").read_text()) == {"cpu": 4}
    good = [item for item in range(45) if item not in (12, 40)]
    rows = manifest(tmp_path)
    assert [(row["item"], row["sample"]) for row in rows] == [(item, sample) for item in good for sample in range(2)]
    x_t = noise.keyed_noise(0, [(row["item"], row["sample"]) for row in rows], 0, (3, 8, 8), "cpu").numpy()
    assert [row["noise"] for row in rows] == [hashlib.sha256(each.tobytes()).hexdigest()[:16] for each in x_t]
    assert np.array_equal(levels(tmp_path), expected[good].reshape(86, 8, 8, 3))
    reasons = {row["item"]: row["reason"] for row in read_lines(tmp_path / "quarantine.jsonl")}
    assert list(reasons) == [12, 40]
    assert "is not finite" in reasons[12]
    assert "the samples are not finite" in reasons[40]
    assert verify(tmp_path).complete


def test_the_same_in_a_stream(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    h = representations(45)
    expected = of_sample(model, h, per=2, steps=1)
    h[12, 0], h[40] = float("nan"), 1e38
    limited(monkeypatch, model, lambda calls: 8 if calls <= 3 else 5)
    told: list[int] = []
    batches = list(
        rcdm_fast.generate(model, h, per=2, steps=1, batch_size=8, on_bad=lambda item, why: told.append(item))
    )
    pairs = [pair for each in batches for pair in zip(each.item.tolist(), each.sample.tolist(), strict=True)]
    assert pairs == [(item, sample) for item in range(45) if item not in (12, 40) for sample in range(2)]
    assert [name for each in batches for name in each.ids] == [str(item) for item, _ in pairs]
    found = np.concatenate([each.images.permute(0, 2, 3, 1).numpy() for each in batches])
    assert np.array_equal(found, np.stack([expected[pair] for pair in pairs]))
    assert told == [12, 40]


def test_memory_for_a_single_image(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    monkeypatch.setattr(memory, "release", lambda: freed.append(1))
    limited(monkeypatch, model, lambda calls: 1)
    assert run(model, tmp_path, given=representations(2), steps=1, batch_size=5).complete
    assert json.loads((tmp_path / "bucket.json").read_text()) == {"cpu": 1}
    assert len(freed) == 2  # 5, 2


def test_memory_shrinks_in_the_middle_of_a_unit_twice(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is drawn once, in order, whatever was drawn before each halving."""
    sizes = limited(monkeypatch, model, lambda calls: 8 if calls <= 2 else 4 if calls <= 5 else 2)
    unit = ready(20, 2)
    found = [pair for drawn in artist(model, 8, per=2).draw(unit) for pair in drawn.pairs]
    assert found == [(item, sample) for item in range(20) for sample in range(2)]
    assert sizes == [8, 8, 8, 4, 4, 4, *[2] * 8]
    assert unit.bad == {}


def artist(model: Model, bucket: int, **settings: Any) -> Artist:
    return Artist(model, JobConfig(**{"steps": 1, **settings}), bucket)


def ready(count: int, per: int) -> Ready:
    return Ready(Layout(count, per, 1000).unit(0), representations(count), None, {})


def test_one_bad_sample_condemns_its_item(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other samples that are still to come are not drawn."""
    poisoned(monkeypatch, model, (1, 2))
    unit = ready(3, 5)
    found = [drawn.pairs for drawn in artist(model, 4, per=5).draw(unit)]
    assert found == [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 4)],  # with (1, 0), (1, 1), (1, 2) the samples are not finite: item by item
        [(2, 0), (2, 1), (2, 2), (2, 3)],
        [(2, 4)],
    ]
    assert list(unit.bad) == [1]
    assert "the samples are not finite" in unit.bad[1]


def test_memory_fails_while_a_bad_item_is_looked_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its samples are drawn in halves, and the good half of a bad item is no image either."""
    poisoned(monkeypatch, model, (0, 3))
    limited(monkeypatch, model, lambda calls: 4 if calls <= 3 else 2)  # the batch, and where its nan came from
    unit = ready(2, 4)
    found = [drawn.pairs for drawn in artist(model, 4, per=4).draw(unit)]
    assert found == [[(1, 0), (1, 1)], [(1, 2), (1, 3)]]
    assert list(unit.bad) == [0]


def test_samples_of_a_bad_item_that_were_drawn_are_not_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, model, (1, 4))  # in the third batch; (1, 0) to (1, 2) are in the second
    settings: dict[str, Any] = {"given": representations(3), "per": 5, "steps": 1, "shard_images": 15}
    assert run(model, tmp_path, batch_size=4, **settings) == Summary(10, 15, 1, 1, 1)
    assert [row["item"] for row in manifest(tmp_path)] == [0] * 5 + [2] * 5
    assert [row["item"] for row in read_lines(tmp_path / "quarantine.jsonl")] == [1]
    assert verify(tmp_path).complete


SETTINGS: tuple[dict[str, Any], ...] = (
    {"eta": 0.7},
    {"solver": "ancestral"},
    {"guidance": 2.5},
    {"seed": 2**64 - 1},
    {"steps": 4},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_reach_the_images_and_the_manifest(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = small.quick_model()
    model.config = dataclasses.replace(model.config, representation_dropout=0.1)
    h = representations(3)
    expected = of_sample(model, h, per=2, **{"steps": 2, **settings})
    usual = of_sample(model, h, per=2, steps=2)
    assert not np.array_equal(expected, usual)
    assert run(model, tmp_path, given=h, format="npz", **{"per": 2, "steps": 2, **settings}).complete
    nfe = 2 * settings.get("steps", 2) if "guidance" in settings else settings.get("steps", 2)
    usual_solver = "deis" if "steps" in settings else "ddim"  # in two steps
    for row in manifest(tmp_path):
        assert row["seed"] == settings.get("seed", 0)
        assert (row["solver"], row["nfe"]) == (settings.get("solver", usual_solver), nfe)
    assert np.array_equal(levels(tmp_path), expected.reshape(6, 8, 8, 3))
    drawn = np.zeros_like(expected)
    for batch in rcdm_fast.generate(model, h, per=2, **{"steps": 2, **settings}):
        drawn[batch.item, batch.sample] = batch.images.permute(0, 2, 3, 1)
    assert np.array_equal(drawn, expected)


def test_every_gpu_has_a_bucket_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with different memory take turns at one job: what one has learned says nothing of the other."""
    settings: dict[str, Any] = {"given": representations(2), "per": 2, "steps": 1, "batch_size": 4}
    network = small.network()
    with fake_cuda(2):
        for device, most, sizes in (
            ("cuda:0", 3, [4, 2, 2]),
            ("cuda:1", 1, [4, 2, 1, 1, 1, 1]),
            ("cuda:0", 99, [2, 2]),
        ):
            model = Model.from_network(network, small.SCHEDULE, device=device)
            found = limited(monkeypatch, model, lambda calls, most=most: most)  # type: ignore[misc]
            assert run(model, tmp_path, **settings).complete
            assert found == sizes
            (tmp_path / "manifest" / "000000.jsonl").unlink()
    assert json.loads((tmp_path / "bucket.json").read_text()) == {"cuda:0": 2, "cuda:1": 1}


@pytest.mark.parametrize(
    ("known", "asked", "used"), [(4, 2, 2), (4, 16, 4), (None, 3, 3), (48, None, 32), (4, None, 4)]
)
def test_what_is_asked_and_what_memory_had_room_for(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int | None, asked: int | None, used: int
) -> None:
    tmp_path.mkdir(exist_ok=True)
    if known is not None:
        (tmp_path / "bucket.json").write_text(json.dumps({"cpu": known, "cuda:0": 1}))
    sizes = limited(monkeypatch, model, lambda calls: 99)
    assert run(model, tmp_path, given=representations(40), per=1, steps=1, shard_images=64, batch_size=asked).complete
    assert sizes[0] == max(sizes) == used


def test_where_nobody_says_how_many() -> None:
    for device, bucket in (("cpu", 32), ("cuda:1", 64)):
        assert draw.default_bucket(SimpleNamespace(device=torch.device(device))) == bucket  # type: ignore[arg-type]


def test_progress_of_a_job_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 110.0])
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told: list[local.Progress] = []
    committed = local.reporter(Summary(10, 40, 1, 2, 8), told.append)
    committed(6, 0, 1.0)
    committed(4, 2, 20.0)
    assert told == [local.Progress(16, 40, 6, 4.0, 0.25, 1), local.Progress(20, 40, 10, 10.0, 1.0, 3)]


def test_only_the_device_is_busy(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while the caller has a batch."""
    now = 0.0

    evaluate = model.engine.evaluate

    def slow(batch: Batch, x: Tensor, k: int) -> Tensor:
        nonlocal now
        now += 3
        return evaluate(batch, x, k)

    monkeypatch.setattr(draw, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(model.engine, "evaluate", slow)
    drawing = artist(model, 4, per=2)
    for _ in drawing.draw(dataclasses.replace(ready(5, 2), busy_s=0.5)):
        now += 100
    assert drawing.busy_s == 0.5 + 3 * 3


def test_a_damaged_shard_does_not_count_as_done(model: Model, tmp_path: Path) -> None:
    """What is told of a job that goes on begins with what is sound, and nothing says that it is finished."""
    run(model, tmp_path)
    (tmp_path / "shards" / "000001.tar").write_bytes(b"torn")
    told: list[local.Progress] = []

    def report(now: local.Progress) -> None:
        told.append(now)
        left = [name for name in ("summary.json", "manifest.jsonl") if (tmp_path / name).exists()]
        assert not left
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, report=report)
    assert [(now.images, now.wanted, now.drawn, now.quarantined) for now in told] == [(27, 27, 6, 0)]


def test_a_shard_that_is_missing_is_no_finished_job(model: Model, tmp_path: Path) -> None:
    run(model, tmp_path, format="npz")
    (tmp_path / "manifest" / "000001.jsonl").unlink()

    def report(now: local.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, format="npz", report=report)
    for name in ("summary.json", "manifest.jsonl", "quarantine.jsonl", "samples.npz"):
        assert not (tmp_path / name).exists()


def test_a_stale_folder_of_a_shard_is_replaced(model: Model, tmp_path: Path) -> None:
    """Images that a stopped run left, of items that are bad now, are not among those of the shard."""
    h = representations(2)
    h[1] = float("nan")
    prepared = local.prepare(model, random_access.find(h), tmp_path, JobConfig(per=2, steps=1, format="folder"))
    prepared.ledger.start(prepared.identity)
    stale = prepared.ledger.shard(0)
    stale.mkdir(parents=True)
    (stale / "000000001-000000.png").write_bytes(b"of another run")
    assert local.run(model, h, tmp_path, prepared.ledger.config).complete
    assert sorted(each.name for each in stale.iterdir()) == ["000000000-000000.png", "000000000-000001.png"]


def _name(model: Model) -> str:
    """What a new job names a model by."""
    prepared = local.prepare(model, random_access.find(torch.randn(1, small.DIM)), Path("absent"), JobConfig(per=1))
    found: str = prepared.identity["model"]["sha256"]
    return found


def test_what_a_model_is(model: Model) -> None:
    """Weights, the schedule and the network's description count; a name does not, nor what is said of an encoder.

    The encoder in use has a hash of its own.
    """
    changed = [small.quick_model() for _ in range(4)]
    schedule = dataclasses.replace(changed[0].config.schedule, noise_schedule="cosine")
    changed[0].config = dataclasses.replace(changed[0].config, schedule=schedule)
    assert changed[1].config.encoder is not None
    encoder = dataclasses.replace(changed[1].config.encoder, image_size=9)
    changed[1].config = dataclasses.replace(changed[1].config, encoder=encoder)
    changed[2].config = dataclasses.replace(changed[2].config, unet=dataclasses.replace(small.UNET, dropout=0.5))
    with torch.no_grad():
        next(changed[3].unet.parameters()).view(-1)[0] += 1e-3
    prints = [_name(each) for each in (model, *changed)]
    assert len(set(prints)) == 4
    assert prints[2] == prints[0] == weights_hash(model.unet, model.config.schedule)
    assert local._hash_of_before(model) not in [local._hash_of_before(each) for each in changed]  # all of it counted
    assert model.encoder is not None
    before = local.encoder_fingerprint(model)
    view = dataclasses.replace(model.encoder.config, mean=(0.5, 0.5, 0.4))
    changed[0]._encoder = ImageEncoder(small.MeanColor(), view)
    assert local.encoder_fingerprint(changed[0]) != before == local.encoder_fingerprint(changed[1])
    named = small.quick_model()
    named.config = dataclasses.replace(named.config, name="another")
    assert _name(named) == prints[0]


def test_items_that_fit_no_model(model: Model) -> None:
    with pytest.raises(ConfigError, match="guidance needs a model that"):
        draw.check_request(model, JobConfig(guidance=2.0))
    assert draw.check_request(model, JobConfig(steps=7)) == 7
    guidable = small.quick_model()
    guidable.config = dataclasses.replace(guidable.config, representation_dropout=0.1)
    for guidance in (0.0, 0.5, 1.5):
        assert draw.check_request(guidable, JobConfig(steps=7, guidance=guidance)) == 14
    assert draw.check_request(guidable, JobConfig(steps=7, guidance=1.0)) == 7
    assert RunOptions() == RunOptions(batch_size=None, threads=4, retry=False)


@pytest.mark.parametrize("classes", [0, 4])
def test_a_guide_guides_models_without_representations(classes: int) -> None:
    unguided, guide = (small.quick_model(representation_dim=0, num_classes=classes) for _ in range(2))
    assert draw.check_request(unguided, JobConfig(steps=3, guidance=1.5), guide) == 6
    with pytest.raises(ConfigError, match="guidance needs a model that takes representations"):
        draw.check_request(unguided, JobConfig(steps=3, guidance=1.5))
    with pytest.raises(ConfigError, match="a guide does nothing at guidance 1"):
        draw.check_request(unguided, JobConfig(steps=3), guide)
