"""A job on one device: its images, stops, changes, and what can go wrong."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rcdm_fast import memory
from rcdm_fast.config import ConfigError, plain
from rcdm_fast.diffusion.sampling import SamplingError
from rcdm_fast.encoders.base import ImageEncoder
from rcdm_fast.exporters.graph import weights_hash
from rcdm_fast.images import from_uint8, save_image, to_pil, to_uint8
from rcdm_fast.jobs import draw, formats, ledger, local
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.jobs.verify import verify
from rcdm_fast.model import Model
from tests import jobs_cases, small
from tests.jobs_cases import ITEMS, manifest, representations, run

PER = jobs_cases.CONFIG.per


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


@pytest.fixture(scope="module")
def unbroken(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job, drawn without a stop."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(model, folder)
    return folder


def make_images(folder: Path) -> Iterator[np.ndarray]:
    """Levels of all images, in the manifest's order."""
    for row in manifest(folder):
        with tarfile.open(folder / row["shard"]) as tar:
            member = tar.extractfile(f"{row['key']}.png")
            assert member is not None
            yield np.asarray(Image.open(io.BytesIO(member.read())))


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a finished job is made of."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_images_are_those_of_sample(model: Model, unbroken: Path) -> None:
    rows = manifest(unbroken)
    assert [(row["item"], row["sample"]) for row in rows] == [(i, s) for i in range(ITEMS) for s in range(PER)]
    expected = to_uint8(model.sample(representations(), per=PER, steps=3)).flatten(0, 1)
    for found, wanted in zip(make_images(unbroken), expected, strict=True):
        assert np.array_equal(found, wanted.permute(1, 2, 0).numpy())


def test_the_manifest_says_where_everything_is(model: Model, unbroken: Path) -> None:
    for row in manifest(unbroken):
        content = (unbroken / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["bytes"]]
        assert formats.checksum(content) == row["sha256"]
        assert Image.open(io.BytesIO(content)).size == (8, 8)
        assert (row["nfe"], row["solver"], row["engine"], row["seed"]) == (3, "deis", "eager:fp32", 0)
        assert row["model"] == weights_hash(model.unet, model.config.schedule)
    assert verify(unbroken).complete


@pytest.mark.parametrize("changes", [{"shard_images": 4}, {"shard_images": 2}, {"batch_size": 1}, {"threads": 1}])
def test_any_split_gives_the_same_images(model: Model, unbroken: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run(model, tmp_path, **changes)
    wanted = ("item", "id", "sample", "noise", "sha256")
    assert [[row[key] for key in wanted] for row in manifest(tmp_path)] == [
        [row[key] for key in wanted] for row in manifest(unbroken)
    ]


def test_a_job_of_before_goes_on_under_the_hash_it_was_begun_with(model: Model, tmp_path: Path) -> None:
    """Models had another hash in manifests then."""
    parts: list[Any] = [model.config.schedule, model.config.unet, model.config.encoder]
    digest = hashlib.sha256(json.dumps([plain(part) for part in parts], sort_keys=True).encode())
    for name, tensor in sorted(model.unet.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.numpy().tobytes())
    before, now = digest.hexdigest(), weights_hash(model.unet, model.config.schedule)
    run(model, tmp_path)
    files = [tmp_path / "job.json", *tmp_path.glob("manifest*/*"), tmp_path / "manifest.jsonl"]
    for file in files:
        file.write_text(file.read_text(encoding="utf-8").replace(now, before), encoding="utf-8")
    (tmp_path / manifest(tmp_path)[0]["shard"]).unlink()
    assert run(model, tmp_path).complete
    assert {row["model"] for row in manifest(tmp_path)} == {before}
    assert verify(tmp_path).complete
    other = small.quick_model()
    with torch.no_grad():
        next(other.unet.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ConfigError, match="model"):
        run(other, tmp_path)


def test_noise_is_a_hash_of_x_t(model: Model, unbroken: Path) -> None:
    seen: list[Tensor] = []
    request = model.request(representations(), per=PER, steps=3)
    for _ in model.batches(request, watch=lambda place, x: seen.append(x.clone())):
        pass
    hashes = [draw._hash(each) for each in torch.cat(seen)]
    assert [row["noise"] for row in manifest(unbroken)] == hashes
    assert len(set(hashes)) == len(hashes)


def test_resumed_after_an_interruption(model: Model, unbroken: Path, tmp_path: Path) -> None:
    def report(now: local.Progress) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # each time after at least one shard; others may be on their way
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path, report=report)
    assert 0 < len(list((tmp_path / "manifest").iterdir())) < 5
    assert not (tmp_path / "manifest.jsonl").exists()
    assert run(model, tmp_path).complete
    assert contents(tmp_path) == contents(unbroken)


def test_what_a_stop_left_behind_does_not_count(model: Model, unbroken: Path, tmp_path: Path) -> None:
    """A shard without its manifest is written again; temporary files go."""
    run(model, tmp_path)
    (tmp_path / "manifest" / "000001.jsonl").unlink()
    (tmp_path / "shards" / "000001.tar").write_bytes(b"half a shard")
    (tmp_path / "shards" / ".000002.abcd_123.tar").write_bytes(b"temporary")
    (tmp_path / "shards" / "000003.tar").unlink()
    run(model, tmp_path)
    assert contents(tmp_path) == contents(unbroken)


