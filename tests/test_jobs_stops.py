"""`rcdm generate` from outside: killed at random moments, on Ray with a worker killed, and what it tells the user."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rcdm_fast
from rcdm_fast.cli import main
from rcdm_fast.config import ConfigError
from rcdm_fast.data import random_access
from rcdm_fast.jobs import local
from rcdm_fast.jobs.settings import JobConfig, RunOptions
from rcdm_fast.jobs.verify import verify
from rcdm_fast.model import Model
from tests import jobs_cases, small
from tests.jobs_cases import manifest, representations

KILLS = 20
SETTINGS = ("--per", "4", "--steps", "3", "--engine", "eager", "--device", "cpu")


@pytest.fixture
def items(short: bool) -> int:
    """How many the jobs have: enough to be stopped again and again."""
    return 100 if short else 300


@pytest.fixture
def inputs(tmp_path: Path, items: int) -> tuple[str, str]:
    """A model file and so many representations."""
    model, h = jobs_cases.write_inputs(tmp_path / "in", items)
    return str(model), str(h)


def command(inputs: tuple[str, str], out: Path, *more: str) -> list[str]:
    model, h = inputs
    return ["generate", h, "--model", model, *SETTINGS, "--shard-images", "16", "--out", str(out), *more]


def started(checkout: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """The command in a process of its own.

    A run is compared with runs of other processes only: this one may have another number of threads, with which sums
    are rounded otherwise.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "rcdm_fast", *arguments],
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def committed(out: Path) -> int:
    return len(list((out / "manifest").glob("0*.jsonl")))


