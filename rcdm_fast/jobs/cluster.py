"""The same job on Ray Data: units are dealt to actors, one for each device, and drawn again if an actor dies.

Every actor loads the model itself and commits its units to the job's folder, which all machines must see. Manifest and
shards are those of `local.py`; which actor drew a unit leaves no trace. Ray does the scheduling and the restarts.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdm_fast import doors, engines, folders, memory, storage
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.data.readers import tars
from rcdm_fast.errors import install
from rcdm_fast.jobs import feed, local
from rcdm_fast.jobs.ledger import Summary
from rcdm_fast.jobs.local import Report
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.model import Model, load
from rcdm_fast.models import zoo


@dataclass(frozen=True)
class ModelSpec:
    """Arguments of `rcdm_fast.load`, so that every worker can load the model; files must lie where all see them.

    Files that `name`, `flags` and `precision` name are kept by their absolute paths, for workers run in folders of
    their own; those of an `encoder` are to be named so.

    Raises:
        ConfigError: no such precision.
    """

    name: str
    flags: str | None = None
    encoder: str | None = None
    device: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    sha256: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", engines.absolute(self.precision))
        if self.name not in zoo.model_names():
            object.__setattr__(self, "name", _absolute_file(self.name))
        if self.flags is not None:
            object.__setattr__(self, "flags", _absolute_file(self.flags))

    def load(self) -> Model:
        """The model."""
        where = (self.device, self.engine, self.precision)
        return load(self.name, self.flags, self.encoder, *where, sha256=self.sha256)


@dataclass(frozen=True)
class Order:
    """All a worker has to know; plain values, so that it can be sent."""

    spec: ModelSpec
    source: str
    folder: str
    config: JobConfig
    options: RunOptions
    identity: dict[str, Any]


class Worker:
    """An actor: loads the model once, then draws the units that it is given."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.model = order.spec.load()
        found = random_access.find(order.source, feed.wanted_kinds(self.model))
        self.prepared = local.prepare(self.model, found, Path(order.folder), order.config)
        for part in ("model", "encoder", "items", "fitted", "calibrated"):
            here = self.prepared.identity.get(part)
            if here != order.identity.get(part):
                raise ConfigError(f"this worker sees another {part} than the job's: {here}")
        for part in ("engine", "precision"):  # of one job all images are by one engine, and a resumed job asks for it
            here, begun = self.prepared.identity[part], order.identity[part]
            if here != begun:
                raise ConfigError(f"this worker runs {part} {here}, the machine that began the job {begun}; name one")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draw the units batch["unit"]; what is committed already is left alone. Returns counts for each."""
        ledger = self.prepared.ledger
        counts: list[tuple[int, int]] = []
        numbers = [int(number) for number in batch["unit"]]
        for number in numbers:
            if not (ledger.part(number).exists() and ledger.shard(number).exists()):
                unit = ledger.layout.unit(number)
                local.run_units(self.model, self.prepared, [unit], self.order.options)
            counts.append(ledger.counts(number))
        return {
            "unit": numbers,
            "images": [images for images, _ in counts],
            "quarantined": [bad for _, bad in counts],
            "process": [os.getpid()] * len(numbers),
        }


def run(
    spec: ModelSpec,
    source: str,
    folder: str | Path,
    config: JobConfig,
    options: RunOptions,
    *,
    address: str = "local",
    workers: int | None = None,
    report: Report | None = None,
    started: Callable[[Any], None] | None = None,
) -> Summary:
    """Draw all images of a job, or those that are missing, on a Ray cluster.

    Args:
        spec: the model.
        source: items, named so that every worker finds them.
        folder: of the job; every worker must see it.
        config, options: as for `local.run`.
        address: of a running cluster, or "local" to start one on this machine.
        workers: actors, at least 1; None: one for each GPU of the cluster, or for every 2 CPUs if there is none.
        report: told after every unit (busy is not known and given as 0).
        started: given the `ray` module once the cluster is connected.

    Raises:
        ConfigError: Ray is missing, the cluster has too little, or the folder holds another job.
        and what `local.run` raises.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    ray = _ray()
    model = spec.load()
    folder, source = doors.path(folder, storage.StorageError).resolve(), _absolute(source)
    folders.check_outside(folder, source)
    prepared = local.prepare(model, random_access.find(source, feed.wanted_kinds(model)), folder, config)
    ledger = prepared.ledger
    del model
    gc.collect()
    memory.release()  # a worker may be given the same GPU
    with ledger.locked():
        missing = local.begin(prepared, options)
        done = local.reporter(ledger.summary(), report)
        if missing:
            connected = ray.is_initialized()
            if not connected:
                ray.init(
                    address=address,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            try:
                if started is not None:
                    started(ray)
                order = Order(spec, source, str(folder), config, options, prepared.identity)
                for row in _results(ray, order, missing, workers):
                    done(int(row["images"]), int(row["quarantined"]), 0.0)
            finally:
                if not connected:
                    ray.shutdown()
            ledger.tidy()  # what workers that died had begun
        return ledger.finish()


def _results(ray: Any, order: Order, missing: list[int], workers: int | None) -> Any:
    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    wants_gpu = gpus > 0 and not (order.spec.device or "").startswith("cpu")
    count = workers or (gpus if wants_gpu else max(1, cpus // 2))
    most = gpus if wants_gpu else cpus
    if count > most:
        raise ConfigError(f"{count} workers were asked for, the cluster has {most} {'GPUs' if wants_gpu else 'CPUs'}")
    count = min(count, len(missing))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    units = ray.data.from_items([{"unit": number} for number in missing], override_num_blocks=len(missing))
    drawn = units.map_batches(
        Worker,
        fn_constructor_args=(order,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        num_gpus=1 if wants_gpu else None,
        num_cpus=None if wants_gpu else 1,
    )  # Ray Data restarts actors that die, and repeats what they were at
    return drawn.iter_rows()


def _absolute(source: str) -> str:
    if os.path.exists(source):  # unlike Path's, it takes any text
        return str(Path(source).resolve())
    before, name = "", source
    if source.startswith("hf:"):
        name, mark, rest = source.removeprefix("hf:").partition("?")
        return f"hf:{_absolute_file(name)}{mark}{rest}"
    if source.startswith("wds:"):
        before, name = "wds:", source.removeprefix("wds:")
    if "{" not in name:
        return before + _absolute_file(name)
    parts = [part if tars.remote(part) or part.startswith("{") else os.path.abspath(part) for part in name.split("::")]
    return before + "::".join(parts)


def _absolute_file(name: str) -> str:
    return os.path.abspath(name) if os.path.exists(name) else name


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"a job on a cluster needs Ray ({install('jobs')})") from error
