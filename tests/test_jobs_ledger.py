"""A job's folder by itself: what counts as committed, quarantined, remembered and finished. Nothing is drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcdm_fast.config import ConfigError
from rcdm_fast.data import items
from rcdm_fast.jobs import formats, rows
from rcdm_fast.jobs.layout import Layout
from rcdm_fast.jobs.ledger import Ledger, Summary
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.jobs.shard import ShardImage
from rcdm_fast.jobs.verify import SHOWN, verify
from rcdm_fast.storage import StorageError

HASH = "0" * 64


class Letters:
    """Items a, b, c, whose content is what is given."""

    kind: items.Kind = "representation"
    name = "letters"

    def __init__(self, ids: str = "abc", contents: Sequence[bytes] = (b"one", b"", b"three")) -> None:
        self.ids, self.contents = ids, contents

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, place: int) -> str:
        return self.ids[place]

    def read(self, place: int) -> Any:
        raise NotImplementedError

    def width(self) -> int | None:
        return None

    def content(self, place: int) -> bytes:
        return self.contents[place]


def ledger_of(folder: Path, count: int, **settings: Any) -> Ledger:
    """Of `count` items; settings: per, shard_images, format."""
    config = JobConfig(**settings)
    return Ledger(folder, config, Layout(count, config.per, config.shard_images))


def start(ledger: Ledger) -> Ledger:
    about = {"items": {"count": ledger.layout.items, "sha256": HASH}, "settings": dataclasses.asdict(ledger.config)}
    ledger.start(about)
    return ledger


def commit(ledger: Ledger, number: int, bad: frozenset[int] = frozenset()) -> None:
    """A unit of images whose bytes are their keys (npz: 2 x 2 pixels of the sample's number)."""
    unit = ledger.layout.unit(number)
    pairs = list(unit.pairs(bad))
    keys = [rows.key_of(*pair) for pair in pairs]
    contents = [key.encode() for key in keys]
    if ledger.config.format == "npz":
        contents = [bytes([sample]) * 12 for _, sample in pairs]
    about = [{"item": item, "id": f"n{item}", "sample": sample, "seed": 0} for item, sample in pairs]
    images = [ShardImage(key, each, content) for key, each, content in zip(keys, about, contents, strict=True)]
    quarantined = {item: {"item": item, "id": f"n{item}", "reason": "torn", "content": HASH} for item in bad}
    ledger.commit(unit, about, images, quarantined)


def test_three_shards_of_which_one_is_missing(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 8, per=1, shard_images=3))
    assert ledger.summary() == Summary(0, 8, 0, 0, 3)
    commit(ledger, 0, frozenset({1}))
    commit(ledger, 2)
    assert ledger.summary() == Summary(2 + 2, 8, 1, 2, 3)
    assert not ledger.summary().complete
    assert (ledger.done(), ledger.missing()) == ({0, 2}, [1])
    assert (ledger.counts(0), ledger.counts(1), ledger.counts(2)) == ((2, 1), (0, 0), (2, 0))
    ledger.finish()
    wanted = {"images": 4, "wanted": 8, "quarantined": 1, "shards": 2, "shards_wanted": 3, "complete": False}
    assert json.loads((tmp_path / "summary.json").read_text()) == wanted
    assert [row["item"] for row in rows.read_lines(tmp_path / "manifest.jsonl")] == [0, 2, 6, 7]
    found = verify(tmp_path)
    assert (found.images, found.wanted, found.quarantined, found.missing_shards) == (4, 8, 1, 1)
    assert (found.sound, found.complete) == (True, False)
    commit(ledger, 1)
    assert ledger.finish() == Summary(7, 8, 1, 3, 3)
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is True
    assert (verify(tmp_path).images, verify(tmp_path).complete) == (7, True)
    ledger.shard(2).unlink()
    assert (ledger.done(), ledger.missing(), ledger.summary().complete) == ({0, 1}, [2], False)


