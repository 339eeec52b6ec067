"""The stages that make the bundled models, one after another; what is there already is left alone.

    python -m rcdm_fast.training.bundled --data cifar10/train --test cifar10/test [--list] [--ship FOLDER]

Every stage is a command of its own, and each goes on where it was interrupted: so does this. With ``--ship``, what is
made is written as it ships: in 16 bits, encoders by their bundled names, and what models share stored once. Knows
nothing about how a stage works.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rcdm_fast import config as configs
from rcdm_fast import encoders
from rcdm_fast.config import ModelConfig
from rcdm_fast.exporters.graph import hash_of
from rcdm_fast.models import checkpoint
from rcdm_fast.models.checkpoint import CheckpointError


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        name: of its run's folder.
        words: of the command after ``rcdm``; {NAME} is the file that stage NAME made, {out} the stage's own folder.
        file: what it makes, in its folder.
        takes: how long that was, where it was measured.
        base: the stage whose model was adapted: what both hold is stored once.
        encoder: a specification, with {NAME} as in `words`, that stands in the shipped model in place of the one that
            it was trained with.
        ships: whether what it makes is bundled, or only a step on the way.
    """

    name: str
    words: str
    file: str
    takes: str = "not measured"
    base: str = ""
    encoder: str = ""
    ships: bool = True


def _encoder(name: str, takes: str) -> Stage:
    words = f"pretrain {name}-encoder --data {{data}} --test-data {{test}} --out {{out}}"
    return Stage(f"{name}-encoder", words, f"{name}-encoder.safetensors", takes)


def _adapted(name: str, base: str, source: str, steps: int) -> tuple[Stage, ...]:
    """The model of stage BASE-trained for another encoder, with solvers that begin with those of BASE."""
    words = f'adapt {{{base}-trained}} --encoder "file:{source}" --data {{data}} --set steps={steps}'
    words += f" --name {name} --out {{out}}"
    adapted = Stage(f"{name}-trained", words, f"{name}.safetensors", "not measured", ships=False)
    takes = "30 minutes of a busy core, three for each solver at most"
    return adapted, *_tuned(name, source, takes, base, base, 3)


def _tuned(
    name: str, encoder: str, takes: str, base: str = "", begins: str = "", minutes: int = 20
) -> tuple[Stage, Stage]:
    """Solvers for the model that stage NAME-trained made: for its weights in 16 bits, which are those that ship.

    Args:
        name, encoder, takes, base: see `Stage`.
        begins: the model with whose solvers learning begins, or none.
        minutes: for each solver.
    """
    halved = Stage(
        f"{name}-halved", f"export {{{name}-trained}} --to hub --precision fp16 --out {{out}}", "model.safetensors",
        "seconds", ships=False,
    )  # fmt: skip
    words = f"tune {{{name}-halved}} --data {{data}} --nfe 4,5,6,8,10 --minutes {minutes}"
    words += f" --init {{{begins}}}" if begins else ""
    words += f" --out {{out}}/{name}.safetensors"
    return halved, Stage(name, words, f"{name}.safetensors", takes, base, f"file:{encoder}")


