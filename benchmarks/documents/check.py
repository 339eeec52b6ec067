"""Do README, docs and model cards say what the results say?

    python -m benchmarks.documents [--write]

Knows the pages and the files; what a mark is, is in `marks.py`, which numbers look measured in `guard.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.documents import guard, marks
from benchmarks.documents.results import FOLDER, RESULTS, ROOT, Result
from rcdm_fast import doors, storage


def pages(root: Path = ROOT) -> list[str]:
    """README, the documentation and the cards of bundled models, from the root of the checkout."""
    found = [*sorted(root.glob("docs/*.md")), *sorted(root.glob("rcdm_fast/bundled/*.md"))]
    return ["README.md", *(path.relative_to(root).as_posix() for path in found)]


def compared(page: str, text: str, results: Mapping[str, Result]) -> list[str]:
    """What a page says and its results do not, a line each."""
    found = []
    for each in marks.stretches(text):
        result = results.get(each.name)
        if result is None:
            found.append(f"{page}:{each.line}: there is no result {each.name!r}")
            continue
        try:
            new = result.text()
        except (OSError, ValueError, KeyError) as error:
            found.append(f"{page}:{each.line}: {each.name}: no such result: {doors.said(error)}")
            continue
        for line, says, known in marks.differences(each, new):
            of = f" ({', '.join(f'{name}.json' for name in result.sources)})" if result.sources else ""
            found.append(f"{page}:{line}: {each.name}: the text says {says!r}, the result {known!r}{of}")
    return found


def unused(texts: Mapping[str, str], results: Mapping[str, Result], files: Sequence[str]) -> list[str]:
    """Files of results that no page shows, a line each; a model's evaluation and ceiling are shown in tables of all."""
    names = {each.name for text in texts.values() for each in marks.stretches(text)}
    shown = {source for name in names if name in results for source in results[name].sources}
    of_tables = ("evaluate_", "ceiling_") if "models" in names else ()
    return [
        f"benchmarks/results/{name}.json: no page shows it"
        for name in files
        if name not in shown and not name.startswith(of_tables)
    ]


def check(root: Path = ROOT) -> list[str]:
    """All faults, a line each."""
    found: list[str] = []
    texts, plain = {}, {}
    for page in pages(root):
        text = (root / page).read_text(encoding="utf-8")
        try:
            found += compared(page, text, RESULTS)
            plain[page] = marks.uncovered(text)
        except marks.MarkError as error:
            found.append(f"{page}:{error}")
        else:
            texts[page] = text
    if len(texts) == len(pages(root)):
        found += unused(texts, RESULTS, [path.stem for path in sorted(FOLDER.glob("*.json"))])
    return found + guard.faults(plain, guard.allowed())


def write(root: Path = ROOT) -> list[str]:
    """Write the results into all pages; the names of those that changed. Raises `marks.MarkError`."""
    changed = []
    for page in pages(root):
        text = (root / page).read_text(encoding="utf-8")
        names = {each.name for each in marks.stretches(text)}
        new = marks.written(text, {name: RESULTS[name].text() for name in names if name in RESULTS})
        if new != text:
            storage.write_text(root / page, new)
            changed.append(page)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 if something differs."""
    parser = argparse.ArgumentParser(prog="benchmarks.documents", description="Numbers in texts, from results.")
    parser.add_argument("--write", action="store_true", help="write results into the texts first")
    given = parser.parse_args(arguments)
    if given.write:
        for _ in range(2):  # tables of all models read cards, which are written, too
            for page in write():
                print(f"written     {page}")
    found = check()
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print(f"{len(found)} to mend; make write-docs writes what comes from results", file=sys.stderr)
    return int(bool(found))
