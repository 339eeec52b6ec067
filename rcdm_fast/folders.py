"""What lies below a folder: every visible file once, linked folders included, and what could not be looked at."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcdm_fast.doors import printable

log = logging.getLogger(__name__)

_LISTED = 8  # lines, or extensions, that the log names one by one


@dataclass(frozen=True)
class Tree:
    """Files below a folder.

    Attributes:
        files: sorted by path; hidden ones, and what is in hidden folders, are not meant.
        unseen: folders that could not be listed, links that lead nowhere, or back: a line each.
    """

    files: tuple[Path, ...]
    unseen: tuple[str, ...]


def tree(root: Path) -> Tree:
    """All files below `root`.

    Hidden are names that begin with a dot: previews and attributes that systems put beside images ("._1.jpg"), and
    files that are still being written. Links to files and folders are followed; a folder counts once, under its own
    name rather than that of a link, and what leads back to `root` or above it is not followed.
    """
    files: list[Path] = []
    unseen: list[str] = []
    seen = {_identity(each) for each in (root.resolve(), *root.resolve().parents)}
    plain, linked = deque([root]), deque[Path]()
    while plain or linked:
        folder = plain.popleft() if plain else linked.popleft()
        try:
            if folder is not root:
                if _identity(folder) in seen:
                    unseen.append(f"{folder} (listed already under another name, or this folder lies in it)")
                    continue
                seen.add(_identity(folder))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            unseen.append(f"{folder} ({error.strerror or error})")
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            try:
                if path.is_dir():
                    (linked if entry.is_symlink() else plain).append(path)
                elif path.is_file():
                    files.append(path)
                else:
                    unseen.append(f"{path} (no file, or a link that leads nowhere)")
            except OSError as error:  # a link into a place that may not be looked at
                unseen.append(f"{path} ({error.strerror or error})")
    return Tree(tuple(sorted(files)), tuple(unseen))


def in_sight(folder: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Whether `tree(root)` sees what lies in a folder (it need not exist): it is below the root, by no hidden name."""
    parts = os.path.relpath(os.path.realpath(folder), os.path.realpath(root)).split(os.sep)
    return not any(part.startswith(".") and part != "." for part in parts)  # ".." leads out


def report(root: Path, others: Collection[Path], unseen: Sequence[str]) -> None:
    """Say in the log what a reader of a folder leaves out: files of other kinds, counted, and what cannot be seen."""
    if others:
        counts = Counter(path.suffix.lower() or "without extension" for path in others)
        frequent = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:_LISTED]
        listed = ", ".join(f"{count} {suffix}" for suffix, count in frequent)
        log.warning("%s: %d files left out, by their extensions: %s", printable(root), len(others), printable(listed))
    for line in unseen[:_LISTED]:
        log.warning("left out: %s", printable(line))
    if len(unseen) > _LISTED:
        log.warning("left out: %d more links and folders that cannot be looked at", len(unseen) - _LISTED)


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino
