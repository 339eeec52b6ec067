"""Whether a job's folder holds what its manifest says: every image exactly once, every checksum true.

Knows nothing about models: nothing is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rcdm_fast import doors, storage
from rcdm_fast.config import ConfigError, from_dict
from rcdm_fast.jobs import formats
from rcdm_fast.jobs.layout import Layout
from rcdm_fast.jobs.ledger import Ledger
from rcdm_fast.jobs.rows import Row, read_identity, read_lines, read_manifest, read_quarantine
from rcdm_fast.jobs.settings import JobConfig

SHOWN = 20  # faults that are listed; all are counted


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        images: with a true checksum.
        wanted: of the whole job.
        quarantined: items that could not be drawn.
        missing_shards: that no run has committed yet.
        faults: how many things are wrong.
        examples: the first of them, a line each.
        finished: whether a run has written what is made of all shards (manifest.jsonl and so on).
    """

    images: int
    wanted: int
    quarantined: int
    missing_shards: int
    faults: int
    examples: tuple[str, ...]
    finished: bool = True

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with what is there."""
        return self.faults == 0

    @property
    def complete(self) -> bool:
        """Whether all of the job is there."""
        return self.sound and not self.missing_shards and self.finished


def open_ledger(folder: str | Path) -> Ledger:
    """The ledger of a job that has begun. Raises `ConfigError`."""
    place = doors.path(folder, ConfigError)
    identity = read_identity(place)
    config = from_dict(JobConfig, identity["settings"], f"{place}/job.json, settings")
    return Ledger(place, config, Layout(identity["items"]["count"], config.per, config.shard_images))


def verify(folder: str | Path, progress: Callable[[int, int], None] | None = None) -> Verdict:
    """Read every committed shard again, and of a finished job what was made of all of them.

    Args:
        folder: of the job.
        progress: called with (shards read, shards committed).

    Raises:
        ConfigError: no job there.
    """
    ledger = open_ledger(folder)
    layout = ledger.layout
    known = sorted(int(each.stem) for each in (ledger.folder / "manifest").glob("*.jsonl") if each.stem.isdecimal())
    faults: list[str] = []
    bad: set[int] = set()
    count = good = 0
    for number, shard in enumerate(known):
        found = check_shard(ledger, shard)
        good += found.images
        bad |= found.bad
        count += found.faults
        faults += found.examples[: SHOWN - len(faults)]
        if progress is not None:
            progress(number + 1, len(known))
    missing = layout.units - len([each for each in known if each < layout.units])
    for fault in _whole_faults(ledger, known) if not missing else ():
        count += 1
        faults += [fault] if len(faults) < SHOWN else []
    finished = (ledger.folder / "summary.json").exists()
    return Verdict(good, layout.images, len(bad), missing, count, tuple(faults), finished)


@dataclass(frozen=True)
class Checked:
    """One shard: images with a true checksum, items that could not be drawn, how many faults, the first of them."""

    images: int
    bad: frozenset[int]
    faults: int
    examples: tuple[str, ...]


def check_shard(ledger: Ledger, number: int, expected: Callable[[int], Row] | None = None) -> Checked:
    """Compare a committed shard with its manifest, and that with the job.

    Args:
        ledger: of the job.
        number: of the shard.
        expected: what the rows of an item must hold, if that is to be compared too.
    """
    good: list[tuple[int, int]] = []
    bad: set[int] = set()
    faults: list[str] = []
    count = 0
    for fault in _shard_faults(ledger, number, good, bad, expected):
        count += 1
        faults += [fault] if len(faults) < SHOWN else []
    return Checked(len(good), frozenset(bad), count, tuple(faults))


def _shard_faults(
    ledger: Ledger, number: int, good: list[tuple[int, int]], bad: set[int], expected: Callable[[int], Row] | None
) -> Iterator[str]:
    """Faults of one shard; `good` gets every image whose checksum is true, `bad` the quarantined items."""
    name = f"shard {number:06d}"
    if number >= ledger.layout.units:
        yield f"{name}: the job has {ledger.layout.units} shards"
        return
    try:
        rows = read_manifest(ledger.part(number))
        bad.update(row["item"] for row in read_quarantine(ledger.quarantine(number)))
    except storage.StorageError as error:
        yield f"{name}: {error}"
        return
    unit = set(ledger.layout.unit(number).pairs())
    found = [(row["item"], row["sample"]) for row in rows]
    own, drawn = {item for item, _ in unit}, {item for item, _ in found}
    for pair in sorted({pair for pair in unit if pair[0] not in bad} - set(found)):
        yield f"{name}: item {pair[0]}, sample {pair[1]} is not in the manifest"
    for item in sorted(bad - own):
        yield f"{name}: item {item} is quarantined and does not belong here"
    for item in sorted(bad & own & drawn):
        yield f"{name}: item {item} is quarantined and in the manifest"
    place = ledger.shard(number).relative_to(ledger.folder).as_posix()
    seen: set[tuple[int, int]] = set()
    for row, pair, payload in zip(rows, found, _payloads(ledger, number, rows), strict=True):
        if pair not in unit:
            yield f"{name}: item {pair[0]}, sample {pair[1]} does not belong here"
        elif pair in seen:
            yield f"{name}: item {pair[0]}, sample {pair[1]} is there twice"
        elif isinstance(payload, storage.StorageError):
            yield str(payload)
        elif row.get("shard") != place:
            yield f"{name}: item {pair[0]}, sample {pair[1]} is said to be in another shard"
        elif expected is not None and (other := _others(row, expected(pair[0]))):
            yield f"{name}: item {pair[0]}, sample {pair[1]} has another {' and '.join(other)} in the manifest"
        elif formats.checksum(payload) != row["sha256"]:
            yield f"{place}, {row['key']}: the checksum is wrong"
        else:
            seen.add(pair)
            good.append(pair)


def _others(row: Row, expected: Row) -> list[str]:
    return [name for name, value in expected.items() if row.get(name) != value]


def _whole_faults(ledger: Ledger, known: list[int]) -> Iterator[str]:
    """Whether manifest.jsonl, and samples.npz, are made of the shards."""
    if not (ledger.folder / "summary.json").exists():
        return
    whole = ledger.folder / "manifest.jsonl"

    def rows() -> Iterator[Row]:
        for number in known:
            yield from read_manifest(ledger.part(number))

    try:
        pairs = itertools.zip_longest(read_lines(whole), rows())
        if any(line != row for line, row in pairs):
            yield f"{whole.name}: is not what the shards' manifests say"
        if ledger.config.format == "npz" and (samples := ledger.folder / "samples.npz").exists():
            found = (formats.checksum(payload) for payload in formats.joined_payloads(samples))
            if any(each != row for each, row in itertools.zip_longest(found, (row["sha256"] for row in rows()))):
                yield f"{samples.name}: has other images than the shards"
    except storage.StorageError as error:
        yield str(error)


def _payloads(ledger: Ledger, number: int, rows: list[Row]) -> list[bytes | storage.StorageError]:
    """Payloads of a shard; where the shard cannot be read, row by row what is wrong."""
    path = ledger.shard(number)
    try:
        return list(ledger.form.read(path, rows))
    except storage.StorageError:
        found: list[bytes | storage.StorageError] = []
        for row in rows:
            try:
                found += ledger.form.read(path, [row])
            except storage.StorageError as error:
                found.append(error)
        return found