def test_a_finished_job_draws_nothing(model: Model, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine, "evaluate", None)
    before = contents(unbroken)
    assert run(model, unbroken).complete
    assert contents(unbroken) == before


def test_another_job_is_refused_with_the_differences(model: Model, unbroken: Path) -> None:
    before = contents(unbroken)
    for changes, text in (
        ({"steps": 4, "seed": 1}, "settings.seed was 0, is 1; settings.steps was 3, is 4"),
        ({"given": representations(8)}, "items.count was 9, is 8"),
        ({"given": representations(seed=1)}, "items.sha256 was"),
    ):
        with pytest.raises(ConfigError, match=text):
            run(model, unbroken, **changes)
    other = small.quick_model()
    with torch.no_grad():
        next(other.unet.parameters()).add_(1)
    with pytest.raises(ConfigError, match=r"model\.sha256 was"):
        run(other, unbroken)
    assert contents(unbroken) == before


def test_a_strange_folder_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(ConfigError, match=r"there are shards but no job\.json"):
        run(model, tmp_path)
    with pytest.raises(ConfigError, match="not a job folder"):
        verify(tmp_path)


def test_two_runs_at_once_are_refused(model: Model, tmp_path: Path) -> None:
    def report(now: local.Progress) -> None:
        with pytest.raises(ConfigError, match="another run of this job is under way"):
            run(model, tmp_path)

    assert run(model, tmp_path, report=report).complete


def test_unreadable_images_among_good_ones(model: Model, tmp_path: Path) -> None:
    photos, job = tmp_path / "photos", tmp_path / "job"
    photos.mkdir()
    for number, each in enumerate(small.make_images(5, size=16)):
        save_image(to_pil(each), photos / f"{number}.png")
    good = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(good[:60])
    summary = run(model, job, given=photos, per=2)
    assert (summary.images, summary.quarantined, summary.complete) == (8, 1, True)
    (bad,) = ledger.read_lines(job / "quarantine.jsonl")
    assert (bad["item"], bad["id"]) == (2, "2.png")
    assert "cannot be read as an image" in bad["reason"]
    assert verify(job).complete
    others = {row["item"]: row["sha256"] for row in manifest(job) if row["sample"] == 0}
    (photos / "2.png").write_bytes(good)
    with pytest.raises(ConfigError, match=r"items\.sha256 was .*if quarantined items were repaired, --retry"):
        run(model, job, given=photos, per=2)
    other = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(other + b"more")
    with pytest.raises(ConfigError, match="holds another job"):
        run(model, job, given=photos, per=2, retry=True)  # that one was not quarantined
    (photos / "3.png").write_bytes(other)
    assert run(model, job, given=photos, per=2, retry=True).quarantined == 0
    assert verify(job).complete
    again = {row["item"]: row["sha256"] for row in manifest(job) if row["sample"] == 0}
    assert {item: again[item] for item in others} == others
    assert sorted(again) == [0, 1, 2, 3, 4]


def test_images_get_the_representation_of_encode(model: Model, tmp_path: Path) -> None:
    run(model, tmp_path / "a", given=small.make_images(4))
    levels = from_uint8(to_uint8(small.make_images(4)))
    run(model, tmp_path / "b", given=model.encode(levels))
    assert [row["sha256"] for row in manifest(tmp_path / "a")] == [row["sha256"] for row in manifest(tmp_path / "b")]


