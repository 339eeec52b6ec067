"""Settings that a run may be resumed with other values of: they decide how it is done and written, not what is learned.

And the one that is settled when a run begins, and then belongs to it: the precision that it computes in.

Knows nothing about states (`state.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import storage
from rcdm_fast.config import migrated
from rcdm_fast.doors import regular
from rcdm_fast.precision import without_bf16
from rcdm_fast.training.config import Computed, Precision

log = logging.getLogger(__name__)

FILE = "config.json"


def as_before(folder: Path, settings: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The settings with those in `free` as the run in the folder has them, so that only others can contradict it."""
    before = _before(folder)
    return {**settings, **{name: before[name] for name in free if name in before}}


def precision(folder: Path, asked: Computed, device: torch.device | str) -> Precision:
    """What a run computes in: what is asked for, else what the run in the folder was begun in, else what is sensible.

    It is part of what the run is: resumed with another one that is asked for, it is refused (`RunFolder.open`).
    """
    reason = without_bf16(device)
    found = asked
    if asked == "auto":
        before = _before(folder).get("precision")
        found = before if before in ("fp32", "bf16", "fp16") else automatic(device)
        if found == "fp32" and reason:
            log.info("computed in fp32: %s", reason)
    if found == "bf16" and reason:
        log.warning("computed in bf16, which can be fifty times slower than fp32 here: %s", reason)
    assert found != "auto"
    return found


def automatic(device: torch.device | str) -> Precision:
    """What a new run computes in where nothing is asked for."""
    return "fp32" if without_bf16(device) else "bf16"


def bf16(folder: Path, asked: bool | None, device: torch.device | str) -> bool:
    """The same for runs that know two precisions."""
    names: dict[Any, Precision] = {True: "bf16", False: "fp32"}
    before = _before(folder).get("bf16")
    wanted = before if asked is None and isinstance(before, bool) else asked
    return precision(folder, names.get(wanted, "auto"), device) == "bf16"


def _before(folder: Path) -> dict[str, Any]:
    """Settings of the run in the folder; empty if none can be read."""
    before: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # whoever opens the run says what is wrong
        regular(folder / FILE)
        before = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return migrated(before) if isinstance(before, dict) else {}


def begun_with(folder: Path, name: str) -> Any:
    """What the run in the folder has under a name; None if there is nothing."""
    return _before(folder).get(name)


def keep(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what the run goes on with. Raises `StorageError`."""
    storage.write_json(folder / FILE, json.loads(json.dumps(dict(settings))))
