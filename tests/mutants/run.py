"""Try the mutants: each is made in a copy of the checkout, and its tests must fail there.

    python -m tests.mutants.run [--every N] [--only WORDS] [--untried] [--jobs J]

Prints a line for each, the share that was noticed, the slowest ten and the survivors; exits with 1 if there are any. A
mutant whose tests run out of time counts as noticed, one whose tests cannot start does not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.catalog import MUTANTS
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600  # for the tests of one mutant
SLOWEST = 10  # of which the times are printed
FAILED, TIMED_OUT = 1, 124  # exit status of pytest when tests fail; of a run that was stopped
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "out", "build", "dist", ".*_cache", "__pycache__", "*.egg-info")


def copied(target: Path) -> Path:
    """A copy of the checkout with its native parts, links as links."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=LEFT_OUT)
    return target


@dataclass(frozen=True)
class Tried:
    """A mutant, how its tests ended, how long they took, and which failed first."""

    mutant: Mutant
    code: int
    seconds: float
    by: str = ""

    @property
    def noticed(self) -> bool:
        return self.code in (FAILED, TIMED_OUT)

    def __str__(self) -> str:
        ends = {0: "SURVIVED", FAILED: f"noticed by {self.by}", TIMED_OUT: "noticed (time)"}
        end = ends.get(self.code, f"NOT RUN ({self.code})")
        return f"{self.mutant.file}: {self.mutant.what}: {end}, {self.seconds:.0f} s"


def ran(root: Path, tests: tuple[str, ...], *options: str, limit_s: float | None = None) -> tuple[int, str]:
    """pytest's exit status for these tests in a copy, and what it printed.

    Plugins of other packages, which no test of a mutant needs, take longer to load than most of the tests.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT, f"not done within {limit_s:g} s"
    return done.returncode, done.stdout.decode(errors="replace")


def failed(printed: str) -> list[str]:
    """The tests that pytest says failed; what else it says in the end where it names none."""
    found = re.findall(r"^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\](?= - |$))?)", printed, re.MULTILINE)
    return found or printed.splitlines()[-1:]


def tried(mutant: Mutant, root: Path) -> Tried:
    """How a mutant's tests end; the copy is then as before."""
    file = root / mutant.file
    content = file.read_bytes()
    file.write_text(mutant.text(root), encoding="utf-8")
    start = time.monotonic()
    try:
        code, printed = ran(root, mutant.tests, "-x", limit_s=LIMIT_S)
    finally:
        file.write_bytes(content)
    return Tried(mutant, code, time.monotonic() - start, "".join(failed(printed)[:1]) if code == FAILED else "")


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every N-th only")
    parser.add_argument("--only", default="", help="those whose name or file has this text")
    parser.add_argument("--untried", action="store_true", help="do not see first whether the tests pass without any")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    options = parser.parse_args(arguments)
    chosen = [each for each in MUTANTS if options.only in f"{each.what} {each.file}"][:: options.every]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its name or file")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        roots = [copied(Path(folder) / str(number)) for number in range(options.jobs)]
        tests = tuple(sorted({test for each in chosen for test in each.tests}))
        code, printed = (0, "") if options.untried else ran(roots[0], tests)
        if code:
            print(f"the tests fail without any mutant (pytest exits with {code}):", *failed(printed), sep="\n")
            return 2

        def worker(number: int) -> list[Tried]:
            found = []
            for each in chosen[number :: options.jobs]:
                found.append(tried(each, roots[number]))
                print(found[-1], flush=True)
            return found

        with ThreadPoolExecutor(options.jobs) as pool:
            results = [row for rows in pool.map(worker, range(options.jobs)) for row in rows]
    survivors = [each.mutant for each in results if not each.noticed]
    print(f"{len(results) - len(survivors)} of {len(results)} noticed ({1 - len(survivors) / len(results):.0%})")
    print("slowest:", *sorted(results, key=lambda each: -each.seconds)[:SLOWEST], sep="\n  ")
    for each in survivors:
        print(f"survivor: {each.file}: {each.what}: {each.before!r} -> {each.after!r}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
