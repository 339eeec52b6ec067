"""What a training run keeps on disk: its state for exact resume, its log, and the run folder's rules.

A state file holds tensors and plain data only (read with weights_only=True) and is written atomically; the last
`keep` are kept. Randomness is drawn per step (`data.step_generator`), so no random state needs to be stored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import storage


class RunError(RuntimeError):
    """A run that cannot start, resume or go on."""


class RunFolder:
    """A folder with `config.json`, `log.jsonl` and `state-STEP.pt` files."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.path = Path(folder)
        self.keep = keep
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be created ({error.strerror})") from error
        self._start = time.monotonic()

    def open(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Begin or resume: the newest state, or None for a new run.

        Raises:
            RunError: the folder holds a run with another configuration; the differences are listed.
        """
        file = self.path / "config.json"
        current = json.loads(json.dumps(dict(config)))
        if file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
            keys = sorted(key for key in before.keys() | current.keys() if before.get(key) != current.get(key))
            if keys:
                changes = "; ".join(f"{key}: {before.get(key)!r} -> {current.get(key)!r}" for key in keys)
                raise RunError(f"{self.path} holds a run with another configuration ({changes}); use another folder")
        else:
            storage.write_json(file, current)
        states = self.states()
        if not states:
            return None
        state: dict[str, Any] = torch.load(states[-1], map_location="cpu", weights_only=True)
        return state

    def states(self) -> list[Path]:
        """State files, oldest first."""
        return sorted(self.path.glob("state-*.pt"))

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after `step` steps and drop those beyond `keep`."""
        with storage.atomic(self.path / f"state-{step:09d}.pt") as temporary:
            torch.save(dict(state), temporary)
        for old in self.states()[: -self.keep]:
            old.unlink()

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line; `wall_s` is the time since this process began the run."""
        line = {**row, "wall_s": round(time.monotonic() - self._start, 2)}
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
