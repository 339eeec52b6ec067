"""A kind of input, and the input of a kind that has a number.

Knows no single kind (`kinds.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import inputs
from tests.fuzz.inputs import Input

Errors = tuple[type[Exception], ...]


@dataclass(frozen=True)
class Door:
    """What reads an input: a function of its path, and the errors that it documents.

    `later` are documented errors of what is done with the content afterwards; they need not name a file.
    """

    read: Callable[[Path], object]
    errors: Errors
    later: Errors = ()


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: for people and for the random numbers.
        seeds: writes good inputs, a file or a folder each, into a folder.
        doors: all of them read every input.
        target: what below a seed's folder the doors are given; "" for the folder or file itself.
        mutable: only what lies below a seed under a path that begins so is changed.
        suffixes: endings that a file may have instead of its own.
        names: fraction of changes that concern names and links, not contents.
        own: whether the input is a folder of our own making, into which reading may write.
        named: whether an error's message has to name a file of the input.
        good: whether the doors accept every seed as it is.
        warm: seeds that are read once unwatched, so that libraries are loaded.
    """

    name: str
    seeds: Callable[[Path], None]
    doors: tuple[Door, ...]
    target: str = ""
    mutable: str = ""
    suffixes: tuple[str, ...] = ()
    names: float = 0.04
    own: bool = False
    named: bool = True
    good: bool = True
    warm: int = 3

    def load_seeds(self, folder: Path) -> list[Input]:
        """The seeds below a folder, written there first if need be."""
        place = folder / self.name
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            making = Path(tempfile.mkdtemp(prefix=f".{self.name}-", dir=folder))
            self.seeds(making)
            try:
                making.rename(place)
            except OSError:  # another worker was there first
                if not place.exists():
                    raise
                shutil.rmtree(making)
        return [inputs.read(each, self.target) for each in sorted(place.iterdir())]

    def make(self, seeds: list[Input], number: int) -> Input:
        """The input of that number: first the seeds themselves, then damaged ones."""
        if number < len(seeds):
            return seeds[number]
        rng = Random(f"{self.name} {number}")
        return inputs.damaged(seeds, rng, self.mutable, self.suffixes, self.names, not self.own)
