"""`make bench-gpu PART=build`: build the extension on this machine, without network, and run the tests marked gpu.

Knows nothing about speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.machine import Deadline
from benchmarks.rows import Row, RowFile

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", "."]
# pyproject.toml asks for the pytest that the project is developed with; what is installed here has to do.
TESTS = ["-m", "pytest", "-m", "gpu", "-o", "minversion=6.0", "-q", "-p", "no:cacheprovider"]
NOTHING_COLLECTED = 5  # pytest's exit status


def run(device: torch.device, file: RowFile, shared: Row, deadline: Deadline) -> int:
    """Both steps; the number of failed ones. The tests are not run when the build fails."""
    for name, command in (("build", INSTALL), ("tests", TESTS)):
        row = {**shared, **execute(name, command, deadline.left_s)}
        file.put(row)
        if row["status"]:
            return 1
    return 0


def execute(name: str, arguments: list[str], limit_s: float) -> Row:
    """Run Python with arguments from the root of the checkout; seconds, exit status, the end of what it said."""
    start = time.perf_counter()
    environment = {**os.environ, "PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    output, status = "", 1
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            timeout=max(1.0, limit_s),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
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
