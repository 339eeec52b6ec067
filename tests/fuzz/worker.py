"""The process that reads inputs: makes the input of a number, lets every door of its kind read it, tells what happened.

Orders come and answers go through pipes of their own, a line of JSON each; standard output and error go to a file, so
that what a dying process says is kept. Limits of time and memory are watched from outside (`run.py`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import Input
from tests.fuzz.kind import Door, Kind
from tests.fuzz.watch import Watch

LONGEST_MESSAGE = 3000  # characters; a sentence with a long name in it


class Worker:
    """Reads inputs of the kinds of a module inside a folder `box`: ``input`` there is the input, ``work`` is free."""

    def __init__(self, kinds: str, seeds: Path, box: Path) -> None:
        self._kinds: dict[str, Kind] = importlib.import_module(kinds).KINDS
        self._seeds_folder, self._box = seeds, box
        self._watch = Watch()
        self._seeds = functools.cache(self._load)
        self._elsewhere: list[str] = []
        threading.excepthook = lambda found: self._elsewhere.append(f"in a thread: {found.exc_value!r}")
        sys.unraisablehook = lambda found: self._elsewhere.append(f"ignored: {found.exc_value!r} in {found.object!r}")

    def _load(self, name: str) -> list[Input]:
        kind = self._kinds[name]
        self._clear()
        with _same_environment():
            found = kind.load_seeds(self._seeds_folder)
            for seed in found[: kind.warm]:
                path = self._place(seed)
                for door in kind.doors:
                    with contextlib.suppress(Exception):
                        door.read(path)
        gc.collect()
        gc.freeze()  # collecting what all those libraries made would take longer than most inputs do
        return found

    def _clear(self) -> None:
        os.chdir(self._box)
        for name in ("input", "work"):
            shutil.rmtree(self._box / name, ignore_errors=True)
        for name in ("input", "work/tmp"):
            (self._box / name).mkdir(parents=True)
        os.chdir(self._box / "work")

    def _place(self, found: Input) -> Path:
        self._clear()
        return found.write(self._box / "input")

    def read(self, name: str, number: int) -> Iterator[dict[str, Any]]:
        """The input of a number: first that it is there now, then what became of it."""
        kind = self._kinds[name]
        seeds = self._seeds(name)
        found = kind.make(seeds, number)
        path = self._place(found)
        gc.collect()
        _forget_peak()
        idle = _memory("VmRSS")
        self._elsewhere.clear()
        yield {"idle_bytes": idle}
        start = time.monotonic()
        verdicts = []
        for index, door in enumerate(kind.doors):
            if index and kind.own:  # the door before may have changed it
                path = self._place(found)
            verdicts.append(self._through(kind, door, path, found, seeds))
        worst = max(verdicts, key=lambda each: RANKS.index(each["verdict"]))
        yield {**worst, "seconds": time.monotonic() - start, "bytes": max(0, _memory("VmHWM") - idle)}

    def _through(self, kind: Kind, door: Door, path: Path, found: Input, seeds: list[Input]) -> dict[str, Any]:
        may_write = [self._box / "work", *([self._box / "input"] if kind.own else [])]
        error: BaseException | None = None
        with _same_environment(), self._watch.on(self._box / "input", may_write) as notes:
            try:
                door.read(path)
            except BaseException as raised:
                error = raised
        gc.collect()
        notes += self._elsewhere
        told = "" if error is None else str(error)
        if notes:
            return _finding("deed", door, "; ".join(dict.fromkeys(notes))[:2000], error, notes[0].partition(":")[0])
        if error is None:
            return {"verdict": "read"}
        if not isinstance(error, (*door.errors, *door.later)):
            return _finding("bare", door, f"{type(error).__name__}: {told[:500]}", error)
        inside = {os.path.basename(name) for each in (found, *seeds) for name in each.entries}
        names = {path.name, found.name, *(name for name in inside if len(name) > 2)}
        fault = _fault(told, names, kind.named and not isinstance(error, door.later))
        if fault:
            return _finding("message", door, f"{fault}: {type(error).__name__}: {told[:500]!r}", error, fault)
        if kind.good and found in seeds:
            return _finding("refused", door, f"a good input: {type(error).__name__}: {told[:500]}", error)
        return {"verdict": "refused as documented", "text": f"{type(error).__name__}: {told}"}


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Variables that are set inside are as before afterwards."""
    before = {**os.environ}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


FOREIGN = ("site-packages", "/lib/python", "/fuzz/worker.py", "<frozen")  # frames that say little
RANKS = ("read", "refused as documented", "refused", "message", "bare", "deed")


def _fault(told: str, names: set[str], named: bool) -> str:
    """What is wrong with an error's message; "" if nothing is."""
    if named and not any(_shown(name)[-40:] in " ".join(told.split()) for name in names):
        return "no file of the input is named"
    for name in names:
        told = told.replace(name, "")
    if "\n" in told or "Traceback" in told:
        return "more than one line"
    return "too long" if len(told) > LONGEST_MESSAGE else ("empty" if not told.strip() else "")


def _shown(name: str) -> str:
    """A name as messages show it: one line, escapes for what is no UTF-8; perhaps its end only."""
    return " ".join(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").split())


def _finding(
    verdict: str, door: Door, text: str, error: BaseException | None, about: str | None = None
) -> dict[str, Any]:
    """A finding; its signature is the same for findings that are probably one fault."""
    lines = traceback.format_exception(error) if error is not None else []
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [frame for frame in frames if not any(each in frame.filename for each in FOREIGN)]
    at = f"{Path(own[-1].filename).name} {own[-1].name}" if own else getattr(door.read, "__name__", "")
    what = type(error).__name__ if about is None else about
    return {"verdict": verdict, "text": text, "signature": f"{what} at {at}", "trace": "".join(lines)[-6000:]}


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _memory(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the most since `_forget_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def main(kinds: str, seeds: str, box: str, orders: str, answers: str) -> None:
    """Read every input that is ordered, until there are no more orders."""
    log = os.open(Path(box) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    worker = Worker(kinds, Path(seeds), Path(box))
    with os.fdopen(int(orders)) as given, os.fdopen(int(answers), "w") as told:
        for line in given:
            os.truncate(Path(box) / "log", 0)
            order = json.loads(line)
            for answer in worker.read(order["kind"], order["number"]):
                print(json.dumps(answer), file=told, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
