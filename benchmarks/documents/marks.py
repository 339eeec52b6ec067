"""Stretches of a text that are written from results: between ``<!-- result: NAME -->`` and ``<!-- end -->``.

A stretch is a number or some words within a line, or whole lines between marks that stand in lines of their own. No
such mark within a line may be the first thing in it: Markdown takes that line for HTML and leaves it as it is.

Knows nothing of results or files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BEGIN, END = re.compile(r"<!-- result: ([\w .-]+?) -->"), "<!-- end -->"


class MarkError(ValueError):
    """A mark that is not as it has to be; the message begins with its line."""


@dataclass(frozen=True)
class Stretch:
    """What stands between two marks.

    Attributes:
        name: of the result.
        line: of its first mark, from 1.
        start, stop: of the characters between the marks.
        text: these, without the blank lines around whole lines.
        lines: whether it is whole lines.
    """

    name: str
    line: int
    start: int
    stop: int
    text: str
    lines: bool

    @property
    def first(self) -> int:
        """The line that the text begins in."""
        return self.line + 2 if self.lines else self.line


def stretches(text: str) -> Iterator[Stretch]:
    """All of a text, in order. Raises `MarkError`."""
    after = 0
    for mark in BEGIN.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        stop = text.find(END, mark.end())
        inner = BEGIN.search(text, mark.end())
        if mark.start() < after or stop < 0 or (inner and inner.start() < stop):
            raise MarkError(f"{line}: {mark[0]} has no {END} of its own")
        after = stop + len(END)
        between = text[mark.end() : stop]
        begins = text.rfind("\n", 0, mark.start()) + 1
        lines = between.startswith("\n")
        if not lines and not text[begins : mark.start()].strip():
            raise MarkError(f"{line}: {mark[0]} begins a line that goes on, so Markdown would show it as HTML")
        if not lines and "\n" in between:
            raise MarkError(f"{line}: {mark[0]} goes over several lines; put both marks in lines of their own")
        yield Stretch(mark[1], line, mark.end(), stop, between.strip("\n") if lines else between, lines)
    if text.count(END) != len(BEGIN.findall(text)) or text.count("<!-- result") != text.count(END):
        line = next(i for i, each in enumerate(text.splitlines(), 1) if "<!-- result" in each or END in each)
        raise MarkError(f"{line}: marks from here on are misspelled, or do not come in pairs")


def written(text: str, results: Mapping[str, str]) -> str:
    """The text with the results in it; stretches without one stay as they are. Raises `MarkError`."""
    for each in reversed(list(stretches(text))):
        if each.name in results:
            new = results[each.name]
            if not each.lines and "\n" in new:
                raise MarkError(f"{each.line}: {each.name} is lines; put both marks in lines of their own")
            text = text[: each.start] + (f"\n\n{new}\n\n" if each.lines else new) + text[each.stop :]
    return text


def uncovered(text: str) -> str:
    """The text without its stretches, in the same lines. Raises `MarkError`."""
    for each in reversed(list(stretches(text))):
        text = text[: each.start] + "\n" * text.count("\n", each.start, each.stop) + text[each.stop :]
    return text


def differences(stretch: Stretch, result: str) -> list[tuple[int, str, str]]:
    """Where a stretch is not its result: (line, what the text says, what the result says).

    By words, if a line of both has as many.
    """
    found = []
    pairs = itertools.zip_longest(stretch.text.split("\n"), result.split("\n"))
    for line, (old, new) in enumerate(pairs, stretch.first):
        if old == new:
            continue
        before, after = (old or "").split(), (new or "").split()
        if old is None or new is None or len(before) != len(after):
            found.append((line, old or "nothing", new or "nothing"))
        else:
            found += [(line, one, other) for one, other in zip(before, after, strict=True) if one != other]
            if before == after:
                found.append((line, old, new))
    return found
