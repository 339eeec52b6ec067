"""What an input is: files, folders and links below one folder, and how one is made of good ones.

Knows nothing about formats (`structures.py`) or who reads the input (`kinds.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tests.fuzz import structures


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    to: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe that nobody writes to: opening it waits for ever."""


Entry = bytes | Link | Pipe | None  # None: an empty folder


@dataclass(frozen=True)
class Input:
    """Entries by path below a folder, and which of them the reader is given ("": the folder itself)."""

    name: str
    entries: dict[str, Entry]
    target: str = ""

    def write(self, folder: Path) -> Path:
        """Put it below `folder`, as far as the file system lets it; the path that the reader is given."""
        root = folder / self.name
        for name, entry in self.entries.items():
            path = root / name if name else root
            if path.parent.resolve().is_relative_to(folder.resolve()):  # and not through a link to elsewhere
                _write(path, entry)
        if not root.exists() and not root.is_symlink():
            root.mkdir()
        return root / self.target if self.target else root


def _write(path: Path, entry: Entry) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry is None:
            path.mkdir(exist_ok=True)
        elif isinstance(entry, Link):
            path.symlink_to(entry.to)
        elif isinstance(entry, Pipe):
            os.mkfifo(path)
        else:
            path.write_bytes(entry)
    except (OSError, ValueError):  # a name that this file system does not take, or two entries in each other's way
        return


def read(path: Path, target: str = "") -> Input:
    """A file, or a folder with all that is in it."""
    if path.is_file():
        return Input(path.name, {"": path.read_bytes()}, target)
    entries: dict[str, Entry] = {}
    for each in sorted(path.rglob("*")):
        name = each.relative_to(path).as_posix()
        if each.is_symlink():
            entries[name] = Link(os.readlink(each))
        elif each.is_file():
            entries[name] = each.read_bytes()
        elif not any(each.iterdir()):
            entries[name] = None
    return Input(path.name, entries, target)


def damaged(
    seeds: Sequence[Input], rng: Random, mutable: str, suffixes: Sequence[str], names: float, foreign: bool
) -> Input:
    """One of the seeds, changed in one to three places.

    Args:
        seeds: good inputs of one kind.
        rng: decides about everything.
        mutable: entries whose path begins so may change.
        suffixes: endings that the input may have instead of its own.
        names: fraction of changes that concern names, links and missing entries rather than contents.
        foreign: whether strangers hand such folders over, in which there may be pipes.
    """
    found = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = _with_other_entries if rng.random() < names else _with_other_content
        found = change(found, seeds, rng, mutable)
    if not foreign:
        found = replace(
            found, entries={name: b"" if entry == Pipe() else entry for name, entry in found.entries.items()}
        )
    if suffixes and rng.random() < 0.1:
        found = replace(found, name=Path(found.name).stem + rng.choice(suffixes))
    return found


def _files(found: Input, mutable: str) -> list[str]:
    return sorted(
        name for name, entry in found.entries.items() if isinstance(entry, bytes) and name.startswith(mutable)
    )


def _with_other_content(found: Input, seeds: Sequence[Input], rng: Random, mutable: str) -> Input:
    files = _files(found, mutable)
    if not files:
        return found
    name = rng.choice(files)
    content = found.entries[name]
    others = [seed.entries[each] for seed in seeds for each in _files(seed, mutable)]
    other = rng.choice([each for each in others if isinstance(each, bytes)] or [b""])
    assert isinstance(content, bytes)
    return replace(found, entries={**found.entries, name: structures.mutated(content, other, rng)})


ODD_NAMES = (
    "pipe:touch started #.tar",
    "x::pipe:touch started #.tar",
    "shard-{000..003}.tar",
    "{a,b}.png",
    "a\nb.png",
    "a\tb\r.jpg",
    "\udcff\udcfe.png",
    "\udc80.parquet",
    "\udcff.tar",
    "n" * 240 + ".png",
    "n" * 251 + ".tar",
    "-rf.png",
    "--help",
    "~nosuchuser",
    "~",
    "$(touch started).png",
    "`touch started`.npy",
    "a b.png",
    "CON.png",
    "a?b=c&d.png",
    "hf:x",
    "wds:x.tar",
    "file:x.safetensors",
    "http:x.tar",
    "%s%n%2e%2e.png",
    "a\\..\\b.png",
    "ａ／ｂ.png",
    "a\u202egnp.exe",
    "e\u0301.png",
    ".hidden.png",
    "state.json",
    "dataset_dict.json",
    "0.tar",
    "0.arrow",
    "0.parquet",
    "0.npy",
    "0.avif",
    "0.PNG",
    "0.png.",
    "0.eps",
    "model.safetensors",
    "deep/" * 60 + "0.png",
)
LINKS = (
    ".",
    "..",
    "/etc",  # all of a disk, which "/" is, takes long for whoever asks for it
    "missing",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "/proc/self",
    "/etc/hostname",
    "a/../..",
)


def _with_other_entries(found: Input, seeds: Sequence[Input], rng: Random, mutable: str) -> Input:
    entries = dict(found.entries)
    names = sorted(name for name in entries if name.startswith(mutable))
    single = names == [""]
    name = rng.choice(names) if names else ""
    odd = mutable + rng.choice(ODD_NAMES)
    change = rng.choice(("empty", "folder", "link") if single else CHANGES)
    if change == "empty":
        entries[name] = b""
    elif change == "folder":
        entries[name] = None
    elif change == "link":
        entries[name] = Link(rng.choice(LINKS))
    elif change == "missing":
        entries.pop(name, None)
    elif change == "pipe":
        entries[name] = Pipe()
    elif change == "renamed":
        entries[odd] = entries.pop(name, b"")
    elif change == "copied":
        entries[odd] = entries.get(name, b"")
    elif change == "linked":
        entries[odd] = Link(rng.choice((*LINKS, name or ".", odd.rpartition("/")[2])))
    elif change == "new folder":
        entries[odd] = None
    else:  # "exchanged"
        other = rng.choice(names) if names else ""
        entries[name], entries[other] = entries.get(other), entries.get(name)
    return replace(found, entries=entries)


CHANGES = ("empty", "folder", "link", "missing", "pipe", "renamed", "copied", "linked", "new folder", "exchanged")
