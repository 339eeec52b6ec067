"""A job on one device: items are read ahead, images drawn, encoded by threads and committed shard by shard.

At most two units wait to be written, so memory does not depend on the job's size.

Knows nothing about clusters (`cluster.py` uses `run_units` in each of its workers).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast import doors, folders, host, provenance, storage
from rcdm_fast.config import ConfigError, plain
from rcdm_fast.data import random_access
from rcdm_fast.data.item_sources import Columns
from rcdm_fast.data.random_access import Given, Source
from rcdm_fast.data.readers.hugging_face import is_saved
from rcdm_fast.diffusion import auto, registry
from rcdm_fast.diffusion.solvers import SolverOptions
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.images import ImageError
from rcdm_fast.jobs import draw, feed, formats
from rcdm_fast.jobs.draw import Artist, Drawn
from rcdm_fast.jobs.feed import Ready
from rcdm_fast.jobs.layout import Layout, Unit
from rcdm_fast.jobs.ledger import Ledger, Summary
from rcdm_fast.jobs.rows import Row, key_of, read_identity
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.jobs.shard import ShardImage, Shards
from rcdm_fast.jobs.verify import check_shard
from rcdm_fast.model import Model
from rcdm_fast.version import __version__

log = logging.getLogger(__name__)

WAITING = 2  # units that may wait to be written


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        images: committed, those of earlier runs included.
        wanted: of the whole job.
        drawn: committed by this run.
        seconds: since this run began, of a clock that cannot be set.
        busy: fraction of them in which the device drew or encoded.
        quarantined: items so far that could not be drawn.
    """

    images: int
    wanted: int
    drawn: int
    seconds: float
    busy: float
    quarantined: int


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Prepared:
    """A job that may begin.

    Attributes:
        identity: what goes into job.json.
        ledger: its folder.
        source: its items.
        nfe: network evaluations per image.
        solver: what draws; behind a fitted one's name the hash of its numbers.
        side: of an image, in pixels.
    """

    identity: dict[str, Any]
    ledger: Ledger
    source: Source
    nfe: int
    solver: str
    side: int

    @property
    def about(self) -> Row:
        """What is the same in every row of the manifest."""
        settings = self.ledger.config
        return {
            "seed": settings.seed,
            "model": self.identity["model"]["sha256"],
            "solver": self.solver,
            "nfe": self.nfe,
            "engine": f"{self.identity['engine']}:{self.identity['precision']}",
        }


@host.guarded(random=True)
def run(
    model: Model,
    source: Given,
    folder: str | Path,
    config: JobConfig | None = None,
    options: RunOptions | None = None,
    report: Report | None = None,
) -> Summary:
    """Draw all images of a job into a folder, or those that are missing there.

    Args:
        model: what draws.
        source: items; see `jobs.sources.find`.
        folder: where shards and manifest go; an unfinished job there is resumed.
        config: what is drawn and kept.
        options: how.
        report: told after every shard.

    Returns:
        How the job stands: complete, unless it was interrupted.

    Raises:
        ConfigError: settings that do not fit, or the folder holds another job (with the differences).
        ImageError, StorageError: the source is damaged, or something cannot be written.
    """
    options = options or RunOptions()
    place = doors.path(folder, storage.StorageError)
    prepared = prepare(model, random_access.find(source, feed.wanted_kinds(model)), place, config or JobConfig())
    ledger = prepared.ledger
    with ledger.locked():
        begin(prepared, options)
        before = ledger.summary()
        missing = [ledger.layout.unit(number) for number in ledger.missing()]  # asked last: files may have vanished
        run_units(model, prepared, missing, options, reporter(before, report))
        return ledger.finish()


