"""How a row about an option of a command is written, and rows that many commands have.

Knows nothing about single commands (`command_options.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rcdm_fast.config import EncoderConfig
from tests import small
from tests.command_calls import Seen, spread

GONE = "(gone)"  # in place of a value that is not there
LAST = 99  # the place behind everything else
READ = {"size": 8, "store": None, "workers": 8}  # images of a small model


class Row(NamedTuple):
    """One option: as it is called, or the place of an argument; its text, None for a switch; what changes, and how."""

    option: str | int
    text: str | None
    changes: Seen


@dataclass(frozen=True)
class Usage:
    """One way to call a command.

    Attributes:
        command: as it is called.
        rows: options that can be added, and arguments that can be another.
        other: what is not the library's own default with `command` alone.
    """

    command: str
    rows: tuple[Row, ...] = ()
    other: Seen = field(default_factory=dict)


def row(option: str | int, value: Any, *keys: str, **also: Any) -> Row:
    """An option whose value arrives in all of `keys`; `also` are others, with ``__`` for the dots."""
    named = {at.replace("__", "."): each for at, each in also.items()}
    return Row(option, str(value), {**dict.fromkeys(keys, value), **named})


def path(option: str, text: str, *keys: str, **also: Any) -> Row:
    """An option that is a path."""
    return row(option, Path(text), *keys, **also)


def switch(option: str, key: str, value: bool = True) -> Row:
    return Row(option, None, {key: value})


def writes(option: str, name: str, beside: str = "", folder: Sequence[str] = ()) -> Row:
    """An option that names a file, or a folder of such files, that is written, with `beside` it what is in any case."""
    own = [f"{name}/{each}" for each in folder] if folder else [name]
    return Row(option, name, {"files": sorted([*own, *beside.split()])})


def all_of(text: str, name: str) -> list[str]:
    """The same argument in several calls."""
    return [f"{call}.{name}" for call in text.split()]


def gone(call: str, names: str) -> Seen:
    """A call that is not made, or arguments that are not there."""
    return {f"{call}.{name}": GONE for name in names.split()}


def again(call: str, **values: Any) -> Seen:
    """A call that is made once more, with arguments like these."""
    return {f"{call}.{name}": value for name, value in values.items()}


def of_file(call: str = "load", kind: type = Path) -> tuple[Row, ...]:
    """The options about a model's files."""
    flags = Row("--flags", "flags.json", {f"{call}.flags": kind("flags.json")})
    return flags, row("--encoder", "timm:resnet18", f"{call}.encoder"), row("--sha256", "ab" * 32, f"{call}.sha256")


def of_device(calls: str = "load") -> Row:
    return row("--device", "cuda:1", *all_of(calls, "device"))


def of_engine(calls: str = "load") -> tuple[Row, ...]:
    """The options about what runs a model."""
    engine, precision = (all_of(calls, name) for name in ("engine", "precision"))
    return of_device(calls), row("--engine", "eager", *engine), row("--precision", "bf16", *precision)


def job(call: str) -> tuple[Row, ...]:
    """The options that a job has, wherever it is run."""
    config, options = f"{call}.config", f"{call}.options"
    return (
        row(0, "6", f"{call}.source"),
        path("--out", "other", f"{call}.folder"),
        row("--per", 3, f"{config}.per"),
        row("--steps", 7, f"{config}.steps"),
        row("--solver", "ancestral", f"{config}.solver"),
        row("--eta", 0.5, f"{config}.eta"),
        row("--guidance", 2.5, f"{config}.guidance"),
        row("--seed", 9, f"{config}.seed"),
        row("--format", "parquet", f"{config}.format"),
        row("--encoding", "webp", f"{config}.encoding"),
        row("--quality", 80, f"{config}.quality"),
        row("--shard-images", 12, f"{config}.shard_images"),
        row("--batch-size", 5, f"{options}.batch_size"),
        row("--threads", 3, f"{options}.threads"),
        switch("--retry", f"{options}.retry"),
        writes("--json", "summary.json"),
    )


def encoder(key: str, source: str) -> Seen:
    """An encoder in a configuration that had none."""
    config = EncoderConfig(source, image_size=8, dim=small.DIM)
    return {key: GONE, **{at: value for at, (value, _) in spread(key, config)}}
