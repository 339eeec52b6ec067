"""Which lines of a module's functions ran, for tests that promise to run all of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any


def _lines(code: CodeType, inside: bool = False) -> set[int]:
    """Lines of functions; what runs at import is not counted."""
    own = {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno} if inside else set()
    for part in code.co_consts:
        if isinstance(part, CodeType):
            # A class body is code too, and has no arguments, like a module: it runs at import.
            is_function = part.co_flags & 0x0002 != 0
            own |= _lines(part, is_function)
    return own


@contextlib.contextmanager
def traced(*modules: ModuleType) -> Iterator[dict[str, set[int]]]:
    """Inside, lines of the modules' functions that run in this thread are taken off; what is left never ran."""
    left: dict[str, set[int]] = {}
    for module in modules:
        file = str(module.__file__)
        left[file] = _lines(compile(Path(file).read_text(encoding="utf-8"), file, "exec"))

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        left[frame.f_code.co_filename].discard(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename in left else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(before)
