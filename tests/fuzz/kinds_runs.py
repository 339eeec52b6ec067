"""What runs and commands keep and read back: states, jobs, stores, caches, downloads, configurations, option texts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcdm_fast import checkpoint, cli, downloads, pipeline, storage
from rcdm_fast import config as configs
from rcdm_fast.analysis import attack, invariance, layers, neighbours
from rcdm_fast.app.playground import Settings
from rcdm_fast.cli import training as commands
from rcdm_fast.cli.common import whole_number
from rcdm_fast.config import ConfigError
from rcdm_fast.downloads import DownloadError
from rcdm_fast.encoders import EncoderError
from rcdm_fast.engines import cache
from rcdm_fast.export import plan_file
from rcdm_fast.export.onnx import GraphError
from rcdm_fast.images import ImageError
from rcdm_fast.jobs import local, verify
from rcdm_fast.jobs.settings import FORMATS, JobConfig
from rcdm_fast.schedule import Schedule
from rcdm_fast.storage import StorageError
from rcdm_fast.training import representations
from rcdm_fast.training.adapt import AdaptConfig
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.data import ImageSet, fingerprint
from rcdm_fast.training.evaluate import EvaluateConfig
from rcdm_fast.training.pretrain_config import PretrainConfig
from rcdm_fast.training.run import Run
from rcdm_fast.training.state import RunError, RunFolder
from rcdm_fast.training.team import Team
from rcdm_fast.unet import UNet
from tests import small
from tests.file_server import FileServer
from tests.fuzz.kind import Door, Kind
from tests.fuzz.kinds_images import encoded
from tests.fuzz.kinds_models import encode

TRAIN = TrainConfig("fuzz", small.UNET, small.SCHEDULE, pictures=40, batch_size=4, compile=False, precision="fp32")


@functools.cache
def data() -> ImageSet:
    """Pictures to train on."""
    pixels = (small.pictures(8) * 127 + 128).to(torch.uint8)
    return ImageSet(pixels, None, (), (), fingerprint(pixels, None))


def run(folder: Path) -> tuple[Run, RunFolder]:
    """A run of training, with its representations in the folder."""
    bank = representations.cached(small.encoder(), data(), folder, TRAIN.flips, Team())
    return Run(TRAIN, small.UNET, data(), bank, Team()), RunFolder(folder)


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


JOB = JobConfig(per=2, steps=1, shard_pictures=4)


@functools.cache
def model() -> pipeline.Model:
    """What draws the pictures of jobs."""
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
    plan_file.write(folder / "network.plan", header, b"plan" * 100)


def plan(path: Path) -> None:
    """As the TensorRT engine reads a file that it is given."""
    plan_file.read_header(path)
    header, _ = plan_file.read(path)
    header.check_network(header.config, "fp16", str(path))
    header.check_place("tensorrt", "10", "sm89", str(path))
    header.batch_for(3, str(path))


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


CONFIGURATIONS: dict[str, Any] = {
    "train": TrainConfig,
    "pretrain": PretrainConfig,
    "adapt": AdaptConfig,
    "evaluate": EvaluateConfig,
    "job": JobConfig,
    "invariance": invariance.InvarianceConfig,
    "layers": layers.LayersConfig,
    "attack": attack.AttackConfig,
    "neighbours": neighbours.NeighboursConfig,
    "playground": Settings,
}


def _configurations(folder: Path) -> None:
    encoder = configs.EncoderConfig("bundled:cifar10-simclr", image_size=32)
    pretrain = PretrainConfig("fuzz", "dino", widths=(8, 16), blocks=(1, 1))
    given: dict[str, Any] = {
        "train": dataclasses.replace(TRAIN, encoder=encoder, more_emas=(0.5,)),
        "pretrain": pretrain,
        "adapt": AdaptConfig("fuzz", "cifar10-simclr-trunk", encoder),
        "playground": Settings("cifar10-simclr-trunk"),
    }
    for name, cls in CONFIGURATIONS.items():
        storage.write_json(folder / f"{name}.json", dataclasses.asdict(given.get(name) or cls()))


def configuration(path: Path) -> None:
    """As `--config FILE` and what is built first of it; the file's name says of what command."""
    cls = CONFIGURATIONS[path.stem]
    found = configs.from_dict(cls, commands._configuration("fuzz", str(path)), str(path))
    with torch.device("meta"):
        if isinstance(found, TrainConfig):
            UNet(found.unet)
            Schedule.make(found.schedule)
        if isinstance(found, PretrainConfig):
            found.network()
            found.encoder()