def test_quarantine_counts_with_its_shard_and_goes_with_it(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 6, per=1, shard_images=2)
    for number, bad in ((0, 1), (1, 2), (2, 4)):
        commit(ledger, number, frozenset({bad}))
    ledger.withdraw(1)  # or a run that was stopped before it could commit
    assert [row["item"] for row in ledger.quarantined()] == [1, 4]
    assert ledger.summary() == Summary(2, 6, 2, 2, 3)
    commit(ledger, 0)
    commit(ledger, 1)
    assert [path.name for path in sorted((tmp_path / "quarantine").iterdir())] == ["000002.jsonl"]
    assert ledger.summary() == Summary(5, 6, 1, 3, 3)
    ledger.forget_quarantined()
    assert list((tmp_path / "quarantine").iterdir()) == []
    assert ledger.missing() == [2]


def test_an_item_in_several_shards_is_quarantined_once(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 2, per=9, shard_images=4))
    for number in range(6):
        commit(ledger, number, frozenset({0}) if number < 3 else frozenset())
    assert ledger.summary() == Summary(9, 18, 1, 6, 6)
    ledger.finish()
    assert [row["item"] for row in rows.read_lines(tmp_path / "quarantine.jsonl")] == [0]
    assert (verify(tmp_path).quarantined, verify(tmp_path).complete) == (1, True)


def test_shards_are_told_in_their_order(tmp_path: Path) -> None:
    """Whichever was committed first, and however Python orders a set of few numbers."""
    ledger = ledger_of(tmp_path, 9, per=1, shard_images=1, format="npz")
    for number in (8, 1):
        arrays = ShardImage(rows.key_of(number, 0), {}, bytes([number]) * 12)
        unit = ledger.layout.unit(number)
        ledger.commit(unit, [{"item": number, "sample": 0}], [arrays], {})
    assert list(ledger.done()) == [8, 1]  # as a set has them
    ledger.finish()
    assert [row["item"] for row in rows.read_lines(tmp_path / "manifest.jsonl")] == [1, 8]
    with np.load(tmp_path / "samples.npz") as found:
        assert found["arr_0"].shape == (2, 2, 2, 3)
        assert found["arr_0"][:, 0, 0, 0].tolist() == [1, 8]


def test_where_no_item_could_be_drawn(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 2, per=1, format="npz"))
    commit(ledger, 0, frozenset({0, 1}))
    assert ledger.finish() == Summary(0, 2, 2, 1, 1)
    assert not (tmp_path / "samples.npz").exists()
    assert verify(tmp_path).complete


def test_what_cannot_be_quarantined_is_not_committed(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 2, per=1)
    ledger.quarantine(0).mkdir(parents=True)
    (ledger.quarantine(0) / "file").touch()
    with pytest.raises(StorageError, match=r"quarantine/000000\.jsonl: cannot be written"):
        commit(ledger, 0, frozenset({1}))
    assert (ledger.done(), ledger.part(0).exists()) == (set(), False)


def test_every_device_has_a_bucket_of_its_own(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 1)
    assert ledger.bucket("cuda:0") is None
    for device, bucket in (("cuda:0", 16), ("cuda:1", 4), ("cuda:0", 8)):
        ledger.remember_bucket(device, bucket)
    assert [ledger.bucket(device) for device in ("cuda:0", "cuda:1", "cpu")] == [8, 4, None]
    assert json.loads((tmp_path / "bucket.json").read_text()) == {"cuda:0": 8, "cuda:1": 4}
    (tmp_path / "bucket.json").write_text('{"cuda:0": 0, "cuda:1": 4}')
    assert [ledger.bucket(device) for device in ("cuda:0", "cuda:1")] == [None, 4]


