"""What fails while a job draws: bad items, memory, a full disk, a driver."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.jobs import ledger
from rcdm_fast.jobs.verify import verify
from rcdm_fast.model import Model
from rcdm_fast.storage import StorageError
from tests import small
from tests.jobs_cases import manifest, representations, run


@pytest.fixture(scope="module")
def model() -> Model:
    return small.quick_model()


@pytest.fixture(scope="module")
def unbroken(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job, drawn without a stop."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(model, folder)
    return folder


def test_a_poisoned_item_does_not_stop_the_job(model: Model, unbroken: Path, tmp_path: Path) -> None:
    """One representation is infinite, another one makes the samples infinite."""
    h = representations()
    h[2, 0], h[5] = float("nan"), 1e38
    summary = run(model, tmp_path, given=h, batch_size=4)
    assert summary.quarantined == 2
    reasons = {row["item"]: row["reason"] for row in ledger.read_lines(tmp_path / "quarantine.jsonl")}
    assert "not finite" in reasons[2]
    assert "the samples are not finite" in reasons[5]
    kept = [row for row in manifest(unbroken) if row["item"] not in (2, 5)]
    assert [row["sha256"] for row in manifest(tmp_path)] == [row["sha256"] for row in kept]
    assert verify(tmp_path).complete


def test_memory_halves_the_bucket_and_that_is_remembered(
    model: Model, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    evaluate = model.engine.evaluate

    def limited(batch: Batch, x: Tensor, k: int) -> Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(batch, x, k)

    monkeypatch.setattr(model.engine, "evaluate", limited)
    assert run(model, tmp_path, batch_size=8).complete
    assert json.loads((tmp_path / "bucket.json").read_text()) == {"cpu": 2}
    assert [row["sha256"] for row in manifest(tmp_path)] == [row["sha256"] for row in manifest(unbroken)]
    (tmp_path / "manifest" / "000000.jsonl").unlink()
    sizes.clear()
    run(model, tmp_path, batch_size=8)
    assert max(sizes) == 2
    monkeypatch.setattr(model.engine, "evaluate", lambda batch, x, k: limited(batch, torch.cat([x, x, x]), k))
    with pytest.raises(torch.OutOfMemoryError):
        run(model, tmp_path / "other", batch_size=8)


def test_other_errors_are_not_taken_for_poison(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Batch, x: Tensor, k: int) -> Tensor:
        raise RuntimeError("a driver's fault")

    monkeypatch.setattr(model.engine, "evaluate", fail)
    with pytest.raises(RuntimeError, match="a driver's fault"):
        run(model, tmp_path)
    assert not (tmp_path / "manifest.jsonl").exists()


@pytest.mark.parametrize("form", ["webdataset", "npz", "parquet", "folder"])
def test_a_full_disk_loses_nothing(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    """A limit on the size of files stands for the disk: writing a shard fails half-way, for real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    commit = ledger.Ledger.commit

    def full(self: ledger.Ledger, *arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
        try:
            commit(self, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patched:
        patched.setattr(ledger.Ledger, "commit", full)
        with pytest.raises(StorageError, match=r"shards/000000.* cannot be written \(.*File too large"):
            run(model, tmp_path, format=form)
    assert list((tmp_path / "shards").iterdir()) == []
    assert not (tmp_path / "manifest").exists()
    assert run(model, tmp_path, format=form).complete
    assert verify(tmp_path).complete


def test_encoding_in_less_memory(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert model.encoder is not None
    whole, sizes = model.encoder.encode, []

    def encode(views: Tensor) -> Tensor:
        sizes.append(len(views))
        if len(views) > 3:
            raise RuntimeError("CUDA error: out of memory")
        return whole(views)

    monkeypatch.setattr(model.encoder, "encode", encode)
    assert run(model, tmp_path, given=small.make_images(5), shard_images=15).complete
    assert sizes == [5, 2, 3]
