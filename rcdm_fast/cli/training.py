"""`rcdm train` and `rcdm pretrain`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="JSON configuration; default: the one shipped under the given NAME.")
]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder of pictures; sub-folders are classes.")]
Name = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder (resumed if unfinished). Default: runs/NAME.")]
PictureCount = Annotated[int | None, typer.Option(help="Pictures to be seen, instead of the configuration's.")]


def train(
    name: Name,
    data: DataFolder,
    config: ConfigFile = None,
    out: Out = None,
    init: Annotated[str | None, typer.Option(help="Model to start from.")] = None,
    encoder: common.EncoderSpec = None,
    pictures: PictureCount = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
) -> None:
    """Train an RCDM on the representations of a frozen encoder; the same command resumes it.

    Example: rcdm train cifar10-simclr-trunk --data cifar10/train --out runs/trunk
    """
    from rcdm_fast import encoders
    from rcdm_fast.config import from_dict
    from rcdm_fast.training.data import load_folder
    from rcdm_fast.training.train import TrainConfig
    from rcdm_fast.training.train import train as run

    values = _configuration(name, config)
    changes = {"init": init, "pictures": pictures, "compile": compile, "name": name}
    values.update({key: value for key, value in changes.items() if value is not None})
    if encoder is not None:
        values["encoder"] = dataclasses.asdict(encoders.build(encoder, device).config)
    settings = from_dict(TrainConfig, values, str(config or name))
    pictures_of_data = load_folder(data, settings.unet.image_size)
    common.say(f"{len(pictures_of_data)} pictures, {settings.steps} steps of {settings.batch_size}")
    with _bar(settings.steps) as progress:
        path = run(settings, pictures_of_data, out or Path("runs") / name, device, progress)
    common.say(f"{path}: finished; load it with rcdm_fast.load({str(path)!r})")


def pretrain(
    name: Name,
    data: DataFolder,
    config: ConfigFile = None,
    out: Out = None,
    test: Annotated[Path | None, typer.Option(help="Folder of test pictures: kNN and linear-probe accuracy.")] = None,
    pictures: PictureCount = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
    json: common.JsonFile = None,
) -> None:
    """Pre-train a small encoder (SimCLR, or supervised); the same command resumes it.

    Example: rcdm pretrain cifar10-simclr-encoder --data cifar10/train --test cifar10/test --out runs/simclr
    """
    from rcdm_fast.config import from_dict
    from rcdm_fast.training.data import load_folder
    from rcdm_fast.training.pretrain import PretrainConfig
    from rcdm_fast.training.pretrain import pretrain as run

    values = _configuration(name, config)
    changes = {"pictures": pictures, "compile": compile}
    values.update({key: value for key, value in changes.items() if value is not None})
    settings = from_dict(PretrainConfig, values, str(config or name))
    training_set = load_folder(data, settings.image_size)
    test_set = load_folder(test, settings.image_size) if test is not None else None
    common.say(f"{len(training_set)} pictures, {settings.steps} steps of {settings.batch_size}")
    with _bar(settings.steps) as progress:
        path, accuracy = run(settings, training_set, out or Path("runs") / name, test_set, device, progress)
    for key, value in accuracy.items():
        common.say(f"{key:32s} {value:.4f}")
    common.write_json(json, accuracy)
    common.say(f"{path}: finished; use it with --encoder file:{path}")


def _configuration(name: str, file: Path | None) -> dict[str, Any]:
    """The JSON configuration from a file, or the shipped one of that name."""
    import json

    from rcdm_fast.config import ConfigError

    if file is None:
        folder = Path(__file__).resolve().parent.parent / "training" / "configs"
        file = folder / f"{name}.json"
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
            raise ConfigError(f"no shipped configuration is called {name!r} (known: {known}); name one with --config")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: not a readable JSON file ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return values


class _bar:  # noqa: N801  (used like a function)
    """A progress bar on a terminal; a line in ten on anything else."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __enter__(self) -> Callable[[int, int, float], None]:
        from tqdm import tqdm

        self._tenths = 0
        self._bar = tqdm(total=self.total, disable=not common.interactive())
        return self._show

    def _show(self, done: int, total: int, loss: float) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if loss:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if self._bar.disable and done * 10 // total > self._tenths:
            self._tenths = done * 10 // total
            common.say(f"{done} of {total}" + (f", loss {loss:.4f}" if loss else ""))

    def __exit__(self, *_: object) -> None:
        self._bar.close()
