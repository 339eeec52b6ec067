"""A worker process seen from outside: orders, answers, and limits of time and memory that end it.

Knows nothing about kinds of input (`worker.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fuzz.worker import FOREIGN

LOOK_S = 0.05  # time between two looks at a process's memory
BEGIN_S = 600  # for loading libraries and making good inputs


@dataclass(frozen=True)
class Limits:
    """Of one input: seconds, and bytes of memory above those that the process had before."""

    seconds: float = 20.0
    bytes: int = 2 << 30


class Process:
    """A worker, started when it is needed and again after it died.

    Args:
        kinds: the module with the kinds.
        seeds: folder for good inputs.
        box: folder that the worker has for itself.
        limits: of an input.
    """

    def __init__(self, kinds: str, seeds: Path, box: Path, limits: Limits) -> None:
        self._kinds, self._seeds, self.box, self._limits = kinds, seeds, box, limits
        self._child: subprocess.Popen[bytes] | None = None
        self._orders, self._answers, self._rest = -1, -1, b""
        self._before = "nothing"

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def read(self, name: str, number: int) -> dict[str, Any]:
        """What became of an input: a verdict, and for findings a text and a signature."""
        if self._child is None:
            self._start()
        os.write(self._orders, json.dumps({"kind": name, "number": number}).encode() + b"\n")
        begun = self._answer(time.monotonic() + BEGIN_S, None)
        if "idle_bytes" not in begun:
            return self._ended({**begun, "text": f"before it was read, after {self._before}: {begun['text']}"})
        self._before = f"{name} {number}"
        start = time.monotonic()
        found = self._answer(start + self._limits.seconds, begun["idle_bytes"] + self._limits.bytes)
        found.setdefault("seconds", time.monotonic() - start)
        found.setdefault("bytes", 0)
        if found["verdict"] in ("crash", "time", "memory"):
            return self._ended(found)
        if found["bytes"] > self._limits.bytes:
            return {**found, **_over("memory", f"{found['bytes'] / 1e9:.1f} GB")}
        return found

    def _start(self) -> None:
        (self.box / "work" / "tmp").mkdir(parents=True, exist_ok=True)
        self._rest = b""
        given, self._orders = os.pipe()
        self._answers, told = os.pipe()
        command = [sys.executable, "-m", "tests.fuzz.worker", self._kinds, str(self._seeds), str(self.box)]
        try:
            self._child = subprocess.Popen(
                [*command, str(given), str(told)],
                stdin=subprocess.DEVNULL,
                pass_fds=(given, told),
                env=_environment(self.box / "work"),
                cwd=Path(__file__).resolve().parents[2],
            )
        finally:
            os.close(given)
            os.close(told)

    def _answer(self, until: float, most: int | None) -> dict[str, Any]:
        """The next answer; or how the process ended, which it does when a limit is passed."""
        assert self._child is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], LOOK_S)
            if ready:
                part = os.read(self._answers, 1 << 16)
                if not part:
                    return self._crashed(self._child.wait())
                self._rest += part
            elif time.monotonic() > until:
                return _over("time", f"no end after {self._limits.seconds:g} s")
            if most is not None and (has := _memory(self._child.pid)) > most:
                return {
                    **_over("memory", f"{(has - most) / 1e9 + self._limits.bytes / 1e9:.1f} GB"),
                    "bytes": has - most,
                }
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _crashed(self, status: int) -> dict[str, Any]:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return {"verdict": "crash", "text": how, "signature": how}

    def _ended(self, found: dict[str, Any]) -> dict[str, Any]:
        """End the process, which says where it was."""
        self._end()
        log = self.box / "log"
        told = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        said = "\n".join(line for line in told if not line.startswith("Extension modules:"))[-6000:]
        lines = [line for line in said.splitlines() if "File " in line and not any(each in line for each in FOREIGN)]
        at = lines[0].split("/")[-1].replace('"', "") if lines else ""
        return {**found, "trace": said, "signature": f"{found['signature']} {at}".strip()}

    def _end(self) -> None:
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGABRT)  # faulthandler writes where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(2)
        self._child.kill()
        self._child.wait()
        os.close(self._orders)
        os.close(self._answers)
        self._child = None


def _over(verdict: str, text: str) -> dict[str, Any]:
    return {"verdict": verdict, "text": text, "signature": verdict}


def _memory(pid: int) -> int:
    """Resident bytes of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _environment(work: Path) -> dict[str, str]:
    """A home and caches of its own, no network, one thread."""
    places = {name: str(work) for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "RCDM_FAST_CACHE")}
    settings = {
        "TMPDIR": str(work / "tmp"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "no_proxy": "127.0.0.1",
        "PYTHONHASHSEED": "0",
    }
    return {**os.environ, **places, **settings}
