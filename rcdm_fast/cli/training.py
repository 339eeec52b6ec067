"""`rcdm train`, `rcdm pretrain` and `rcdm evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcdm_fast.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

ConfigFile = Annotated[
    str | None,
    typer.Option("--config", help="JSON file, or name of a shipped configuration; default: the one called NAME."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change of the configuration, as --set batch_size=64 --set loss.gamma=3; repeatable."),
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
    change: Changes = None,
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
) -> None:
    """Train an RCDM on the representations of a frozen encoder; the same command resumes it.

    Start it with accelerate launch or torchrun to train in several processes.

    Example: rcdm train cifar10-simclr-trunk --data cifar10/train --out runs/trunk
    """
    from rcdm_fast import encoders
    from rcdm_fast.config import from_dict
    from rcdm_fast.training.config import TrainConfig
    from rcdm_fast.training.data import load_folder
    from rcdm_fast.training.train import train as run

    values = _changed(_configuration(name, config), change or [])
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
    """Pre-train a small encoder (SimCLR, VICReg, Barlow Twins, BYOL, DINO, supervised); the same command resumes it.

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


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Bundled or published name, file, folder or hub id.", show_default=False)
    ],
    data: DataFolder,
    sources: Annotated[int, typer.Option(help="Source pictures; 0: 256, or all there are.")] = 0,
    samples: Annotated[int, typer.Option(help="Samples of each source picture.")] = 4,
    gallery: Annotated[int, typer.Option(help="Real representations that a sample is ranked among; 0: all.")] = 0,
    steps: common.Steps = "50",
    solver: common.SolverName = "ddim",
    seed: common.Seed = 0,
    encoder: common.EncoderSpec = None,
    flags: common.Flags = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
    json: common.JsonFile = None,
) -> None:
    """Measure how well samples keep their representation: mean rank and MRR of the source picture, beside chance.

    Example: rcdm evaluate cifar10-simclr-trunk --data cifar10/test --samples 4 --gallery 10000 --json mrr.json
    """
    from rcdm_fast.training.data import load_folder
    from rcdm_fast.training.evaluate import EvaluateConfig
    from rcdm_fast.training.evaluate import evaluate as run

    loaded = common.open_model(model, flags, encoder, device, engine, precision)
    pictures = load_folder(data, loaded.image_size)
    settings = EvaluateConfig(sources, samples, gallery, steps, solver, seed)
    with _bar(sources or 256) as progress:
        result = run(loaded, pictures, settings, lambda done, total: progress(done, total, 0.0))
    for label, interval in (("MRR", result.mrr), ("mean rank", result.mean_rank), ("distance", result.distance)):
        common.say(f"{label:10s} {interval.value:.4g}  [{interval.low:.4g}, {interval.high:.4g}]")
    common.say(f"chance     MRR {result.chance_mrr:.3g}, mean rank {result.chance_mean_rank:.6g} of {result.gallery}")
    common.say(f"nearest other real representation at distance {result.nearest:.4g}")
    common.write_json(json, result)


def _configuration(name: str, given: str | None) -> dict[str, Any]:
    """The JSON configuration from a file, or a shipped one."""
    import json

    from rcdm_fast.config import ConfigError

    folder = Path(__file__).resolve().parent.parent / "training" / "configs"
    file = Path(given) if given is not None else folder / f"{name}.json"
    if not file.exists():
        file = folder / f"{given or name}.json"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ConfigError(f"no configuration {given or name!r} (shipped: {known}); name one, or a file, with --config")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: not a readable JSON file ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return values


def _changed(values: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The configuration with KEY=VALUE applied; VALUE is JSON, or text that is none."""
    import contextlib
    import json

    from rcdm_fast.config import ConfigError

    for change in changes:
        key, equals, text = change.partition("=")
        *outer, last = key.strip().split(".")
        place: Any = values
        for name in outer:
            place = place.setdefault(name, {})
        if not equals or not last or not isinstance(place, dict):
            raise ConfigError(f"--set {change}: expected KEY=VALUE, as in --set loss.gamma=3")
        place[last] = text
        with contextlib.suppress(json.JSONDecodeError):
            place[last] = json.loads(text)
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