@pytest.mark.long
def test_killed_at_random_moments(
    inputs: tuple[str, str], items: int, tmp_path: Path, short: bool, checkout: Path
) -> None:
    """SIGKILL, again and again; the last run leaves the job that an unbroken one leaves, to the byte."""
    kills = 2 if short else KILLS
    out = tmp_path / "job"
    dice = random.Random(0)
    done = []
    for _ in range(kills):
        before = committed(out)
        process = started(checkout, command(inputs, out))
        while process.poll() is None and committed(out) == before:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.15))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        done.append(committed(out))
        assert verify(out).sound
    assert sum(later > earlier for earlier, later in zip([0, *done], done, strict=False)) >= kills // 2
    assert done[kills // 2] < items * 4 // 16, "the job was finished before it could be killed often"
    assert started(checkout, command(inputs, out)).wait() == 0
    found = verify(out)
    assert found.complete
    assert found.images == found.wanted == 4 * items
    assert started(checkout, command(inputs, tmp_path / "unbroken")).wait() == 0
    names = sorted(each.name for each in (out / "shards").iterdir())
    assert names == sorted(each.name for each in (tmp_path / "unbroken" / "shards").iterdir())
    for name in ("manifest.jsonl", *(f"shards/{name}" for name in names)):
        assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def levels_of(folder: Path, row: dict[str, object]) -> np.ndarray:
    """An image of the manifest, int64 [H,W,3]."""
    with open(folder / str(row["shard"]), "rb") as file:
        file.seek(int(str(row["offset"])))
        return np.asarray(Image.open(io.BytesIO(file.read(int(str(row["bytes"])))))).astype(np.int64)


def _actors() -> list[int]:
    """Processes of Ray actors that draw."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                title = (folder / "cmdline").read_bytes()
                if title.startswith(b"ray::") and b"Worker" in title:
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def _killer(out: Path, shards: int) -> Iterator[list[int]]:
    """Kills one actor as soon as so many shards are committed; yields the list that its number will be in."""
    killed: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            actors = _actors() if committed(out) >= shards else []
            if actors:
                killed.append(actors[0])
                os.kill(actors[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


@pytest.mark.long
def test_ray_with_a_worker_killed(inputs: tuple[str, str], items: int, tmp_path: Path, short: bool) -> None:
    pytest.importorskip("ray")
    from rcdm_fast.jobs import cluster

    model, h = inputs
    config = JobConfig(per=4, steps=20, shard_images=48)
    spec = cluster.ModelSpec(model, device="cpu", engine="eager")
    told: list[local.Progress] = []
    with _killer(tmp_path / "job", 1 if short else 3) as killed:
        summary = cluster.run(spec, h, tmp_path / "job", config, RunOptions(), workers=2, report=told.append)
    assert len(killed) == 1
    assert summary.complete
    assert verify(tmp_path / "job").complete
    assert told[-1].images == 4 * items
    left = [path for path in (tmp_path / "job").rglob(".*") if path.name != ".lock"]
    assert not left, "what the killed worker had begun is still there"
    local.run(spec.load(), h, tmp_path / "alone", config)
    rows, alone = manifest(tmp_path / "job"), manifest(tmp_path / "alone")
    differing = ("sha256", "bytes", "offset")  # another machine may round otherwise; here they are equal too
    for row, wanted in zip(rows, alone, strict=True):
        assert {key: row[key] for key in row if key not in differing} == {
            key: wanted[key] for key in wanted if key not in differing
        }
    assert [row["noise"] for row in rows] == [row["noise"] for row in alone]
    # Workers may have another number of threads than this process, and sums are then rounded otherwise.
    apart = np.array([row["sha256"] != other["sha256"] for row, other in zip(rows, alone, strict=True)])
    assert apart.mean() < 0.05
    for place in apart.nonzero()[0]:
        got = levels_of(tmp_path / "job", rows[int(place)])
        expected = levels_of(tmp_path / "alone", alone[int(place)])
        assert np.abs(got - expected).max() <= 1


def test_ray_workers_see_what_the_driver_sees(inputs: tuple[str, str], tmp_path: Path) -> None:
    """A worker whose model file is another one refuses to draw."""
    pytest.importorskip("ray")
    from rcdm_fast.jobs import cluster

    model, h = inputs
    spec = cluster.ModelSpec(model, device="cpu", engine="eager")
    config = JobConfig(per=4, steps=3, shard_images=16)
    prepared = local.prepare(spec.load(), random_access.find(h), tmp_path / "job", config)
    identity: dict[str, Any] = {**prepared.identity, "model": {"name": "small", "sha256": "0"}}
    with pytest.raises(ConfigError, match="this worker sees another model"):
        cluster.Worker(cluster.Order(spec, h, str(tmp_path / "job"), config, RunOptions(), identity))
    worker = cluster.Worker(cluster.Order(spec, h, str(tmp_path / "job"), config, RunOptions(), prepared.identity))
    told = worker({"unit": np.array([2, 0])})
    assert (told["unit"], told["images"], told["quarantined"]) == ([2, 0], [16, 16], [0, 0])
    before = prepared.ledger.shard(2).stat().st_mtime_ns
    worker({"unit": np.array([2])})
    assert prepared.ledger.shard(2).stat().st_mtime_ns == before


def test_the_cluster_that_was_asked_for(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address goes to Ray as it is given, and one that nobody answers is an error that leaves the job resumable."""
    ray = pytest.importorskip("ray")
    from rcdm_fast.jobs import cluster

    asked: list[str] = []

    def connect(*, address: str, **_: Any) -> None:
        asked.append(address)
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", connect)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    model, h = inputs
    spec = cluster.ModelSpec(model, device="cpu", engine="eager")
    config = JobConfig(per=1, steps=2)
    for address in ("ray://head:10001", "10.0.0.1:6379", "auto", "local"):
        with pytest.raises(ConnectionError, match="nobody answers"):
            cluster.run(spec, h, tmp_path / "job", config, RunOptions(), address=address)
    assert asked == ["ray://head:10001", "10.0.0.1:6379", "auto", "local"]
    assert local.run(spec.load(), h, tmp_path / "job", config).complete


class FakeRay:
    """A cluster whose actors are called here, one unit after the other, in another folder than the driver's."""

    def __init__(self, resources: dict[str, float], folder: Path, connected: bool = False) -> None:
        self.resources, self.folder, self.connected = resources, folder, connected
        self.asked: dict[str, Any] = {}
        self.orders: list[Any] = []
        self.was_shut = False
        self.data = SimpleNamespace(
            DataContext=SimpleNamespace(get_current=SimpleNamespace),
            ActorPoolStrategy=lambda size, **_: size,
            from_items=lambda rows, **_: SimpleNamespace(map_batches=lambda *a, **k: self._mapped(rows, *a, **k)),
        )

    def _mapped(self, rows: list[dict[str, int]], worker: Any, **asked: Any) -> Any:
        self.asked = asked
        self.orders.append(asked["fn_constructor_args"][0])
        return SimpleNamespace(iter_rows=lambda: self._rows(rows, worker))

    def _rows(self, rows: list[dict[str, int]], worker: Any) -> Iterator[dict[str, Any]]:
        with contextlib.chdir(self.folder):
            actor = worker(*self.asked["fn_constructor_args"])
            for row in rows:
                found = actor({"unit": np.array([row["unit"]])})
                yield {name: values[0] for name, values in found.items()}

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **_: Any) -> None:
        self.connected = True

    def shutdown(self) -> None:
        self.was_shut = True