def test_clocks_may_jump(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**9, 0, -(10**5)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    told: list[local.Progress] = []
    assert run(model, tmp_path, report=told.append).complete
    assert all(0 <= now.seconds < 600 and 0 < now.busy <= 1 for now in told)
    assert [now.drawn for now in told] == sorted(now.drawn for now in told)
    assert told[-1].images == told[-1].wanted == ITEMS * PER


def test_verification_finds_what_is_wrong(model: Model, tmp_path: Path) -> None:
    run(model, tmp_path)
    assert verify(tmp_path).complete
    shard = tmp_path / "shards" / "000001.tar"
    sound = shard.read_bytes()
    row = next(row for row in manifest(tmp_path) if row["shard"].endswith("000001.tar"))
    damaged = bytearray(sound)
    damaged[row["offset"] + 20] ^= 1
    shard.write_bytes(damaged)
    found = verify(tmp_path)
    assert (found.sound, found.faults, found.images) == (False, 1, ITEMS * PER - 1)
    assert found.examples == (f"shards/000001.tar, {row['key']}: the checksum is wrong",)
    shard.unlink()
    assert verify(tmp_path).faults == 6
    shard.write_bytes(sound)
    part = tmp_path / "manifest" / "000002.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:-1]))
    assert "item 5, sample 2 is not in the manifest" in verify(tmp_path).examples[0]
    part.write_text("".join([*lines, lines[0]]))
    assert "item 4, sample 0 is there twice" in verify(tmp_path).examples[0]
    part.unlink()
    found = verify(tmp_path)
    assert (found.sound, found.complete, found.missing_shards) == (True, False, 1)


def test_few_units_wait_for_a_slow_disk(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the job, drawing stops until what is drawn has been written."""
    drawn: list[int] = []
    go = threading.Event()
    plain_draw, plain_commit = draw.Artist.draw, ledger.Ledger.commit

    def counted(self: draw.Artist, ready: Any) -> Iterator[draw.Drawn]:
        drawn.append(ready.unit.number)
        return plain_draw(self, ready)

    def slow(self: ledger.Ledger, *arguments: Any) -> None:
        assert go.wait(60)
        plain_commit(self, *arguments)

    monkeypatch.setattr(draw.Artist, "draw", counted)
    monkeypatch.setattr(ledger.Ledger, "commit", slow)
    thread = threading.Thread(target=run, args=(model, tmp_path), kwargs={"given": representations(60)})
    thread.start()
    end = time.monotonic() + 60
    while len(drawn) < local.WAITING and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)  # for those that ought not to be drawn
    waiting = len(drawn)
    go.set()
    thread.join()
    assert waiting <= local.WAITING
    assert len(drawn) == 30
    assert verify(tmp_path).complete


def test_labels_and_unconditional_models(tmp_path: Path) -> None:
    labelled = small.model(representation_dim=0, num_classes=4)
    run(labelled, tmp_path / "l", given=np.array([3, 1]))
    assert len(manifest(tmp_path / "l")) == 6
    plain = small.model(representation_dim=0)
    run(plain, tmp_path / "n", given=5)
    assert len({row["sha256"] for row in manifest(tmp_path / "n")}) == 15
    for wrong, given, text in (
        (plain, np.array([3, 1]), "needs a number of items, these are labels"),
        (labelled, 5, "needs labels"),
        (small.quick_model(), 5, "needs images or representations"),
        (small.quick_model(), torch.zeros(2, 3), "representations have 3 dimensions, the model needs 6"),
    ):
        with pytest.raises(ConfigError, match=text):
            run(wrong, tmp_path / "wrong", given=given)


def test_wrong_settings() -> None:
    for changes, text in (
        ({"per": 0}, "per must be at least 1, got 0"),
        ({"shard_images": 0}, "shard_images must be at least 1, got 0"),
        ({"format": "zip"}, "one of webdataset, folder, npz, parquet; got 'zip'"),
        ({"encoding": "gif"}, "one of png, jpeg, webp; got 'gif'"),
        ({"quality": 0}, "quality must be in 1..100"),
    ):
        with pytest.raises(ConfigError, match=text):
            JobConfig(**changes)
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        RunOptions(threads=0)
    with pytest.raises(ConfigError, match=r"no solver called 'none'; known: auto, fitted, student, ancestral, ddim, "):
        run(small.quick_model(), Path("never"), solver="none")
    assert not Path("never").exists()


def test_errors_of_sampling_are_told_apart() -> None:
    assert memory.out_of_memory(torch.OutOfMemoryError("x"))
    assert memory.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert not memory.out_of_memory(SamplingError("the samples are not finite"))
    for said in (
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "Failed to allocate memory for buffer",
        "std::bad_alloc",
    ):
        assert memory.out_of_memory(Exception(said))


def test_the_users_hidden_files_stay(model: Model, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("kept")
    (tmp_path / ".bashrc").write_text("kept")
    assert run(model, tmp_path).complete
    assert (tmp_path / ".git" / "HEAD").exists()
    assert (tmp_path / ".bashrc").exists()


def test_another_encoder_is_another_job(tmp_path: Path) -> None:
    """Weights of the encoder count, where images are the items."""
    first, second = small.quick_model(), small.quick_model()
    for model, seed in ((first, 0), (second, 1)):
        assert model.encoder is not None
        torch.manual_seed(seed)
        side = model.encoder.config.image_size
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, small.DIM))
        model._encoder = ImageEncoder(network, model.encoder.config)
    run(first, tmp_path / "images", given=small.make_images(3))
    with pytest.raises(ConfigError, match="encoder was"):
        run(second, tmp_path / "images", given=small.make_images(3))
    run(first, tmp_path / "h")
    assert run(second, tmp_path / "h").complete


def test_an_interrupted_retry_is_not_finished(model: Model, tmp_path: Path) -> None:
    h = representations()
    h[2, 0] = float("nan")
    run(model, tmp_path, given=h)

    def report(now: local.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, given=h, retry=True, report=report)
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "manifest.jsonl").exists()


def test_what_is_made_of_all_shards_is_verified(model: Model, tmp_path: Path) -> None:
    run(model, tmp_path, format="npz")
    assert verify(tmp_path).complete
    content = bytearray((tmp_path / "samples.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "samples.npz").write_bytes(content)
    assert not verify(tmp_path).sound
    assert "samples.npz" in verify(tmp_path).examples[0]
    run_again = tmp_path / "manifest.jsonl"
    run_again.write_text("{}\n")
    assert "manifest.jsonl: is not what" in verify(tmp_path).examples[0]
