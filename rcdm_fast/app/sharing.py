"""A drawing as a small text that somebody else can open, in a file or in a link: model, seed, settings and h.

h is what was drawn from, after all changes of the photograph and of itself, so the photograph is not in it. A link
holds the same text, compressed, behind the "#" that browsers send to no server. Knows nothing about pages.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcdm_fast import doors
from rcdm_fast.app.playground import Settings
from rcdm_fast.config import ConfigError, from_dict

MARK = "rcdm_fast_playground"
VERSION = 2
FIRST = 1  # in which "auto" was ddim
MAX_BYTES = 1 << 20  # of the text
MAX_LINK = 8000  # characters that browsers and mail programs keep
_KEPT = ("per", "steps", "solver", "guidance", "eta", "seed", "clip")  # of the settings; the others are in h already


@dataclass(frozen=True)
class Shared:
    """What a shared drawing says.

    Attributes:
        settings: how it was drawn; their model is the first.
        h: what each model drew from, float32 [1,D], by what the page calls the model.
    """

    settings: Settings
    h: dict[str, Tensor]


def text(settings: Settings, h: Mapping[str, Tensor]) -> str:
    """The text of a drawing; see `Shared`. Numbers of h are as short as their float32 can be told by."""
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name in _KEPT}
    numbers = {name: [float(str(each)) for each in row.float().cpu().flatten().numpy()] for name, row in h.items()}
    return json.dumps({MARK: VERSION, "settings": kept, "h": numbers}, separators=(",", ":"))


def parsed(said: str) -> Shared:
    """What a text says.

    Raises:
        ConfigError: it is no drawing of a playground, one of a later version, or longer than 1 MiB.
    """
    with doors.door(ConfigError, "no shared drawing"):
        if len(said) > MAX_BYTES:
            raise ConfigError(f"no shared drawing: over {MAX_BYTES >> 20} MiB")
        found: Any = json.loads(said)
        if found[MARK] not in (FIRST, VERSION):
            version = doors.printable(str(found[MARK])[:20])
            raise ConfigError(f"the shared drawing is of version {version}; {VERSION} is known here")
        h = {str(name): torch.tensor(row, dtype=torch.float32) for name, row in found["h"].items()}
        if not h or not all(each.ndim == 1 and len(each) and bool(each.isfinite().all()) for each in h.values()):
            raise ConfigError("no shared drawing: its representation is no list of finite numbers")
        kept = {key: value for key, value in found["settings"].items() if key in _KEPT}
        if found[MARK] == FIRST and kept.get("solver") == "auto":
            kept["solver"] = "ddim"
        settings = from_dict(Settings, {**kept, "model": next(iter(h))}, "the settings of the shared drawing")
    return Shared(settings, {name: row[None] for name, row in h.items()})


def of_file(file: str | Path) -> str:
    """The text in a file, for `parsed`. Raises `ConfigError`: it cannot be read or is longer than 1 MiB."""
    name = doors.printable(os.path.basename(file))
    with doors.door(ConfigError, f"{name}: no shared drawing"):
        doors.regular(Path(file))
        if os.path.getsize(file) > MAX_BYTES:
            raise ConfigError(f"{name}: no shared drawing: over {MAX_BYTES >> 20} MiB")
        return Path(file).read_text(encoding="utf-8")


def link(said: str) -> str:
    """A text as a link has it behind "#drawing="; empty where that would be too long to be passed on."""
    code = base64.urlsafe_b64encode(zlib.compress(said.encode("utf-8"), 9)).decode("ascii").rstrip("=")
    return code if len(code) <= MAX_LINK else ""


def of_link(code: str) -> str:
    """The text that a link holds, for `parsed`. Raises `ConfigError`: it holds none, or one longer than 1 MiB."""
    with doors.door(ConfigError, "this link holds no drawing, or not all of it"):
        packed = base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))
        opened = zlib.decompressobj()
        found = opened.decompress(packed, MAX_BYTES)
        if not opened.eof:
            raise ConfigError("this link holds no drawing, or not all of it")
        return found.decode("utf-8")