def test_what_is_finished_and_what_is_temporary(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 4, per=1, shard_images=2, format="npz")
    commit(ledger, 0)
    ledger.finish()
    gone = [
        ".bucket.abcd_123.json",
        ".samples.abcd_123.npz",
        "manifest/.000001.abcd_123.jsonl",
        "shards/.000001.abcd_123",
    ]
    kept = [".mine.json", ".samples.mine.npz", "shards/.000001.mine"]
    for name in (*gone, *kept):
        (tmp_path / name / "in").mkdir(parents=True) if name.endswith("_123") else (tmp_path / name).touch()
    ledger.tidy()
    assert [name for name in (*gone, *kept) if (tmp_path / name).exists()] == kept
    ledger.reopen()
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert left == ["manifest", "shards"]


@pytest.mark.parametrize("name", ["manifest", "shards"])
def test_a_folder_that_is_another_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"there are {name} but no job.json"):
        start(ledger_of(tmp_path, 1))


def test_the_hash_of_all_items_is_the_sum_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Place, id and content, a zero byte between; a job refuses anything else, also the same items in another order."""
    source = Letters()
    parts = (b"0\0a\0one", b"1\0b\0", b"2\0c\0three")
    hashes = [int(hashlib.sha256(part).hexdigest(), 16) for part in parts]
    assert [items.hash_of(source, place) for place in range(3)] == hashes
    assert items.fingerprint(source) == f"{sum(hashes) % 2**256:064x}"
    other = Letters("bac", (b"", b"one", b"three"))
    assert items.fingerprint(other) != items.fingerprint(source)
    monkeypatch.setattr(items, "hash_of", lambda source, place: 2**256 - 1 if place else 7)
    assert items.fingerprint(source) == "0" * 63 + "5"


def test_quarantined_items_may_be_repaired_and_others_may_not(tmp_path: Path) -> None:
    """Hashes by hand, such that their sum passes 2^256 both ways."""
    ledger = ledger_of(tmp_path, 3, per=1, shard_images=1)
    high = 2**256 - 5

    def identity(now: int) -> dict[str, Any]:
        return {"items": {"count": 3, "sha256": f"{now % 2**256:064x}"}, "settings": {}, "about": {"source": str(now)}}

    ledger.start(identity(high + 7 + 100))
    commit(ledger, 0)
    commit(ledger, 2)
    unit = ledger.layout.unit(1)
    ledger.commit(unit, [], [], {1: {"item": 1, "content": f"{7:064x}"}})
    ledger.start(identity(high + 7 + 100))
    ledger.start({**identity(high + 7 + 100), "about": {"source": "moved"}})
    repaired = [high, high - 2, 100]
    with pytest.raises(ConfigError, match="if quarantined items were repaired, --retry"):
        ledger.start(identity(sum(repaired)))
    for changed, told in ((repaired, [high, high - 2, 101]), ([high, 7, 100], repaired)):
        with pytest.raises(ConfigError, match=r"items\.sha256 was"):
            ledger.start(identity(sum(told)), changed.__getitem__)
    with pytest.raises(ConfigError, match=r"settings\.seed was null, is 1"):
        ledger.start({**identity(sum(repaired)), "settings": {"seed": 1}}, repaired.__getitem__)
    ledger.start(identity(sum(repaired)), repaired.__getitem__)
    assert json.loads((tmp_path / "job.json").read_text())["items"] == identity(sum(repaired))["items"]


@pytest.mark.parametrize("clip", [False, True])
def test_settings_that_a_job_says_are_its_own(tmp_path: Path, clip: bool) -> None:
    """And what an earlier version did not say was as usual."""
    about: dict[str, Any] = {"items": {"count": 3, "sha256": HASH}}
    ledger = ledger_of(tmp_path, 3)
    ledger.start({**about, "settings": {"clip": clip}})
    ledger.start({**about, "settings": {"clip": clip}})
    with pytest.raises(ConfigError, match=r"settings\.clip was (true|false), is (true|false)"):
        ledger.start({**about, "settings": {"clip": not clip}})
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "settings": {}}))
    ledger.start({**about, "settings": {"clip": True}})
    with pytest.raises(ConfigError, match=r"settings\.clip was true, is false"):
        ledger.start({**about, "settings": {"clip": False}})


GOOD = {"item": 12, "sample": 3, "offset": 0, "bytes": 7, "sha256": "0123456789abcdef" * 4, "key": "000000012-000003"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"item": -1}, "item"),
        ({"sample": True}, "sample"),
        ({"offset": True}, "offset"),
        ({"bytes": 2**63}, "bytes"),
        ({"bytes": 7.0}, "bytes"),
        ({"sha256": "0123456789abcdef" * 3}, "sha256"),
        ({"sha256": "0123456789ABCDEF" * 4}, "sha256"),
        ({"key": "000000003-000012"}, "key"),
        ({"offset": None, "sha256": None}, "offset and sha256"),
    ],
)
def test_rows_of_a_manifest(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    assert rows.key_of(12, 3) == GOOD["key"]
    rows.write_lines(tmp_path / "a.jsonl", [GOOD, {**GOOD, **changes}])
    assert rows.count_lines(tmp_path / "a.jsonl") == 2
    assert rows.count_lines(tmp_path / "none.jsonl") == 0
    if said is None:
        assert rows.read_manifest(tmp_path / "a.jsonl") == [GOOD, GOOD]
        return
    with pytest.raises(StorageError, match=rf"a\.jsonl: line 2 has no sensible {said}$"):
        rows.read_manifest(tmp_path / "a.jsonl")


def test_lines_that_are_none_are_told_by_number(tmp_path: Path) -> None:
    for line, said in (("{", "cannot be read"), ("3", "is no JSON object")):
        (tmp_path / "a.jsonl").write_text(f"{{}}\n{line}\n")
        with pytest.raises(StorageError, match=rf"line 2 {said}"):
            list(rows.read_lines(tmp_path / "a.jsonl"))
    for bad in ({"item": 1}, {"content": HASH}, {"item": 1, "content": "0"}, {"item": -1, "content": HASH}):
        rows.write_lines(tmp_path / "q.jsonl", [{"item": 0, "content": HASH}, bad])
        with pytest.raises(StorageError, match="line 2 has no sensible item or content"):
            rows.read_quarantine(tmp_path / "q.jsonl")
    assert rows.read_quarantine(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "of another version than 1"),
        ({"items": None}, "no items, or no settings"),
        ({"settings": []}, "no items, or no settings"),
        ({"items": {"count": True, "sha256": HASH}}, "count or sha256"),
        ({"items": {"count": 3, "sha256": "0"}}, "count or sha256"),
    ],
)
def test_what_a_job_must_say(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    good = {"version": 1, "items": {"count": 3, "sha256": HASH}, "settings": {}}
    (tmp_path / "job.json").write_text(json.dumps(good))
    assert rows.read_identity(tmp_path) == good
    (tmp_path / "job.json").write_text(json.dumps({**good, **changes}))
    with pytest.raises(ConfigError, match=said):
        rows.read_identity(tmp_path)


def test_faults_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 40, per=2, shard_images=30))
    for number in range(3):
        commit(ledger, number)
    ledger.finish()
    for number in (0, 1):  # 15 items each, of which none is as it was
        content = ledger.shard(number).read_bytes()
        ledger.shard(number).write_bytes(content.replace(b"-00000", b"-99999"))
    told: list[tuple[int, int]] = []
    found = verify(tmp_path, lambda read, of: told.append((read, of)))
    assert (found.images, found.faults, len(found.examples)) == (80 - 60, 60, SHOWN)
    assert found.examples[0] == "shards/000000.tar, 000000000-000000: the checksum is wrong"
    assert (found.sound, found.complete, found.missing_shards) == (False, False, 0)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_verification_tells_its_progress_and_counts_the_items_of_all_shards(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 12, per=2, shard_images=6))
    for number, bad in ((0, {1}), (1, {3, 5}), (3, set[int]())):
        commit(ledger, number, frozenset(bad))
    told: list[tuple[int, int]] = []
    found = verify(tmp_path, lambda *given: told.append(given))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert (found.images, found.wanted, found.quarantined, found.missing_shards) == (12, 24, 3, 1)
    assert (found.sound, found.complete) == (True, False)


def test_a_torn_shard_keeps_what_can_be_read(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 4, per=1, format="folder"))
    commit(ledger, 0)
    (ledger.shard(0) / "000000002-000000.png").unlink()
    found = verify(tmp_path)
    assert (found.images, found.faults) == (3, 1)
    assert "000000002-000000.png: cannot be read (No such file" in found.examples[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([{}, {}], ["item 0, sample 0 is there twice"]),
        ([{"sample": 5, "key": "000000000-000005"}],
         ["item 0, sample 0 is not in the manifest", "item 0, sample 5 does not belong here"]),
        ([{"shard": "shards/000001.tar"}], ["item 0, sample 0 is said to be in another shard"]),
        ([{"offset": 1}], ["the checksum is wrong"]),
    ],
)  # fmt: skip
def test_rows_that_are_wrong_in_themselves(tmp_path: Path, changes: list[dict[str, Any]], said: list[str]) -> None:
    """Of a shard with samples 0..2 of 9 of an item: what its first row says instead."""
    ledger = start(ledger_of(tmp_path, 1, per=9, shard_images=4))
    commit(ledger, 0)
    first, *others = rows.read_manifest(ledger.part(0))
    rows.write_lines(ledger.part(0), [*({**first, **each} for each in changes), *others])
    found = verify(tmp_path)
    assert (found.images, found.faults) == (2 + (len(changes) == 2), len(said))
    assert all(each.endswith(wanted) for each, wanted in zip(found.examples, said, strict=True))


def test_a_quarantine_that_says_what_is_not_so(tmp_path: Path) -> None:
    """Of an item that was drawn, or of another shard's: what is said of the job would be wrong."""
    ledger = start(ledger_of(tmp_path, 6, per=2, shard_images=6))
    commit(ledger, 0, frozenset({1}))
    commit(ledger, 1)
    assert verify(tmp_path).sound
    for item, said in ((4, "and in the manifest"), (1, "and does not belong here"), (9, "and does not belong here")):
        rows.write_lines(ledger.quarantine(1), [{"item": item, "content": HASH}])
        found = verify(tmp_path)
        assert (found.complete, found.examples) == (False, (f"shard 000001: item {item} is quarantined {said}",))


