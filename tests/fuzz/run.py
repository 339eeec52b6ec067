"""`make fuzz`: inputs of every kind are read in processes that are watched; what must not happen is kept and counted.

    python -m tests.fuzz.run --minutes 60               equally many inputs of every kind
    python -m tests.fuzz.run --kind tar --number 1234   one input again; it stays in out/fuzz/tar/1234

A finding is a process that died, an exception that is not documented (or whose message does not name the file in one
line), more time or memory than the limits, a write outside, a started process, a connection, code of the input that
ran, or a good input that is refused. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.process import Limits, Process

CHUNK = 25  # inputs of a kind that a worker reads before it goes on to another kind
KEPT = 3  # inputs that are kept of findings with the same signature
DEATHS = 10  # of workers, after which a kind is left alone
FINE = ("read", "refused as documented")


@dataclass
class Tally:
    """What became of the inputs of a kind; findings are numbers of inputs by signature."""

    inputs: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    findings: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    slowest_s: float = 0.0
    largest_bytes: int = 0

    @property
    def given_up(self) -> bool:
        """Whether too many workers died of this kind."""
        return sum(self.verdicts[each] for each in ("crash", "time", "memory")) >= DEATHS

    def row(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "inputs": self.inputs,
            "read": self.verdicts["read"],
            "refused": self.verdicts["refused as documented"],
            "findings": dict(sorted(self.findings.items())),
            "slowest_s": round(self.slowest_s, 2),
            "largest_mb": round(self.largest_bytes / 1e6),
        }


class Campaign:
    """One run: who reads what, and what came of it.

    Args:
        kinds: the module with the kinds.
        names: of the kinds to read; none means all.
        out: folder for findings.
        limits: of an input.
    """

    def __init__(self, kinds: str, names: Sequence[str], out: Path, limits: Limits) -> None:
        known: list[str] = list(importlib.import_module(kinds).KINDS)
        unknown = set(names) - set(known)
        if unknown:
            raise SystemExit(f"no kind called {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        self.tallies = {name: Tally() for name in (names or known)}
        self.out, self._kinds, self._limits = out.resolve(), kinds, limits
        self._lock = threading.Lock()
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, numbers: range, minutes: float, workers: int = 1, keep: bool = False) -> None:
        """Read the inputs of those numbers, of every kind in turn, until the time is over; `keep` all of them."""
        end = time.monotonic() + 60 * minutes
        parts = self._parts(numbers)
        with tempfile.TemporaryDirectory(prefix=".run-", dir=self.out) as folder:
            places = [(Path(folder) / "seeds", Path(folder) / f"box-{each}") for each in range(workers)]
            threads = [threading.Thread(target=self._work, args=(parts, end, *place, keep)) for place in places]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _parts(self, numbers: range) -> Iterator[tuple[str, range]]:
        for start in range(0, len(numbers), CHUNK):
            for name in self.tallies:
                yield name, numbers[start : start + CHUNK]

    def _work(self, parts: Iterator[tuple[str, range]], end: float, seeds: Path, box: Path, keep: bool) -> None:
        with Process(self._kinds, seeds, box, self._limits) as process:
            while time.monotonic() < end:
                with self._lock:
                    part = next(parts, None)
                if part is None:
                    return
                name, numbers = part
                for number in numbers:
                    if time.monotonic() > end or self.tallies[name].given_up:
                        break
                    self._note(name, number, process.read(name, number), box, keep)

    def _note(self, name: str, number: int, found: dict[str, Any], box: Path, keep: bool) -> None:
        with self._lock:
            tally = self.tallies[name]
            tally.inputs += 1
            tally.verdicts[found["verdict"]] += 1
            tally.slowest_s = max(tally.slowest_s, found.get("seconds", 0.0))
            tally.largest_bytes = max(tally.largest_bytes, found.get("bytes", 0))
            bad = found["verdict"] not in FINE
            if bad:
                signature = f"{found['verdict']}: {found['signature']}"
                tally.findings[signature].append(number)
                if len(tally.findings[signature]) == 1:
                    print(f"{name} {number}: {found['verdict']}: {found['text'][:300]}", flush=True)
            if keep or (bad and len(tally.findings[signature]) <= KEPT):
                self._keep(name, number, found, box)

    def _keep(self, name: str, number: int, found: dict[str, Any], box: Path) -> None:
        place = self.out / name / str(number)
        shutil.rmtree(place, ignore_errors=True)  # of an earlier run
        place.mkdir(parents=True)
        os.rename(box / "input", place / "input")
        again = f"python -m tests.fuzz.run --kind {name} --number {number}\n\n"
        plain = {key: value for key, value in found.items() if key != "trace"}
        text = again + json.dumps(plain, indent=1) + "\n\n" + found.get("trace", "")
        (place / "report.txt").write_text(text, encoding="utf-8", errors="backslashreplace")

    def report(self) -> tuple[str, dict[str, Any]]:
        """A table for people, and all numbers."""
        rows = {name: tally.row() for name, tally in self.tallies.items()}
        width = max(map(len, rows))
        lines = [f"{'kind':{width}}  inputs    read refused findings slowest/s  most/MB"]
        for name, row in rows.items():
            count = sum(map(len, row["findings"].values()))
            numbers = f"{row['inputs']:7d} {row['read']:7d} {row['refused']:7d} {count:8d}"
            lines.append(f"{name:{width}} {numbers} {row['slowest_s']:9.2f} {row['largest_mb']:8d}")
            lines += [
                f"    {signature}: {len(found)} times, first {found[0]}" for signature, found in row["findings"].items()
            ]
        total = sum(row["inputs"] for row in rows.values())
        fewest = min(row["inputs"] for row in rows.values())
        lines.append(f"{total} inputs, at least {fewest} of each of {len(rows)} kinds")
        facts = {"python": platform.python_version(), "system": platform.platform(), "kinds": rows}
        return "\n".join(lines), facts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--inputs", type=int, default=10**9, help="most inputs of a kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kind", action="append", default=[], help="only this kind; repeatable")
    parser.add_argument("--number", type=int, help="only the input of this number, which is kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="most time for an input")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--kinds", default="tests.fuzz.kinds", help="module with the kinds")
    given = parser.parse_args(arguments)
    campaign = Campaign(given.kinds, given.kind, given.out, Limits(given.seconds))
    one = given.number is not None
    numbers = range(given.number, given.number + 1) if one else range(given.first, given.first + given.inputs)
    campaign.run(numbers, given.minutes, 1 if one else given.workers, keep=one)
    text, facts = campaign.report()
    print(text)
    (campaign.out / "summary.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if any(tally.findings for tally in campaign.tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
