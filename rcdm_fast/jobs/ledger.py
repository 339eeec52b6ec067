"""What is known about a job in its folder, so that it can be stopped at any moment and resumed.

    job.json                  what the job is; it cannot be resumed as another one
    shards/000000.tar         images
    manifest/000000.jsonl     a row for every image of that shard: written last, it makes the shard count
    quarantine/000000.jsonl   items of that shard that could not be drawn, with the reason
    bucket.json               images per evaluation that memory was found to suffice for
    manifest.jsonl, quarantine.jsonl, summary.json    all of it, when the job is finished (and samples.npz)

Every file appears whole or not at all. What a stopped run left unfinished is ignored and written again. No times are
kept, so clocks do not matter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast import locks, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data.random_access import HASHES
from rcdm_fast.diffusion.sampling_config import SamplingConfig
from rcdm_fast.doors import printable
from rcdm_fast.jobs import formats
from rcdm_fast.jobs.layout import Layout, Unit
from rcdm_fast.jobs.rows import VERSION, count_lines, read_identity, read_quarantine, write_lines
from rcdm_fast.jobs.rows import Row as Row
from rcdm_fast.jobs.rows import read_lines as read_lines
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.jobs.shard import ShardImage

log = logging.getLogger(__name__)

# What a job was drawn with whose file, of an earlier version, does not say it.
_USUAL = {"clip": SamplingConfig.clip}
_FOLDERS = ("shards", "manifest", "quarantine")
_WHOLE = ("summary.json", "manifest.jsonl", "quarantine.jsonl", "samples.npz")
# What `storage.atomic` and `formats` call the files that they are writing; the user's own hidden files stay.
_TEMPORARY = re.compile(r"\.(job|bucket|summary|manifest|quarantine|samples)\.[a-z0-9_]{8}\.(json|jsonl|npz)")
_TEMPORARY_PART = re.compile(r"\.\d{6,}\.[a-z0-9_]{8}(\.[a-z]+)?")


@dataclass(frozen=True)
class Summary:
    """How a job stands.

    Attributes:
        images: in committed shards.
        wanted: of the whole job.
        quarantined: items that could not be drawn.
        shards: committed.
        shards_wanted: of the whole job.
    """

    images: int
    wanted: int
    quarantined: int
    shards: int
    shards_wanted: int

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.shards == self.shards_wanted


class Ledger:
    """The folder of one job.

    Args:
        folder: where.
        config: the job's settings.
        layout: its units.
    """

    def __init__(self, folder: Path, config: JobConfig, layout: Layout) -> None:
        self.folder, self.config, self.layout = folder, config, layout
        self.form = formats.find(config)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else runs the job meanwhile.

        Raises:
            ConfigError: somebody does.
            StorageError: the folder cannot be written, or one in it is a link, which could lead anywhere.
        """
        with contextlib.ExitStack() as held:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
            for each in (self.folder / name for name in _FOLDERS):
                if each.is_symlink():
                    raise storage.StorageError(f"{each}: cannot be written (it is a link to another place)")
            try:
                held.enter_context(locks.locked(self.folder / ".lock"))
            except locks.Busy as error:
                raise ConfigError(f"{self.folder}: another run of this job is under way ({error})") from error
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except storage.StorageError:
            raise
        except OSError as error:
            raise storage.StorageError(f"{self.folder}: cannot be written ({error.strerror or error})") from error

    def start(self, identity: Mapping[str, Any], hash_of: Callable[[int], int] | None = None) -> None:
        """Write down what the job is, or compare all but what is under "about".

        Args:
            identity: what goes into job.json.
            hash_of: an item's hash as it is now. With it, quarantined items may have been changed since.

        Raises:
            ConfigError: the folder holds another job; with the differences.
            StorageError: it cannot be written.
        """
        file = self.folder / "job.json"
        plain = json.loads(json.dumps({"version": VERSION, **identity}))
        if not file.exists():
            storage.check_writable(file)
            foreign = [each.name for each in (self.folder / "manifest", self.folder / "shards") if each.exists()]
            if foreign:
                raise ConfigError(
                    f"{self.folder}: there are {' and '.join(foreign)} but no job.json; take a new folder"
                )
            storage.write_json(file, plain)
            return
        before = read_identity(self.folder)
        before["settings"] = {**_USUAL, **before["settings"]}
        plain["settings"] = {**_USUAL, **plain["settings"]}
        differences = list(_differences({**before, "about": None}, {**plain, "about": None}))
        if not differences:
            return
        if hash_of is not None and self._repaired(before, plain, hash_of):
            storage.write_json(file, plain)
            return
        advice = "Take a new folder, or the old settings"
        if hash_of is None and any(self.quarantined()):
            advice += "; if quarantined items were repaired, --retry"
        raise ConfigError(f"{self.folder} holds another job: {'; '.join(differences)}. {advice}")

    def _repaired(self, before: Row, now: Row, hash_of: Callable[[int], int]) -> bool:
        """Whether nothing differs but what quarantined items contain."""
        was, found = (int(each["items"]["sha256"], 16) for each in (before, now))
        if list(_differences(_without_hash(before), _without_hash(now))):
            return False
        changed = {int(row["item"]): int(row["content"], 16) for row in self.quarantined()}
        return (was + sum(hash_of(item) - old for item, old in changed.items()) - found) % HASHES == 0

    def shard(self, number: int) -> Path:
        """Where a unit's images are."""
        return self.folder / "shards" / f"{number:06d}{self.form.suffix}"

    def part(self, number: int) -> Path:
        """The manifest of one shard."""
        return self.folder / "manifest" / f"{number:06d}.jsonl"

    def quarantine(self, number: int) -> Path:
        """Items of one shard that could not be drawn; there is no such file where all could."""
        return self.folder / "quarantine" / f"{number:06d}.jsonl"

    def done(self) -> set[int]:
        """Numbers of the committed shards whose images are there."""
        found = {int(each.stem) for each in self._parts("manifest")}
        return {number for number in found if self.shard(number).exists()}

    def missing(self) -> list[int]:
        """Numbers of the shards that are to be drawn."""
        done = self.done()
        return [number for number in range(self.layout.units) if number not in done]

    def forget_quarantined(self) -> None:
        """Let the shards of quarantined items be drawn again."""
        with self._writing():
            for each in self._parts("quarantine"):
                self.part(int(each.stem)).unlink(missing_ok=True)
                each.unlink()

    def withdraw(self, number: int) -> None:
        """Let a shard not count any longer, so that it is drawn again; its files stay until then."""
        with self._writing():
            self.part(number).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove temporary files of stopped runs; nobody else may be running the job."""
        with self._writing():
            for each in self.folder.glob(".*"):
                if _TEMPORARY.fullmatch(each.name):
                    each.unlink()
            for folder in (self.folder / name for name in _FOLDERS):
                for each in folder.glob(".*"):
                    if _TEMPORARY_PART.fullmatch(each.name):
                        shutil.rmtree(each) if each.is_dir() else each.unlink()

    def reopen(self) -> None:
        """Remove what says that the job is finished."""
        with self._writing():
            for name in _WHOLE:
                (self.folder / name).unlink(missing_ok=True)

    def commit(self, unit: Unit, rows: Sequence[Row], images: Sequence[ShardImage], bad: Mapping[int, Row]) -> None:
        """Make a unit count: its images, then its quarantined items, then its manifest.

        Args:
            unit: which.
            rows: of the manifest, without shard, offset, bytes and sha256.
            images: as many.
            bad: rows of the quarantine by item.

        Raises:
            StorageError: something cannot be written; the unit then does not count.
        """
        path = self.shard(unit.number)
        side = self._side(images)
        offsets = self.form.write(path, images, side)
        finished = [
            {
                **row,
                "key": each.key,
                "shard": path.relative_to(self.folder).as_posix(),
                "offset": offset,
                "bytes": len(each.payload),
                "sha256": formats.checksum(each.payload),
            }
            for row, each, offset in zip(rows, images, offsets, strict=True)
        ]
        if bad:
            write_lines(self.quarantine(unit.number), bad.values())
        else:
            with self._writing():
                self.quarantine(unit.number).unlink(missing_ok=True)
        write_lines(self.part(unit.number), finished)

    def _side(self, images: Sequence[ShardImage]) -> tuple[int, int]:
        if self.config.format != "npz" or not images:
            return (0, 0)
        side = round((len(images[0].payload) / 3) ** 0.5)
        return (side, side)

    def counts(self, number: int) -> tuple[int, int]:
        """Images and quarantined items of a committed shard."""
        return count_lines(self.part(number)), count_lines(self.quarantine(number))

    def bucket(self, device: str) -> int | None:
        """What `remember_bucket` was told about a device, if anything."""
        return _bucket_of(self.folder / "bucket.json").get(device)

    def remember_bucket(self, device: str, bucket: int) -> None:
        """Write down that memory suffices for no more images at once."""
        known = _bucket_of(self.folder / "bucket.json")
        storage.write_json(self.folder / "bucket.json", {**known, device: bucket})

    def rows(self) -> Iterator[Row]:
        """The manifest so far, shard by shard."""
        for number in sorted(self.done()):
            yield from read_lines(self.part(number))

    def quarantined(self) -> Iterator[Row]:
        """Items that could not be drawn; one that several shards wanted may come several times."""
        done = self.done()
        for each in self._parts("quarantine"):
            if int(each.stem) in done:
                yield from read_quarantine(each)

    def summary(self) -> Summary:
        """How the job stands."""
        counted = {number: count_lines(self.part(number)) for number in self.done()}
        done = self.done() & counted.keys()  # a manifest that has vanished meanwhile does not count
        images = sum(counted[number] for number in done)
        bad = {row["item"] for row in self.quarantined()}
        return Summary(images, self.layout.images, len(bad), len(done), self.layout.units)

    def finish(self) -> Summary:
        """Write the whole manifest, the quarantine, the summary and, for npz, all images in one file."""
        found = self.summary()
        write_lines(self.folder / "manifest.jsonl", self.rows())
        write_lines(self.folder / "quarantine.jsonl", {row["item"]: row for row in self.quarantined()}.values())
        if self.config.format == "npz" and found.images:
            first = next(self.rows())
            side = round((first["bytes"] / 3) ** 0.5)
            shards = [self.shard(number) for number in sorted(self.done())]
            formats.join_arrays(shards, self.folder / "samples.npz", found.images, (side, side))
        storage.write_json(self.folder / "summary.json", {**vars(found), "complete": found.complete})
        return found

    def _parts(self, name: str) -> list[Path]:
        return sorted(each for each in (self.folder / name).glob("*.jsonl") if each.stem.isdecimal())


def _bucket_of(file: Path) -> dict[str, int]:
    if not file.exists():
        return {}
    try:
        found = dict(storage.read_json(file))
        return {device: int(bucket) for device, bucket in found.items() if int(bucket) > 0}
    except (storage.StorageError, TypeError, ValueError) as error:
        log.warning("%s: not what was written (%s); memory is tried anew", file, error)
        return {}


def _without_hash(identity: Row) -> Row:
    items = {key: value for key, value in identity["items"].items() if key != "sha256"}
    return {**identity, "items": items, "about": None}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{where}{key}.")
        elif old != new:
            yield f"{printable(where + key)} was {printable(json.dumps(old))}, is {printable(json.dumps(new))}"
