"""`rcdm train`, `rcdm pretrain` and `rcdm train-reader`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rcdm_fast.cli import common

ConfigFile = Annotated[
    str | None,
    typer.Option("--config", help="JSON file, or name of a shipped configuration; default: the one called NAME."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change of the configuration, as --set batch_size=64 --set loss.gamma=3; repeatable."),
]
Store = Annotated[
    Path | None,
    typer.Option(help="Keep decoded images in this folder and map them from there: for sets larger than memory."),
]
Name = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]
Out = Annotated[Path | None, common.out("Run folder (resumed if unfinished). Default: runs/NAME.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so long; the same command goes on.")]
ImageCount = Annotated[int | None, typer.Option(help="Images to be seen, instead of the configuration's.")]


def train(
    name: Name,
    data: Annotated[str, common.data("Training images")],
    config: ConfigFile = None,
    out: Out = None,
    init: Annotated[str | None, typer.Option(help="Model to start from.")] = None,
    encoder: common.EncoderSpec = None,
    representations: common.Representations = None,
    images: ImageCount = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    change: Changes = None,
    store: Store = None,
    minutes: Minutes = None,
    trust_repo: common.Trust = False,
    device: common.Device = None,
) -> None:
    """Train an RCDM on the representations of a frozen encoder.

    Or on such that were computed elsewhere (--representations). The same command resumes it. Start it with accelerate
    launch or torchrun to train in several processes.

    Example: rcdm train cifar10-simclr-trunk --data cifar10/train --out runs/trunk
    """
    from rcdm_fast.config import from_dict
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.devices import best
    from rcdm_fast.training import trust
    from rcdm_fast.training.config import TrainConfig
    from rcdm_fast.training.train import train as run

    common.check_one(encoder, representations)
    folder = run_folder(name, out, data)
    device = best(device)
    trusted: list[str] = []
    given = {"init": init, "images": images, "compile": compile, "encoder": encoder}
    values = configured(name, config, change, given)
    changes = {"init": init, "images": images, "compile": compile, "name": name}
    values.update({key: value for key, value in changes.items() if value is not None})
    if encoder is not None:
        built, trusted = trust.built(encoder, folder, device, trust_repo)
        values["encoder"] = dataclasses.asdict(built.config)
    settings = from_dict(TrainConfig, values, str(config or name))
    if trust_repo and settings.encoder is not None:
        trusted = [settings.encoder.source]
    images_of_data = open_data(data, settings.unet.image_size, store=store)
    h = common.aligned(representations, images_of_data)
    common.report(f"{len(images_of_data)} images, {settings.steps} steps of {settings.batch_size}")
    with common.ProgressBar(settings.steps) as progress, pausing():
        path = run(settings, images_of_data, folder, device, progress, minutes, trusted, h=h)
    common.report(f"{path}: finished; load it with rcdm_fast.load({str(path)!r})")


def pretrain(
    name: Name,
    data: Annotated[str, common.data("Training images")],
    config: ConfigFile = None,
    out: Out = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="Test images, as --data: kNN and linear-probe accuracy.")
    ] = None,
    images: ImageCount = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    change: Changes = None,
    minutes: Minutes = None,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Pre-train a small encoder, such as one of SimCLR.

    Methods: SimCLR, VICReg, Barlow Twins, BYOL, DINO, supervised. The same command resumes it.

    Example: rcdm pretrain cifar10-simclr-encoder --data cifar10/train --test-data cifar10/test --out runs/simclr
    """
    from rcdm_fast.config import from_dict
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.devices import best
    from rcdm_fast.training.pretrain import PretrainConfig
    from rcdm_fast.training.pretrain import pretrain as run

    common.check_writable(json)
    folder = run_folder(name, out, data)
    device = best(device)
    values = configured(name, config, change, {"images": images, "compile": compile})
    changes = {"images": images, "compile": compile, "name": name.removesuffix("-encoder")}
    values.update({key: value for key, value in changes.items() if value is not None})
    settings = from_dict(PretrainConfig, values, str(config or name))
    training_set = open_data(data, settings.image_size)
    test_set = open_data(test_data, settings.image_size) if test_data is not None else None
    common.report(f"{len(training_set)} images, {settings.steps} steps of {settings.batch_size}")
    with common.ProgressBar(settings.steps) as progress, pausing():
        path, accuracy = run(settings, training_set, folder, test_set, device, progress, minutes)
    for key, value in accuracy.items():
        common.report(f"{key:32s} {value:.4f}")
    common.write_json(json, accuracy)
    common.report(f"{path}: finished; use it with --encoder file:{path}")


