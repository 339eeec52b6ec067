"""`make bench-gpu PART=build`: build the native parts on this machine, without network, and run the tests marked gpu.

Every other part begins with the first half: a machine may be fresh each time, and numbers without native parts are not
worth their name. What is built lies in out/native and is copied into the checkout; building again takes a second.

setup.py runs in a copy without pyproject.toml, whose metadata an older setuptools refuses; nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.machine import Deadline
from benchmarks.gpu.settings import Settings
from benchmarks.rows import Row, RowFile

ROOT = Path(__file__).resolve().parents[2]
PARTS = "cpu,cuda"
# pyproject.toml asks for the pytest that the project is developed with; what is installed here has to do.
TESTS = ["-m", "pytest", "-m", "gpu", "-o", "minversion=6.0", "-q", "-p", "no:cacheprovider"]
NOTHING_COLLECTED = 5  # pytest's exit status
LOADED = (
    "import sys; sys.path.insert(0, '.'); from rcdm_fast import ops;"
    "wanted = [part for part in ops.describe() if part.name in sys.argv[1:]];"
    "sys.exit('; '.join(f'{part.name}: {part.reason}' for part in wanted if not part.loaded) or 0)"
)


def run(settings: Settings, file: RowFile, shared: Row, machine: Path, deadline: Deadline) -> int:
    """The tests, behind the build that every part begins with; the number of failed steps."""
    command = [*TESTS, *(["-n", str(settings.workers)] if importlib.util.find_spec("xdist") else [])]
    row = {**shared, **execute("tests", command, deadline.left_s)}
    file.put(row)
    return int(bool(row["status"]))


def native(limit_s: float, parts: str = PARTS, root: Path = ROOT, env: Mapping[str, str] | None = None) -> Row:
    """Build the parts, copy them into the checkout and load them; a row whose `status` is 0 if all of them load."""
    start = time.perf_counter()
    folder = root / "out" / "native"
    for name in ("setup.py", "csrc"):
        _copy(root / name, folder / name)
    settings = {"RCDM_FAST_NATIVE": parts, "RCDM_FAST_REQUIRE": parts, **(env or {})}
    row = execute(
        "build", ["setup.py", "build_ext", "--build-lib", "lib", "--build-temp", "temp"], limit_s, folder, settings
    )
    if row["status"] == 0:
        for made in (folder / "lib" / "rcdm_fast").glob("_*"):
            _replace(made, root / "rcdm_fast" / made.name)
        left_s = limit_s - (time.perf_counter() - start)
        loaded = execute("load", ["-c", LOADED, *parts.split(",")], left_s, root)
        row |= {key: loaded[key] for key in ("status", "output")} if loaded["status"] else {}
    row["seconds"] = time.perf_counter() - start
    return row | ({"why_not": f"exit status {row['status']}: {row['output'][-300:]}"} if row["status"] else {})


def _replace(source: Path, target: Path) -> None:
    """Put a copy in a file's place; a process that has that one loaded keeps it, and would die if it were rewritten."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, beside)
    os.replace(beside, target)


def _copy(source: Path, target: Path) -> None:
    """A file or folder as it is now; times stay, so that what did not change is not compiled again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def execute(
    name: str, arguments: list[str], limit_s: float, folder: Path = ROOT, env: Mapping[str, str] | None = None
) -> Row:
    """Run Python with arguments in a folder; seconds, exit status, the end of what it said."""
    start = time.perf_counter()
    output, status = "", 1
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, **(env or {})},
            timeout=max(1.0, limit_s),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        output += f"\nnot done within {limit_s:.0f} s"
    print(output, flush=True)
    row: Row = {"name": name, "seconds": time.perf_counter() - start, "output": output[-4000:]}
    status = 0 if name == "tests" and status == NOTHING_COLLECTED else status
    row["status"] = status
    return row | ({"why_not": f"exit status {status}"} if status else {})
