"""What runs and commands keep and read back: states, jobs, entries of the cache, plans, interrupted downloads."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
from pathlib import Path

import torch

from rcdm_fast import config as configs
from rcdm_fast import downloads, engines
from rcdm_fast.config import ConfigError
from rcdm_fast.data.image_set import ImageSet, fingerprint
from rcdm_fast.downloads import DownloadError
from rcdm_fast.engines import cache
from rcdm_fast.errors import RunError
from rcdm_fast.exporters import fp8, plan_file
from rcdm_fast.exporters.fallback import Layer
from rcdm_fast.exporters.onnx import GraphError
from rcdm_fast.images import ImageError
from rcdm_fast.jobs import local, verify
from rcdm_fast.jobs.settings import FORMATS, JobConfig
from rcdm_fast.model import Model
from rcdm_fast.models.fp8 import inner_convolutions
from rcdm_fast.storage import StorageError
from rcdm_fast.training import representations
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.distributed import Processes
from rcdm_fast.training.run import Run
from rcdm_fast.training.state import RunFolder
from rcdm_fast.training.views import Views
from tests import small
from tests.file_server import FileServer
from tests.fuzz.kind import Door, Kind

TRAIN = TrainConfig("fuzz", small.UNET, small.SCHEDULE, images=40, batch_size=4, compile=False, precision="fp32")


@functools.cache
def data() -> ImageSet:
    """Images to train on."""
    pixels = (small.make_images(8) * 127 + 128).to(torch.uint8)
    return ImageSet(pixels, None, (), (), fingerprint(pixels, None))


def run(folder: Path) -> tuple[Run, RunFolder]:
    """A run of training, with its representations in the folder."""
    bank = representations.cached(small.encoder(), data(), folder, Views(TRAIN.random_flip), Processes())
    return Run(TRAIN, small.UNET, data(), bank, Processes()), RunFolder(folder)


def _state(folder: Path) -> None:
    running, kept = run(folder / "run")
    kept.open(dataclasses.asdict(TRAIN))
    for step in (2, 4):
        while running.step < step:
            running.advance()
        kept.save(running.step, running.state())
    (folder / "run" / "log.jsonl").write_text('{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.4}\n', encoding="utf-8")


def resume(path: Path) -> None:
    """As `rcdm train` on a folder that is there, up to its first step."""
    running, kept = run(path)
    state = kept.open(dataclasses.asdict(TRAIN))
    if state is not None:
        running.restore(state)
    assert 0 <= running.step <= TRAIN.steps, running.step


JOB = JobConfig(per=2, steps=1, shard_images=4)


@functools.cache
def model() -> Model:
    """What draws the images of jobs."""
    return small.model()


def _job(folder: Path) -> None:
    for form in FORMATS:
        config = dataclasses.replace(JOB, format=form)
        local.run(model(), torch.zeros(3, small.DIM), folder / form, config)
    unfinished = folder / "unfinished"
    local.run(model(), torch.zeros(3, small.DIM), unfinished, JOB)
    for name in ("manifest/000001.jsonl", "manifest.jsonl", "summary.json"):
        (unfinished / name).unlink()


def verified(path: Path) -> None:
    """As `rcdm generate --verify`."""
    verify.verify(path)


def continued(path: Path) -> None:
    """As `rcdm generate` on a folder that is there."""
    form = next((each for each in FORMATS if each == path.name), JOB.format)
    config = dataclasses.replace(JOB, format=form)
    summary = local.run(model(), torch.zeros(3, small.DIM), path, config)
    assert summary.complete


KEY = {"weights": "0123", "precision": "fp32"}
BUILT = b"built " * 50


def _build(folder: Path) -> None:
    (folder / "network.bin").write_bytes(BUILT)


def _cache(folder: Path) -> None:
    os.environ["RCDM_FAST_CACHE"] = str(folder / "cache")
    cache.entry("fuzz", KEY, _build)


def cached(path: Path) -> None:
    """An entry is what was built, whatever lies in its place."""
    os.environ["RCDM_FAST_CACHE"] = str(path)
    assert (cache.entry("fuzz", KEY, _build) / "network.bin").read_bytes() == BUILT


VERSION = importlib.metadata.version("rcdm_fast")


def _plan(folder: Path) -> None:
    config = configs.ModelConfig(small.UNET, small.SCHEDULE)
    header = plan_file.PlanHeader(VERSION, "tensorrt", "10", "fp16", "00", config, (1, 4, 8), ("sm89",), False)
    plan_file.write(folder / "export" / "network.plan", header, b"plan" * 100)


def plan(path: Path) -> None:
    """As the TensorRT engine reads a file that it is given."""
    plan_file.read_header(path)
    header, _ = plan_file.read(path)
    header.check_network(header.config, "fp16", str(path))
    header.check_target("tensorrt", "10", "sm89", str(path))
    header.batch_for(3, str(path))


def _scales(folder: Path) -> None:
    network, config = model().unet, model().config
    scales = {name: torch.ones(each.in_channels) for name, each in inner_convolutions(network).items()}
    kept, *_ = scales
    del scales[kept]
    fp8.save(fp8.Calibrated(scales, (Layer(kept, 0.01),), 43.5, folder / "scales" / fp8.FILE), network, config)


def scaled(path: Path) -> None:
    """As an engine reads a file that it is given."""
    engine = engines.make("eager", model().unet, model().config, torch.device("cpu"), "fp8", path)
    assert "emulated" in engine.describe()


RECORD = "file.bin.partial.json"
CONTENT = b"content of a file " * 4000
URL = b"http://at.example"  # stands for the server's address, which is another one every time


def _download(folder: Path) -> None:
    """What an interrupted transfer leaves."""
    place = folder / "cache"
    os.environ["RCDM_FAST_CACHE"] = str(place)
    with FileServer(CONTENT, cut_at=20_000).running() as server:
        try:
            downloads.fetch(f"{server.url}/file.bin", "file.bin")
        except DownloadError:
            _replace(place, server.url.encode(), URL)


def _replace(folder: Path, old: bytes, new: bytes) -> None:
    for record in folder.glob("*.json"):
        if record.is_file() and not record.is_symlink():
            record.write_bytes(record.read_bytes().replace(old, new))


def fetched(path: Path) -> None:
    """The download goes on, or begins again; either way the file is the server's."""
    os.environ["RCDM_FAST_CACHE"] = str(path)
    with FileServer(CONTENT).running() as server:
        if path.is_dir():
            _replace(path, URL, server.url.encode())
        found = downloads.fetch(f"{server.url}/file.bin", "file.bin", timeout_s=5)
    assert found.read_bytes() == CONTENT


RUN = (RunError, ConfigError, StorageError)
JOBS = (ConfigError, StorageError, ImageError)
KINDS = (
    Kind("state", _state, (Door(resume, RUN),), own=True, names=0.1),
    Kind("job", _job, (Door(verified, JOBS), Door(continued, JOBS)), own=True, names=0.2),
    Kind("engine-cache", _cache, (Door(cached, (StorageError,)),), own=True, names=0.2),
    Kind("plan", _plan, (Door(plan, (GraphError,)),), target="network.plan"),
    Kind("fp8-scales", _scales, (Door(scaled, (GraphError, StorageError)),), target=fp8.FILE),
    Kind(
        "download",
        _download,
        (Door(fetched, (DownloadError,)),),
        mutable="file.bin.partial.json",
        own=True,
        named=False,
    ),
)
