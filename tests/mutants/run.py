"""Try the mutants: each is made in a copy of the checkout, and its tests must fail there.

    python -m tests.mutants.run [--every N] [--only WORDS] [--jobs J]

Prints a line for each, the share that was noticed and the survivors; exits with 1 if there are any. A mutant whose
tests run out of time counts as noticed, one whose tests cannot start does not.

Knows nothing about what the changes mean.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalog import MUTANTS
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600
FAILED, TIMED_OUT = 1, 124  # exit status of pytest when tests fail; of a run that was stopped
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "out", "build", "dist", ".*_cache", "__pycache__", "*.egg-info")


def copied(target: Path) -> Path:
    """A copy of the checkout with its native parts, links as links."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=LEFT_OUT)
    return target


def status(root: Path, tests: tuple[str, ...]) -> int:
    """pytest's exit status for these tests in a copy."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    return done.returncode


def tried(mutant: Mutant, root: Path) -> tuple[bool, str]:
    """Whether the tests notice the mutant, and how they ended; the copy is then as before."""
    file = root / mutant.file
    content = file.read_bytes()
    file.write_text(mutant.text(root), encoding="utf-8")
    start = time.monotonic()
    try:
        code = status(root, mutant.tests)
    finally:
        file.write_bytes(content)
    ends = {0: "SURVIVED", FAILED: "noticed", TIMED_OUT: "noticed (time)"}
    return code in (FAILED, TIMED_OUT), f"{ends.get(code, f'NOT RUN ({code})')}, {time.monotonic() - start:.0f} s"


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every N-th only")
    parser.add_argument("--only", default="", help="those whose name or file has this text")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    options = parser.parse_args(arguments)
    chosen = [each for each in MUTANTS if options.only in f"{each.what} {each.file}"][:: options.every]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its name or file")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        roots = [copied(Path(folder) / str(number)) for number in range(options.jobs)]
        tests = tuple(sorted({test for each in chosen for test in each.tests}))
        if code := status(roots[0], tests):
            print(f"the tests fail without any mutant (pytest exits with {code}): {' '.join(tests)}")
            return 2

        def worker(number: int) -> list[tuple[Mutant, bool]]:
            found = []
            for each in chosen[number :: options.jobs]:
                noticed, how = tried(each, roots[number])
                print(f"{each.file}: {each.what}: {how}", flush=True)
                found.append((each, noticed))
            return found

        with ThreadPoolExecutor(options.jobs) as pool:
            results = [row for rows in pool.map(worker, range(options.jobs)) for row in rows]
    survivors = [each for each, noticed in results if not noticed]
    print(f"{len(results) - len(survivors)} of {len(results)} noticed ({1 - len(survivors) / len(results):.0%})")
    for each in survivors:
        print(f"survivor: {each.file}: {each.what}: {each.before!r} -> {each.after!r}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