def train_reader(
    name: Name,
    config: ConfigFile = None,
    out: Out = None,
    images: ImageCount = None,
    change: Changes = None,
    minutes: Minutes = None,
    device: common.Device = None,
    json: common.JsonFile = None,
) -> None:
    """Train a network that reads a world's factors off images.

    Its images are drawn as they are needed, and how well it reads is measured on others. The same command resumes it.

    Example: rcdm train-reader shapes-reader --out runs/reader
    """
    from rcdm_fast.config import from_dict
    from rcdm_fast.devices import best
    from rcdm_fast.training.reader import ReaderConfig
    from rcdm_fast.training.reader import train as run

    common.check_writable(json)
    folder = run_folder(name, out)
    device = best(device)
    values = configured(name, config, change, {"images": images}) | {"name": name}
    values |= {} if images is None else {"images": images}
    settings = from_dict(ReaderConfig, values, str(config or name))
    common.report(f"{settings.steps} steps of {settings.batch_size} images of world:{settings.world}")
    with common.ProgressBar(settings.steps) as progress, pausing():
        path, scores = run(settings, folder, progress, device, minutes)
    for key, value in scores.items():
        common.report(f"{key:32s} {value:.4f}")
    common.write_json(json, scores)
    common.report(f"{path}: finished; use it with --encoder file:{path}")


def run_folder(name: str, out: Path | None, data: str | None = None) -> Path:
    """Where a run of that name lies. Raises `ConfigError`: the name is no file's, or that is among its images."""
    from rcdm_fast import folders
    from rcdm_fast.config import ConfigError

    if not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"a run is called by a name such as mine, got {name!r}; --out says in which folder it lies")
    folder = out or Path("runs") / name
    folders.check_outside(folder, data)
    return folder


@contextlib.contextmanager
def pausing() -> Iterator[None]:
    """A run that was told to stop ends the command, which says that it goes on, without an error."""
    from rcdm_fast.training.state import Paused

    try:
        yield
    except Paused as pause:
        common.report(f"{pause}; the same command goes on from there")
        raise typer.Exit from pause


def _configuration(name: str, given: str | None) -> dict[str, Any]:
    """The JSON configuration from a file, or a shipped one."""
    from rcdm_fast.workflows import stored_configuration

    return stored_configuration(name, shipped_only=True) if given is None else stored_configuration(given)


def configured(
    name: str, config: str | None, changes: list[str] | None, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration of a run with what --set says.

    Raises:
        ConfigError: another name, or what an option of the command says, too (`given` by field, None if it does not).
    """
    from rcdm_fast.config import ConfigError

    values = _configuration(name, config)
    before = values.get("name")
    said = {key: f"--{key}" for key, value in (given or {}).items() if value is not None}
    if changed(values, changes or [], said).get("name") != before:
        raise ConfigError(f"--set name: the run is called as it is asked for, {name}")
    return values


def changed(values: dict[str, Any], changes: list[str], said: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The configuration with KEY=VALUE applied; VALUE is JSON, or text that is none.

    Raises:
        ConfigError: no KEY=VALUE, or a field that options of the command say (`said`: their names).
    """
    import json

    from rcdm_fast import doors
    from rcdm_fast.config import ConfigError

    for change in changes:
        key, equals, text = change.partition("=")
        *outer, last = key.strip().split(".")
        if option := (said or {}).get([*outer, last][0]):
            raise ConfigError(f"--set {doors.printable(key.strip())}: say that with {option}")
        place: Any = values
        for name in outer:
            place = place.setdefault(name, {}) if isinstance(place, dict) else None
        if not equals or not last or not isinstance(place, dict):
            shown = doors.printable(" ".join(change.split()))
            raise ConfigError(f"--set {shown}: expected KEY=VALUE, as in --set loss.gamma=3")
        place[last] = text
        with contextlib.suppress(json.JSONDecodeError):
            place[last] = json.loads(text)
    return values
