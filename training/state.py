"""What a training run keeps on disk: its state for exact resume, its log, and the run folder's rules.

A state file holds tensors and plain data only, with a checksum (`sealed.py`), and is written atomically; the last
`keep` are kept, and one that is damaged or cannot be read gives way to the one before. Randomness is drawn per step
(`data.step_generator`), so no random state needs to be stored. The log is JSON lines, and TensorBoard's files where
tensorboard is installed, and Weights & Biases where wandb is installed and WANDB_PROJECT is set.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import benchmarking, doors, locks, provenance, sealed, storage
from rcdm_fast.config import migrated
from rcdm_fast.doors import door, regular
from rcdm_fast.errors import RunError

log = logging.getLogger(__name__)

_SHOWN = 20  # settings that differ, in a message


class Paused(Exception):
    """A run that stopped because it was told to, with a state to go on from."""


class RunFolder:
    """A folder with `config.json`, `environment.jsonl` (a line per start), `log.jsonl` and `state-STEP.pt` files.

    Raises:
        RunError: it cannot be created.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.path = doors.path(folder, RunError)
        self.keep = keep
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be created ({error.strerror})") from error
        self._start = time.monotonic()
        self._sinks: list[Any] | None = None

    @contextlib.contextmanager
    def locked(self, write: bool = True) -> Iterator[None]:
        """Nobody else trains in this folder meanwhile; only the process that may `write` asks for that.

        Raises:
            RunError: somebody does.
            StorageError: the folder cannot be written.
        """
        if not write:
            yield
            return
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locks.locked(self.path / ".lock", what="a run of training"))
            except locks.Busy as error:
                raise RunError(str(error)) from error
            yield

    def open(
        self, config: Mapping[str, Any], write: bool = True, added: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Begin or resume: the newest sound state, or None for a new run; files change only if `write`.

        States that are damaged get another name (`.damaged` behind it). `added` are settings that runs of earlier
        versions did not know, each with the value that they were run with.

        Raises:
            RunError: the folder holds a run with another configuration; the differences are listed. Or no state in it
                can be read.
            StorageError: a file cannot be written.
        """
        file = self.path / "config.json"
        self.compare(config, added)
        if write and not file.exists():
            storage.write_json(file, json.loads(json.dumps(dict(config))))
        if write:
            with self._changing():
                for left in self.path.glob(".state-*.pt"):  # of a process that was killed while it wrote
                    left.unlink(missing_ok=True)
        state, damaged = self._newest()
        if write:
            with self._changing():
                for each in damaged:  # so that it does not count among the states that are kept
                    os.replace(each, each.with_name(f"{each.name}.damaged"))
            self._forget_after(int(state["step"]) if state is not None else 0)
        return state

    def compare(self, config: Mapping[str, Any], added: Mapping[str, Any] | None = None) -> None:
        """Raise `RunError` if the folder holds a run with another configuration (see `open`); changes nothing."""
        file = self.path / "config.json"
        current = json.loads(json.dumps(dict(config)))
        if file.exists():
            with door(RunError, f"{file}: not the configuration of a run"):
                doors.regular(file)
                before = {**(added or {}), **migrated(dict(json.loads(file.read_text(encoding="utf-8"))))}
            keys = sorted(key for key in before.keys() | current.keys() if before.get(key) != current.get(key))
            if keys:
                changes = "; ".join(_change(key, before.get(key), current.get(key)) for key in keys[:_SHOWN])
                changes += f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                raise RunError(
                    f"{self.path} holds a run with another configuration ({changes}); use another folder, "
                    "or give it the values that it was begun with"
                )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """What the system refuses leaves as a `StorageError`."""
        try:
            yield
        except OSError as error:
            raise storage.StorageError(f"{error.filename}: cannot be changed ({error.strerror})") from error

    def _newest(self) -> tuple[dict[str, Any] | None, list[Path]]:
        """The newest sound state, and those after it, which are damaged."""
        reasons: list[str] = []
        damaged: list[Path] = []
        for file in reversed(self.states()):
            try:
                state = sealed.load(file)
                if not isinstance(state, dict) or type(state.get("step")) is not int:
                    raise storage.StorageError(f"{file}: not the state of a run")
            except storage.StorageError as error:
                reasons.append(f"{file.name} ({' '.join(str(error).split())[:200]})")
                damaged.append(file)
                log.warning("%s; the state before it is taken", error)
                continue
            return state, damaged
        if reasons:
            raise RunError(f"{self.path}: no state can be read: {'; '.join(reasons)}; start again in another folder")
        return None, []

    def _forget_after(self, step: int) -> None:
        """Drop lines of the log that belong to steps that will be done again, and one that was cut."""
        file = self.path / "log.jsonl"
        if not file.exists():
            return
        kept = []
        with door(storage.StorageError, f"{file}: cannot be read"):
            regular(file)
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
        storage.write_text(file, "".join(kept))

    def describe_start(self, step: int, device: torch.device, processes: int = 1) -> None:
        """Append what this process runs on: versions, device, command, git revision, at which step it begins."""
        row = {
            "step": step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "git": provenance.git_revision(),
            "processes": processes,
            **benchmarking.facts(device),
        }
        self._append("environment.jsonl", row)

    def states(self) -> list[Path]:
        """State files, oldest first."""
        return sorted(self.path.glob("state-*.pt"))

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after `step` steps with its checksum and drop those beyond `keep`. Raises `StorageError`."""
        sealed.save(self.path / f"state-{step:09d}.pt", state)
        with self._changing():
            for old in self.states()[: -self.keep]:
                old.unlink(missing_ok=True)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line; `wall_s` is the time since this process began the run. Raises `StorageError`."""
        line = {**row, "wall_s": round(time.monotonic() - self._start, 2)}
        self._append("log.jsonl", line)
        numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        try:
            if self._sinks is None:
                self._sinks = _sinks(self.path, line.get("step"))
            for sink in self._sinks:
                sink(numbers, int(line.get("step", 0)))
        except OSError as error:
            raise storage.StorageError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a line to a file, behind whatever a process that was killed has left there."""
        file = self.path / name
        try:
            with storage.open_in_place(file, "a+b") as stream:
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    if stream.read(1) != b"\n":
                        stream.write(b"\n")
                stream.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise storage.StorageError(f"{file}: cannot be written ({error.strerror or error})") from error


def _change(key: str, before: Any, now: Any) -> str:
    return f"{doors.printable(key)}: {doors.printable(repr(before))} -> {doors.printable(repr(now))}"


def _sinks(folder: Path, step: int | None) -> list[Any]:
    """Takers of (numbers, step) beside the log file; what was told of `step` and later ones before is done again."""
    found: list[Any] = []
    if importlib.util.find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

        def to_tensorboard(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        found.append(to_tensorboard)
    if importlib.util.find_spec("wandb") is not None and os.environ.get("WANDB_PROJECT"):
        import wandb

        run = wandb.init(dir=str(folder), name=folder.resolve().name, id=_wandb_id(folder), resume="allow")
        found.append(lambda numbers, step: run.log(dict(numbers), step=step))
    return found


def _wandb_id(folder: Path) -> str:
    """What a run goes on under at Weights & Biases; other folders of the same name have other ones."""
    file, name = folder / "wandb-id.txt", folder.resolve().name
    with contextlib.suppress(OSError, ValueError):
        regular(file)
        if known := file.read_text(encoding="utf-8").strip():
            return known
    begun = (folder / "wandb").is_dir()  # by an earlier version, which told it the folder's name
    made = name if begun else f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)[:64]}-{uuid.uuid4().hex[:8]}"
    storage.write_text(file, made)
    return made
