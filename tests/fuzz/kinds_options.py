"""What people write: configuration files, values of options, and a command that is given files.

Knows nothing about what runs keep (`kinds_runs.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcdm_fast import cli, storage
from rcdm_fast import config as configs
from rcdm_fast.analysis import neighbors, robustness, sweeps
from rcdm_fast.analysis.layer import LayersConfig
from rcdm_fast.app.playground import Settings
from rcdm_fast.cli import training as commands
from rcdm_fast.cli.common import whole_number
from rcdm_fast.config import ConfigError
from rcdm_fast.diffusion.schedule import Schedule
from rcdm_fast.encoders import EncoderError
from rcdm_fast.evaluation import EvaluateConfig
from rcdm_fast.jobs.settings import JobConfig
from rcdm_fast.models import checkpoint
from rcdm_fast.models.unet import UNet
from rcdm_fast.storage import StorageError
from rcdm_fast.training.adapt import AdaptConfig
from rcdm_fast.training.config import TrainConfig
from rcdm_fast.training.pretrain_config import PretrainConfig
from tests import small
from tests.fuzz.kind import Door, Kind
from tests.fuzz.kinds_images import encoded
from tests.fuzz.kinds_models import encode
from tests.fuzz.kinds_runs import TRAIN

CONFIGURATIONS: dict[str, Any] = {
    "train": TrainConfig,
    "pretrain": PretrainConfig,
    "adapt": AdaptConfig,
    "evaluate": EvaluateConfig,
    "job": JobConfig,
    "invariance": sweeps.InvarianceConfig,
    "layers": LayersConfig,
    "attack": robustness.AttackConfig,
    "neighbors": neighbors.NeighborsConfig,
    "playground": Settings,
}


def _configurations(folder: Path) -> None:
    encoder = configs.EncoderConfig("bundled:cifar10-simclr", image_size=32)
    pretrain = PretrainConfig("fuzz", "dino", widths=(8, 16), blocks=(1, 1))
    given: dict[str, Any] = {
        "train": dataclasses.replace(TRAIN, encoder=encoder, ema_decays=(0.5,)),
        "pretrain": pretrain,
        "adapt": AdaptConfig("fuzz", "cifar10-simclr-trunk", encoder),
        "playground": Settings(model="cifar10-simclr-trunk"),
    }
    for name, cls in CONFIGURATIONS.items():
        storage.write_json(folder / f"{name}.json", dataclasses.asdict(given.get(name) or cls()))


def configuration(path: Path) -> None:
    """As `--config FILE` and what is built first of it; the file's name says of what command."""
    cls = CONFIGURATIONS[path.stem]
    found = configs.from_dict(cls, commands._configuration("fuzz", str(path)), str(path))
    with torch.device("meta"), contextlib.suppress(ConfigError):  # what does not fit together need not name the file
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
    if code == FAILED and "the samples are not finite" in last:
        return  # numbers that are representations, far out of range
    assert code in (0, SOME_LEFT_OUT), f"exit code {code}: {last}"


WIDTH = 192  # of the representations of the encoder inside the package
FAILED, WRONG_INPUT, SOME_LEFT_OUT = 1, 2, 3


KINDS = (
    Kind("configuration", _configurations, (Door(configuration, (ConfigError,)),), names=0.0),
    Kind("command", _given, (Door(command, (Refused,)),), names=0.2, good=False),
    Kind(
        "option", _texts, (Door(text, (ConfigError, EncoderError, StorageError)),), named=False, names=0.0, good=False
    ),
)
