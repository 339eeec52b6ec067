"""What concerns all shards of a job together: its whole manifest and samples, and items that lie in several shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.jobs.layout import Layout
from rcdm_fast.jobs.ledger import Ledger
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.jobs.verify import verify
from tests import small
from tests.jobs_cases import run


@pytest.mark.parametrize("name", ["manifest.jsonl", "samples.npz"])
def test_a_whole_that_lacks_its_end_or_has_more_is_told_of(tmp_path: Path, name: str) -> None:
    """manifest.jsonl and samples.npz are the shards' rows and images: all of them, and no others."""
    run(small.quick_model(), tmp_path, format="npz", steps=1)
    whole = tmp_path / name
    assert verify(tmp_path).faults == 0

    def written(change: Callable[[list[Any]], list[Any]]) -> None:
        if name == "manifest.jsonl":
            whole.write_text("".join(change(whole.read_text().splitlines(keepends=True))))
        else:
            with np.load(whole) as file:
                held = dict(file)
            arrays: Any = {key: np.array(change(list(value))) for key, value in held.items()}
            np.savez(whole, allow_pickle=False, **arrays)

    before = whole.read_bytes()
    changes: tuple[Callable[[list[Any]], list[Any]], ...] = (
        lambda rows: rows[:-1], lambda rows: [*rows, rows[-1]], lambda rows: [*rows[:-2], rows[-1], rows[-2]],
    )  # fmt: skip
    for change in changes:
        written(change)
        found = verify(tmp_path)
        assert found.faults == 1
        assert name in found.examples[0]
        whole.write_bytes(before)


def test_an_item_that_several_shards_quarantined_is_repaired_once(tmp_path: Path) -> None:
    """Its samples fill two shards, each of which says what it contained."""
    ledger = Ledger(tmp_path, JobConfig(per=4, shard_images=2), Layout(2, 4, 2))

    def identity(now: int) -> dict[str, Any]:
        return {"items": {"count": 2, "sha256": f"{now % 2**256:064x}"}, "settings": {}, "about": {}}

    ledger.start(identity(7 + 100))
    numbers = [number for number in range(ledger.layout.units) if 1 in ledger.layout.unit(number).items]
    assert len(numbers) == 2
    for number in numbers:
        ledger.commit(ledger.layout.unit(number), [], [], {1: {"item": 1, "content": f"{100:064x}"}})
    with pytest.raises(ConfigError, match=r"items\.sha256 was"):
        ledger.start(identity(7 + 60), [7, 61].__getitem__)
    ledger.start(identity(7 + 60), [7, 60].__getitem__)
    assert json.loads((tmp_path / "job.json").read_text())["items"] == identity(67)["items"]


def test_a_job_that_was_stopped_before_its_end_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All shards are there, and neither manifest.jsonl nor samples.npz."""
    model = small.quick_model()

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path, format="npz", steps=1)
    found = verify(tmp_path)
    assert (found.sound, found.missing_shards, found.finished, found.complete) == (True, 0, False, False)
    assert main(["generate", "--verify", "--out", str(tmp_path)]) == 4
    assert "all shards are drawn; the job run again writes manifest.jsonl" in capsys.readouterr().out
    run(model, tmp_path, format="npz", steps=1)
    assert verify(tmp_path).complete
    assert (tmp_path / "samples.npz").exists()


def test_a_damaged_job_lacks_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(small.quick_model(), tmp_path, steps=1)
    (tmp_path / "shards" / "000000.tar").write_bytes(b"")
    assert main(["generate", "--verify", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "all shards drawn, but not all as they were" in said
    assert "0 shards" not in said