def test_shards_that_the_job_does_not_have(tmp_path: Path) -> None:
    ledger = start(ledger_of(tmp_path, 2, per=1, shard_images=1))
    commit(ledger, 0)
    for path in (ledger.part(0), ledger.shard(0)):
        path.with_name(path.name.replace("0.", "2.")).write_bytes(path.read_bytes())
    found = verify(tmp_path)
    assert (found.missing_shards, found.faults, found.examples) == (1, 1, ("shard 000002: the job has 2 shards",))


@pytest.mark.parametrize("name", ["manifest.jsonl", "samples.npz"])
def test_a_whole_that_is_short_or_long(tmp_path: Path, name: str) -> None:
    """Of a finished job: what is made of all shards has to hold each of their images, and no other."""
    ledger = start(ledger_of(tmp_path, 3, per=1, shard_images=2, format="npz"))
    commit(ledger, 0)
    commit(ledger, 1)
    ledger.finish()
    assert verify(tmp_path).complete
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines(keepends=True)
    for count in (2, 4):
        if name == "manifest.jsonl":
            (tmp_path / name).write_text("".join([*lines, lines[0]][:count]))
        else:
            shards = [ledger.shard(0), ledger.shard(1), ledger.shard(1)][: count - 1]
            formats.join_arrays(shards, tmp_path / name, count, (2, 2))
        found = verify(tmp_path)
        assert (found.faults, found.complete) == (1, False)
        assert name in found.examples[0]