@pytest.mark.parametrize(
    ("resources", "device", "workers", "missing", "asked"),
    [
        ({"GPU": 3.0, "CPU": 16.0}, None, None, 9, (3, 1, None)),
        ({"GPU": 3.0, "CPU": 16.0}, "cuda", 2, 9, (2, 1, None)),
        ({"GPU": 3.0, "CPU": 16.0}, "cpu", None, 9, (8, None, 1)),
        ({"CPU": 16.0}, None, None, 9, (8, None, 1)),
        ({"CPU": 16.0}, None, 16, 99, (16, None, 1)),
        ({"CPU": 16.0}, None, None, 5, (5, None, 1)),
        ({"CPU": 1.0}, None, None, 9, (1, None, 1)),
        ({"CPU": 16.0}, None, 17, 9, "17 workers were asked for, the cluster has 16 CPUs"),
        ({"GPU": 3.0, "CPU": 16.0}, None, 4, 9, "4 workers were asked for, the cluster has 3 GPUs"),
    ],
)
def test_a_worker_for_each_gpu_or_for_every_two_cpus(
    resources: dict[str, float], device: str | None, workers: int | None, missing: int, asked: Any, tmp_path: Path
) -> None:
    from rcdm_fast.jobs import cluster

    ray = FakeRay(resources, tmp_path)
    spec = cluster.ModelSpec("m", device=device)
    order = cluster.Order(spec, "h", "job", JobConfig(), RunOptions(), {})
    if isinstance(asked, str):
        with pytest.raises(ConfigError, match=asked):
            cluster._results(ray, order, list(range(missing)), workers)
        return
    cluster._results(ray, order, list(range(missing)), workers)
    assert (ray.asked["compute"], ray.asked["num_gpus"], ray.asked["num_cpus"]) == asked


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model that every worker loads."""
    from rcdm_fast.jobs import cluster

    model = small.quick_model()
    monkeypatch.setattr(cluster.ModelSpec, "load", lambda _: model)
    return model


@pytest.mark.parametrize("connected", [True, False])
def test_a_job_on_a_cluster_from_its_order_to_its_summary(
    connected: bool, quick: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine items in shards of four, one bad: names hold in the workers' folder, counts are told, leftovers go."""
    from rcdm_fast.jobs import cluster

    rows = representations().numpy()
    rows[5] = np.nan
    np.save(tmp_path / "h.npy", rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    ray = FakeRay({"CPU": 8.0}, tmp_path / "elsewhere", connected)
    monkeypatch.setattr(cluster, "_ray", lambda: ray)
    given: list[RunOptions] = []
    run_units = local.run_units

    def watched(*arguments: Any) -> None:
        given.append(arguments[3])
        run_units(*arguments)
        (tmp_path / "job" / "shards" / ".000001.abcdefgh.tar").touch()  # a worker that died had begun it

    monkeypatch.setattr(local, "run_units", watched)
    spec = cluster.ModelSpec("m")
    config, options = JobConfig(per=1, steps=2, shard_images=4), RunOptions(batch_size=3, threads=1)
    told: list[local.Progress] = []
    summary = cluster.run(spec, "h.npy", "job", config, options, workers=2, report=told.append)
    assert [(each.images, each.quarantined, each.wanted) for each in told] == [(4, 0, 9), (7, 1, 9), (8, 1, 9)]
    assert (summary.images, summary.quarantined, summary.complete) == (8, 1, True)
    assert given == [options] * 3
    assert ray.asked["compute"] == 2
    assert ray.was_shut == (not connected)
    assert not list((tmp_path / "job" / "shards").glob(".*"))
    assert verify("job").complete
    assert cluster.run(spec, "h.npy", "job", config, options) == summary
    assert len(ray.orders) == 1, "a finished job needs no cluster"


@pytest.mark.parametrize("part", ["model", "encoder", "items", "fitted", "calibrated"])
def test_a_worker_that_sees_something_else_refuses(part: str, quick: Model, tmp_path: Path) -> None:
    from rcdm_fast.jobs import cluster

    h, folder, config = str(tmp_path / "h.npy"), tmp_path / "job", JobConfig(per=1, steps=2)
    np.save(h, representations().numpy())
    identity = local.prepare(quick, random_access.find(h), folder, config).identity
    order = cluster.Order(cluster.ModelSpec("m"), h, str(folder), config, RunOptions(), {**identity, part: "another"})
    with pytest.raises(ConfigError, match=f"this worker sees another {part} than the job's"):
        cluster.Worker(order)


def test_a_worker_draws_what_lacks_its_images_or_its_manifest(quick: Model, tmp_path: Path) -> None:
    from rcdm_fast.jobs import cluster

    h, folder, config = str(tmp_path / "h.npy"), tmp_path / "job", JobConfig(per=1, steps=1, shard_images=4)
    np.save(h, representations().numpy())
    prepared = local.prepare(quick, random_access.find(h), folder, config)
    worker = cluster.Worker(
        cluster.Order(cluster.ModelSpec("m"), h, str(folder), config, RunOptions(), prepared.identity)
    )
    worker({"unit": np.array([1])})
    for file in (prepared.ledger.shard(1), prepared.ledger.part(1)):
        file.unlink()
        assert worker({"unit": np.array([1])})["images"] == [4]
        assert file.exists()


def test_a_worker_loads_what_the_driver_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from rcdm_fast.jobs import cluster

    told: list[Any] = []
    monkeypatch.setattr(cluster, "load", lambda *given, **named: told.extend([given, named]))
    cluster.ModelSpec("m.pt", "flags.json", "timm:resnet18", "cuda:1", "eager", "bf16", "ab" * 32).load()
    assert told == [("m.pt", "flags.json", "timm:resnet18", "cuda:1", "eager", "bf16"), {"sha256": "ab" * 32}]


def test_the_command(inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = inputs
    h = representations(10)
    np.save(tmp_path / "few.npy", h.numpy())
    few = (model, str(tmp_path / "few.npy"))
    out = tmp_path / "job"
    assert main(command(few, out, "--json", str(tmp_path / "numbers.json"))) == 0
    said = capsys.readouterr().out
    assert "40 of 40 images in 3 shards, 0 items quarantined" in said
    assert "images/s, device busy" in said
    assert json.loads((tmp_path / "numbers.json").read_text())["complete"]
    assert main(["generate", "--verify", "--out", str(out)]) == 0
    assert "40 of 40 images with true checksums, complete" in capsys.readouterr().out
    shard = out / "shards" / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert main(["generate", "--verify", "--out", str(out)]) == 1
    assert "the checksum is wrong" in capsys.readouterr().out
    assert main(command(few, out, "--seed", "3")) == 2
    assert "holds another job: settings.seed was 0, is 3" in capsys.readouterr().err
    h[4] = float("nan")
    np.save(tmp_path / "few.npy", h.numpy())
    assert main(command(few, tmp_path / "poisoned")) == 3
    said = capsys.readouterr().out
    assert "36 of 40 images in 3 shards, 1 items quarantined" in said
    assert "quarantine.jsonl says why" in said


def test_wrong_commands(inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["generate"], "generate needs items"),
        (["generate", "--verify", "--out", str(tmp_path / "none")], "not a job folder (no job.json)"),
        (command(inputs, tmp_path / "a", "--format", "zip"), "got 'zip'"),
        (
            command(inputs, tmp_path / "a", "--solver", "euler"),
            "no solver called 'euler'; known: auto, fitted",
        ),
        (["generate", str(tmp_path / "none"), "--out", str(tmp_path / "a")], "no such folder"),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.long
def test_memory_is_flat(tmp_path: Path, short: bool) -> None:
    """Over 50,000 images at 2 steps the process grows by less than one shard's images."""
    model = rcdm_fast.load("cifar10-simclr-trunk", device="cpu")
    items = 125 if short else 6250
    h = torch.randn(items, 192, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []

    def report(now: local.Progress) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * resource.getpagesize())

    summary = local.run(model, h, tmp_path, JobConfig(steps=2, shard_images=200), RunOptions(batch_size=50), report)
    assert summary.complete
    assert len(sizes) == items * 8 // 200
    settled = len(sizes) // 5
    growth = max(sizes[-settled:]) - max(sizes[settled : 2 * settled])
    assert growth < 8 * 2**20, f"{summary.images} images: {growth / 2**20:.1f} MiB more than in the beginning"