STAGES = (
    _encoder("cifar10-simclr", "1.1 M images; on two cores with bf16"),
    _encoder("cifar10-supervised", "on two cores with bf16"),
    Stage(
        "cifar10-simclr-trunk-first",
        "train cifar10-simclr-trunk --data {data} --encoder file:{cifar10-simclr-encoder} --out {out}",
        "cifar10-simclr-trunk.safetensors",
        "151,000 images; on two cores with bf16",
        ships=False,
    ),
    Stage(
        "cifar10-simclr-trunk-trained",
        "train cifar10-simclr-trunk --data {data} --encoder file:{cifar10-simclr-encoder} "
        "--init {cifar10-simclr-trunk-first} --images 250000 --set learning_rate=0.0008 --set ema=0.9995 "
        "--set seed=1 --out {out}",
        "cifar10-simclr-trunk.safetensors",
        "250,000 images; on two cores with bf16",
        ships=False,
    ),
    *_tuned(
        "cifar10-simclr-trunk",
        "{cifar10-simclr-encoder}",
        "those that ship: 15 minutes of a busy core for each, that for 5 stopped after four steps of learning",
    ),
    Stage(
        "cifar10-simclr-map-start",
        'adapt {cifar10-simclr-trunk-halved} --encoder "file:{cifar10-simclr-encoder}?layer=backbone.4&pooling=mean" '
        "--data {data} --set steps=0 --out {out}",
        "cifar10-simclr-map-start.safetensors",
        "6 minutes of a core",
        ships=False,
    ),
    Stage(
        "cifar10-simclr-map-trained",
        'train cifar10-simclr-map --data {data} --encoder "file:{cifar10-simclr-encoder}?layer=backbone.4&pooling=map" '
        "--init {cifar10-simclr-map-start} --out {out}",
        "cifar10-simclr-map.safetensors",
        "140,000 images; 90 minutes of a core",
        ships=False,
    ),
    *_tuned(
        "cifar10-simclr-map",
        "{cifar10-simclr-encoder}?layer=backbone.4&pooling=map",
        "60 minutes of a busy core, three for each solver at most",
        begins="cifar10-simclr-trunk",
        minutes=3,
    ),
    *_adapted("cifar10-simclr-head", "cifar10-simclr-trunk", "{cifar10-simclr-encoder}?layer=projector", 800),
    *_adapted("cifar10-supervised", "cifar10-simclr-trunk", "{cifar10-supervised-encoder}", 800),
    _encoder("cifar10-simclr-wide", "minutes on an H100"),
    _encoder("cifar10-supervised-wide", "a minute on an H100, beside the stage before"),
    Stage(
        "cifar10-simclr-wide-first",
        "train cifar10-simclr-wide --data {data} --encoder file:{cifar10-simclr-wide-encoder} --set augmented_views=0 "
        "--out {out}",
        "cifar10-simclr-wide.safetensors",
        "301 s on an H100, compiled; at the rate of the next stage an estimate of 200 s",
        ships=False,
    ),
    Stage(
        "cifar10-simclr-wide-second",
        "train cifar10-simclr-wide --data {data} --encoder file:{cifar10-simclr-wide-encoder} "
        "--init {cifar10-simclr-wide-first} --images 1873920 --out {out}",
        "cifar10-simclr-wide.safetensors",
        "418 s on an H100, compiled; at the rate of the next stage an estimate of 150 s",
        ships=False,
    ),
    Stage(
        "cifar10-simclr-wide-trained",
        "train cifar10-simclr-wide --data {data} --encoder file:{cifar10-simclr-wide-encoder} "
        "--init {cifar10-simclr-wide-second} --images 1766400 --out {out}",
        "cifar10-simclr-wide.safetensors",
        "150 s on an H100",
        ships=False,
    ),
    *_tuned(
        "cifar10-simclr-wide",
        "{cifar10-simclr-wide-encoder}",
        "those that ship: up to two hours of a core for each; for 4 and 5 begun by hand where the command looks now",
        minutes=60,
    ),
    Stage(
        "shapes-reader-encoder",
        "train-reader shapes-reader --out {out}",
        "shapes-reader.safetensors",
        "200,000 images; 7 minutes of a core",
    ),
    Stage(
        "shapes-oracle",
        "train shapes-oracle --data world:shapes?count=50000 --out {out}",
        "shapes-oracle.safetensors",
        "386 s on an H100, beside five other runs",
        encoder="reader:{shapes-reader-encoder}?masked=1",  # which reads what the oracle knows, off samples too
    ),
)


def made(stage: Stage, out: Path) -> Path:
    """Where a stage's file lies, or will."""
    return out / stage.name / stage.file


def command(stage: Stage, data: str, test: str, out: Path, device: str) -> list[str]:
    """The words of a stage's command after ``rcdm``."""
    given = {"data": data, "test": test, "out": str(out / stage.name)}
    return [*(_named(word, out, given) for word in shlex.split(stage.words)), "--device", device]