TEXTS: dict[str, str] = {
    "encoder": "bundled:cifar10-simclr?layer=backbone&image_size=32&mean=0.1,0.2,0.3&std=0.5&interpolation=bicubic",
    "encoder-file": "file:weights/encoder.safetensors?resize=squash&resize_to=40&normalize=1",
    "encoder-timm": "timm:test_resnet?layer=layer1&pooling=mean&pretrained=0",
    "encoder-onnx": "onnx:encoder.onnx?layer=output&pooling=none",
    "steps": "ddim25",
    "steps-parts": "10,15,20",
    "set": "loss.gamma=3",
    "set-list": "unet.channel_mult=[1,2]",
    "set-object": 'encoder={"source": "bundled:cifar10-simclr", "image_size": 32}',
}


def _texts(folder: Path) -> None:
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def text(path: Path) -> None:
    """An option's value on the command line, kept in a file; the file's name says of which option."""
    if not path.is_file():
        return
    value = path.read_bytes().decode("utf-8", "surrogateescape")
    option = path.stem.partition("-")[0]
    if option == "encoder":
        encode(value)
    elif option == "steps":
        Schedule.make(small.SCHEDULE, whole_number(value))
    else:
        values = json.loads(configs.to_json(TRAIN))
        configs.from_dict(TrainConfig, commands.changed(values, [value]), "--set")


class Refused(ValueError):
    """The command said in one line why it does not do it, with the exit code for wrong input."""


@functools.cache
def _weights() -> bytes:
    """The model's file, with its encoder's inside the package."""
    encoder = configs.EncoderConfig("bundled:cifar10-simclr", image_size=32, dim=WIDTH)
    unet = dataclasses.replace(small.UNET, representation_dim=WIDTH)
    config = configs.ModelConfig(unet, small.SCHEDULE, encoder)
    with tempfile.TemporaryDirectory() as folder:
        made = checkpoint.save_model(folder, config, small.network(representation_dim=WIDTH).state_dict())
        return made.read_bytes()


def _given(folder: Path) -> None:
    h = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    np.save(folder / "h.npy", h.numpy())
    np.savez(folder / "h.npz", representations=h.numpy())
    storage.save_tensors(folder / "h.safetensors", {"representations": h}, {})
    (folder / "photo.png").write_bytes(encoded("png"))
    (folder / "album").mkdir()
    (folder / "album" / "a.png").write_bytes(encoded("png"))
    (folder / "album" / "b.jpg").write_bytes(encoded("jpeg"))


def command(path: Path) -> None:
    """`rcdm sample` itself: its exit code, and what it says."""
    Path("model.safetensors").write_bytes(_weights())
    options = "--model model.safetensors --per 1 --steps 1 --engine eager --precision fp32 --device cpu --out s.png"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = cli.main(["sample", *options.split(), "--", str(path)])
    last = said.getvalue().rstrip("\n").rpartition("\n")[2]
    if code == WRONG_INPUT:
        raise Refused(last)
    assert code in (0, SOME_LEFT_OUT), f"exit code {code}: {last}"


WIDTH = 192  # of the representations of the encoder inside the package
WRONG_INPUT, SOME_LEFT_OUT = 2, 3
RUN = (RunError, ConfigError, StorageError)
JOBS = (ConfigError, StorageError, ImageError)
KINDS = (
    Kind("state", _state, (Door(resume, RUN),), own=True, names=0.1),
    Kind("job", _job, (Door(verified, JOBS), Door(continued, JOBS)), own=True, names=0.2),
    Kind("engine-cache", _cache, (Door(cached, (StorageError,)),), own=True, names=0.2),
    Kind("plan", _plan, (Door(plan, (GraphError,)),)),
    Kind(
        "download",
        _download,
        (Door(fetched, (DownloadError,)),),
        mutable="file.bin.partial.json",
        own=True,
        named=False,
    ),
    Kind("configuration", _configurations, (Door(configuration, (ConfigError,)),), names=0.0),
    Kind("command", _given, (Door(command, (Refused,)),), names=0.2, good=False),
    Kind(
        "option", _texts, (Door(text, (ConfigError, EncoderError, StorageError)),), named=False, names=0.0, good=False
    ),
)