def begin(prepared: Prepared, options: RunOptions) -> list[int]:
    """Numbers of the units that are to be drawn; the caller holds the folder's lock.

    Every shard that is there is compared with its checksums; a damaged one, or one whose manifest is short, is drawn
    again.

    Raises:
        ConfigError: the folder holds another job (with the differences).
        StorageError: it cannot be written, or the disk has less room than is surely needed.
    """
    ledger, source = prepared.ledger, prepared.source
    ledger.start(prepared.identity, (lambda item: random_access.hash_of(source, item)) if options.retry else None)
    ledger.tidy()
    if options.retry and any(ledger.quarantined()):
        ledger.reopen()
        ledger.forget_quarantined()
    _withdraw_damaged(prepared, options)
    missing = ledger.missing()
    if missing:
        ledger.reopen()
        images = sum(ledger.layout.unit(number).images for number in missing)
        size_bytes = formats.size_bytes(ledger.config, prepared.side, images, ledger.layout.images)
        storage.check_writable(ledger.folder / "samples.npz", size_bytes)
    return missing


def _withdraw_damaged(prepared: Prepared, options: RunOptions) -> None:
    ledger, source = prepared.ledger, prepared.source

    def expected(item: int) -> Row:
        return {"id": source.id(item), **prepared.about}

    done = sorted(ledger.done())
    with ThreadPoolExecutor(options.threads) as pool:
        for number, found in zip(done, pool.map(lambda each: check_shard(ledger, each, expected), done), strict=True):
            if found.faults:
                log.warning("%s: drawn again, %d faults: %s", ledger.shard(number), found.faults, found.examples[0])
                ledger.reopen()
                ledger.withdraw(number)


def prepare(model: Model, source: Source, folder: Path, config: JobConfig) -> Prepared:
    """Check that a job can be done, and say what it is; nothing is written yet."""
    feed.check_kind(model, source)
    _check_apart(source, folder, config)
    nfe = draw.check_request(model, config)
    options = SolverOptions(config.eta, config.clip)
    chosen = registry.choose(model.config, config.solver, config.steps, options, config.guidance != 1)
    config = auto.settled(model.config, config)
    formats.check_size(config, model.image_size)
    layout = Layout(len(source), config.per, config.shard_images)
    identity: dict[str, Any] = {
        "model": {"name": model.config.name, "sha256": _model_hash(model, folder)},
        "encoder": encoder_fingerprint(model) if source.kind == "image" else None,
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "items": {"count": len(source), "kind": source.kind, "sha256": random_access.fingerprint(source)},
        "settings": dataclasses.asdict(config),
        "about": {"source": source.name, "rcdm_fast": __version__},
    }
    if chosen.fitted is not None:
        identity["fitted"] = chosen.fitted.digest
    if model.engine.digests:
        identity["calibrated"] = list(model.engine.digests)
    return Prepared(identity, Ledger(folder, config, layout), source, nfe, chosen.label, model.image_size)


def _check_apart(source: Source, folder: Path, config: JobConfig) -> None:
    """Raise `ConfigError` if a job's shards would lie among its items, and be other items when it goes on."""
    of_tables = isinstance(source, Columns)
    if config.format == "npz" or (config.format == "parquet" and not of_tables):  # no items beside images
        return
    if not os.path.isdir(source.name) or (of_tables and is_saved(Path(source.name))):
        return
    if folders.in_sight(folder, source.name):
        raise ConfigError(
            f"{folder}: lies in the folder of the items, {doors.printable(source.name)}, so what is drawn would be "
            "items when the job goes on; take another folder"
        )


