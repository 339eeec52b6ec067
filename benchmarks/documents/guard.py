"""Numbers of a text that look measured, and whether each is accounted for.

The rule. Looked at is what Markdown shows as text or in tables: not code, not links' addresses, not headings, not
what is written from results. There a number looks measured

* if it has a decimal point or an exponent,
* if a unit of measurement follows it (`UNITS`), or
* if it stands in a cell of a table that holds nothing but numbers, brackets, signs and units.

A number after the name of a software (`VERSIONED`) is its version, one after "arXiv" a paper's, numbers with two points
are versions, too, and 95 % is the level of every interval. All others stand in `uncovered.toml`: by page and heading,
with the reason. Numbers that are no longer in the text have to leave it, so it shrinks.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("uncovered.toml")
UNITS = (
    "%|ms|s|min|h|times|seconds?|minutes|hours|KB|MB|GB|KiB|MiB|GiB|dB|ns|px/s|images/s|images a second|"
    "GFLOPs?/s|GFLOP|GMAC|GB/s|M parameters|M"
)
VERSIONED = "Python|PyTorch|torch|Triton|CUDA|opset|arXiv"
LEVEL = "95%"
_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_ONE = re.compile(rf"(?<![\w.])(?<!\d,)[-+]?({_NUMBER})(?: ?({UNITS})(?![\w/]))?(?![\w]|\.\d|-\w)")
_CELL = re.compile(rf"^(?:[-+]?{_NUMBER}|[\s\[\](),;%*]|(?:{UNITS})(?!\w))+$")
_BEFORE = re.compile(rf"(?:{VERSIONED}):? $")


class Number(NamedTuple):
    """A number that looks measured, the heading it stands under ("" above the first), and its line from 1."""

    section: str
    line: int
    text: str


def numbers(text: str) -> Iterator[Number]:
    """Those of a Markdown text."""
    section, fenced = "", False
    for line, shown in enumerate(text.splitlines(), 1):
        if shown.startswith("```"):
            fenced = not fenced
        elif shown.startswith("#") and not fenced:
            section = shown.lstrip("# ").strip()
        elif not (fenced or shown.startswith("    ")):
            for each in _measured(_plain(shown)):
                yield Number(section, line, each)


def _plain(line: str) -> str:
    """A line without code, comments and the addresses of links."""
    line = re.sub(r"<!--.*?-->", "", line)
    line = re.sub(r"`[^`]*`", "`", line)
    return re.sub(r"\]\([^)]*\)", "]", line)


def _measured(line: str) -> Iterator[str]:
    cells = line.strip().strip("|").split("|") if line.lstrip().startswith("|") else [line]
    for cell in cells:
        of_table = len(cells) > 1 and _CELL.match(cell.strip()) is not None
        for found in _ONE.finditer(cell):
            digits, unit = found[1], found[2]
            if _BEFORE.search(cell[: found.start()]):
                continue
            if of_table or unit or "." in digits or "e" in digits:
                said = digits.rstrip(",") + (unit or "").replace(" ", "-")
                if said != LEVEL:
                    yield said


def allowed(file: Path = FILE) -> dict[tuple[str, str], Counter[str]]:
    """What `uncovered.toml` allows: numbers by page and heading.

    Raises:
        ValueError: an entry without a reason, or two of one heading and reason.
    """
    found: dict[tuple[str, str], Counter[str]] = {}
    seen = set()
    for entry in tomllib.loads(file.read_text(encoding="utf-8")).get("allowed", []):
        page, section, reason = entry["page"], entry["section"], entry["reason"].strip()
        if len(reason.split()) < 3:
            raise ValueError(f"{file.name}: {page}, {section!r}: numbers need a reason")
        if (page, section, reason) in seen:
            raise ValueError(f"{file.name}: {page}, {section!r}: twice for one reason")
        seen.add((page, section, reason))
        found.setdefault((page, section), Counter()).update(entry["numbers"].split())
    return found


def faults(texts: Mapping[str, str], listed: Mapping[tuple[str, str], Counter[str]]) -> list[str]:
    """Numbers that look measured and are not listed, and listed ones that are gone, a line each.

    Args:
        texts: what is not written from results, by page.
        listed: see `allowed`.
    """
    found = []
    left = {key: Counter(each) for key, each in listed.items()}
    for page, text in texts.items():
        for number in numbers(text):
            rest = left.get((page, number.section), Counter())
            if rest[number.text] > 0:
                rest[number.text] -= 1
            else:
                found.append(
                    f"{page}:{number.line}: {number.text} looks measured and comes from no result; write it from one, "
                    f"or list it with its reason under {number.section!r} in benchmarks/documents/{FILE.name}"
                )
    for (page, section), rest in left.items():
        gone = " ".join(rest.elements())
        if gone:
            found.append(f"{FILE.name}: {page}, {section!r}: no longer in the text, take them out: {gone}")
    return found
