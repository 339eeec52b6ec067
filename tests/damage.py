"""Damaged variants of a file, read one after the other in a process of its own, which a crash may end.

    python -m tests.damage SEED_FILE FIRST LAST

Says what becomes of each, a line before it is read and a line after. Which reader: `read`, by the name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests import peak

MEMORY_BYTES = 24 << 30  # of addresses, most of which is torch's
_NUMBERS = (0, 1, -1, -2, 127, 255, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62)


def mutant(content: bytes, number: int) -> bytes:
    """Variant `number`: bits, bytes and numbers changed, parts removed, added, repeated, the end torn off."""
    rng = random.Random(number)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if len(data) < 16:
            break
        at, how = rng.randrange(len(data)), rng.randrange(8)
        if how < 2:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            data[at] = rng.randrange(256)
        elif how == 3:
            width = rng.choice((2, 4, 8))
            at = min(at, len(data) - width) // width * width
            data[at : at + width] = (rng.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        elif how == 4:
            del data[at : at + rng.choice((1, 4, 8, 64))]
        elif how == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        elif how == 6:
            del data[at:]
        else:
            other, width = rng.randrange(len(data)), rng.choice((4, 8, 32))
            data[at : at + width] = data[other : other + width]
    return bytes(data)


def read(path: Path) -> None:
    """All of a source as a job and as training see it; documented errors are in order."""
    from rcdm_fast.config import ConfigError
    from rcdm_fast.data import random_access
    from rcdm_fast.data.sources import open_data
    from rcdm_fast.images import ImageError
    from rcdm_fast.storage import StorageError

    documented = (ConfigError, ImageError, StorageError)
    with contextlib.suppress(*documented):
        open_data(path, 8, workers=1)
    if path.is_dir():
        return
    with contextlib.suppress(*documented):
        source = random_access.find(path)
        for place in range(min(64, len(source))):
            with contextlib.suppress(*documented):
                source.read(place)
                source.content(place)


def count(seed: Path, mutants: int, beside: Path | None = None) -> Counter[str]:
    """What became of so many mutants of a file: "read", an error's name, or "crash N" by the exit status.

    Args:
        seed: the file.
        mutants: how many.
        beside: a folder whose other files belong to it.
    """
    found: Counter[str] = Counter()
    first = 0
    while first < mutants:
        command = [sys.executable, "-m", "tests.damage", str(seed), str(first), str(mutants), str(beside or "")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parent.parent)
        lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("mutant ")]
        found.update(line[2] for line in lines if len(line) == 3)
        if done.returncode == 0:
            return found
        last = int(lines[-1][1]) if lines else first
        found[f"crash {done.returncode} {done.stderr[-500:] if not lines else ''}"] += 1
        first = last + 1
    return found


def _main() -> None:
    seed, first, last, beside = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    content = seed.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for each in Path(beside).iterdir() if beside else ():
            (Path(folder) / each.name).write_bytes(each.read_bytes())
        path = Path(folder) / seed.name
        for number in range(first, last):
            path.write_bytes(mutant(content, number))
            _print(number)
            try:
                read(Path(folder) if beside else path)
            except BaseException as error:  # what is looked for
                _print(number, f"{type(error).__module__}.{type(error).__name__}: {error}"[:300])
            else:
                _print(number, "read")
    used = peak.bytes_held()
    _print(last, "read" if used < 2 << 30 else f"took {used} bytes")


def _print(number: int, what: str = "") -> None:
    sys.stdout.write(f"mutant {number} {' '.join(what.split())}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _main()