def run_units(
    model: Model,
    prepared: Prepared,
    units: Sequence[Unit],
    options: RunOptions,
    committed: Callable[[int, int, float], None] | None = None,
) -> None:
    """Draw and commit units, in order. `committed` is told (images, quarantined items, busy seconds so far)."""
    ledger, device = prepared.ledger, str(model.device)
    known = ledger.bucket(device)
    asked = options.batch_size or draw.default_bucket(model)
    bucket = asked if known is None else min(asked, known)
    artist = Artist(model, ledger.config, bucket, lambda bucket: ledger.remember_bucket(device, bucket))
    about = prepared.about
    waiting: deque[Future[tuple[int, int]]] = deque()

    def settle(limit: int) -> None:
        while len(waiting) > limit:
            images, bad = waiting.popleft().result()
            if committed is not None:
                committed(images, bad, artist.busy_s)

    with ThreadPoolExecutor(options.threads) as encoders, ThreadPoolExecutor(1) as writer:
        try:
            for ready in feed.ready_units(model, prepared.source, units, options.threads):
                parts = [(drawn, encoders.submit(_payloads, ledger.form, drawn)) for drawn in artist.draw(ready)]
                waiting.append(writer.submit(_commit, ledger, prepared.source, ready, parts, about))
                settle(WAITING - 1)
            settle(0)
        except BaseException:
            encoders.shutdown(wait=False, cancel_futures=True)
            writer.shutdown(wait=True, cancel_futures=True)
            raise


def _payloads(form: Shards, drawn: Drawn) -> list[bytes]:
    return [form.encode(levels) for levels in drawn.levels.numpy()]


def _commit(
    ledger: Ledger,
    source: Source,
    ready: Ready,
    parts: list[tuple[Drawn, Future[list[bytes]]]],
    about: dict[str, Any],
) -> tuple[int, int]:
    rows: list[Row] = []
    images: list[ShardImage] = []
    for drawn, payloads in parts:
        for (item, sample), noise, payload in zip(drawn.pairs, drawn.noise, payloads.result(), strict=True):
            if item in ready.bad:
                continue
            name = source.id(item)
            rows.append({"item": item, "id": name, "sample": sample, **about, "noise": noise})
            shown = {"item": item, "id": name, "sample": sample, "seed": about["seed"]}
            images.append(ShardImage(key_of(item, sample), shown, payload))
    bad = {
        item: {
            "item": item,
            "id": source.id(item),
            "reason": reason,
            "content": f"{_content(source, item):064x}",
        }
        for item, reason in sorted(ready.bad.items())
    }
    ledger.commit(ready.unit, rows, images, bad)
    return len(images), len(bad)


def _content(source: Source, item: int) -> int:
    """Hash of an item that could not be drawn; 0 if it has vanished since the job began."""
    try:
        return random_access.hash_of(source, item)
    except (OSError, ImageError):
        return 0


def reporter(before: Summary, report: Report | None) -> Callable[[int, int, float], None]:
    """What turns a unit's counts (images, quarantined items, busy seconds so far) into progress of the job."""
    since = time.monotonic()
    drawn, quarantined = 0, before.quarantined

    def committed(images: int, bad: int, busy_s: float) -> None:
        nonlocal drawn, quarantined
        drawn, quarantined = drawn + images, quarantined + bad
        if report is not None:
            seconds = time.monotonic() - since
            busy = min(1.0, busy_s / max(seconds, 1e-9))
            report(Progress(before.images + drawn, before.wanted, drawn, seconds, busy, quarantined))

    return committed


def _model_hash(model: Model, folder: Path) -> str:
    """The model's hash, or, for a job that goes on and was begun with the hash of before, that one if it is its own."""
    found = hash_of(model.config.unet, model.unet.state_dict(), model.config.schedule)
    if not (folder / "job.json").exists():
        return found
    stated = read_identity(folder).get("model")
    begun = stated.get("sha256") if isinstance(stated, dict) else None
    return str(begun) if begun != found and begun == _hash_of_before(model) else found


def _hash_of_before(model: Model) -> str:
    """What jobs named a model by before it had one hash: its encoder's description counted, too."""
    encoder = model.config.encoder
    described = [dataclasses.asdict(model.config.schedule), plain(model.config.unet)]
    described.append(dataclasses.asdict(encoder) if encoder is not None else {})
    return provenance.described_hash(described, model.unet.state_dict())


def encoder_fingerprint(model: Model) -> str:
    """`provenance.encoder_hash` of the encoder in use."""
    assert model.encoder is not None, "check_kind has asked for it"
    return provenance.encoder_hash(model.encoder)
