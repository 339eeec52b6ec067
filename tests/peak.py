"""The most memory that this process has held, in bytes.

Not `ru_maxrss`: that begins with what the parent process held, even for a program of its own, so that growth below it
is not seen.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


def begin() -> int:
    """What it holds now; the peak is counted from here on."""
    with contextlib.suppress(OSError):  # where that is not allowed, growth is counted from the peak so far
        Path("/proc/self/clear_refs").write_text("5")
    return bytes_held()


def bytes_held() -> int:
    """The peak since the process, or the last `begin`, began."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