def _named(text: str, out: Path, given: Mapping[str, str] | None = None) -> str:
    """The text with files in place of the names of their stages, and what else is given."""
    for name, value in ({other.name: str(made(other, out)) for other in STAGES} | dict(given or {})).items():
        text = text.replace(f"{{{name}}}", value)
    return text


def ship(out: Path, into: Path) -> list[Path]:
    """Write what the stages have made in `out` as it ships, those that are there; the files.

    Weights of models are float16. Where a stage's file was named (an encoder, a model that a run began with), the name
    of the bundled one stands, and in place of an encoder of a world's items the one that reads any image.

    Raises:
        CheckpointError, StorageError: a file that cannot be read or written, a model whose base is missing, or solvers
            that were fitted to other weights than those in 16 bits.
    """
    written = []
    for stage in STAGES:
        source = made(stage, out)
        if not stage.ships or not source.exists():
            continue
        into.mkdir(parents=True, exist_ok=True)
        target = into / f"{stage.name}.safetensors"
        if stage.name.endswith("-encoder"):
            shutil.copyfile(source, target)  # written in 16 bits already
        else:
            config, weights = checkpoint.load_model(source)
            base = into / f"{stage.base}.safetensors" if stage.base else None
            if stage.encoder:
                encoder = encoders.build(_named(stage.encoder, out)).config
                config = dataclasses.replace(config, encoder=encoder)
            stored = {key: value.half().float() for key, value in weights.items()}
            held = hash_of(config.unet, stored, config.schedule) if config.fitted else ""
            if foreign := [each.nfe for each in config.fitted if each.weights != held]:
                raise CheckpointError(
                    f"{source}: its solvers for {foreign} evaluations belong to other weights than ship"
                )
            checkpoint.save_model(target, _by_name(config, out), weights, torch.float16, base)
        written.append(target)
    return written


def _by_name(config: ModelConfig, out: Path) -> ModelConfig:
    """The configuration with names of stages in place of their files."""
    text = configs.to_json(config)
    for stage in STAGES:
        path = json.dumps(str(made(stage, out)))[1:-1]
        name = stage.name.removesuffix("-encoder")
        text = text.replace(f"file:{path}", f"bundled:{name}").replace(f"reader:{path}", f"reader:{name}")
        text = text.replace(path, stage.name)
    return configs.from_json(ModelConfig, text, "a stage's model")


def main(arguments: Sequence[str] | None = None) -> int:
    """List the stages, and run those whose file is missing; the first failing one ends it. The exit status."""
    parser = argparse.ArgumentParser(description="Make the bundled models again, stage by stage.")
    parser.add_argument("--data", default="cifar10/train", help="the training images of CIFAR-10, as rcdm train takes")
    parser.add_argument("--test", default="cifar10/test", help="its test images")
    parser.add_argument("--out", type=Path, default=Path("out/bundled"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--list", action="store_true", help="only list what is made and what is missing")
    parser.add_argument("--ship", type=Path, metavar="FOLDER", help="write what is made as it ships, into a folder")
    given = parser.parse_args(arguments)
    missing = [stage for stage in STAGES if not made(stage, given.out).exists()]

    def words(stage: Stage) -> list[str]:
        return command(stage, given.data, given.test, given.out, given.device)

    for stage in STAGES:
        _print(f"{'missing' if stage in missing else 'made':8s} {stage.name:28s} {stage.takes}")
        _print(f"         rcdm {shlex.join(words(stage))}")
    for stage in [] if given.list else missing:
        _print(f"== {stage.name}")
        status = subprocess.run([sys.executable, "-m", "rcdm_fast", *words(stage)], check=False).returncode
        if status:
            _print(f"{stage.name} ended with status {status}; the same command goes on from there")
            return status
    for path in ship(given.out, given.ship) if given.ship is not None else ():
        _print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
