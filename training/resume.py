"""Settings that a run may be resumed with other values of: they decide how it is done and written, not what is learned.

Knows nothing about states (`state.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rcdm_fast import storage
from rcdm_fast.doors import regular

FILE = "config.json"


def as_before(folder: Path, settings: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The settings with those in `free` as the run in the folder has them, so that only others can contradict it."""
    before: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # whoever opens the run says what is wrong
        regular(folder / FILE)
        before = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if not isinstance(before, dict):
        return dict(settings)
    return {**settings, **{name: before[name] for name in free if name in before}}


def keep(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what the run goes on with. Raises `StorageError`."""
    storage.write_json(folder / FILE, json.loads(json.dumps(dict(settings))))
