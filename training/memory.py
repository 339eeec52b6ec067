"""Memory that a training step gives back is kept by the process, for the next step.

A step on the CPU takes the same hundreds of tensors as the one before. glibc gives large ones back to the system at
once, and every page of them is faulted in anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
DEFAULT_BYTES = 128 * 1024  # of both, mallopt(3)
KEPT_BYTES = 2**31 - 1  # the largest that can be asked for
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards the C library's defaults hold, and it is given back.

    Nothing happens where the C library is not glibc, or where the environment says how it is to allocate.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if library is None or not hasattr(library, "mallopt") or any(name in os.environ for name in SETTINGS):
        yield
        return
    library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    library.mallopt(MMAP_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        library.mallopt(TRIM_THRESHOLD, DEFAULT_BYTES)
        library.mallopt(MMAP_THRESHOLD, DEFAULT_BYTES)
        library.malloc_trim(0)
